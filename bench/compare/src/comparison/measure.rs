//! The measures: the lines of the table, their units, and their goals.

use clap::ValueEnum;
use serde::Serialize;

use crate::peer::Kind;

/// The measures in the order of the table. `--measures` takes the same names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Measure {
    /// Full handshake, P-256, and one request to the plain upstream
    New,
    /// The same with an RSA-2048 certificate of the server
    NewRsa,
    /// Full handshake, P-256, and one 404 of the gateway's own
    NewUnrouted,
    /// Resumed handshake and one request to the plain upstream
    Resumed,
    /// Kept HTTP/1.1 connection, the gateway's own 404
    Static,
    /// Kept HTTP/2 connection, the gateway's own 404
    StaticH2,
    /// Kept HTTP/1.1 connection, request to the plain upstream
    Kept,
    /// Kept HTTP/2 connection, request to the plain upstream
    KeptH2,
    /// Kept HTTP/1.1 connection, request to the mTLS upstream
    KeptMtls,
    /// Kept HTTP/2 connection, request to the mTLS upstream
    KeptMtlsH2,
    /// Unary gRPC calls, mutual TLS on both sides
    GrpcUnary,
    /// A message over a WebSocket and back, mutual TLS on both sides
    WebSocketEcho,
    /// Memory of an idle connection
    Idle,
    /// Many certificates: a start from what is on disk until the last is served
    ManyStart,
    /// Many certificates: a start of the data plane with nothing on disk (Countersign only)
    ManyPushed,
    /// Memory of one of many certificates
    ManyMemory,
    /// One of many certificates is changed: from the request until it is served
    Change,
    /// The same from the Admin API's response (Countersign only)
    ChangeServed,
    /// 99th percentile of other requests while certificates are changed, over that of a quiet phase
    ChangeOthers,
}

/// The target of a measure.
#[derive(Clone, Copy, Debug)]
pub enum Goal {
    /// At most this share of one peer's value, round by round.
    Of(Kind, f64),
    /// At most this share of the best peer's value, round by round.
    OfBest(f64),
    /// At most this share of Countersign's own value of another measure, round by round.
    OfOwn(Measure, f64),
    /// The median is at most this.
    AtMost(f64),
}

impl Goal {
    /// The largest value that meets it.
    pub fn limit(self) -> f64 {
        let (Self::Of(_, limit) | Self::OfBest(limit) | Self::OfOwn(_, limit) | Self::AtMost(limit)) = self;
        limit
    }
}

impl Measure {
    /// All of them, in the order of the table.
    pub fn all() -> impl Iterator<Item = Self> {
        Self::value_variants().iter().copied()
    }

    /// The name on the command line and in file names.
    pub fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// The line of the table.
    pub fn label(self) -> &'static str {
        match self {
            Self::New => "full mTLS handshake, P-256, + one proxied request: server CPU",
            Self::NewRsa => "full mTLS handshake, server RSA-2048, + one proxied request: server CPU",
            Self::NewUnrouted => "full mTLS handshake, P-256, + one 404 of the gateway's own: server CPU",
            Self::Resumed => "resumed handshake + one proxied request: server CPU",
            Self::Static => "keep-alive h1 request, 404 of the gateway's own: server CPU",
            Self::StaticH2 => "keep-alive h2 request, 404 of the gateway's own: server CPU",
            Self::Kept => "keep-alive h1 request, plain upstream: server CPU",
            Self::KeptH2 => "keep-alive h2 request, plain upstream: server CPU",
            Self::KeptMtls => "keep-alive h1 request, mTLS upstream: server CPU",
            Self::KeptMtlsH2 => "keep-alive h2 request, mTLS upstream: server CPU",
            Self::GrpcUnary => "unary gRPC call, mTLS upstream: server CPU",
            Self::WebSocketEcho => "WebSocket message and its echo, mTLS upstream: server CPU",
            Self::Idle => "idle mTLS connection (one request was made): resident memory",
            Self::ManyStart => "many certificates: start from what is on disk until the last is served",
            Self::ManyPushed => "many certificates: start with nothing on disk until the last is served",
            Self::ManyMemory => "one of many certificates (leaf + intermediate): resident memory",
            Self::Change => "one of many certificates changed: from asking until served",
            Self::ChangeOthers => {
                "certificates changed at a pace: 99th percentile of other requests over that of a quiet time"
            }
            Self::ChangeServed => {
                "one of many certificates changed: from the Admin API's answer until served"
            }
        }
    }

    pub fn unit(self) -> &'static str {
        match self {
            Self::Idle | Self::ManyMemory => "KiB",
            Self::ManyStart | Self::ManyPushed | Self::Change | Self::ChangeServed => "ms",
            Self::ChangeOthers => "x",
            _ => "us",
        }
    }

    /// Whether two peers do the same work in a round at nearly the same time: only then is there a
    /// ratio.
    pub fn paired(self) -> bool {
        !self.of_many()
    }

    /// Whether it needs thousands of certificates.
    pub fn of_many(self) -> bool {
        matches!(
            self,
            Self::ManyStart
                | Self::ManyPushed
                | Self::ManyMemory
                | Self::Change
                | Self::ChangeServed
                | Self::ChangeOthers
        )
    }

    /// Whether a peer takes part.
    pub fn includes(self, peer: Kind) -> bool {
        !matches!(self, Self::GrpcUnary | Self::WebSocketEcho) || peer.proxies_echo()
    }

    pub fn goals(self) -> &'static [Goal] {
        match self {
            Self::New => &[Goal::OfBest(0.45), Goal::Of(Kind::Nginx, 0.2)],
            Self::Resumed => &[Goal::OfOwn(Self::New, 0.45), Goal::OfBest(0.55)],
            Self::Kept | Self::KeptMtls => &[Goal::Of(Kind::Nginx, 0.8), Goal::Of(Kind::Haproxy, 0.8)],
            Self::GrpcUnary => &[Goal::Of(Kind::Envoy, 0.6)],
            Self::WebSocketEcho => &[Goal::Of(Kind::Nginx, 0.8)],
            Self::Idle => &[Goal::AtMost(12.0)],
            Self::ManyPushed => &[Goal::AtMost(5000.0)],
            Self::ChangeServed => &[Goal::AtMost(5.0)],
            Self::ChangeOthers => &[Goal::AtMost(1.1)],
            _ => &[],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_measure_has_a_name_and_a_label_of_its_own() {
        let mut names: Vec<_> = Measure::all().map(Measure::name).collect();
        let mut labels: Vec<_> = Measure::all().map(Measure::label).collect();
        for list in [names.len(), labels.len()] {
            assert_eq!(list, Measure::all().count());
        }
        names.sort();
        names.dedup();
        labels.sort_unstable();
        labels.dedup();
        assert_eq!((names.len(), labels.len()), (Measure::all().count(), Measure::all().count()));
    }
}

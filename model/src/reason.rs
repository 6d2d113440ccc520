//! How a connection or a request that did not go well ends: the one place where a reason becomes a
//! status, a page, a metric label and a log field.
//!
//! Every stage of the data plane has its own error type and answers `reason()`; this file holds the
//! closed list. It is here because the control plane explains with the same words. Invariant 10:
//! the reason goes to logs and metrics, the peer learns only the status (or the TLS alert rustls
//! chose).

use http::StatusCode;

macro_rules! reasons {
    ($( $(#[doc = $doc:literal])+ $variant:ident => $label:literal, $status:expr; )+) => {
        /// Why a connection or a request was refused or failed. Closed: operators build alerts on the labels.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Reason { $( $(#[doc = $doc])+ $variant, )+ }

        impl Reason {
            /// All of them, in the order of the walk.
            pub const ALL: &'static [Self] = &[ $( Self::$variant, )+ ];

            /// The metric label and the log field.
            pub fn label(self) -> &'static str {
                match self { $( Self::$variant => $label, )+ }
            }

            /// The status a request that ends so is answered with; none before there is a request.
            pub fn status(self) -> Option<StatusCode> {
                match self { $( Self::$variant => $status, )+ }
            }
        }
    };
}

reasons! {
    /// Plain HTTP was spoken to the TLS port.
    PlainHttp => "plain_http", Some(StatusCode::BAD_REQUEST);
    /// Not TLS, or TLS that breaks the protocol.
    BadHandshake => "bad_handshake", None;
    /// The peer went away during the handshake.
    HandshakeAbandoned => "handshake_abandoned", None;
    /// The peer refused us with an alert.
    RefusedByPeer => "refused_by_peer", None;
    /// The handshake took longer than `limits.handshake_timeout`.
    HandshakeTimeout => "handshake_timeout", None;
    /// No SNI, and no `apisix.ssl.fallback_sni`.
    NoSni => "no_sni", None;
    /// No ssl object answers this SNI (any more: a live connection whose site was taken away ends so, too).
    NoSite => "no_site", None;
    /// The site cannot be served: its certificate and the engine disagree.
    BadSite => "bad_site", None;
    /// The ssl object that claims the name is blocked: another program stored what cannot be honoured.
    BlockedSite => "blocked_site", Some(StatusCode::SERVICE_UNAVAILABLE);
    /// No TLS version in common.
    Version => "version", None;
    /// No cipher suite, group, signature scheme or application protocol in common.
    NoCommonParameters => "no_common_parameters", None;
    /// The site insists on a client certificate and none came.
    NoCertificate => "no_certificate", Some(StatusCode::BAD_REQUEST);
    /// A client certificate came and `pki` refused it; the log says which rule.
    BadCertificate => "bad_certificate", Some(StatusCode::BAD_REQUEST);
    /// The site's client policy has changed since the handshake, and refuses this client now; or its certificate's time is up.
    PolicyMoved => "policy_moved", Some(StatusCode::BAD_REQUEST);

    /// No stream route takes the connection.
    NoStreamRoute => "no_stream_route", None;
    /// The stream route that takes the connection is blocked: another program stored what cannot be honoured.
    BlockedStreamRoute => "blocked_stream_route", None;
    /// Neither side of a stream said anything, or one took nothing, for as long as the upstream's time-outs allow.
    StreamTimeout => "stream_timeout", None;

    /// The client sent no whole head within `client_header_timeout`.
    HeadTimeout => "head_timeout", None;
    /// The client took nothing of what was sent to it for `send_timeout`: of a connection, or of
    /// one HTTP/2 stream.
    SendTimeout => "send_timeout", None;
    /// The request cannot be understood: host, path or framing.
    BadRequest => "bad_request", Some(StatusCode::BAD_REQUEST);
    /// The request line is longer than `limits.header_line_bytes`.
    UriTooLong => "uri_too_long", Some(StatusCode::URI_TOO_LONG);
    /// A header field is longer than `limits.header_line_bytes`, or the head larger than `limits.header_bytes`.
    HeadTooLarge => "head_too_large", Some(StatusCode::BAD_REQUEST);
    /// CONNECT or TRACE, which a gateway does not forward.
    MethodRefused => "method_refused", Some(StatusCode::METHOD_NOT_ALLOWED);
    /// The body has another transfer coding than `chunked`.
    TransferCoding => "transfer_coding", Some(StatusCode::NOT_IMPLEMENTED);
    /// The request asks for another protocol, which is not enabled.
    UpgradeRefused => "upgrade_refused", Some(StatusCode::UPGRADE_REQUIRED);
    /// The request's Host belongs to a site with another client policy than the connection's.
    Misdirected => "misdirected", Some(StatusCode::MISDIRECTED_REQUEST);
    /// The route's (or its service's) allow-list does not name this client, or there is no verified one.
    NotAllowed => "not_allowed", Some(StatusCode::FORBIDDEN);
    /// The body is larger than `client_max_body_size`.
    BodyTooLarge => "body_too_large", Some(StatusCode::PAYLOAD_TOO_LARGE);
    /// The client stopped sending its body.
    BodyTimeout => "body_timeout", Some(StatusCode::REQUEST_TIMEOUT);
    /// The client has as many requests under way as it may (`limits.requests_per_client`).
    TooManyRequests => "too_many_requests", Some(StatusCode::SERVICE_UNAVAILABLE);
    /// A global rule is blocked: another program stored one that was to stop or change requests.
    BlockedGlobalRule => "blocked_global_rule", Some(StatusCode::SERVICE_UNAVAILABLE);
    /// No route matches.
    NoRoute => "no_route", Some(StatusCode::NOT_FOUND);
    /// The route that takes the request is blocked: another program stored what cannot be honoured.
    BlockedRoute => "blocked_route", Some(StatusCode::SERVICE_UNAVAILABLE);
    /// The route's service is blocked: another program stored what cannot be honoured.
    BlockedService => "blocked_service", Some(StatusCode::SERVICE_UNAVAILABLE);
    /// The upstream is blocked: another program stored what cannot be honoured.
    BlockedUpstream => "blocked_upstream", Some(StatusCode::SERVICE_UNAVAILABLE);
    /// The route's service does not exist.
    NoService => "no_service", Some(StatusCode::NOT_FOUND);
    /// Neither the route nor its service names an upstream.
    NoUpstream => "no_upstream", Some(StatusCode::SERVICE_UNAVAILABLE);
    /// The upstream the route names does not exist.
    UpstreamMissing => "upstream_missing", Some(StatusCode::BAD_GATEWAY);
    /// The upstream's client certificate cannot be had: no such ssl object, or not of type client.
    UpstreamIdentity => "upstream_identity", Some(StatusCode::BAD_GATEWAY);
    /// An HTTP request leads to an upstream whose scheme is for streams.
    UpstreamScheme => "upstream_scheme", Some(StatusCode::SERVICE_UNAVAILABLE);
    /// The upstream has no node that can be used.
    NoNode => "no_node", Some(StatusCode::SERVICE_UNAVAILABLE);
    /// The node's name does not resolve.
    UpstreamName => "upstream_name", Some(StatusCode::SERVICE_UNAVAILABLE);
    /// The worker has as many connections to upstreams as its descriptors allow, and none ended in
    /// time.
    UpstreamLimit => "upstream_limit", Some(StatusCode::SERVICE_UNAVAILABLE);
    /// The node refuses connections.
    UpstreamConnect => "upstream_connect", Some(StatusCode::BAD_GATEWAY);
    /// The TLS handshake with the node failed.
    UpstreamTls => "upstream_tls", Some(StatusCode::BAD_GATEWAY);
    /// The node ended the exchange before it had answered, or broke a stream off.
    UpstreamClosed => "upstream_closed", Some(StatusCode::BAD_GATEWAY);
    /// The node answered something that is not HTTP, or whose framing is ambiguous.
    UpstreamInvalid => "upstream_invalid", Some(StatusCode::BAD_GATEWAY);
    /// The node did not accept the connection in time.
    UpstreamConnectTimeout => "upstream_connect_timeout", Some(StatusCode::GATEWAY_TIMEOUT);
    /// The node did not take the request in time.
    UpstreamSendTimeout => "upstream_send_timeout", Some(StatusCode::GATEWAY_TIMEOUT);
    /// The node did not answer in time.
    UpstreamReadTimeout => "upstream_read_timeout", Some(StatusCode::GATEWAY_TIMEOUT);
    /// `retry_timeout` passed before a node answered.
    RetryTimeout => "retry_timeout", Some(StatusCode::BAD_GATEWAY);
}

impl Reason {
    /// Its place in [`Reason::ALL`]; the counters are kept in that order.
    pub fn index(self) -> usize {
        self as usize
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_reason_is_documented_with_its_status() {
        let page = include_str!("../../docs/REASONS.md");
        for reason in Reason::ALL {
            let status = reason.status().map_or(String::new(), |status| status.as_u16().to_string());
            let row = format!("| `{}` | {status} |", reason.label());
            assert!(page.contains(&row), "docs/REASONS.md lacks {row}");
        }
    }

    #[test]
    fn every_rule_is_documented_with_its_alert() {
        let page = include_str!("../../docs/REASONS.md");
        for rule in pki::VerifyReason::ALL {
            let row = format!("| `{rule}` | `{}` |", rule.alert());
            assert!(page.contains(&row), "docs/REASONS.md lacks {row}");
        }
    }

    #[test]
    fn labels_are_unique_and_indexes_match_the_list() {
        let labels: HashSet<_> = Reason::ALL.iter().map(|r| r.label()).collect();
        assert_eq!(labels.len(), Reason::ALL.len());
        for (i, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(reason.index(), i);
        }
    }
}

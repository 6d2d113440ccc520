//! The values that a line takes from what has ended: a request, a TCP connection or a handshake.
//!
//! Invariant: a time or size that is not known is absent, and no list of nginx (one value for each
//! attempt) has more or fewer values than there were attempts.

use std::io::Write as _;
use std::time::Duration;

use conf::{LogEscape, LogVariable};
use data_encoding::HEXLOWER;
use http::StatusCode;
use model::admission::ClientVerification;
use model::{HostName, Id};

use super::clock::{LineTime, write_millis, write_number};
use super::escape::escape;
use super::head::HeadContext;
use crate::filters::variables::ConnectionContext;
use crate::reason::Reason;
use crate::reporting::record::{ConnectionFacts, HandshakeRecord, RequestRecord, TcpRecord};
use crate::upstream::attempts::Attempt;

/// nginx's status of a request whose client went away before the response.
const CLIENT_CLOSED_REQUEST: u16 = 499;
static ANONYMOUS: ClientVerification = ClientVerification::NotRequested;

/// What is the same for all lines of a process.
#[derive(Debug)]
pub(super) struct ProcessFacts {
    pub(super) pid: u32,
    pub(super) hostname: String,
}

impl ProcessFacts {
    pub(super) fn new() -> Self {
        let hostname = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        Self { pid: std::process::id(), hostname: hostname.trim_end().to_owned() }
    }
}

/// What has ended.
#[derive(Debug, Clone, Copy)]
pub(super) enum Ended<'a> {
    /// With its id.
    Request(&'a RequestRecord, u128),
    Tcp(&'a TcpRecord),
    Handshake(&'a HandshakeRecord<'a>),
}

/// The facts of a line.
#[derive(Debug, Clone, Copy)]
pub(super) struct LineFacts<'a> {
    pub(super) ended: Ended<'a>,
    pub(super) connection: &'a ConnectionFacts,
    pub(super) time: LineTime<'a>,
    pub(super) process: &'a ProcessFacts,
}

impl<'a> LineFacts<'a> {
    /// The connection, for variables whose values the line of a request has from its head.
    pub(super) fn head(&self) -> HeadContext<'a> {
        let connection = ConnectionContext {
            info: &self.connection.info,
            sni: self.sni(),
            params: self.connection.tls.get().map(|tls| &tls.params),
            client: self.client(),
        };
        HeadContext { connection, parts: None, target: None }
    }

    /// The server name in the ClientHello.
    pub(super) fn sni(&self) -> Option<&'a HostName> {
        let own = match self.ended {
            Ended::Request(..) => None,
            Ended::Tcp(record) => record.sni.as_ref(),
            Ended::Handshake(record) => record.sni,
        };
        own.or_else(|| self.connection.tls.get().map(|tls| &tls.sni))
    }

    /// The client under the policy of its site.
    pub(super) fn client(&self) -> &'a ClientVerification {
        match self.ended {
            Ended::Request(record, _) => &record.client,
            Ended::Tcp(record) => &record.client,
            Ended::Handshake(_) => &ANONYMOUS,
        }
    }

    /// The site of the connection.
    pub(super) fn site(&self) -> Option<&'a Id> {
        let own = match self.ended {
            Ended::Handshake(record) => record.site.as_deref(),
            Ended::Request(..) | Ended::Tcp(_) => self.connection.tls.get().map(|tls| &*tls.site),
        };
        own.map(|site| site.id())
    }

    pub(super) fn route(&self) -> Option<&'a Id> {
        match self.ended {
            Ended::Request(record, _) => record.route.as_ref().map(|route| route.id()),
            Ended::Tcp(record) => record.route.as_ref(),
            Ended::Handshake(_) => None,
        }
    }

    pub(super) fn service(&self) -> Option<&'a Id> {
        match self.ended {
            Ended::Request(record, _) => record.route.as_ref()?.route.service.as_ref(),
            Ended::Tcp(_) | Ended::Handshake(_) => None,
        }
    }

    pub(super) fn reason(&self) -> Option<Reason> {
        match self.ended {
            Ended::Request(record, _) => record.reason,
            Ended::Tcp(record) => record.reason,
            Ended::Handshake(record) => Some(record.reason),
        }
    }

    pub(super) fn attempts(&self) -> &'a [Attempt] {
        match self.ended {
            Ended::Request(record, _) => record.attempts.all(),
            Ended::Tcp(record) => record.attempts.all(),
            Ended::Handshake(_) => &[],
        }
    }

    /// From the request's head, or the accepted connection, until the end.
    pub(super) fn total(&self) -> Duration {
        match self.ended {
            Ended::Request(record, _) => record.total,
            Ended::Tcp(record) => record.total,
            Ended::Handshake(_) => self.connection.accepted.elapsed(),
        }
    }

    /// Bytes from the client: a request with its head, all of a TCP connection.
    pub(super) fn received(&self) -> Option<u64> {
        match self.ended {
            Ended::Request(record, _) => {
                let tunnel = record.tunnel.map_or(0, |tunnel| tunnel.to_upstream);
                Some(record.request_head_bytes + record.request_body_bytes() + tunnel)
            }
            Ended::Tcp(record) => Some(record.relayed.to_upstream),
            Ended::Handshake(_) => None,
        }
    }

    /// Bytes to the client: a response with its head, all of a TCP connection.
    pub(super) fn sent(&self) -> Option<u64> {
        match self.ended {
            Ended::Request(record, _) => Some(record.response_head_bytes + body_sent(record)),
            Ended::Tcp(record) => Some(record.relayed.to_client),
            Ended::Handshake(_) => None,
        }
    }

    /// nginx's status; 0: there was no response.
    pub(super) fn status(&self) -> u16 {
        match self.ended {
            Ended::Request(record, _) => match record.status {
                Some(status) => status.as_u16(),
                // A head that never became a request may get no response, either.
                None if record.method.is_none() => 0,
                None => CLIENT_CLOSED_REQUEST,
            },
            Ended::Tcp(record) => record.reason.map_or(200, tcp_status),
            Ended::Handshake(record) if record.reason == Reason::PlainHttp => 400,
            Ended::Handshake(_) => 0,
        }
    }

    /// How long an attempt took; the last one ends with the request.
    pub(super) fn attempt_time(&self, attempt: &Attempt) -> Duration {
        let begun = match self.ended {
            Ended::Request(record, _) => record.started,
            Ended::Tcp(_) | Ended::Handshake(_) => self.connection.accepted,
        };
        let to_end = self.total().saturating_sub(attempt.started.saturating_duration_since(begun));
        attempt.failed.unwrap_or(to_end)
    }

    /// Appends the value of a variable. `false`: it is absent, and nothing is appended.
    pub(super) fn write(&self, line: &mut Vec<u8>, variable: &LogVariable, mode: LogEscape) -> bool {
        self.write_common(line, variable, mode)
            || match self.ended {
                Ended::Request(record, id) => self.write_request(line, variable, record, id, mode),
                Ended::Tcp(record) => self.write_tcp(line, variable, record),
                Ended::Handshake(record) => write_handshake(line, variable, record, mode),
            }
    }

    fn write_common(&self, line: &mut Vec<u8>, variable: &LogVariable, mode: LogEscape) -> bool {
        match variable {
            LogVariable::TimeLocal => self.time.write_local(line),
            LogVariable::TimeIso8601 => self.time.write_iso8601(line),
            LogVariable::Msec => self.time.write_msec(line),
            LogVariable::Pid => write_number(line, self.process.pid),
            LogVariable::Hostname => escape(line, self.process.hostname.as_bytes(), mode),
            LogVariable::Version => line.extend_from_slice(env!("CARGO_PKG_VERSION").as_bytes()),
            LogVariable::Connection => write_number(line, self.connection.number),
            LogVariable::Status => {
                let _never_fails = write!(line, "{:03}", self.status());
            }
            LogVariable::Reason => return write_text(line, self.reason().map(Reason::label)),
            LogVariable::Site => return write_text(line, self.site().map(Id::as_str)),
            LogVariable::RouteId => return write_text(line, self.route().map(Id::as_str)),
            LogVariable::ServiceId => return write_text(line, self.service().map(Id::as_str)),
            LogVariable::ClientSha256 => {
                let Some(identity) = self.client().identity() else { return false };
                line.extend_from_slice(HEXLOWER.encode(identity.fingerprint_sha256()).as_bytes());
            }
            LogVariable::HandshakeTime => {
                let Some(tls) = self.connection.tls.get() else { return false };
                write_millis(line, tls.handshake);
            }
            LogVariable::BytesSent => return write_size(line, self.sent()),
            LogVariable::BytesReceived | LogVariable::RequestLength => {
                return write_size(line, self.received());
            }
            LogVariable::RequestTime | LogVariable::SessionTime => write_millis(line, self.total()),
            LogVariable::Pipe => line.push(b'.'),
            _ => return self.write_upstream(line, variable),
        }
        true
    }

    /// The values that each attempt has one of.
    fn write_upstream(&self, line: &mut Vec<u8>, variable: &LogVariable) -> bool {
        let attempts = self.attempts();
        match variable {
            LogVariable::Tries => write_number(line, attempts.len()),
            LogVariable::UpstreamAddr => {
                return write_list(line, attempts, |line, attempt| {
                    let _never_fails = attempt.addr.map(|addr| write!(line, "{addr}"));
                    attempt.addr.is_some()
                });
            }
            LogVariable::BalancerIp | LogVariable::BalancerPort => {
                let Some(addr) = attempts.last().and_then(|attempt| attempt.addr) else { return false };
                let _never_fails = match variable {
                    LogVariable::BalancerIp => write!(line, "{}", addr.ip()),
                    _ => write!(line, "{}", addr.port()),
                };
            }
            LogVariable::UpstreamConnectTime => {
                return write_list(line, attempts, |line, attempt| write_time(line, attempt.connect));
            }
            LogVariable::UpstreamHeaderTime => {
                return write_list(line, attempts, |line, attempt| write_time(line, attempt.header));
            }
            LogVariable::UpstreamResponseTime | LogVariable::UpstreamSessionTime => {
                return write_list(line, attempts, |line, attempt| {
                    write_time(line, Some(self.attempt_time(attempt)))
                });
            }
            LogVariable::UpstreamStatus => {
                return write_list(line, attempts, |line, attempt| {
                    write_text(line, attempt.status.as_ref().map(StatusCode::as_str))
                });
            }
            _ => return false,
        }
        true
    }

    fn write_request(
        &self,
        line: &mut Vec<u8>,
        variable: &LogVariable,
        record: &RequestRecord,
        id: u128,
        mode: LogEscape,
    ) -> bool {
        match variable {
            LogVariable::BodyBytesSent => write_number(line, body_sent(record)),
            LogVariable::RequestCompletion => {
                line.extend_from_slice(if record.is_complete { b"OK" } else { b"" });
            }
            LogVariable::RequestId => write_id(line, id),
            LogVariable::TraceId => {
                let Some(trace) = &record.trace else { return false };
                write_id(line, trace.trace_id.0.get());
            }
            LogVariable::SpanId => {
                let Some(trace) = &record.trace else { return false };
                write_span_id(line, trace.span_id.0.get());
            }
            LogVariable::ConnectionRequests => write_number(line, self.connection.requests.get()),
            LogVariable::FirstByteTime => return write_time(line, record.first_byte),
            LogVariable::UpstreamResponseLength => {
                return write_list(line, record.attempts.all(), |line, attempt| {
                    write_size(line, Some(if attempt.failed.is_some() { 0 } else { body_sent(record) }))
                });
            }
            LogVariable::UpstreamScheme => {
                return write_text(line, record.upstream.as_ref().map(|upstream| upstream.scheme.as_str()));
            }
            LogVariable::UpstreamHost => {
                let Some(host) = record.attempts.host() else { return false };
                escape(line, host.as_bytes(), mode);
            }
            LogVariable::UpstreamUri => {
                let Some(upstream) = &record.upstream else { return false };
                // `"` and bytes above ASCII are legal in it.
                escape(line, upstream.uri.as_str().as_bytes(), mode);
            }
            _ => return false,
        }
        true
    }

    fn write_tcp(&self, line: &mut Vec<u8>, variable: &LogVariable, record: &TcpRecord) -> bool {
        match variable {
            LogVariable::StreamProtocol => line.extend_from_slice(b"TCP"),
            LogVariable::UpstreamBytesSent if !self.attempts().is_empty() => {
                write_number(line, record.relayed.to_upstream);
            }
            LogVariable::UpstreamBytesReceived if !self.attempts().is_empty() => {
                write_number(line, record.relayed.to_client);
            }
            _ => return false,
        }
        true
    }
}

fn write_handshake(
    line: &mut Vec<u8>,
    variable: &LogVariable,
    record: &HandshakeRecord<'_>,
    mode: LogEscape,
) -> bool {
    match variable {
        LogVariable::StreamProtocol => line.extend_from_slice(b"TCP"),
        LogVariable::Detail => escape(line, record.detail.as_bytes(), mode),
        LogVariable::VerifyReason => {
            return write_text(line, record.verify_reason.map(pki::VerifyReason::as_str));
        }
        _ => return false,
    }
    true
}

/// Bytes of a response's body, or those to the client of the tunnel that it opened.
fn body_sent(record: &RequestRecord) -> u64 {
    record.response_body_bytes + record.tunnel.map_or(0, |tunnel| tunnel.to_client)
}

/// nginx's status of a TCP connection that was denied or failed.
fn tcp_status(reason: Reason) -> u16 {
    // An idle connection has done its work.
    if reason == Reason::TcpTimeout {
        return 200;
    }
    match reason.status().map(|status| status.as_u16()) {
        None | Some(403) => 403,
        Some(502 | 504) => 502,
        Some(status @ (400 | 503)) => status,
        Some(_) => 500,
    }
}

/// Text of ours, which needs no escaping.
fn write_text(line: &mut Vec<u8>, text: Option<&str>) -> bool {
    text.is_some_and(|text| {
        line.extend_from_slice(text.as_bytes());
        true
    })
}

fn write_size(line: &mut Vec<u8>, size: Option<u64>) -> bool {
    size.is_some_and(|size| {
        write_number(line, size);
        true
    })
}

fn write_time(line: &mut Vec<u8>, time: Option<Duration>) -> bool {
    time.is_some_and(|time| {
        write_millis(line, time);
        true
    })
}

/// 32 hexadecimal digits.
pub(super) fn write_id(line: &mut Vec<u8>, id: u128) {
    let mut digits = [0; 32];
    HEXLOWER.encode_mut(&id.to_be_bytes(), &mut digits);
    line.extend_from_slice(&digits);
}

/// 16 hexadecimal digits.
pub(super) fn write_span_id(line: &mut Vec<u8>, id: u64) {
    let mut digits = [0; 16];
    HEXLOWER.encode_mut(&id.to_be_bytes(), &mut digits);
    line.extend_from_slice(&digits);
}

/// nginx's list: a value for each attempt, `-` where it has none.
fn write_list(
    line: &mut Vec<u8>,
    attempts: &[Attempt],
    mut write: impl FnMut(&mut Vec<u8>, &Attempt) -> bool,
) -> bool {
    for (nth, attempt) in attempts.iter().enumerate() {
        if nth > 0 {
            line.extend_from_slice(b", ");
        }
        if !write(line, attempt) {
            line.push(b'-');
        }
    }
    !attempts.is_empty()
}

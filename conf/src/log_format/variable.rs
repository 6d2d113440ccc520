//! The variables of access logs, under the names of nginx and APISIX; those that neither has begin
//! with `countersign_`.
//!
//! `docs/ACCESS_LOG.md` has the same list, which a test compares.

use model::Variable;

/// The log that a format is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogSubsystem {
    /// `nginx_config.http`: requests.
    Http,
    /// `nginx_config.stream`: TCP connections.
    Stream,
}

/// A variable of a format.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)] // `ROWS` has their names and meanings
pub enum LogVariable {
    /// A variable that routes and rewrites read, too.
    Request(Variable),
    RequestUri,
    RequestLine,
    RemoteUser,
    /// `sent_http_x_y`: the header `x-y` of the response, in lower case with `-`.
    SentHeader(Box<str>),
    Status,
    BodyBytesSent,
    BytesSent,
    RequestLength,
    RequestTime,
    RequestCompletion,
    RequestId,
    TimeLocal,
    TimeIso8601,
    Msec,
    Pid,
    Hostname,
    Version,
    Connection,
    ConnectionRequests,
    Pipe,
    UpstreamAddr,
    UpstreamStatus,
    UpstreamConnectTime,
    UpstreamHeaderTime,
    UpstreamResponseTime,
    UpstreamResponseLength,
    UpstreamScheme,
    UpstreamHost,
    UpstreamUri,
    BalancerIp,
    BalancerPort,
    RouteId,
    ServiceId,
    Site,
    Reason,
    Detail,
    VerifyReason,
    ClientSha256,
    HandshakeTime,
    FirstByteTime,
    Tries,
    TraceId,
    SpanId,
    /// A variable of nginx or APISIX that is always absent here.
    Absent,
    StreamProtocol,
    BytesReceived,
    SessionTime,
    UpstreamSessionTime,
    UpstreamBytesSent,
    UpstreamBytesReceived,
}

/// The logs whose formats have a variable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Logs {
    Http,
    Stream,
    Both,
}
use Logs::{Both, Http, Stream};

impl Logs {
    fn has(self, subsystem: LogSubsystem) -> bool {
        match self {
            Both => true,
            Http => subsystem == LogSubsystem::Http,
            Stream => subsystem == LogSubsystem::Stream,
        }
    }
}

const CONTENT_LENGTH: &str = "content_length";
const CONTENT_TYPE: &str = "content_type";

/// Name, variable, logs and meaning.
const ROWS: &[(&str, LogVariable, Logs, &str)] = {
    use LogVariable as V;
    &[
        ("request", V::RequestLine, Http, "the request line: method, target and protocol"),
        ("request_uri", V::RequestUri, Http, "the target as the client sent it, with its query"),
        ("remote_user", V::RemoteUser, Http, "the user of Basic authentication; not verified"),
        (
            "status",
            V::Status,
            Both,
            "of the response, `000` without one; 499: the client went away before it. TCP: as nginx, 200, 400, 403, 500, 502 or 503",
        ),
        ("body_bytes_sent", V::BodyBytesSent, Http, "bytes of the response's body"),
        (
            "bytes_sent",
            V::BytesSent,
            Both,
            "bytes sent to the client: head and body, or all of a TCP connection",
        ),
        ("request_length", V::RequestLength, Http, "bytes of the request: head and body"),
        ("request_time", V::RequestTime, Http, "seconds from the request's head to the end of the response"),
        (
            "request_completion",
            V::RequestCompletion,
            Http,
            "`OK` when the whole response was sent, else empty",
        ),
        ("request_id", V::RequestId, Http, "32 random hexadecimal digits"),
        ("apisix_request_id", V::RequestId, Http, "the same"),
        ("time_local", V::TimeLocal, Both, "time of the end, `28/Sep/1970:12:00:00 +0000`, in UTC"),
        ("time_iso8601", V::TimeIso8601, Both, "time of the end, `1970-09-28T12:00:00+00:00`, in UTC"),
        ("msec", V::Msec, Both, "time of the end, seconds since 1970 with milliseconds"),
        ("pid", V::Pid, Both, "of the process"),
        ("hostname", V::Hostname, Both, "of the machine"),
        ("connection", V::Connection, Both, "number of the connection within its worker"),
        (
            "connection_requests",
            V::ConnectionRequests,
            Http,
            "requests so far on the connection, this one included",
        ),
        ("pipe", V::Pipe, Http, "always `.`: no response is written before the one ahead of it"),
        ("upstream_addr", V::UpstreamAddr, Both, "address of each attempt's node"),
        ("upstream_status", V::UpstreamStatus, Http, "status of each attempt"),
        (
            "upstream_connect_time",
            V::UpstreamConnectTime,
            Both,
            "seconds until each attempt's node was connected, with its TLS; 0.000 on an open connection",
        ),
        ("upstream_header_time", V::UpstreamHeaderTime, Http, "seconds until each attempt's response head"),
        (
            "upstream_response_time",
            V::UpstreamResponseTime,
            Http,
            "seconds of each attempt, the last with its body",
        ),
        ("upstream_response_length", V::UpstreamResponseLength, Http, "bytes of the body from the upstream"),
        ("upstream_scheme", V::UpstreamScheme, Http, "`http`, `https`, `grpc` or `grpcs`"),
        ("upstream_host", V::UpstreamHost, Http, "Host that the upstream got"),
        ("upstream_uri", V::UpstreamUri, Http, "path and query that the upstream got"),
        ("upstream_cache_status", V::Absent, Http, "absent: there is no cache"),
        ("balancer_ip", V::BalancerIp, Both, "IP address of the last attempt's node"),
        ("balancer_port", V::BalancerPort, Both, "its port"),
        ("route_id", V::RouteId, Both, "of the route or stream route"),
        ("route_name", V::Absent, Both, "absent: a data plane knows ids, and no names"),
        ("service_id", V::ServiceId, Both, "of the route's service"),
        ("service_name", V::Absent, Both, "absent, too"),
        ("consumer_name", V::Absent, Http, "absent: there are no consumers"),
        ("consumer_group_id", V::Absent, Http, "absent, too"),
        ("countersign_site", V::Site, Both, "id of the connection's ssl"),
        (
            "countersign_reason",
            V::Reason,
            Both,
            "why the request, connection or handshake was denied or failed",
        ),
        ("countersign_detail", V::Detail, Both, "of a refused handshake: the error in words"),
        (
            "countersign_verify_reason",
            V::VerifyReason,
            Both,
            "of a refused handshake: why the client's certificate was rejected",
        ),
        (
            "countersign_client_sha256",
            V::ClientSha256,
            Both,
            "SHA-256 fingerprint of the client's certificate, in lower case",
        ),
        ("countersign_handshake_time", V::HandshakeTime, Both, "seconds of the TLS handshake"),
        (
            "countersign_first_byte_time",
            V::FirstByteTime,
            Http,
            "seconds from the request's head to the response's",
        ),
        ("countersign_tries", V::Tries, Both, "number of attempts"),
        ("countersign_version", V::Version, Both, "of the data plane"),
        ("trace_id", V::TraceId, Http, "of the request's trace (W3C), 32 hexadecimal digits"),
        ("span_id", V::SpanId, Http, "of its server span, 16 hexadecimal digits"),
        ("protocol", V::StreamProtocol, Stream, "always `TCP`"),
        ("bytes_received", V::BytesReceived, Stream, "bytes from the client"),
        ("session_time", V::SessionTime, Stream, "seconds from accept to close"),
        ("upstream_session_time", V::UpstreamSessionTime, Stream, "seconds of the upstream's connection"),
        ("upstream_bytes_sent", V::UpstreamBytesSent, Stream, "bytes to the upstream"),
        ("upstream_bytes_received", V::UpstreamBytesReceived, Stream, "bytes from the upstream"),
        ("ssl_preread_server_name", V::Request(Variable::ServerName), Stream, "the SNI"),
    ]
};

impl LogVariable {
    /// Parses a name without its `$`.
    ///
    /// # Errors
    /// The message names the variable, and a similar one or the log that has it.
    pub fn parse(name: &str, subsystem: LogSubsystem) -> Result<Self, String> {
        if let Some((_, variable, logs, _)) = ROWS.iter().find(|(known, ..)| *known == name) {
            return if logs.has(subsystem) { Ok(variable.clone()) } else { Err(misplaced(name, subsystem)) };
        }
        if matches!(name, CONTENT_LENGTH | CONTENT_TYPE) && subsystem == LogSubsystem::Http {
            return Ok(Self::Request(Variable::Header(name.replace('_', "-").into())));
        }
        if let Some(header) = name.strip_prefix("sent_http_").filter(|header| !header.is_empty())
            && subsystem == LogSubsystem::Http
        {
            return Ok(Self::SentHeader(header.to_ascii_lowercase().replace('_', "-").into()));
        }
        match Variable::parse(name) {
            Some(variable) if subsystem == LogSubsystem::Http || variable.is_of_connection() => {
                Ok(Self::Request(variable))
            }
            Some(_) => Err(misplaced(name, subsystem)),
            None => Err(unknown(name, subsystem)),
        }
    }

    /// Every name of one variable with its meaning, for documents and hints.
    #[cfg(test)]
    pub(crate) fn rows() -> impl Iterator<Item = (&'static str, &'static str)> {
        ROWS.iter().map(|(name, _, _, meaning)| (*name, *meaning))
    }
}

fn misplaced(name: &str, subsystem: LogSubsystem) -> String {
    let (it, not) = match subsystem {
        LogSubsystem::Http => ("nginx_config.stream", "a request"),
        LogSubsystem::Stream => ("nginx_config.http", "a TCP connection"),
    };
    format!("${name} is a variable of {it}: {not} has none")
}

fn unknown(name: &str, subsystem: LogSubsystem) -> String {
    let own = ROWS.iter().filter(|(_, _, logs, _)| logs.has(subsystem)).map(|(known, ..)| *known);
    let of_requests = Variable::names()
        .filter(|(_, variable)| subsystem == LogSubsystem::Http || variable.is_of_connection());
    let names = own.chain(of_requests.map(|(known, _)| known));
    let nearest = names.map(|known| (strsim::damerau_levenshtein(known, name), known)).min();
    match nearest {
        Some((distance, known)) if distance <= 1 + name.len() / 4 => {
            format!("unknown variable ${name} (did you mean ${known}?)")
        }
        _ => format!("unknown variable ${name}; docs/ACCESS_LOG.md lists the variables"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_has_two_meanings() {
        for (nth, (name, ..)) in ROWS.iter().enumerate() {
            assert!(ROWS[nth + 1..].iter().all(|(other, ..)| other != name), "{name}");
        }
        // The target of a log line is the one that the client sent.
        let names = Variable::names().map(|(name, _)| name);
        let shadowed: Vec<_> = names.filter(|name| ROWS.iter().any(|row| row.0 == *name)).collect();
        assert_eq!(shadowed, ["request_uri"]);
    }

    #[test]
    fn families_of_names_are_parsed() {
        let http = |name: &str| LogVariable::parse(name, LogSubsystem::Http);
        assert_eq!(http("sent_http_Content_Type").unwrap(), LogVariable::SentHeader("content-type".into()));
        let header = |name: &str| Ok(LogVariable::Request(Variable::Header(name.into())));
        assert_eq!(http("content_type"), header("content-type"));
        assert_eq!(http("http_user_agent"), header("user-agent"));
        assert_eq!(http("cookie_a"), Ok(LogVariable::Request(Variable::Cookie("a".into()))));
        for unknown in ["sent_http_", "http_", "binary_remote_addr", "nginx_version", "post_arg_x"] {
            assert!(http(unknown).is_err(), "{unknown}");
        }
    }

    #[test]
    fn a_tcp_connection_has_no_request() {
        let stream = |name: &str| LogVariable::parse(name, LogSubsystem::Stream);
        for known in ["remote_addr", "ssl_client_s_dn", "ssl_protocol", "protocol", "bytes_received"] {
            assert!(stream(known).is_ok(), "{known}");
        }
        for (name, expected) in [
            ("uri", "$uri is a variable of nginx_config.http: a TCP connection has none"),
            ("request_time", "a TCP connection has none"),
            ("http_host", "a TCP connection has none"),
            ("byte_sent", "did you mean $bytes_sent?"),
            ("sent_http_x", "unknown variable"),
        ] {
            assert!(stream(name).unwrap_err().contains(expected), "{name}: {:?}", stream(name));
        }
    }

    /// docs/ACCESS_LOG.md must contain the table of variables.
    #[test]
    fn the_document_lists_the_variables() {
        let of_requests = Variable::names().map(|(name, _)| name).filter(|name| *name != "request_uri");
        let rows: Vec<String> =
            LogVariable::rows().map(|(name, meaning)| format!("| `{name}` | {meaning} |")).collect();
        let document = include_str!("../../../docs/ACCESS_LOG.md");
        for row in &rows {
            assert!(
                document.lines().any(|line| line == row),
                "docs/ACCESS_LOG.md must hold this row:\n{row}"
            );
        }
        for name in of_requests {
            assert!(document.contains(&format!("`{name}`")), "docs/ACCESS_LOG.md must name `{name}`");
        }
    }
}

//! The facts about a connection, a request, a TCP connection and a refused handshake.
//!
//! Invariant: plain values, whose meaning no report changes; what a client sent is escaped where
//! it is written.

use std::cell::{Cell, OnceCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use http::uri::PathAndQuery;
use http::{HeaderMap, Method, Request, Response, StatusCode, Version};
use model::admission::ClientVerification;
use model::{HostName, Scheme};
use pki::{CertificateDer, VerifyReason};

use super::access_log::head::{CachedPart, CapturedHead};
use super::request_trace::RequestTrace;
use super::routes::{RouteEntry, SiteEntry};
use crate::io::connection_info::ConnectionInfo;
use crate::reason::Reason;
use crate::tls::params::NegotiatedParams;
use crate::upstream::attempts::Attempts;
use crate::upstream::request_body::SendProgress;

/// What is known of a client connection, for all that is reported of it.
#[derive(Debug)]
pub(crate) struct ConnectionFacts {
    pub(crate) info: ConnectionInfo,
    /// When it was accepted.
    pub(crate) accepted: Instant,
    /// Set when the handshake has been completed.
    pub(crate) tls: OnceCell<TlsFacts>,
    /// Requests begun so far.
    pub(crate) requests: Cell<u64>,
    /// Its number within the worker.
    pub(crate) number: u64,
    /// The part that all its lines in the access log have.
    pub(crate) access_log: CachedPart,
}

/// A completed handshake.
#[derive(Debug)]
pub(crate) struct TlsFacts {
    /// The server name in the ClientHello.
    pub(crate) sni: HostName,
    pub(crate) params: NegotiatedParams,
    /// From the accepted connection until the end of the handshake.
    pub(crate) handshake: Duration,
    /// The site that it was made with.
    pub(crate) site: Rc<SiteEntry>,
}

impl ConnectionFacts {
    /// A connection that has just been accepted.
    pub(crate) fn new(info: ConnectionInfo, accepted: Instant, number: u64) -> Self {
        let (tls, requests, access_log) = (OnceCell::new(), Cell::new(0), CachedPart::default());
        Self { info, accepted, tls, requests, number, access_log }
    }
}

/// What is known of a request. The fields after `client` are set as the request proceeds.
#[derive(Debug)]
pub(crate) struct RequestRecord {
    /// When its head had arrived.
    pub(crate) started: Instant,
    /// `None`: the head was malformed, and never became a request.
    pub(crate) method: Option<Method>,
    pub(crate) version: Version,
    /// The client's address, which a trusted proxy may name.
    pub(crate) client_addr: SocketAddr,
    /// The client, as this request's site verified it.
    pub(crate) client: ClientVerification,
    pub(crate) route: Option<Rc<RouteEntry>>,
    /// Why it was refused or failed.
    pub(crate) reason: Option<Reason>,
    /// The status that counts: for gRPC, the HTTP status of its reason. `None`: the client went
    /// away before the response.
    pub(crate) status: Option<StatusCode>,
    pub(crate) upstream: Option<UpstreamFacts>,
    pub(crate) attempts: Attempts,
    /// Bytes of the request's head, as HTTP/1.1 would have it.
    pub(crate) request_head_bytes: u64,
    /// The progress of the request's body.
    pub(crate) request_body: Option<SendProgress>,
    /// Bytes of the response's head, as HTTP/1.1 would have it.
    pub(crate) response_head_bytes: u64,
    pub(crate) response_body_bytes: u64,
    /// Of the tunnel that the response opened.
    pub(crate) tunnel: Option<RelayedBytes>,
    /// From the start until the head of the response was ready.
    pub(crate) first_byte: Option<Duration>,
    /// From the start until the response had ended.
    pub(crate) total: Duration,
    /// Whether the whole response went to the server's connection.
    pub(crate) is_complete: bool,
    /// `None`: requests are not traced, or the head was malformed.
    pub(crate) trace: Option<RequestTrace>,
    /// What the access log keeps of the head.
    pub(crate) head: CapturedHead,
}

impl TcpRecord {
    /// A connection that has just begun.
    pub(crate) fn new(sni: Option<&HostName>, client: ClientVerification) -> Self {
        Self {
            sni: sni.cloned(),
            total: Duration::ZERO,
            client,
            route: None,
            reason: None,
            attempts: Attempts::default(),
            relayed: RelayedBytes::default(),
            is_complete: false,
        }
    }
}

/// The bytes of a relay.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct RelayedBytes {
    pub(crate) to_upstream: u64,
    pub(crate) to_client: u64,
}

/// What was sent to the upstream.
#[derive(Debug)]
pub(crate) struct UpstreamFacts {
    pub(crate) scheme: Scheme,
    /// Path and query.
    pub(crate) uri: PathAndQuery,
}

impl RequestRecord {
    /// A request whose head has just arrived.
    pub(crate) fn new<B>(connection: &ConnectionFacts, request: &Request<B>) -> Self {
        let target = request.uri().path_and_query().map_or(1, |target| target.as_str().len());
        // HTTP/2 has no `Host`.
        let authority = request.uri().authority().map_or(0, |authority| authority.as_str().len() + 8);
        // Blanks and version of the request line, and the line breaks of it and of the head's end.
        let line = request.method().as_str().len() + target + 14;
        let head_bytes = line + authority + fields_len(request.headers());
        Self {
            method: Some(request.method().clone()),
            version: request.version(),
            request_head_bytes: head_bytes as u64,
            ..Self::malformed(connection)
        }
    }

    /// A head that never became a request.
    pub(crate) fn malformed(connection: &ConnectionFacts) -> Self {
        connection.requests.set(connection.requests.get() + 1);
        Self {
            started: Instant::now(),
            method: None,
            version: Version::HTTP_11,
            client_addr: connection.info.peer,
            client: ClientVerification::NotRequested,
            route: None,
            reason: None,
            status: None,
            upstream: None,
            attempts: Attempts::default(),
            request_head_bytes: 0,
            request_body: None,
            response_head_bytes: 0,
            response_body_bytes: 0,
            tunnel: None,
            first_byte: None,
            total: Duration::ZERO,
            is_complete: false,
            trace: None,
            head: CapturedHead::default(),
        }
    }

    /// The response's head is ready. `status`: the one that counts.
    pub(crate) fn responded<B>(&mut self, response: &Response<B>, status: StatusCode) {
        self.first_byte = Some(self.started.elapsed());
        self.status = Some(status);
        // `HTTP/1.1 200 ` and the line breaks; the reason phrase depends on the version.
        self.response_head_bytes = (17 + fields_len(response.headers())) as u64;
        self.head.capture_response(response.headers());
    }

    /// Bytes of the request's body that the client has sent.
    pub(crate) fn request_body_bytes(&self) -> u64 {
        self.request_body.as_ref().map_or(0, SendProgress::received)
    }
}

/// The length of header fields in HTTP/1.1.
fn fields_len(fields: &HeaderMap) -> usize {
    fields.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum()
}

/// What is known of a TCP connection that has ended.
#[derive(Debug)]
pub(crate) struct TcpRecord {
    /// The name in the ClientHello, of TLS that was terminated or passed on.
    pub(crate) sni: Option<HostName>,
    /// From the accepted connection until its end.
    pub(crate) total: Duration,
    /// The client; `NotRequested` without TLS and where TLS was passed on.
    pub(crate) client: ClientVerification,
    /// The id of the stream route.
    pub(crate) route: Option<model::Id>,
    /// Why it was refused or failed.
    pub(crate) reason: Option<Reason>,
    pub(crate) attempts: Attempts,
    pub(crate) relayed: RelayedBytes,
    /// Both sides have closed.
    pub(crate) is_complete: bool,
}

/// What is known of a handshake that was refused or failed.
#[derive(Debug)]
pub(crate) struct HandshakeRecord<'a> {
    pub(crate) reason: Reason,
    /// The name in the ClientHello, if it was read.
    pub(crate) sni: Option<&'a HostName>,
    /// The site of that name.
    pub(crate) site: Option<Rc<SiteEntry>>,
    /// Why the client's certificate was rejected.
    pub(crate) verify_reason: Option<VerifyReason>,
    /// The client's certificate, if it was rejected.
    pub(crate) leaf: Option<&'a CertificateDer<'static>>,
    /// What went wrong.
    pub(crate) detail: &'a str,
}

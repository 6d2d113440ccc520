//! One request to an upstream and its response, over as many nodes as it takes and may take.
//!
//! Both bodies are streamed. Sent again are requests that failed before the node can have seen
//! them, and idempotent ones without a body (contract section 8, RFC 9110 section 9.2.2).

mod checkout;
mod http1;
mod http2;

use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use http::request::Parts;
use http::uri::PathAndQuery;
use http::{Extensions, HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header};
use model::{Node, Scheme, Timeouts, Upstream};

use self::checkout::Checkout;
use super::attempts::Attempts;
use super::client::{NodeAttempts, UpstreamClient, UpstreamError, UpstreamTarget};
use super::client_tls::ClientTlsConfig;
use super::framing::{self, FramingError};
use super::host_header;
use super::http2::head::AuthorityError;
use super::pool::PoolLease;
use super::pool::key::UpstreamProtocol;
use super::request_body::{RequestBody, SendProgress, WaitState};
use super::response_body::UpstreamResponseBody;
use crate::http::trailers::AnnouncedTrailers;
use crate::http::upgrade::SwitchError;
use crate::io::coarse_timer::{CoarseTimer, CoarseTimers};
use crate::observability::HasReason;
use crate::reason::Reason;
use crate::tls::alert::received_alert;

/// There is no response for the client.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExchangeError {
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    /// The exchange failed on a connection.
    #[error("{addr}: {error}")]
    Http { addr: SocketAddr, error: hyper::Error },
    /// The exchange failed on its stream, or with its connection.
    #[error("{addr}: HTTP/2: {error}")]
    Http2 { addr: SocketAddr, error: h2::Error },
    /// The node sends 1xx responses without end.
    #[error("{addr}: more than {max} interim responses")]
    InterimResponses { addr: SocketAddr, max: u32 },
    /// The request has no `:authority`.
    #[error("{addr}: {error}")]
    Authority { addr: SocketAddr, error: AuthorityError },
    /// The node ended the TLS connection before it responded: it rejects the client certificate,
    /// for example.
    #[error("{addr}: the node sent the TLS alert {alert}")]
    Alert { addr: SocketAddr, alert: String },
    /// The response cannot be forwarded.
    #[error("{addr}: {error}")]
    Framing { addr: SocketAddr, error: FramingError },
    /// The response opens no tunnel, though its status does.
    #[error("{addr}: {error}")]
    Switch { addr: SocketAddr, error: SwitchError },
    /// The response came while the body was incomplete, and the connection stays open without it.
    #[error("{addr}: responded to a request whose body was not sent")]
    RequestBodyUnsent { addr: SocketAddr },
    /// One of the two timeouts, of sending and of reading, passed.
    #[error("{addr}: {} after {within:?}", .reason.label())]
    Timeout { addr: SocketAddr, reason: Reason, within: Duration },
    /// The deadline of a gRPC call passed.
    #[error("the deadline of the call (grpc-timeout) passed")]
    Deadline,
    /// The client's body failed, which is no fault of a node.
    #[error("the client's body: {}", .0.label())]
    ClientBody(Reason),
}

impl ExchangeError {
    /// A connection over HTTP/1 has failed: by an alert, where the upstream has sent one.
    pub(in crate::upstream) fn of_http1(addr: SocketAddr, error: hyper::Error) -> Self {
        match received_alert(&error) {
            Some(alert) => Self::Alert { addr, alert },
            None => Self::Http { addr, error },
        }
    }
}

impl HasReason for ExchangeError {
    fn reason(&self) -> Reason {
        match self {
            Self::Upstream(error) => error.reason(),
            Self::Framing { .. } | Self::Switch { .. } | Self::InterimResponses { .. } => {
                Reason::UpstreamInvalid
            }
            Self::Alert { .. } => Reason::UpstreamTls,
            Self::Http { error, .. } if error.is_parse() => Reason::UpstreamInvalid,
            Self::Http2 { error, .. } if error.is_library() => Reason::UpstreamInvalid,
            Self::Http { .. } | Self::Http2 { .. } | Self::RequestBodyUnsent { .. } => Reason::UpstreamClosed,
            Self::Authority { .. } => Reason::BadRequest,
            Self::Deadline => Reason::DeadlineExceeded,
            Self::Timeout { reason, .. } | Self::ClientBody(reason) => *reason,
        }
    }
}

impl ExchangeError {
    /// The status of a failed attempt in `$upstream_status`: 504 where the node was too slow, else
    /// 502. `None`: no node was dialled, or the client failed.
    pub(super) fn attempt_status(&self) -> Option<StatusCode> {
        match self {
            Self::ClientBody(_) | Self::Authority { .. } | Self::Deadline => None,
            Self::Upstream(error) => error.attempt_status(),
            _ => self.reason().status(),
        }
    }
}

struct FailedAttempt {
    error: ExchangeError,
    /// The connection came from the pool, and the node may have closed it for its age: it has sent
    /// nothing of a response.
    stale: bool,
}

impl From<ExchangeError> for FailedAttempt {
    fn from(error: ExchangeError) -> Self {
        Self { error, stale: false }
    }
}

impl UpstreamClient {
    /// Sends the request and returns the response once its head has arrived. `record` gets each
    /// attempt.
    ///
    /// `request` is taken when it is sent, and put back when the node cannot have seen it. By
    /// reference, because each future on the way to the connection would be larger by all of it,
    /// twice, and is moved as a whole when the request begins.
    ///
    /// # Errors
    /// [`ExchangeError`] of the last attempt.
    pub(crate) async fn send_request(
        &self,
        target: &UpstreamTarget<'_>,
        request: &mut Option<Request<RequestBody>>,
        record: &mut Attempts,
    ) -> Result<Response<UpstreamResponseBody>, ExchangeError> {
        // Boxed for the same reason.
        let mut response = Box::pin(self.try_nodes(target, request, record));
        let Some(deadline) = target.deadline else { return response.await };
        let mut timer = self.timers.after(deadline.saturating_duration_since(Instant::now()));
        // Dropping the exchange resets its stream.
        poll_fn(|cx| match response.as_mut().poll(cx) {
            Poll::Pending => timer.poll(cx).map(|()| Err(ExchangeError::Deadline)),
            ready => ready,
        })
        .await
    }

    async fn try_nodes(
        &self,
        target: &UpstreamTarget<'_>,
        request: &mut Option<Request<RequestBody>>,
        record: &mut Attempts,
    ) -> Result<Response<UpstreamResponseBody>, ExchangeError> {
        let prepared = self.tls_configs.prepared(target.upstream);
        let protocol = protocol(target.upstream)?;
        let tls_config = self.tls_configs.find(target.upstream, &prepared, target.snapshot);
        let tls_config = tls_config.map_err(UpstreamError::from)?;
        // Kept for every request that may be sent twice, not only where there are other nodes: the
        // node may just be closing the connection that the pool has.
        let template = request.as_ref().filter(|request| is_retriable(request)).map(RetryTemplate::new);
        let mut last = UpstreamError::NoNode.into();
        let mut attempts = NodeAttempts::new(target.upstream, &prepared.balancer);
        while let Some(node) = attempts.next_node()? {
            // A stale connection of the pool is no failed attempt: the node gets a fresh one.
            let mut fresh = false;
            loop {
                if request.is_none() {
                    let Some(template) = &template else { return Err(last) };
                    *request = Some(template.request());
                }
                record.begin();
                if let Some(request) = request.as_mut() {
                    record.set_trace_headers(request.headers_mut());
                }
                let attempt =
                    self.attempt(target, (protocol, tls_config.as_ref()), node, (request, fresh), record);
                let failed = match attempt.await {
                    Ok(response) => {
                        record.responded(response.status());
                        return Ok(response);
                    }
                    Err(failed) => failed,
                };
                last = failed.error;
                record.failed(last.attempt_status());
                // The fault of the request, not of the node.
                if matches!(last, ExchangeError::ClientBody(_) | ExchangeError::Authority { .. }) {
                    return Err(last);
                }
                if !failed.stale || fresh {
                    break;
                }
                fresh = true;
            }
            tracing::debug!(node = %node.host, error = %last, "a node failed");
        }
        Err(last)
    }

    async fn attempt(
        &self,
        target: &UpstreamTarget<'_>,
        (protocol, tls_config): (UpstreamProtocol, Option<&Arc<ClientTlsConfig>>),
        node: &Node,
        (request, fresh): (&mut Option<Request<RequestBody>>, bool),
        record: &mut Attempts,
    ) -> Result<Response<UpstreamResponseBody>, FailedAttempt> {
        let host = host_header::upstream_host(target.upstream, target.authority, node);
        record.set_host(&host);
        let settings = self.settings.get();
        let keepalive = target.upstream.keepalive.unwrap_or(settings.keepalive);
        let checkout = Checkout {
            host: &host,
            protocol,
            tls_config,
            keepalive,
            max_connections: keepalive.max_connections.unwrap_or(settings.connections_per_node),
            connect_timeout: target.timeouts.connect,
            // Another upstream of the same node may have kept one.
            fresh: fresh || keepalive.requests <= 1,
        };
        let port = node.port.or(target.upstream.scheme.default_port());
        let checkout = async |addr: SocketAddr| {
            record.set_addr(addr);
            self.checkout(addr, &checkout, record).await
        };
        match self.connect_node(node, port, checkout).await.map_err(ExchangeError::from)? {
            PoolLease::Http1(connection) => self.attempt_http1(target, connection, request, &host).await,
            // Boxed: not every request pays for the larger state.
            PoolLease::Http2(stream) => Box::pin(self.attempt_http2(target, stream, request, &host)).await,
        }
    }
}

/// The version of HTTP to the nodes of an upstream.
fn protocol(upstream: &Upstream) -> Result<UpstreamProtocol, UpstreamError> {
    match upstream.scheme {
        Scheme::Http => Ok(UpstreamProtocol::Http1),
        Scheme::Https if upstream.http2 => Ok(UpstreamProtocol::Negotiated),
        Scheme::Https => Ok(UpstreamProtocol::Http1),
        Scheme::Grpc | Scheme::Grpcs => Ok(UpstreamProtocol::Http2),
        tcp @ (Scheme::Tcp | Scheme::Tls) => Err(UpstreamError::Scheme(tcp.as_str())),
    }
}

/// Waits for the response. The upstream's timeouts run only while it is the upstream that is
/// waited for, not the client.
pub(super) async fn response_in_time<F: Future>(
    mut response: Pin<&mut F>,
    progress: &SendProgress,
    timeouts: &Timeouts,
    timers: &Rc<CoarseTimers>,
) -> Result<F::Output, (Reason, Duration)> {
    let mut timer: Option<CoarseTimer> = None;
    poll_fn(|cx| {
        if let Poll::Ready(response) = response.as_mut().poll(cx) {
            return Poll::Ready(Ok(response));
        }
        loop {
            let (since, limit, reason) = match progress.waiting() {
                WaitState::Client => (Instant::now(), timeouts.send, Reason::UpstreamSendTimeout),
                WaitState::Send(since) => (since, timeouts.send, Reason::UpstreamSendTimeout),
                WaitState::Response(since) => (since, timeouts.read, Reason::UpstreamReadTimeout),
            };
            let left = limit.saturating_sub(since.elapsed());
            if left.is_zero() {
                return Poll::Ready(Err((reason, limit)));
            }
            let timer = timer.get_or_insert_with(|| timers.after(left));
            if timer.poll(cx).is_pending() {
                return Poll::Pending;
            }
            timer.reset(left);
        }
    })
    .await
}

/// Sets `Host`. With `pass_host: pass` the request has the value already.
pub(super) fn set_host(request: &mut Request<RequestBody>, host: &str) {
    let is_set = request.headers().get(header::HOST).is_some_and(|set| set.as_bytes() == host.as_bytes());
    if let (false, Ok(value)) = (is_set, HeaderValue::from_str(host)) {
        request.headers_mut().insert(header::HOST, value);
    }
}

/// The request of an attempt.
///
/// # Errors
/// Never: [`UpstreamClient::try_nodes`] begins no attempt without one.
fn take(request: &mut Option<Request<RequestBody>>) -> Result<Request<RequestBody>, ExchangeError> {
    request.take().ok_or_else(|| UpstreamError::NoNode.into())
}

/// Whether the request may be sent again after a node has seen it.
fn is_retriable(request: &Request<RequestBody>) -> bool {
    let idempotent = matches!(
        *request.method(),
        Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::PUT | Method::DELETE
    );
    idempotent && request.body().is_empty()
}

/// A retriable request, which has no body.
pub(super) struct RetryTemplate {
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    /// The case of header names, where it is kept.
    extensions: Extensions,
}

impl RetryTemplate {
    pub(super) fn new(request: &Request<RequestBody>) -> Self {
        Self {
            method: request.method().clone(),
            uri: request.uri().clone(),
            headers: request.headers().clone(),
            extensions: request.extensions().clone(),
        }
    }

    pub(super) fn request(&self) -> Request<RequestBody> {
        let mut request = Request::new(RequestBody::empty());
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = self.headers.clone();
        *request.extensions_mut() = self.extensions.clone();
        request
    }
}

/// The request as it is sent to the upstream: HTTP/1.1, framed by its body, origin form. `path`
/// belongs to the normalized target; the URI of `parts` is not used.
pub fn upstream_request(mut parts: Parts, path: PathAndQuery, mut body: RequestBody) -> Request<RequestBody> {
    if framing::set_request_framing(&mut parts.headers, &body) {
        body.allow_trailers(AnnouncedTrailers::new(&parts.headers));
    }
    let mut request = Request::new(body);
    *request.method_mut() = parts.method;
    *request.version_mut() = Version::HTTP_11;
    *request.uri_mut() = Uri::from(path);
    *request.headers_mut() = parts.headers;
    *request.extensions_mut() = parts.extensions;
    request
}

#[cfg(test)]
mod tests;

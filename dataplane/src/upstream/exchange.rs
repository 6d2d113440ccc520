//! One request to an upstream and its answer, over as many nodes as it takes and may take.
//!
//! Stands between routing and the answer to the client. Both bodies are streamed. What may be tried
//! again: everything that failed before the node can have seen the request; after that only
//! idempotent requests without a body (contract section 8, RFC 9110 section 9.2.2).

use std::future::{Future, poll_fn};
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderValue, Method, Request, Response, Uri, Version, header};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use model::resource::{KeepalivePool, Node, Scheme, Timeouts};

use super::client::{ADDRESSES_MAX, NodeAttempts, UpstreamClient, UpstreamError, UpstreamTarget};
use super::client_tls::ClientTlsConfig;
use super::connector::{self, ConnectError};
use super::framing::{self, FramingError};
use super::host_header;
use super::pool::{PoolKey, PooledConnection};
use super::request_body::{RequestBody, SendProgress, WaitState};
use super::response_body::UpstreamResponseBody;
use super::status_header::UpstreamStatus;
use crate::io::coarse_timer::{CoarseTimer, CoarseTimers};
use crate::observability::reason::HasReason;
use crate::reason::Reason;

/// No answer to give to the client.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// There was nobody to talk to.
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    /// The exchange failed on a connection.
    #[error("{addr}: {error}")]
    Http {
        /// The node.
        addr: SocketAddr,
        /// As hyper said.
        error: hyper::Error,
    },
    /// The node's answer cannot be forwarded.
    #[error("{addr}: {error}")]
    Framing {
        /// The node.
        addr: SocketAddr,
        /// What is wrong with it.
        error: FramingError,
    },
    /// The connection went on without the request's body.
    #[error("{addr}: answered a request whose body was not sent")]
    RequestBodyUnsent {
        /// The node.
        addr: SocketAddr,
    },
    /// The node was too slow.
    #[error("{addr}: {} after {within:?}", .reason.label())]
    Timeout {
        /// The node.
        addr: SocketAddr,
        /// Which of the two time-outs.
        reason: Reason,
        /// How long it may take.
        within: Duration,
    },
    /// The client's body failed; no node is to blame.
    #[error("the client's body: {}", .0.label())]
    ClientBody(Reason),
}

impl HasReason for ExchangeError {
    fn reason(&self) -> Reason {
        match self {
            Self::Upstream(error) => error.reason(),
            Self::Framing { .. } => Reason::UpstreamInvalid,
            Self::Http { error, .. } if error.is_parse() => Reason::UpstreamInvalid,
            Self::Http { .. } | Self::RequestBodyUnsent { .. } => Reason::UpstreamClosed,
            Self::Timeout { reason, .. } | Self::ClientBody(reason) => *reason,
        }
    }
}

/// A failed try, and what may be done about it.
struct FailedAttempt {
    error: ExchangeError,
    /// The request, when the node cannot have seen it.
    unsent: Option<Request<RequestBody>>,
    /// The connection came from the pool and may simply have been too old.
    stale: bool,
}

impl UpstreamClient {
    /// Sends the request and returns the answer once its head is there. `status` is told of each
    /// try.
    ///
    /// # Errors
    /// [`ExchangeError`] of the last try.
    pub async fn send_request(
        &self,
        plan: &UpstreamTarget<'_>,
        request: Request<RequestBody>,
        status: &mut UpstreamStatus,
    ) -> Result<Response<UpstreamResponseBody>, ExchangeError> {
        let prepared = self.tls_configs.prepared(plan.upstream);
        let client_tls = match plan.upstream.scheme {
            Scheme::Http => None,
            Scheme::Https => {
                let client = self.tls_configs.client_config(plan.upstream, &prepared, plan.snapshot);
                Some(client.map_err(UpstreamError::from)?)
            }
            streams => return Err(UpstreamError::Scheme(streams.as_str()).into()),
        };
        // Kept for every request that may be sent twice, not only where there are other nodes: the
        // connection from the pool may be one that its node is just closing.
        let template = if is_retriable(&request) { Some(parts_of(&request)) } else { None };
        let mut next = Some(request);
        let mut last = UpstreamError::NoNode.into();
        let mut tries = NodeAttempts::new(plan.upstream, &prepared.balancer);
        while let Some(node) = tries.next_node()? {
            let mut request = match (next.take(), &template) {
                (Some(request), _) => request,
                (None, Some(template)) => repeat(template),
                (None, None) => break,
            };
            // A connection that went stale in the pool is no failed try: the same node gets a fresh one.
            let mut fresh = false;
            loop {
                let failure = match self.attempt(plan, client_tls.as_ref(), node, request, fresh).await {
                    Ok(response) => {
                        status.record_response(response.status());
                        return Ok(response);
                    }
                    Err(failure) => failure,
                };
                last = failure.error;
                status.record_failure(&last);
                if matches!(last, ExchangeError::ClientBody(_)) {
                    return Err(last);
                }
                next = failure.unsent;
                if !failure.stale || fresh {
                    break;
                }
                request = match (next.take(), &template) {
                    (Some(request), _) => request,
                    (None, Some(template)) => repeat(template),
                    (None, None) => return Err(last),
                };
                fresh = true;
            }
            tracing::debug!(node = %node.host, error = %last, "a node failed");
        }
        Err(last)
    }

    async fn attempt(
        &self,
        plan: &UpstreamTarget<'_>,
        client_tls: Option<&Arc<ClientTlsConfig>>,
        node: &Node,
        mut request: Request<RequestBody>,
        fresh: bool,
    ) -> Result<Response<UpstreamResponseBody>, FailedAttempt> {
        let host = host_header::upstream_host(plan.upstream, plan.authority, node);
        // Passed on as the client wrote it, it stands there already.
        let said = request.headers().get(header::HOST).is_some_and(|said| said.as_bytes() == host.as_bytes());
        if let (false, Ok(value)) = (said, HeaderValue::from_str(&host)) {
            request.headers_mut().insert(header::HOST, value);
        }
        let unsent = |error: UpstreamError, request| FailedAttempt {
            error: error.into(),
            unsent: Some(request),
            stale: false,
        };
        let Some(port) = node.port.or(plan.upstream.scheme.default_port()) else {
            return Err(unsent(UpstreamError::NoPort(node.host.clone()), request));
        };
        let addresses = self.resolver.resolve(&node.host).await;
        let wanted = Checkout {
            host: &host,
            port,
            tls: client_tls,
            keepalive: plan.upstream.keepalive.unwrap_or(self.keepalive),
            within: plan.timeouts.connect,
            fresh,
        };
        let mut lease = match self.checkout(&addresses, &wanted).await {
            Ok(Some(lease)) => lease,
            Ok(None) => return Err(unsent(UpstreamError::Resolve(node.host.clone()), request)),
            Err(error) => return Err(unsent(error.into(), request)),
        };
        let progress = request.body().progress();
        let (reused, addr) = (lease.reused, lease.addr());
        let answer = lease.sender.try_send_request(request);
        match response_in_time(answer, &progress, &plan.timeouts, &self.timers).await {
            Ok(Ok(response)) => {
                let accepted = self.wrap_response(plan, response, lease, progress);
                accepted.map_err(|error| FailedAttempt { error, unsent: None, stale: false })
            }
            Ok(Err(mut refused)) => {
                let unsent = refused.take_message();
                if let Some(reason) = progress.failed() {
                    return Err(FailedAttempt {
                        error: ExchangeError::ClientBody(reason),
                        unsent: None,
                        stale: false,
                    });
                }
                let error = ExchangeError::Http { addr, error: refused.into_error() };
                Err(FailedAttempt { error, unsent, stale: reused })
            }
            Err((reason, within)) => {
                let error = ExchangeError::Timeout { addr, reason, within };
                Err(FailedAttempt { error, unsent: None, stale: false })
            }
        }
    }
}

impl UpstreamClient {
    /// Makes an upstream's answer the gateway's, unless it cannot be forwarded.
    fn wrap_response(
        &self,
        plan: &UpstreamTarget<'_>,
        mut response: Response<Incoming>,
        mut lease: PooledConnection,
        progress: SendProgress,
    ) -> Result<Response<UpstreamResponseBody>, ExchangeError> {
        let addr = lease.addr();
        // A node may answer early and close. On a connection that lives on, hyper has left the body out.
        if progress.was_dropped() && !lease.is_closed() {
            return Err(ExchangeError::RequestBodyUnsent { addr });
        }
        let accepted = framing::accept_response(&mut response);
        lease.reusable = accepted.map_err(|error| ExchangeError::Framing { addr, error })?;
        let within = plan.timeouts.read;
        Ok(response.map(|body| UpstreamResponseBody::new(body, lease, progress, within, &self.timers)))
    }
}

/// A connection to a node, as one request needs it.
struct Checkout<'a> {
    host: &'a str,
    port: u16,
    tls: Option<&'a Arc<ClientTlsConfig>>,
    keepalive: KeepalivePool,
    within: Duration,
    /// Not from the pool.
    fresh: bool,
}

impl UpstreamClient {
    /// A connection to the first of a node's addresses that takes one: a name may also stand for
    /// addresses where nobody listens (`localhost` is often `::1` first). `None`: there is no
    /// address.
    async fn checkout(
        &self,
        addresses: &[IpAddr],
        wanted: &Checkout<'_>,
    ) -> Result<Option<PooledConnection>, ConnectError> {
        let mut failed = None;
        for &ip in addresses.iter().take(ADDRESSES_MAX) {
            let addr = SocketAddr::new(ip, wanted.port);
            let tls = wanted.tls.map(|tls| (tls, host_header::server_name(wanted.host, ip)));
            let key = PoolKey {
                addr,
                tls: tls.as_ref().map(|(tls, name)| (Rc::from(&*name.to_str()), tls.generation)),
            };
            if !wanted.fresh
                && let Some(lease) = self.pool.checkout(&key, wanted.keepalive)
            {
                return Ok(Some(lease));
            }
            let tls = tls.map(|(tls, name)| (&tls.config, name));
            // Boxed: rare, and large.
            match Box::pin(connector::connect_http(
                addr,
                tls,
                wanted.within,
                &self.permits,
                &self.http1_builder(),
            ))
            .await
            {
                Ok(made) => return Ok(Some(self.pool.checkout_new(key, wanted.keepalive, made))),
                Err(error) => failed = Some(error),
            }
        }
        failed.map_or(Ok(None), Err)
    }

    /// How a new connection speaks HTTP/1.
    fn http1_builder(&self) -> http1::Builder {
        let mut builder = http1::Builder::new();
        builder.max_buf_size(self.head.buffer_size()).max_headers(self.head.max_fields());
        builder.preserve_header_case(self.preserve_header_case).title_case_headers(self.preserve_header_case);
        builder
    }
}

/// Waits for `answer`, holding the upstream to its time-outs only while it is the one being waited
/// for.
async fn response_in_time<F: Future>(
    answer: F,
    progress: &SendProgress,
    timeouts: &Timeouts,
    alarms: &Rc<CoarseTimers>,
) -> Result<F::Output, (Reason, Duration)> {
    let mut answer = pin!(answer);
    let mut alarm: Option<CoarseTimer> = None;
    poll_fn(|cx| {
        if let Poll::Ready(done) = answer.as_mut().poll(cx) {
            return Poll::Ready(Ok(done));
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
            let alarm = alarm.get_or_insert_with(|| alarms.after(left));
            if alarm.poll(cx).is_pending() {
                return Poll::Pending;
            }
            alarm.reset(left);
        }
    })
    .await
}

/// A request that may be sent again after a node has seen it.
fn is_retriable(request: &Request<RequestBody>) -> bool {
    let idempotent = matches!(
        *request.method(),
        Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::PUT | Method::DELETE
    );
    idempotent && request.body().is_empty()
}

struct RetryTemplate {
    method: Method,
    uri: Uri,
    headers: http::HeaderMap,
    /// The case of header names, where it is kept.
    extensions: http::Extensions,
}

fn parts_of(request: &Request<RequestBody>) -> RetryTemplate {
    RetryTemplate {
        method: request.method().clone(),
        uri: request.uri().clone(),
        headers: request.headers().clone(),
        extensions: request.extensions().clone(),
    }
}

fn repeat(template: &RetryTemplate) -> Request<RequestBody> {
    let mut request = Request::new(RequestBody::empty());
    *request.method_mut() = template.method.clone();
    *request.uri_mut() = template.uri.clone();
    *request.headers_mut() = template.headers.clone();
    *request.extensions_mut() = template.extensions.clone();
    request
}

/// The request as it goes to the upstream: HTTP/1.1, framed by its body, origin form. The path is
/// what the caller was given for a judged target, never the request's own.
pub fn upstream_request(mut parts: Parts, path: PathAndQuery, body: RequestBody) -> Request<RequestBody> {
    framing::set_request_framing(&mut parts.headers, &body);
    let mut request = Request::new(body);
    *request.method_mut() = parts.method;
    *request.version_mut() = Version::HTTP_11;
    *request.uri_mut() = Uri::from(path);
    *request.headers_mut() = parts.headers;
    *request.extensions_mut() = parts.extensions;
    request
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::http::head::HeadLimits;
    use crate::runtime;
    use crate::runtime::Driver;
    use crate::tls::record::traffic_secrets::RecordLayerKind;
    use crate::tls::site_config;
    use crate::upstream::client_tls::ClientTlsConfigs;
    use crate::upstream::places::ConnectionPermits;
    use crate::upstream::pool::Pool;
    use crate::upstream::resolver::{Resolver, ResolverCache};

    #[test]
    fn a_name_with_a_dead_address_is_reached_at_the_next_and_a_nameless_node_is_told_apart() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let [dead, living]: [IpAddr; 2] = ["127.0.0.2".parse().unwrap(), "127.0.0.1".parse().unwrap()];
        runtime::block_on(&Driver::detect(), || async {
            let pool = Pool::start();
            let upstreams = UpstreamClient {
                pool: Rc::clone(&pool),
                permits: ConnectionPermits::new(8, pool),
                timers: Rc::default(),
                resolver: ResolverCache::new(Resolver::start().unwrap()),
                tls_configs: Arc::new(
                    ClientTlsConfigs::new(
                        Arc::new(site_config::crypto_provider()),
                        None,
                        false,
                        RecordLayerKind::Own,
                    )
                    .unwrap(),
                ),
                keepalive: KeepalivePool::default(),
                head: HeadLimits { line: 8192, head: 32768 },
                preserve_header_case: false,
            };
            let wanted = Checkout {
                host: "a.example",
                port,
                tls: None,
                keepalive: KeepalivePool::default(),
                within: Duration::from_secs(5),
                fresh: false,
            };
            let lease = upstreams.checkout(&[dead, living], &wanted).await.unwrap().unwrap();
            assert_eq!(lease.addr(), SocketAddr::new(living, port));
            assert!(matches!(upstreams.checkout(&[dead], &wanted).await, Err(ConnectError::Tcp { .. })));
            assert!(matches!(upstreams.checkout(&[], &wanted).await, Ok(None)));
        })
        .unwrap();
    }
}

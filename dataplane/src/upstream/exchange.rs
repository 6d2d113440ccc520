//! One request to an upstream and its answer, over as many nodes as it takes and may take.
//!
//! Stands between routing and the answer to the client. Both bodies are streamed. What may be tried again:
//! everything that failed before the node can have seen the request; after that only idempotent requests without
//! a body (contract section 8, RFC 9110 section 9.2.2).

use std::{
    future::{Future, poll_fn},
    net::{IpAddr, SocketAddr},
    pin::pin,
    rc::Rc,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use http::{HeaderValue, Method, Request, Response, Uri, Version, header, request::Parts};
use model::{
    Snapshot,
    resource::{Keepalive, Node, PassHost, Scheme, Timeouts, Upstream},
};
use rustls::pki_types::ServerName;

use super::{
    answer_body::AnswerBody,
    dial::{self, DialError},
    pool::{Lease, Pool, PoolKey},
    request_body::{Progress, RequestBody, Waiting},
    resolve::Names,
    tls::{ClientTls, Connector, TlsError},
};
use crate::{outcome::Reason, rt::Timer};

/// Of one name; each may cost a connect time-out.
const ADDRESSES_MAX: usize = 4;

/// What a worker needs to reach upstreams.
pub struct Upstreams {
    /// Idle connections.
    pub pool: Rc<Pool>,
    /// Node names.
    pub names: Names,
    /// Client sides of TLS; one for the process.
    pub connector: Arc<Connector>,
    /// Limits of idle connections where the upstream sets none.
    pub keepalive: Keepalive,
}

/// What routing decided.
pub struct Plan<'a> {
    /// Where the upstream's references are looked up.
    pub snapshot: &'a Snapshot,
    /// The upstream.
    pub upstream: &'a Upstream,
    /// The route's, else the upstream's, else the defaults.
    pub timeouts: Timeouts,
    /// The client's authority, for `pass_host: pass`.
    pub authority: Option<&'a str>,
}

/// No answer to give to the client.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// The upstream's own certificate cannot be had.
    #[error(transparent)]
    Identity(#[from] TlsError),
    /// No node can be used.
    #[error("no valid upstream node")]
    NoNode,
    /// The node's name does not resolve.
    #[error("the node's name {0:?} does not resolve")]
    Name(String),
    /// No connection.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The exchange failed on a connection.
    #[error("{addr}: {error}")]
    Broken {
        /// The node.
        addr: SocketAddr,
        /// As hyper said.
        error: hyper::Error,
    },
    /// The node was too slow.
    #[error("{addr}: {} after {within:?}", .reason.label())]
    Slow {
        /// The node.
        addr: SocketAddr,
        /// Which of the two time-outs.
        reason: Reason,
        /// How long it may take.
        within: Duration,
    },
    /// The client's body failed; no node is to blame.
    #[error("the client's body: {}", .0.label())]
    Client(Reason),
    /// `retry_timeout` passed.
    #[error("proxy retry timeout, retry count: {0}")]
    Retries(usize),
}

impl ExchangeError {
    /// For the log, the metric and the status.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Identity(_) => Reason::UpstreamIdentity,
            Self::NoNode => Reason::NoNode,
            Self::Name(_) => Reason::UpstreamName,
            Self::Dial(error) => error.reason(),
            Self::Broken { error, .. } if error.is_parse() => Reason::UpstreamInvalid,
            Self::Broken { .. } => Reason::UpstreamClosed,
            Self::Slow { reason, .. } | Self::Client(reason) => *reason,
            Self::Retries(_) => Reason::RetryTimeout,
        }
    }
}

/// A failed try, and what may be done about it.
struct Failure {
    error: ExchangeError,
    /// The request, when the node cannot have seen it.
    unsent: Option<Request<RequestBody>>,
    /// The connection came from the pool and may simply have been too old.
    stale: bool,
}

impl Upstreams {
    /// Sends the request and returns the answer once its head is there.
    ///
    /// # Errors
    /// [`ExchangeError`] of the last try.
    pub async fn exchange(
        &self,
        plan: &Plan<'_>,
        request: Request<RequestBody>,
    ) -> Result<Response<AnswerBody>, ExchangeError> {
        let prepared = self.connector.prepared(plan.upstream);
        let client_tls = match plan.upstream.scheme {
            Scheme::Http => None,
            Scheme::Https => Some(self.connector.client_side(plan.upstream, &prepared, plan.snapshot)?),
        };
        let nodes = &plan.upstream.nodes;
        let tries_max = plan.upstream.retries.map_or(nodes.len(), |r| usize::try_from(r).unwrap_or(64) + 1);
        let order: Vec<usize> = if tries_max > 1 && nodes.len() > 1 {
            prepared.balance.tries()
        } else {
            prepared.balance.first().into_iter().collect()
        };
        // Kept for every request that may be sent twice, not only where there are other nodes: the connection from the
        // pool may be one that its node is just closing.
        let template = if repeatable(&request) { Some(parts_of(&request)) } else { None };
        let started = Instant::now();
        let mut next = Some(request);
        let mut last = ExchangeError::NoNode;
        for (count, index) in order.iter().cycle().take(tries_max).enumerate() {
            let Some(node) = nodes.get(*index) else { break };
            if count > 0
                && let Some(limit) = plan.upstream.retry_timeout
                && started.elapsed() >= limit
            {
                return Err(ExchangeError::Retries(count));
            }
            let mut request = match (next.take(), &template) {
                (Some(request), _) => request,
                (None, Some(template)) => repeat(template),
                (None, None) => break,
            };
            // A connection that went stale in the pool is no failed try: the same node gets a fresh one.
            let mut fresh = false;
            loop {
                let failure = match self.try_node(plan, client_tls.as_ref(), node, request, fresh).await {
                    Ok(response) => return Ok(response),
                    Err(failure) => failure,
                };
                last = failure.error;
                if matches!(last, ExchangeError::Client(_)) {
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

    async fn try_node(
        &self,
        plan: &Plan<'_>,
        client_tls: Option<&Arc<ClientTls>>,
        node: &Node,
        mut request: Request<RequestBody>,
        fresh: bool,
    ) -> Result<Response<AnswerBody>, Failure> {
        let host = upstream_host(plan, node);
        if let Ok(value) = HeaderValue::from_str(&host) {
            request.headers_mut().insert(header::HOST, value);
        }
        let unsent = |error: ExchangeError, request| Failure { error, unsent: Some(request), stale: false };
        let addresses = self.names.addresses(&node.host).await;
        let wanted = Wanted {
            host: &host,
            port: port_of(plan.upstream, node),
            tls: client_tls,
            keepalive: plan.upstream.keepalive.unwrap_or(self.keepalive),
            within: plan.timeouts.connect,
            fresh,
        };
        let mut lease = match self.lease(&addresses, &wanted).await {
            Ok(Some(lease)) => lease,
            Ok(None) => return Err(unsent(ExchangeError::Name(node.host.clone()), request)),
            Err(error) => return Err(unsent(error.into(), request)),
        };
        let progress = request.body().progress();
        let (reused, addr) = (lease.reused, lease.addr());
        let answer = lease.sender.try_send_request(request);
        match answered(answer, &progress, &plan.timeouts).await {
            Ok(Ok(response)) => Ok(response.map(|body| AnswerBody::new(body, lease, plan.timeouts.read))),
            Ok(Err(mut refused)) => {
                let unsent = refused.take_message();
                if let Some(reason) = progress.failed() {
                    return Err(Failure { error: ExchangeError::Client(reason), unsent: None, stale: false });
                }
                let error = ExchangeError::Broken { addr, error: refused.into_error() };
                Err(Failure { error, unsent, stale: reused })
            }
            Err((reason, within)) => {
                let error = ExchangeError::Slow { addr, reason, within };
                Err(Failure { error, unsent: None, stale: false })
            }
        }
    }
}

/// A connection to a node, as one request needs it.
struct Wanted<'a> {
    host: &'a str,
    port: u16,
    tls: Option<&'a Arc<ClientTls>>,
    keepalive: Keepalive,
    within: Duration,
    /// Not from the pool.
    fresh: bool,
}

impl Upstreams {
    /// A connection to the first of a node's addresses that takes one: a name may also stand for addresses where
    /// nobody listens (`localhost` is often `::1` first). `None`: there is no address.
    async fn lease(&self, addresses: &[IpAddr], wanted: &Wanted<'_>) -> Result<Option<Lease>, DialError> {
        let mut failed = None;
        for &ip in addresses.iter().take(ADDRESSES_MAX) {
            let addr = SocketAddr::new(ip, wanted.port);
            let tls = wanted.tls.map(|tls| (tls, server_name(wanted.host, ip)));
            let key = PoolKey {
                addr,
                tls: tls.as_ref().map(|(tls, name)| (Rc::from(&*name.to_str()), tls.generation)),
            };
            if !wanted.fresh
                && let Some(lease) = self.pool.take(&key, wanted.keepalive)
            {
                return Ok(Some(lease));
            }
            // Boxed: rare, and large.
            match Box::pin(dial::dial(addr, tls, wanted.within)).await {
                Ok(sender) => return Ok(Some(self.pool.adopt(key, wanted.keepalive, sender))),
                Err(error) => failed = Some(error),
            }
        }
        failed.map_or(Ok(None), Err)
    }
}

/// Waits for `answer`, holding the upstream to its time-outs only while it is the one being waited for.
async fn answered<F: Future>(
    answer: F,
    progress: &Progress,
    timeouts: &Timeouts,
) -> Result<F::Output, (Reason, Duration)> {
    let mut answer = pin!(answer);
    let mut timer: Option<Timer> = None;
    poll_fn(|cx| {
        if let Poll::Ready(done) = answer.as_mut().poll(cx) {
            return Poll::Ready(Ok(done));
        }
        loop {
            let (since, limit, reason) = match progress.waiting() {
                Waiting::Client => (Instant::now(), timeouts.send, Reason::UpstreamSendTimeout),
                Waiting::Send(since) => (since, timeouts.send, Reason::UpstreamSendTimeout),
                Waiting::Answer(since) => (since, timeouts.read, Reason::UpstreamReadTimeout),
            };
            let left = limit.saturating_sub(since.elapsed());
            if left.is_zero() {
                return Poll::Ready(Err((reason, limit)));
            }
            let timer = timer.get_or_insert_with(|| Timer::after(left));
            if timer.poll(cx).is_pending() {
                return Poll::Pending;
            }
            timer.reset(left);
        }
    })
    .await
}

/// A request that may be sent again after a node has seen it.
fn repeatable(request: &Request<RequestBody>) -> bool {
    let idempotent = matches!(
        *request.method(),
        Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::PUT | Method::DELETE
    );
    idempotent && request.body().is_empty()
}

struct Template {
    method: Method,
    uri: Uri,
    headers: http::HeaderMap,
}

fn parts_of(request: &Request<RequestBody>) -> Template {
    Template {
        method: request.method().clone(),
        uri: request.uri().clone(),
        headers: request.headers().clone(),
    }
}

fn repeat(template: &Template) -> Request<RequestBody> {
    let mut request = Request::new(RequestBody::empty());
    *request.method_mut() = template.method.clone();
    *request.uri_mut() = template.uri.clone();
    *request.headers_mut() = template.headers.clone();
    request
}

/// The request as it goes to the upstream: HTTP/1.1, origin form, the path as the client wrote it.
pub fn outgoing(parts: Parts, body: RequestBody) -> Request<RequestBody> {
    let mut request = Request::new(body);
    *request.method_mut() = parts.method;
    *request.version_mut() = Version::HTTP_11;
    *request.uri_mut() = parts
        .uri
        .into_parts()
        .path_and_query
        .and_then(|path| Uri::builder().path_and_query(path).build().ok())
        .unwrap_or_else(|| Uri::from_static("/"));
    *request.headers_mut() = parts.headers;
    request
}

/// The `Host` the upstream sees. Contract section 6.2.
fn upstream_host(plan: &Plan<'_>, node: &Node) -> String {
    match plan.upstream.pass_host {
        PassHost::Rewrite => plan.upstream.upstream_host.clone().unwrap_or_default(),
        PassHost::Pass => plan.authority.map_or_else(|| node_host(plan.upstream, node), str::to_owned),
        PassHost::Node => node_host(plan.upstream, node),
    }
}

fn node_host(upstream: &Upstream, node: &Node) -> String {
    match node.port {
        Some(port) if port != upstream.scheme.default_port() => format!("{}:{port}", node.host),
        _ => node.host.clone(),
    }
}

fn port_of(upstream: &Upstream, node: &Node) -> u16 {
    node.port.unwrap_or_else(|| upstream.scheme.default_port())
}

/// The name asked for and, where upstreams are verified, checked: the host without its port; an address asks
/// for none (RFC 6066 section 3).
fn server_name(host: &str, ip: IpAddr) -> ServerName<'static> {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if !name.ends_with(':') && port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    let name = name.trim_start_matches('[').trim_end_matches([']', '.']);
    ServerName::try_from(name.to_owned()).unwrap_or_else(|_| ServerName::IpAddress(ip.into()))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::{
        rt::{self, Driver},
        tls::site,
        upstream::resolve::Resolver,
    };

    #[test]
    fn a_name_with_a_dead_address_is_reached_at_the_next_and_a_nameless_node_is_told_apart() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let [dead, living]: [IpAddr; 2] = ["127.0.0.2".parse().unwrap(), "127.0.0.1".parse().unwrap()];
        rt::run(&Driver::detect(), || async {
            let upstreams = Upstreams {
                pool: Pool::start(),
                names: Names::new(Resolver::start().unwrap()),
                connector: Arc::new(Connector::new(Arc::new(site::provider()), None, false).unwrap()),
                keepalive: Keepalive::default(),
            };
            let wanted = Wanted {
                host: "a.example",
                port,
                tls: None,
                keepalive: Keepalive::default(),
                within: Duration::from_secs(5),
                fresh: false,
            };
            let lease = upstreams.lease(&[dead, living], &wanted).await.unwrap().unwrap();
            assert_eq!(lease.addr(), SocketAddr::new(living, port));
            assert!(matches!(upstreams.lease(&[dead], &wanted).await, Err(DialError::Connect { .. })));
            assert!(matches!(upstreams.lease(&[], &wanted).await, Ok(None)));
        })
        .unwrap();
    }
}

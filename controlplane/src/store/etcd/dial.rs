//! Dials an endpoint: a verified HTTP/2 connection, or an error that names the failing step.
//!
//! The steps are resolve, TCP, TLS (`client_tls`) and the first frame (`observer`). A
//! channel that reconnects repeats them with the current files.
//!
//! Invariant: with `https://` no byte of HTTP/2 is sent before `pki` has accepted the server's
//! certificate for the expected name, unless `tls.verify` is false.

use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

pub(crate) use client_tls::{ClientTls, LoadedTls};
pub(crate) use client_tls::{VERIFY_OFF, unverified_config};
pub(crate) use endpoint::Endpoint;
pub(super) use error::format_duration;
pub(crate) use error::{DialError, DialFailure, DialStep, TcpFailure};
use futures_util::future::BoxFuture;
use http::Uri;
use hyper_util::rt::TokioIo;
use observer::{ByteStream, ClientCert, DialContext, Http2Progress, ObservedStream, TlsContext};
use rustls::ClientConfig;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;
use tonic::codegen::Service;
use tonic::transport::Channel;

mod client_tls;
mod credentials;
mod diagnosis;
mod endpoint;
mod error;
mod observer;

/// etcd ends a connection at the third ping that comes within 5 seconds or without a call in
/// progress. Windows are fixed for the same reason: an adaptive window measures with pings.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// A load reads a whole prefix, up to tens of megabytes, which must neither wait for window updates
/// nor block a watch.
const STREAM_WINDOW: u32 = 16 << 20;
const CONNECTION_WINDOW: u32 = 64 << 20;

/// Connects, and waits for the server's HTTP/2 settings, which prove that it accepts the client
/// certificate.
///
/// All steps together take at most `timeout`. The channel reconnects when it is used after its
/// connection ended.
///
/// # Errors
/// The failing step and its cause.
pub(crate) async fn connect(
    endpoint: &Endpoint,
    client_tls: &ClientTls,
    timeout: Duration,
) -> Result<Channel, DialError> {
    let deadline = Instant::now() + timeout;
    let (progress, mut receiver) = watch::channel(Http2Progress::Waiting);
    let connector =
        EtcdConnector { endpoint: endpoint.clone(), client_tls: client_tls.clone(), timeout, progress };
    let result = match http2_endpoint(endpoint)?.connect_with_connector(connector).await {
        Ok(channel) => wait_http2_ready(endpoint, &mut receiver, deadline, timeout).await.map(|()| channel),
        Err(error) => {
            Err(find_dial_error(&error, endpoint).unwrap_or_else(|| closed_error(endpoint, &error)))
        }
    };
    match result {
        Ok(channel) => Ok(channel),
        Err(failure) => Err(diagnosis::diagnose(failure, endpoint, client_tls, deadline).await),
    }
}

/// The dial error behind an error of a call: a `tonic::Status`, an `etcd_client::Error` or one of
/// their sources. `None`: the server answered with this error.
pub(crate) fn find_dial_error(error: &(dyn Error + 'static), endpoint: &Endpoint) -> Option<DialError> {
    let mut is_transport = false;
    for error in error_chain(error) {
        if let Some(dial_error) = error.downcast_ref::<DialError>() {
            return Some(dial_error.clone());
        }
        if let Some(hyper_error) = error.downcast_ref::<hyper::Error>() {
            if hyper_error.is_timeout() {
                return Some(endpoint.error(keepalive_timeout()));
            }
            is_transport = true;
        }
        is_transport |= error.is::<tonic::transport::Error>();
    }
    is_transport.then(|| endpoint.last_failure().unwrap_or_else(|| closed_error(endpoint, error)))
}

/// Whether a call failed before a connection was made: then no byte of it was sent.
pub(crate) fn was_not_sent(error: &(dyn Error + 'static)) -> bool {
    let dial_error = error_chain(error).find_map(|error| error.downcast_ref::<DialError>());
    dial_error.is_some_and(|failure| failure.problem.step() != DialStep::Established)
}

/// The error and its sources.
fn error_chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    let source = |error: &&'a (dyn Error + 'static)| -> Option<&'a (dyn Error + 'static)> {
        let error: &'a (dyn Error + 'static) = *error;
        match error.downcast_ref::<etcd_client::Error>() {
            // `etcd_client::Error` does not implement `source`.
            Some(etcd_client::Error::GRpcStatus(status)) => Some(status),
            Some(etcd_client::Error::TransportError(error)) => Some(error),
            _ => error.source(),
        }
    };
    std::iter::successors(Some(error), source)
}

fn keepalive_timeout() -> DialFailure {
    DialFailure::Timeout { step: DialStep::Established, after: KEEPALIVE_TIMEOUT }
}

fn closed_error(endpoint: &Endpoint, error: &(dyn Error + 'static)) -> DialError {
    let cause: Vec<_> = error_chain(error).map(ToString::to_string).collect();
    let cause = cause.join(": ");
    endpoint.error(DialFailure::Closed { step: DialStep::Established, cause })
}

/// Waits for the server's first frame.
async fn wait_http2_ready(
    endpoint: &Endpoint,
    receiver: &mut watch::Receiver<Http2Progress>,
    deadline: Instant,
    after: Duration,
) -> Result<(), DialError> {
    let received =
        timeout_at(deadline, receiver.wait_for(|progress| !matches!(progress, Http2Progress::Waiting))).await;
    match received {
        Ok(Ok(progress)) => match &*progress {
            Http2Progress::Failed(failure) => Err(failure.clone()),
            Http2Progress::Ready | Http2Progress::Waiting => Ok(()),
        },
        Ok(Err(_)) => {
            let cause = "the attempt was aborted".to_owned();
            Err(endpoint.error(DialFailure::Closed { step: DialStep::Http2, cause }))
        }
        Err(_) => Err(endpoint.error(DialFailure::Timeout { step: DialStep::Http2, after })),
    }
}

/// The tonic endpoint: origin, keep-alive and windows.
fn http2_endpoint(endpoint: &Endpoint) -> Result<tonic::transport::Endpoint, DialError> {
    let authority = endpoint.authority();
    let invalid = |error: String| endpoint.error(DialFailure::Url(error));
    // For tonic, an `https` URI would mean TLS of its own. Requests carry `origin`; etcd looks at
    // the client certificate only if that is `https`.
    let scheme = if endpoint.https() { "https" } else { "http" };
    let origin: Uri =
        format!("{scheme}://{authority}").parse().map_err(|error| invalid(format!("{error}")))?;
    let http = tonic::transport::Endpoint::from_shared(format!("http://{authority}"))
        .map_err(|error| invalid(error.to_string()))?;
    Ok(http
        .origin(origin)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(false)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW))
}

/// Makes the connections of one channel.
struct EtcdConnector {
    endpoint: Endpoint,
    client_tls: ClientTls,
    timeout: Duration,
    progress: watch::Sender<Http2Progress>,
}

impl Service<Uri> for EtcdConnector {
    type Response = TokioIo<ObservedStream>;
    type Error = DialError;
    type Future = BoxFuture<'static, Result<Self::Response, DialError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), DialError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let (endpoint, client_tls) = (self.endpoint.clone(), self.client_tls.clone());
        let (progress, timeout) = (self.progress.clone(), self.timeout);
        Box::pin(async move {
            match connect_observed(&endpoint, &client_tls, timeout, progress).await {
                Ok(stream) => Ok(TokioIo::new(stream)),
                Err(problem) => {
                    let failure = endpoint.error(problem);
                    endpoint.set_last_failure(Some(failure.clone()));
                    Err(failure)
                }
            }
        })
    }
}

async fn connect_observed(
    endpoint: &Endpoint,
    client_tls: &ClientTls,
    timeout: Duration,
    progress: watch::Sender<Http2Progress>,
) -> Result<ObservedStream, DialFailure> {
    let (stream, context) = open(endpoint, client_tls, timeout, &[b"h2"]).await?;
    Ok(ObservedStream::new(stream, context, progress))
}

/// Connects for HTTP/1.1, which etcd serves beside gRPC by default. Verified like any other
/// connection.
pub(super) async fn connect_http1(
    endpoint: &Endpoint,
    client_tls: &ClientTls,
    timeout: Duration,
) -> Result<Box<dyn ByteStream>, DialError> {
    // etcd's ALPN offers HTTP/2 only; a client without ALPN gets HTTP/1.1.
    let opened = open(endpoint, client_tls, timeout, &[]).await;
    opened.map(|(stream, _)| stream).map_err(|problem| endpoint.error(problem))
}

/// Reads the files, resolves, connects, and shakes hands.
async fn open(
    endpoint: &Endpoint,
    client_tls: &ClientTls,
    timeout: Duration,
    alpn: &[&[u8]],
) -> Result<(Box<dyn ByteStream>, DialContext), DialFailure> {
    let deadline = Instant::now() + timeout;
    let timed_out = |step| move |_| DialFailure::Timeout { step, after: timeout };
    let context = timeout_at(deadline, dial_context(endpoint, client_tls))
        .await
        .map_err(timed_out(DialStep::Settings))??;
    let addresses = timeout_at(deadline, resolve(endpoint)).await.map_err(timed_out(DialStep::Dns))??;
    let tcp = connect_tcp(&addresses, deadline).await?;
    let Some(tls) = &context.tls else { return Ok((Box::new(tcp), context)) };
    let handshake =
        timeout_at(deadline, tls_handshake(tls, tcp, alpn)).await.map_err(timed_out(DialStep::Tls))?;
    let stream = handshake.map_err(|error| context.problem(DialStep::Tls, &error))?;
    Ok((Box::new(stream), context))
}

/// The context of a connection, with the current files.
async fn dial_context(endpoint: &Endpoint, client_tls: &ClientTls) -> Result<DialContext, DialFailure> {
    if !endpoint.https() {
        return Ok(DialContext { endpoint: endpoint.clone(), tls: None });
    }
    let (name, by_sni) = client_tls.server_name(endpoint)?;
    let loaded = client_tls.current().await?;
    let client_cert = Arc::new(ClientCert::new(&loaded));
    Ok(DialContext {
        endpoint: endpoint.clone(),
        tls: Some(TlsContext { loaded, name, by_sni, client_cert }),
    })
}

async fn tls_handshake(
    tls: &TlsContext,
    tcp: TcpStream,
    alpn: &[&[u8]],
) -> io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let mut config = ClientConfig::clone(&tls.loaded.config);
    config.client_auth_cert_resolver = Arc::clone(&tls.client_cert) as _;
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    TlsConnector::from(Arc::new(config)).connect(tls.name.clone(), tcp).await
}

async fn resolve(endpoint: &Endpoint) -> Result<Vec<SocketAddr>, DialFailure> {
    let dns_error = |cause: String| DialFailure::Dns { host: endpoint.host().to_owned(), cause };
    let dial_error = tokio::net::lookup_host((endpoint.host(), endpoint.port())).await;
    let addresses: Vec<_> = dial_error.map_err(|error| dns_error(error.to_string()))?.collect();
    if addresses.is_empty() { Err(dns_error("it has no address".to_owned())) } else { Ok(addresses) }
}

/// Tries all addresses; each gets an equal share of the remaining time.
async fn connect_tcp(addresses: &[SocketAddr], deadline: Instant) -> Result<TcpStream, DialFailure> {
    let mut failures = Vec::new();
    let mut remaining = u32::try_from(addresses.len()).unwrap_or(u32::MAX);
    for address in addresses {
        let share = deadline.saturating_duration_since(Instant::now()) / remaining.max(1);
        remaining = remaining.saturating_sub(1);
        let failure = match tokio::time::timeout(share, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                // Small requests must not wait for earlier acknowledgements.
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%address, %error, "TCP_NODELAY cannot be set");
                }
                return Ok(stream);
            }
            Ok(Err(error)) => TcpFailure::System(error.kind(), error.to_string()),
            Err(_) => TcpFailure::TimedOut(share),
        };
        failures.push((*address, failure));
    }
    Err(DialFailure::Tcp(failures))
}

#[cfg(test)]
mod tests;

//! A WebSocket's handshake with an upstream, and the connection that has switched.
//!
//! The connection is made for the handshake and driven here, without a task of its own: hyper gives
//! it back when the upstream has switched. Invariant: it never enters the pool; what the upstream
//! answers instead of 101 is an ordinary response, and the connection ends with it. A handshake is
//! a request, so it takes one of the node's slots; a tunnel keeps it under a maximum of the
//! upstream's own.

use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use http::{HeaderValue, Request, Response, StatusCode, Version, header};
use hyper::body::Incoming;
use hyper::client::conn::http1::Connection;
use hyper::rt::{Read, ReadBufCursor, Write};
use model::{Node, Scheme};

use super::attempts::Attempts;
use super::client::{NodeAttempts, UpstreamClient, UpstreamError, UpstreamTarget};
use super::client_tls::{Alpn, ClientTlsConfig};
use super::connector::{self, UpstreamStream};
use super::exchange::{self, ExchangeError, RetryTemplate};
use super::host_header;
use super::request_body::RequestBody;
use super::response_body::UpstreamResponseBody;
use crate::http::upgrade;
use crate::io::chunk_read::{Chunk, ChunkRead};
use crate::io::flag::Flag;

/// What follows the head of the response.
pub(crate) enum UpgradeReply {
    /// After 101.
    Switched(Box<UpstreamTunnel>),
    /// After any other status.
    Refused(UpstreamResponseBody),
}

/// A connection to a node that has switched protocols.
pub(crate) struct UpstreamTunnel {
    /// Arrived together with the 101.
    unread: Bytes,
    stream: UpstreamStream,
}

impl UpstreamClient {
    /// Sends the handshake, and returns the response once its head has arrived. `record` gets
    /// each attempt.
    ///
    /// # Errors
    /// [`ExchangeError`] of the last attempt.
    pub(crate) async fn request_upgrade(
        &self,
        target: &UpstreamTarget<'_>,
        request: &Request<RequestBody>,
        record: &mut Attempts,
    ) -> Result<Response<UpgradeReply>, ExchangeError> {
        let prepared = self.tls_configs.prepared(target.upstream);
        let scheme = target.upstream.scheme;
        if !matches!(scheme, Scheme::Http | Scheme::Https) {
            return Err(UpstreamError::WebSocketScheme(scheme.as_str()).into());
        }
        let tls_config = self.tls_configs.find(target.upstream, &prepared, target.snapshot);
        let tls_config = tls_config.map_err(UpstreamError::from)?;
        // A GET without a body may be sent again.
        let template = RetryTemplate::new(request);
        let mut last = UpstreamError::NoNode.into();
        let mut attempts = NodeAttempts::new(target.upstream, &prepared.balancer);
        while let Some(node) = attempts.next_node()? {
            record.begin();
            let mut request = template.request();
            record.set_trace_headers(request.headers_mut());
            match self.upgrade_at(target, tls_config.as_ref(), node, request, record).await {
                Ok(response) => {
                    record.responded(response.status());
                    return Ok(response);
                }
                Err(error) => last = error,
            }
            record.failed(last.attempt_status());
            tracing::debug!(node = %node.host, error = %last, "a node failed");
        }
        Err(last)
    }

    async fn upgrade_at(
        &self,
        target: &UpstreamTarget<'_>,
        tls_config: Option<&Arc<ClientTlsConfig>>,
        node: &Node,
        mut request: Request<RequestBody>,
        record: &mut Attempts,
    ) -> Result<Response<UpgradeReply>, ExchangeError> {
        let host = host_header::upstream_host(target.upstream, target.authority, node);
        exchange::set_host(&mut request, &host);
        record.set_host(&host);
        let own_max = target.upstream.keepalive.and_then(|keepalive| keepalive.max_connections);
        let connect = async |addr: SocketAddr| {
            record.set_addr(addr);
            let name = || host_header::server_name(&host, addr.ip());
            let tls = tls_config.map(|tls| (&**tls, Alpn::Http1, name()));
            let max = Some(own_max.unwrap_or(self.settings.get().connections_per_node));
            let stream = self.connect_unpooled(addr, tls, target.timeouts.connect, max, None).await?;
            Ok((addr, stream))
        };
        let port = node.port.or(target.upstream.scheme.default_port());
        let (addr, mut stream) = self.connect_node(node, port, connect).await?;
        record.connected(false);
        // The node may respond without reading everything, and close: the response counts.
        stream.socket().ignore_write_errors(true);
        if let Some(interim) = target.interim {
            interim.attach(&mut request);
        }
        let key = request.headers().get(header::SEC_WEBSOCKET_KEY).cloned();
        let progress = request.body().progress();
        let failed = |error| ExchangeError::of_http1(addr, error);
        let (mut sender, connection) = self.http1_builder().handshake(stream).await.map_err(failed)?;
        let keeps_slot = own_max.is_some();
        let mut exchange = UpgradeExchange { connection: Box::new(connection), ended: false, keeps_slot };
        let response = exchange::response_in_time(
            pin!(exchange.run(sender.try_send_request(request))),
            &progress,
            &target.timeouts,
            &self.timers,
        )
        .await;
        let response =
            response.map_err(|(reason, within)| ExchangeError::Timeout { addr, reason, within })?;
        let response = response.map_err(|error| failed(error.into_error()))?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return exchange.switch(addr, key.as_ref(), response);
        }
        let connection = self.pool.unpooled(addr, sender, exchange.spawn());
        Ok(self.wrap_http1(target, response, connection, progress)?.map(UpgradeReply::Refused))
    }
}

/// A handshake on its connection.
struct UpgradeExchange {
    connection: Box<Connection<UpstreamStream, RequestBody>>,
    /// hyper has ended the connection, or left it to the new protocol.
    ended: bool,
    /// A tunnel counts among the connections to its node.
    keeps_slot: bool,
}

impl UpgradeExchange {
    /// Drives the connection until the response is there, and after 101 until hyper has left it.
    async fn run<E>(
        &mut self,
        response: impl Future<Output = Result<Response<Incoming>, E>>,
    ) -> Result<Response<Incoming>, E> {
        let mut response = pin!(response);
        let mut answer = None;
        poll_fn(|cx| {
            self.ended = self.ended || Pin::new(&mut *self.connection).poll(cx).is_ready();
            if answer.is_none()
                && let Poll::Ready(answered) = response.as_mut().poll(cx)
            {
                answer = Some(answered);
            }
            let is_switching = |answer: &Result<Response<Incoming>, E>| {
                answer.as_ref().is_ok_and(|answer| answer.status() == StatusCode::SWITCHING_PROTOCOLS)
            };
            match answer.take() {
                Some(answered) if self.ended || !is_switching(&answered) => Poll::Ready(answered),
                other => {
                    answer = other;
                    Poll::Pending
                }
            }
        })
        .await
    }

    /// The connection after the response that opens the tunnel.
    fn switch(
        self,
        addr: SocketAddr,
        key: Option<&HeaderValue>,
        response: Response<Incoming>,
    ) -> Result<Response<UpgradeReply>, ExchangeError> {
        upgrade::check_switch(key, &response).map_err(|error| ExchangeError::Switch { addr, error })?;
        let parts = self.connection.into_parts();
        let mut stream = parts.io;
        stream.socket().ignore_write_errors(false);
        if !self.keeps_slot {
            // It may last for days, and must not stop requests.
            stream.release_slot();
        }
        let tunnel = UpstreamTunnel { unread: parts.read_buf, stream };
        let mut response = response.map(|_empty| UpgradeReply::Switched(Box::new(tunnel)));
        *response.version_mut() = Version::HTTP_11;
        Ok(response)
    }

    /// Drives the connection in a task until the response has ended. The flag ends it.
    fn spawn(self) -> Rc<Flag> {
        let abort = Rc::<Flag>::default();
        if !self.ended {
            connector::spawn_connection(*self.connection, Rc::clone(&abort));
        }
        abort
    }
}

impl ChunkRead for UpstreamTunnel {
    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Chunk<'_>>> {
        if self.unread.is_empty() {
            self.stream.poll_chunk(cx)
        } else {
            Poll::Ready(Ok(Chunk::Data(&self.unread)))
        }
    }

    fn consume(&mut self, n: usize) {
        if self.unread.is_empty() {
            self.stream.consume(n);
        } else {
            self.unread.advance(n);
            // Empty `Bytes` still hold hyper's buffer.
            if self.unread.is_empty() {
                self.unread = Bytes::new();
            }
        }
    }

    fn shrink_buffers(&mut self) {
        self.stream.shrink_buffers();
    }
}

impl Write for UpstreamTunnel {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// For hyper, which reads the handshake's response.
impl Read for UpstreamStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

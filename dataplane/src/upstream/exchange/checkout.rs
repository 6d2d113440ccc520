//! The connection or stream of one attempt: from the pool, or a new one.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hyper::client::conn::http1;
use model::KeepalivePool;
use rustls::pki_types::ServerName;

use crate::observability::HasReason;
use crate::upstream::attempts::Attempts;
use crate::upstream::client::{ClientSettings, UpstreamClient};
use crate::upstream::client_tls::{Alpn, ClientTlsConfig};
use crate::upstream::connector::{
    self, ConnectDeadline, ConnectError, HttpOptions, NewConnection, TlsParams,
};
use crate::upstream::host_header;
use crate::upstream::pool::PoolLease;
use crate::upstream::pool::key::{ConnectionKey, DialError, UpstreamProtocol};
use crate::upstream::pool::node::{Dial, Grant, NodePool};

/// The connection that a request needs.
pub(super) struct Checkout<'a> {
    pub host: &'a str,
    pub protocol: UpstreamProtocol,
    pub tls_config: Option<&'a Arc<ClientTlsConfig>>,
    pub keepalive: KeepalivePool,
    /// The most open connections to one node.
    pub max_connections: u32,
    pub connect_timeout: Duration,
    /// No HTTP/1 connection that has served a request.
    pub fresh: bool,
}

impl UpstreamClient {
    /// Takes a connection to `addr` from the pool, or makes one.
    pub(super) async fn checkout(
        &self,
        addr: SocketAddr,
        checkout: &Checkout<'_>,
        record: &mut Attempts,
    ) -> Result<PoolLease, ConnectError> {
        let tls = checkout.tls_config.map(|tls| (tls, host_header::server_name(checkout.host, addr.ip())));
        let generation = |(tls, name): &(&Arc<ClientTlsConfig>, ServerName<'_>)| {
            (Rc::from(&*name.to_str()), tls.generation)
        };
        let key = ConnectionKey { protocol: checkout.protocol, tls: tls.as_ref().map(generation) };
        let node = self.pool.node(addr, checkout.max_connections);
        if let Some(lease) = self.pool.checkout(&node, &key, checkout.keepalive, checkout.fresh) {
            record.connected(true);
            self.connect_context.counters.upstream_pool_hits.inc();
            return Ok(lease);
        }
        let alpn = match checkout.protocol {
            UpstreamProtocol::Http1 | UpstreamProtocol::Unpooled => Alpn::Http1,
            UpstreamProtocol::Http2 => Alpn::Http2,
            UpstreamProtocol::Negotiated => Alpn::Http2OrHttp1,
        };
        let tls = tls.map(|(tls, name)| (&**tls, alpn, name));
        // Boxed: rare, and large.
        let lease = Box::pin(self.wait_or_connect(&node, key, tls, checkout)).await?;
        record.connected(false);
        Ok(lease)
    }

    /// Opens a connection, or waits for one: where the node has as many as it may have, or where
    /// one is being opened that has streams enough.
    async fn wait_or_connect(
        &self,
        node: &Rc<NodePool>,
        key: ConnectionKey,
        tls: TlsParams<'_>,
        checkout: &Checkout<'_>,
    ) -> Result<PoolLease, ConnectError> {
        let deadline = ConnectDeadline::start(checkout.connect_timeout);
        let limited = |within| match node.is_full() {
            true => ConnectError::NodeLimit { addr: node.addr, max: node.max, within },
            // It waited for a connection that another request opens.
            false => ConnectError::Timeout { addr: node.addr, within },
        };
        let counters = &self.connect_context.counters;
        let is_queued = node.is_full();
        let granted = deadline.limit(node.wait(&key, checkout.fresh), limited).await;
        if is_queued {
            counters.upstream_queue_duration.observe(deadline.elapsed());
        }
        match granted? {
            Grant::Available(available) => {
                counters.upstream_pool_hits.inc();
                Ok(self.pool.check_out(node, key, checkout.keepalive, available))
            }
            Grant::Failed(error) => Err(ConnectError::Shared(error)),
            Grant::Dial(dial) => {
                counters.upstream_pool_misses.inc();
                self.connect_http(dial, node, key, tls, (deadline, checkout)).await
            }
        }
    }

    async fn connect_http(
        &self,
        mut dial: Dial,
        node: &Rc<NodePool>,
        key: ConnectionKey,
        tls: TlsParams<'_>,
        (deadline, checkout): (ConnectDeadline, &Checkout<'_>),
    ) -> Result<PoolLease, ConnectError> {
        let options = HttpOptions {
            protocol: checkout.protocol,
            http1: self.http1_builder(),
            head: self.settings.get().head,
            keepalive: checkout.keepalive,
            config: checkout.tls_config.cloned(),
        };
        let slot = dial.take_slot();
        match connector::connect_http(node.addr, tls, deadline, &self.connect_context, slot, &options).await {
            Ok(NewConnection::Http1(connection)) => {
                dial.opened_http1();
                Ok(self.pool.check_out(node, key, checkout.keepalive, connection.into()))
            }
            Ok(NewConnection::Http2(connection)) => Ok(PoolLease::Http2(dial.opened_http2(connection))),
            Err(error) => {
                match error {
                    // The time of this request is over, not that of those who wait for the
                    // connection: one of them dials.
                    ConnectError::Timeout { .. } | ConnectError::ConnectionLimit { .. } => drop(dial),
                    _ => {
                        dial.failed(|| DialError { reason: error.reason(), detail: error.to_string().into() })
                    }
                }
                Err(error)
            }
        }
    }

    pub(in crate::upstream) fn http1_builder(&self) -> http1::Builder {
        let mut builder = http1::Builder::new();
        let ClientSettings { head, preserve_header_case, .. } = self.settings.get();
        builder.max_buf_size(head.buffer_size()).max_headers(head.max_fields());
        builder.preserve_header_case(preserve_header_case).title_case_headers(preserve_header_case);
        builder
    }
}

//! A connection of the data plane over any runtime's halves: ClientHello, site, handshake, client,
//! HTTP session.
//!
//! The stages are the data plane's, without those that name a runtime (timeouts, pools, upstreams):
//! every request gets one fixed response.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use dataplane::testing::io::buffered::BufferedSocket;
use dataplane::testing::proxy::worker::SharedState;
use dataplane::testing::runtime::{Reader, Writer};
use dataplane::testing::tls::Subsystem;
use dataplane::testing::tls::stream::TlsStream;
use dataplane::testing::tls::transport::TlsTransport;
use dataplane::testing::tls::{client_hello, client_verifier, handshake};
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use model::admission::ClientVerification;
use pki::UnixTime;

/// From accept to end. A rejected client gets no alert; the benchmark has none.
pub(crate) async fn serve<R, W>(shared: Arc<SharedState>, mut socket: BufferedSocket<R, W>)
where
    R: Reader + Unpin,
    W: Writer + Unpin,
{
    let Some(tls) = Box::pin(establish(&shared, &mut socket)).await else { return };
    let service = service_fn(async |_request| {
        let response = http::Response::new(Full::new(Bytes::from_static(b"hello\n")));
        Ok::<_, Infallible>(response)
    });
    let _ended = http1::Builder::new().serve_connection(TlsStream::new(tls, socket), service).await;
}

async fn establish<R: Reader, W: Writer>(
    shared: &SharedState,
    socket: &mut BufferedSocket<R, W>,
) -> Option<TlsTransport> {
    let hello = client_hello::read(socket).await.ok()?;
    let name = hello.server_name(None)?;
    let ssl = shared.snapshot.load().site(&name).map(Arc::clone)?;
    let config = shared.sites.config(&ssl, Subsystem::Http).ok()?;
    let mut tls = hello.start_handshake(config, socket.write_buf()).ok()?;
    handshake::drive(&mut tls, socket).await.ok()?;
    let client =
        client_verifier::evaluate_client(ssl.client.as_deref(), Some(&tls.peer_chain()), UnixTime::now());
    matches!(client, ClientVerification::Verified(_)).then(|| tls.into_transport())
}

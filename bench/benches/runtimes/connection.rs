//! A connection of the data plane over any runtime's halves: ClientHello, site, handshake, client,
//! HTTP session.
//!
//! The stages are the data plane's, without those that name a runtime (timeouts, pools, upstreams):
//! every request gets one fixed response.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use dataplane::net::pump::Pump;
use dataplane::rt::{Reader, Writer};
use dataplane::tls::site::Purpose;
use dataplane::tls::stream::TlsStream;
use dataplane::tls::ticket::Resumption;
use dataplane::tls::{handshake, hello, verify};
use dataplane::worker::Shared;
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use model::admission::Client;
use pki::UnixTime;

/// From accept to end. A rejected client gets no alert; the benchmark has none.
pub(crate) async fn serve<R, W>(shared: Arc<Shared>, mut pump: Pump<R, W>)
where
    R: Reader + Unpin,
    W: Writer + Unpin,
{
    let Some(tls) = Box::pin(establish(&shared, &mut pump)).await else { return };
    let answer = service_fn(async |_request| {
        let response = http::Response::new(Full::new(Bytes::from_static(b"hello\n")));
        Ok::<_, Infallible>(response)
    });
    let _ended = http1::Builder::new().serve_connection(TlsStream::new(tls, pump), answer).await;
}

async fn establish<R: Reader, W: Writer>(
    shared: &Shared,
    pump: &mut Pump<R, W>,
) -> Option<dataplane::tls::engine::Engine> {
    let hello = hello::read(pump).await.ok()?;
    let name = hello.server_name(None)?;
    let ssl = shared.cell.load().site(&name).map(Arc::clone)?;
    let config = shared.sites.config(&ssl, Purpose::Http).ok()?;
    let mut resumption = Resumption::default();
    let mut tls = resumption.during(|| hello.begin(config, pump.staged())).ok()?;
    handshake::drive_with(&mut tls, pump, &mut resumption).await.ok()?;
    let client = verify::client_of(ssl.client.as_deref(), Some(&tls.peer_chain()), UnixTime::now());
    matches!(client, Client::Verified(_)).then_some(tls)
}

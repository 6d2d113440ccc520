//! HTTP on a client connection, over plain TCP or TLS: hyper for HTTP/1 ([`http1`]), the `h2` crate
//! for HTTP/2 ([`http2`]).
//!
//! [`serve_connection`] reads requests, passes each to a [`RequestHandler`] and sends the response.
//! It knows neither routes nor upstreams. When the connection drains, it finishes the requests in
//! flight and closes.

pub(crate) mod error_page;
pub(crate) mod grpc;
pub(crate) mod head;
mod header_case;
pub(crate) mod hop_by_hop;
mod http1;
pub(crate) mod http2;
pub(crate) mod incoming_body;
pub(crate) mod interim;
mod keep_alive;
pub mod request;
pub(crate) mod server;
pub(crate) mod trace_context;
mod tracked_io;
pub(crate) mod trailers;
pub(crate) mod upgrade;

use std::future::Future;
use std::rc::Rc;

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Body;
use hyper::rt::{Read, Write};

use self::head::HeadError;
use self::http2::sender::ResetCode;
use self::incoming_body::IncomingBody;
use self::keep_alive::KeepAliveState;
use self::server::{HttpProtocol, HttpServer, HttpSettings};
use self::tracked_io::TrackedIo;
use crate::io::chunk_read::ChunkRead;
use crate::io::timeouts::TimeoutHandle;
use crate::lifecycle::drain::DrainGuard;

/// Handles the requests of one connection, and what the server rejects before it is a request.
pub(crate) trait RequestHandler: 'static {
    /// The body of a response.
    type Body: Body<Data = Bytes, Error = Self::BodyError> + Unpin + 'static;
    /// A response that is aborted.
    type BodyError: ResetCode + std::error::Error + Send + Sync + 'static;
    /// The upstream's side of a connection or stream that has switched protocols.
    type Tunnel: 'static;

    /// Responds to a request.
    fn handle(&self, request: Request<IncomingBody>) -> impl Future<Output = Response<Self::Body>>;

    /// Takes the tunnel out of a response that opens one, and the body of its request, which is the
    /// client's direction over HTTP/2.
    fn take_tunnel(
        &self,
        response: &mut Response<Self::Body>,
    ) -> Option<(Self::Tunnel, Option<IncomingBody>)>;

    /// Relays between the client and a tunnel until both have closed, and closes them.
    fn relay(&self, client: impl ChunkRead + Write + Unpin, tunnel: Self::Tunnel)
    -> impl Future<Output = ()>;

    /// Records a head that [`HeadScanner`](head::HeadScanner) rejects. Returns the response
    /// as it goes over the wire; the connection closes after it.
    fn reject_head(&self, error: HeadError) -> Vec<u8>;

    /// Records a head that hyper cannot parse, and to which hyper has responded.
    fn record_parse_error(&self, error: &hyper::Error);

    /// Records an HTTP/2 stream whose client reads nothing for `send_timeout`.
    fn record_send_timeout(&self);
}

/// Serves all requests of a connection.
pub(crate) async fn serve_connection<I, H>(
    io: I,
    protocol: HttpProtocol,
    server: &Rc<HttpServer>,
    timeouts: TimeoutHandle,
    handler: Rc<H>,
    drain: &DrainGuard,
) where
    I: Read + Write + ChunkRead + Unpin + 'static,
    H: RequestHandler,
{
    let state = KeepAliveState::new(Rc::clone(server), timeouts, protocol);
    let HttpSettings { head_limits, preserve_header_case, .. } = server.settings.get();
    let io = TrackedIo::new(io, Rc::clone(&state), head_limits, preserve_header_case);
    match protocol {
        HttpProtocol::H1 => http1::serve(io, &state, handler, drain).await,
        HttpProtocol::H2 => http2::serve(io, &state, handler, drain).await,
    }
}

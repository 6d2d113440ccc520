//! HTTP on a client connection, over plain TCP or TLS: hyper for HTTP/1 ([`http1`]), the `h2` crate
//! for HTTP/2 ([`http2`]).
//!
//! [`serve_connection`] reads requests, passes each to a [`RequestHandler`] and sends the response.
//! It knows neither routes nor upstreams. When the connection drains, it finishes the requests in
//! flight and closes.

pub(crate) mod error_page;
pub(crate) mod handler;
pub(crate) mod head;
mod header_case;
mod http1;
mod http2;
pub(crate) mod incoming_body;
mod keep_alive;
pub mod request;
pub(crate) mod server;
mod tracked_io;

use std::rc::Rc;

use handler::RequestHandler;
use hyper::rt::{Read, Write};
use keep_alive::KeepAliveState;
use server::{HttpProtocol, HttpServer};
use tracked_io::TrackedIo;

use crate::io::chunk_read::ChunkRead;
use crate::io::timeouts::TimeoutHandle;
use crate::lifecycle::drain::DrainGuard;

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
    let io = TrackedIo::new(io, Rc::clone(&state), server.head_limits, server.preserve_header_case);
    match protocol {
        HttpProtocol::H1 => http1::serve(io, &state, handler, drain).await,
        HttpProtocol::H2 => http2::serve(io, &state, handler, drain).await,
    }
}

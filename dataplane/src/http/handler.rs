//! What the HTTP server needs from the layer above: a handler for each connection.

use std::future::Future;

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Body;

use super::head::HeadError;
use super::incoming_body::IncomingBody;

/// Handles the requests of one connection, and what the server rejects before it is a request.
pub(crate) trait RequestHandler: 'static {
    /// The body of a response.
    type Body: Body<Data = Bytes, Error = Self::BodyError> + Unpin + 'static;
    /// A response that is aborted.
    type BodyError: std::error::Error + Send + Sync + 'static;

    /// Responds to a request.
    fn handle(&self, request: Request<IncomingBody>) -> impl Future<Output = Response<Self::Body>>;

    /// Records a head that [`HeadScanner`](super::head::HeadScanner) rejects. Returns the response
    /// as it goes over the wire; the connection closes after it.
    fn reject_head(&self, error: HeadError) -> Vec<u8>;

    /// Records a head that hyper cannot parse, and to which hyper has responded.
    fn record_parse_error(&self, error: &hyper::Error);

    /// Records an HTTP/2 stream whose client reads nothing for `send_timeout`.
    fn record_send_timeout(&self);
}

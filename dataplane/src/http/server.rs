//! The HTTP server of a worker: the settings and timers that its client connections share, and the
//! protocol of a connection.

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use super::head::HeadLimits;
use crate::io::buffered::BufferedSocket;
use crate::io::coarse_timer::CoarseTimers;

/// The version of HTTP on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HttpProtocol {
    /// HTTP/1.0 and 1.1.
    H1,
    /// HTTP/2.
    H2,
}

impl HttpProtocol {
    /// The protocol that ALPN negotiated.
    pub(crate) fn from_alpn(alpn: Option<&str>) -> Self {
        if alpn == Some("h2") { Self::H2 } else { Self::H1 }
    }
}

/// The settings and timers that all connections of a worker share.
pub(crate) struct HttpServer {
    pub(crate) settings: Cell<HttpSettings>,
    pub(crate) timers: Rc<CoarseTimers>,
    /// Every HTTP/1 response closes its connection.
    pub(crate) lame_duck: Cell<bool>,
}

/// The settings of a worker's HTTP server. A connection keeps the limits on heads that it started
/// with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HttpSettings {
    pub(crate) head_limits: HeadLimits,
    /// Whether header names keep their case between HTTP/1 and HTTP/1.
    pub(crate) preserve_header_case: bool,
    /// Whether HTTP/2 is detected on plain connections.
    pub(crate) http2: bool,
    /// How long an HTTP/1 connection is idle before hyper's buffers are released. 0: at once.
    pub(crate) idle_release_timeout: Duration,
    /// How long a connection is idle before it is closed.
    pub(crate) keepalive_timeout: Duration,
    /// How long a client may read nothing of a response.
    pub(crate) send_timeout: Duration,
}

/// Detects HTTP/2 with prior knowledge on a plain connection from the first bytes of the client.
///
/// # Errors
/// A failed read, or EOF before the first byte.
pub(crate) async fn detect_protocol(socket: &mut BufferedSocket, http2: bool) -> io::Result<HttpProtocol> {
    poll_fn(|cx| match socket.poll_fill_buf(cx) {
        Poll::Pending => Poll::Pending,
        Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
        Poll::Ready(Ok([])) => Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
        Poll::Ready(Ok(first)) => {
            // No method begins with "PRI "; every client sends the preface in one piece.
            let is_preface = http2 && first.starts_with(b"PRI ");
            Poll::Ready(Ok(if is_preface { HttpProtocol::H2 } else { HttpProtocol::H1 }))
        }
    })
    .await
}

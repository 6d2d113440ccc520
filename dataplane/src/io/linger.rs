//! The lingering close of a connection, as in nginx: send what is buffered, end our direction, then
//! read and discard.
//!
//! A socket that is closed with unread bytes sends a reset, and the peer may lose the alert or the
//! response that was sent before. Invariant: a lingering close is bounded in time and in bytes.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::time::Duration;

use hyper::rt::Write;

use super::chunk_read::{Chunk, ChunkRead};
use crate::runtime;

/// How long a connection lingers, and how many bytes the peer may still send.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LingerLimits {
    pub time: Duration,
    pub bytes: usize,
}

impl LingerLimits {
    /// After a failed handshake, and at the end of a TCP connection.
    pub(crate) const CONNECTION: Self = Self { time: Duration::from_millis(500), bytes: 64 * 1024 };
    /// After the response to a rejected request, whose body may be under way.
    pub(crate) const REQUEST: Self = Self { time: Duration::from_secs(5), bytes: 16 * 1024 * 1024 };
}

/// Shuts our direction down, then reads and discards within `limits` until the peer ends its own.
pub(crate) async fn lingering_close(io: &mut (impl ChunkRead + Write + Unpin), limits: LingerLimits) {
    let close = async {
        if shutdown(io).await.is_ok() {
            discard_bytes(io, limits.bytes).await;
        }
    };
    let _elapsed = runtime::timeout(limits.time, close).await;
}

/// Sends what is buffered and ends our direction: with `close_notify` on TLS, then with a FIN.
///
/// # Errors
/// The write failed.
pub(crate) async fn shutdown(io: &mut (impl Write + Unpin)) -> io::Result<()> {
    poll_fn(|cx| Pin::new(&mut *io).poll_shutdown(cx)).await
}

/// Reads and discards within `limits` until the peer ends its direction.
pub(crate) async fn discard(io: &mut impl ChunkRead, limits: LingerLimits) {
    let _elapsed = runtime::timeout(limits.time, discard_bytes(io, limits.bytes)).await;
}

async fn discard_bytes(io: &mut impl ChunkRead, mut bytes: usize) {
    while bytes > 0 {
        let n = poll_fn(|cx| {
            io.poll_chunk(cx).map(|chunk| match chunk {
                Ok(Chunk::Data(data)) => data.len(),
                Ok(Chunk::Eof | Chunk::Truncated) | Err(_) => 0,
            })
        });
        let n = n.await;
        if n == 0 {
            return;
        }
        io.consume(n);
        bytes = bytes.saturating_sub(n);
    }
}

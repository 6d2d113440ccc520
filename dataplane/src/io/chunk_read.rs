//! Zero-copy reads: a connection lends the bytes it has received.

use std::io;
use std::task::{Context, Poll};

/// The next bytes of a connection, or its end.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Chunk<'a> {
    /// At least one byte.
    Data(&'a [u8]),
    /// The peer has ended its direction.
    Eof,
    /// The TLS connection ended without `close_notify`, so data may be missing.
    Truncated,
}

/// A connection that is read without a copy.
pub(crate) trait ChunkRead {
    /// The next chunk. [`ChunkRead::consume`] must follow with the number of bytes used.
    ///
    /// # Errors
    /// The read failed, or the peer broke the TLS protocol.
    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Chunk<'_>>>;

    /// Consumes `n` bytes of the chunk.
    fn consume(&mut self, n: usize);

    /// Frees the buffers that an idle connection does not need.
    fn shrink_buffers(&mut self);
}

//! Bytes lent from where they arrived, so that a relay needs no buffer of its own between two
//! connections.

use std::io;
use std::task::{Context, Poll};

/// What a connection has for its reader.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Chunk<'a> {
    /// Bytes, at least one.
    Data(&'a [u8]),
    /// The peer has said all it had to say.
    Eof,
    /// It ended without saying so: within TLS, where only `close_notify` proves that nothing was
    /// cut off.
    Truncated,
}

/// A connection that lends what it has received.
pub(crate) trait ChunkRead {
    /// What there is next; to be followed by [`Lend::consume`] of as much as was used.
    ///
    /// # Errors
    /// As the read, or what breaks TLS.
    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Chunk<'_>>>;

    /// Marks `n` bytes of the chunk as used.
    fn consume(&mut self, n: usize);

    /// Nothing is expected for a while: what is not needed meanwhile is given back.
    fn shrink_buffers(&mut self);
}

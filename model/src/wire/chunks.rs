//! Splits a delta into messages of bounded size.
//!
//! Chunks are encoded lazily, because a first delta may have gigabytes.

use prost::Message;
use proto::push;

use super::key_to_wire;
use crate::id::Key;
use crate::snapshot::{Delta, Versioned};

/// The largest overhead of a chunk besides its items.
const FRAME: usize = 64;

/// Splits a delta into chunks of at most `max_bytes` encoded. A larger resource gets a chunk of its
/// own, so the receiver's limit must allow the largest resource. An empty delta has one chunk.
pub fn chunks(delta: &Delta, max_bytes: usize) -> Chunks<'_> {
    Chunks {
        delta,
        upserts: delta.upserts.iter(),
        removals: delta.removals.iter(),
        waiting: None,
        index: 0,
        done: false,
        room: max_bytes.saturating_sub(FRAME),
    }
}

/// The chunks of a delta, in order.
pub struct Chunks<'a> {
    delta: &'a Delta,
    upserts: std::slice::Iter<'a, Versioned>,
    removals: std::slice::Iter<'a, Key>,
    /// Encoded, but too large for the previous chunk.
    waiting: Option<ChunkItem>,
    index: u32,
    done: bool,
    room: usize,
}

enum ChunkItem {
    Upsert(Box<push::Upsert>),
    Removal(push::Key),
}

impl ChunkItem {
    /// The encoded size with tag and length.
    fn size(&self) -> usize {
        let length = match self {
            ChunkItem::Upsert(upsert) => upsert.encoded_len(),
            ChunkItem::Removal(key) => key.encoded_len(),
        };
        1 + prost::length_delimiter_len(length) + length
    }
}

impl Chunks<'_> {
    fn next_item(&mut self) -> Option<ChunkItem> {
        if let Some(piece) = self.waiting.take() {
            return Some(piece);
        }
        if let Some(Versioned { version, resource }) = self.upserts.next() {
            let upsert = push::Upsert { version: *version, resource: Some(resource.into()) };
            return Some(ChunkItem::Upsert(Box::new(upsert)));
        }
        self.removals.next().map(|key| ChunkItem::Removal(key_to_wire(key)))
    }
}

impl Iterator for Chunks<'_> {
    type Item = push::Chunk;

    fn next(&mut self) -> Option<push::Chunk> {
        if self.done {
            return None;
        }
        let mut chunk =
            push::Chunk { from: self.delta.from, to: self.delta.to, index: self.index, ..Default::default() };
        let mut size = 0;
        loop {
            let Some(piece) = self.next_item() else {
                chunk.last = true;
                self.done = true;
                break;
            };
            size += piece.size();
            let first = chunk.upserts.is_empty() && chunk.removals.is_empty();
            if size > self.room && !first {
                self.waiting = Some(piece);
                break;
            }
            match piece {
                ChunkItem::Upsert(upsert) => chunk.upserts.push(*upsert),
                ChunkItem::Removal(key) => chunk.removals.push(key),
            }
        }
        self.index = self.index.saturating_add(1);
        Some(chunk)
    }
}

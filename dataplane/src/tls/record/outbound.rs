//! The write direction: encrypts data, alerts and KeyUpdates into the write buffer.
//!
//! Invariant: no key encrypts more records than its suite allows; the last one is a KeyUpdate. A
//! KeyUpdate that the peer has requested precedes the next data (RFC 8446 section 4.6.3).

use std::io;

use super::framing::HEADER;
use super::traffic_keys::TAG;
use super::{
    ALERT, APPLICATION_DATA, CLOSE_NOTIFY, EMPTY_HEADER, FRAGMENT_MAX, HANDSHAKE, KEY_UPDATE, RecordError,
    RecordLayer, UPDATE_NOT_REQUESTED, WARNING, WRITE_MAX,
};

/// What a record adds to its plaintext: header, content type and tag. Bytes.
const OVERHEAD: usize = HEADER + 1 + TAG;

impl RecordLayer {
    /// Encrypts a prefix of the buffers to the end of `out`; returns its length. Small buffers
    /// share a record.
    ///
    /// # Errors
    /// Our direction has ended.
    pub fn write<'a>(
        &mut self,
        bufs: impl Iterator<Item = &'a [u8]> + Clone,
        out: &mut Vec<u8>,
    ) -> io::Result<usize> {
        if self.write_closed {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let len = bufs.clone().map(<[u8]>::len).sum::<usize>().min(WRITE_MAX);
        out.reserve(len + (len / FRAGMENT_MAX + 1) * OVERHEAD);
        let (mut written, mut open_record) = (0, None);
        for mut buf in bufs {
            while !buf.is_empty() && written < WRITE_MAX {
                let start = match open_record {
                    Some(start) => start,
                    None => *open_record.insert(self.begin_record(out)?),
                };
                let room = (start + HEADER + FRAGMENT_MAX).saturating_sub(out.len());
                let (now, later) = buf.split_at(room.min(WRITE_MAX - written).min(buf.len()));
                out.extend_from_slice(now);
                written += now.len();
                buf = later;
                if now.len() == room {
                    open_record = None;
                    self.seal_record(start, APPLICATION_DATA, out)?;
                }
            }
        }
        if let Some(start) = open_record {
            self.seal_record(start, APPLICATION_DATA, out)?;
        }
        Ok(written)
    }

    /// Begins a record of application data; returns its position in `out`.
    fn begin_record(&mut self, out: &mut Vec<u8>) -> Result<usize, RecordError> {
        // The last record of a key must be the KeyUpdate.
        if (self.key_update_requested
            || self.write.sequence().saturating_add(1) >= self.confidentiality_limit)
            && let Err(error) = self.update_write_key()
        {
            self.write_closed = true;
            return Err(error);
        }
        self.write_tls(out);
        let start = out.len();
        out.extend_from_slice(&EMPTY_HEADER);
        Ok(start)
    }

    /// Encrypts the record that begins at `start`.
    fn seal_record(&mut self, start: usize, kind: u8, out: &mut Vec<u8>) -> Result<(), RecordError> {
        seal_record(start, kind, out, |header, body| self.write.seal(header, body))
    }

    /// Queues a record that precedes any other.
    pub(super) fn queue_record(&mut self, kind: u8, content: &[u8]) -> Result<(), RecordError> {
        push_record(kind, content, &mut self.pending, |header, body| self.write.seal(header, body))
    }

    fn update_write_key(&mut self) -> Result<(), RecordError> {
        self.key_update_requested = false;
        let [a, b, c, d] = KEY_UPDATE;
        self.queue_record(HANDSHAKE, &[a, b, c, d, UPDATE_NOT_REQUESTED])?;
        self.write.update()
    }

    /// Appends the queued records to `out`.
    pub fn write_tls(&mut self, out: &mut Vec<u8>) {
        out.append(&mut self.pending);
    }

    /// Queues the alert `close_notify`.
    pub fn send_close_notify(&mut self) {
        if !self.write_closed {
            self.write_closed = true;
            // If it cannot be encrypted, the connection ends truncated.
            let _sealed = self.queue_record(ALERT, &[WARNING, CLOSE_NOTIFY]);
        }
    }
}

/// Appends an encrypted record to `out`.
pub(super) fn push_record(
    kind: u8,
    content: &[u8],
    out: &mut Vec<u8>,
    seal: impl FnOnce([u8; HEADER], &mut [u8]) -> Result<[u8; TAG], RecordError>,
) -> Result<(), RecordError> {
    let start = out.len();
    out.extend_from_slice(&EMPTY_HEADER);
    out.extend_from_slice(content);
    seal_record(start, kind, out, seal)
}

/// Encrypts the record that begins at `start`. On an error the record is removed, so that plaintext
/// is never sent.
fn seal_record(
    start: usize,
    kind: u8,
    out: &mut Vec<u8>,
    seal: impl FnOnce([u8; HEADER], &mut [u8]) -> Result<[u8; TAG], RecordError>,
) -> Result<(), RecordError> {
    out.push(kind);
    let record = out.get_mut(start..).and_then(|record| record.split_first_chunk_mut::<HEADER>());
    let sealed = record.ok_or(RecordError::Keys).and_then(|(header, body)| {
        let [.., high, low] = header;
        let len = u16::try_from(body.len() + TAG).map_err(|_| RecordError::Keys)?;
        [*high, *low] = len.to_be_bytes();
        seal(*header, body)
    });
    match sealed {
        Ok(tag) => out.extend_from_slice(&tag),
        Err(_) => out.truncate(start),
    }
    sealed.map(drop)
}

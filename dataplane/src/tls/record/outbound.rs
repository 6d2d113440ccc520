//! What goes: data and messages of our own, sealed at the end of what is to be sent.
//!
//! Invariant: no key seals more records than its suite allows; the last one says that another key
//! follows. A KeyUpdate that the peer has requested goes before the next data (RFC 8446 section
//! 4.6.3).

use std::io;

use super::framing::HEADER;
use super::traffic_keys::TAG;
use super::{
    ALERT, APPLICATION_DATA, CLOSE_NOTIFY, EMPTY_HEADER, FRAGMENT_MAX, HANDSHAKE, KEY_UPDATE, RecordError,
    RecordLayer, UPDATE_NOT_REQUESTED, WARNING, WRITE_MAX,
};

/// What a record takes beside what it carries. Bytes.
const OVERHEAD: usize = HEADER + 1 + TAG;

impl RecordLayer {
    /// Encrypts some of it to the end of `out`, and says how much; small pieces share a record.
    ///
    /// # Errors
    /// When our direction has ended.
    pub fn write<'a>(
        &mut self,
        pieces: impl Iterator<Item = &'a [u8]> + Clone,
        out: &mut Vec<u8>,
    ) -> io::Result<usize> {
        if self.write_closed {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let length = pieces.clone().map(<[u8]>::len).sum::<usize>().min(WRITE_MAX);
        out.reserve(length + (length / FRAGMENT_MAX + 1) * OVERHEAD);
        let (mut written, mut begun) = (0, None);
        for mut piece in pieces {
            while !piece.is_empty() && written < WRITE_MAX {
                let start = match begun {
                    Some(start) => start,
                    None => *begun.insert(self.begin_record(out)?),
                };
                let room = (start + HEADER + FRAGMENT_MAX).saturating_sub(out.len());
                let (now, later) = piece.split_at(room.min(WRITE_MAX - written).min(piece.len()));
                out.extend_from_slice(now);
                written += now.len();
                piece = later;
                if now.len() == room {
                    begun = None;
                    self.seal_record(start, APPLICATION_DATA, out)?;
                }
            }
        }
        if let Some(start) = begun {
            self.seal_record(start, APPLICATION_DATA, out)?;
        }
        Ok(written)
    }

    /// Begins a record of the application's; gives where.
    fn begin_record(&mut self, out: &mut Vec<u8>) -> Result<usize, RecordError> {
        // The last record under a key says that others follow.
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

    /// Seals the record that begins at `start`.
    fn seal_record(&mut self, start: usize, kind: u8, out: &mut Vec<u8>) -> Result<(), RecordError> {
        end(start, kind, out, |header, body| self.write.seal(header, body))
    }

    /// A record of our own, to go out before anything else.
    pub(super) fn queue_record(&mut self, kind: u8, content: &[u8]) -> Result<(), RecordError> {
        say(kind, content, &mut self.pending, |header, body| self.write.seal(header, body))
    }

    fn update_write_key(&mut self) -> Result<(), RecordError> {
        self.key_update_requested = false;
        let [a, b, c, d] = KEY_UPDATE;
        self.queue_record(HANDSHAKE, &[a, b, c, d, UPDATE_NOT_REQUESTED])?;
        self.write.update()
    }

    /// Moves what goes out before anything else to the end of `out`.
    pub fn write_tls(&mut self, out: &mut Vec<u8>) {
        out.append(&mut self.pending);
    }

    /// Says goodbye: close_notify waits to be staged.
    pub fn send_close_notify(&mut self) {
        if !self.write_closed {
            self.write_closed = true;
            // Should it fail, the peer sees a connection that was cut off.
            let _sealed = self.queue_record(ALERT, &[WARNING, CLOSE_NOTIFY]);
        }
    }
}

/// Puts a whole record to the end of `out`.
pub(super) fn say(
    kind: u8,
    content: &[u8],
    out: &mut Vec<u8>,
    seal: impl FnOnce([u8; HEADER], &mut [u8]) -> Result<[u8; TAG], RecordError>,
) -> Result<(), RecordError> {
    let start = out.len();
    out.extend_from_slice(&EMPTY_HEADER);
    out.extend_from_slice(content);
    end(start, kind, out, seal)
}

/// Seals the record that begins at `start`. What cannot be sealed is taken back: it must never go
/// out as it is.
fn end(
    start: usize,
    kind: u8,
    out: &mut Vec<u8>,
    seal: impl FnOnce([u8; HEADER], &mut [u8]) -> Result<[u8; TAG], RecordError>,
) -> Result<(), RecordError> {
    out.push(kind);
    let record = out.get_mut(start..).and_then(|record| record.split_first_chunk_mut::<HEADER>());
    let sealed = record.ok_or(RecordError::Keys).and_then(|(header, body)| {
        let [.., high, low] = header;
        let length = u16::try_from(body.len() + TAG).map_err(|_| RecordError::Keys)?;
        [*high, *low] = length.to_be_bytes();
        seal(*header, body)
    });
    match sealed {
        Ok(tag) => out.extend_from_slice(&tag),
        Err(_) => out.truncate(start),
    }
    sealed.map(drop)
}

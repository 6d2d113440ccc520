//! What comes: records of the peer's, put together, opened and looked at.
//!
//! Invariant: nothing of a record is used before it has proved authentic, and after an error nothing is read any more.

use std::io;

use super::{
    ALERT, APPLICATION_DATA, BODY_MAX, CLOSE_NOTIFY, FATAL, FRAGMENT_MAX, FRUITLESS_MAX, HANDSHAKE, KEPT,
    KEY_UPDATE, Peer, RecordError, Records, UPDATE_REQUESTED, USER_CANCELED,
    framing::{HEADER, length},
};
use crate::tls::engine::Plaintext;

/// The only handshake message that may come. Records may cut it, senseless as that is.
#[derive(Default)]
pub(super) struct Message {
    bytes: [u8; KEY_UPDATE.len() + 1],
    pub(super) length: usize,
}

impl Records {
    /// Takes ciphertext to the end of a record, and says how much; none given means that the peer has ended its direction.
    pub fn take(&mut self, data: &[u8]) -> usize {
        match self.peer {
            Peer::Talks if data.is_empty() => self.peer = Peer::Cut,
            Peer::Talks => {}
            // Whatever follows is nobody's.
            Peer::Closed | Peer::Cut | Peer::Failed(_) => return data.len(),
        }
        let mut rest = data;
        while let (missing @ 1.., false) = (self.missing(), rest.is_empty()) {
            let (now, later) = rest.split_at(missing.min(rest.len()));
            self.record.extend_from_slice(now);
            rest = later;
        }
        data.len() - rest.len()
    }

    /// What the record under way lacks to be whole, or to have a header. One that is too long is never made whole.
    fn missing(&mut self) -> usize {
        let Some(header) = self.record.first_chunk::<HEADER>() else { return HEADER - self.record.len() };
        let (whole, there) = (HEADER + length(*header), self.record.len());
        if whole > HEADER + BODY_MAX {
            return 0;
        }
        if there == HEADER && (self.record.capacity() < whole || self.record.capacity() > KEPT.max(4 * whole))
        {
            let mut exact = Vec::with_capacity(whole);
            exact.append(&mut self.record);
            self.record = exact;
        }
        whole - there
    }

    /// Decrypts the record under way, if it is whole.
    ///
    /// # Errors
    /// [`RecordError`]; the alert waits to be staged.
    pub fn advance(&mut self) -> Result<(), RecordError> {
        if let Peer::Failed(error) = self.peer {
            return Err(error);
        }
        if self.peer != Peer::Talks || !self.plain.is_empty() || self.missing() > 0 {
            return Ok(());
        }
        let opened = self.open();
        if self.plain.is_empty() {
            self.record.clear();
        }
        opened.inspect_err(|&error| {
            self.peer = Peer::Failed(error);
            if let (Some(alert), false) = (error.alert(), self.closed) {
                self.closed = true;
                // Should even this fail, the connection ends without it.
                let _sealed = self.say(ALERT, &[FATAL, alert]);
            }
        })
    }

    fn open(&mut self) -> Result<(), RecordError> {
        let (header, body) = self.record.split_first_chunk_mut::<HEADER>().ok_or(RecordError::Keys)?;
        let [outer, ..] = *header;
        if outer != APPLICATION_DATA {
            return Err(RecordError::Unexpected(outer));
        }
        if length(*header) > BODY_MAX {
            return Err(RecordError::Oversized);
        }
        let opened = self.read.open(*header, body)?;
        let inner = body.get(..opened).unwrap_or_default();
        // Zeros pad; the last byte that is none is the type (section 5.4).
        let last = inner.iter().rposition(|byte| *byte != 0).ok_or(RecordError::Unexpected(0))?;
        let (content, kind) = inner.split_at(last);
        if content.len() > FRAGMENT_MAX {
            return Err(RecordError::Oversized);
        }
        let kind = kind.first().copied().unwrap_or_default();
        if self.message.length > 0 && kind != HANDSHAKE {
            return Err(RecordError::Unexpected(kind));
        }
        match (kind, content) {
            (APPLICATION_DATA, []) => self.was_fruitless(),
            (APPLICATION_DATA, content) => {
                self.fruitless = 0;
                self.plain = HEADER..HEADER + content.len();
                Ok(())
            }
            (ALERT, &[_, CLOSE_NOTIFY]) => {
                self.peer = Peer::Closed;
                Ok(())
            }
            (ALERT, &[_, USER_CANCELED]) => self.was_fruitless(),
            (ALERT, &[_, alert]) => Err(RecordError::Alert(alert)),
            (HANDSHAKE, [_, ..]) => {
                // Copied, for it is five bytes: what follows needs all of `self`.
                let whole = self.message.extend(content)?;
                self.was_fruitless()?;
                if whole { self.key_update() } else { Ok(()) }
            }
            (ALERT | HANDSHAKE, _) => Err(RecordError::Malformed(kind)),
            _ => Err(RecordError::Unexpected(kind)),
        }
    }

    fn was_fruitless(&mut self) -> Result<(), RecordError> {
        self.fruitless += 1;
        if self.fruitless > FRUITLESS_MAX { Err(RecordError::Fruitless) } else { Ok(()) }
    }

    /// New keys to read by; and to write by, if the client wants that.
    fn key_update(&mut self) -> Result<(), RecordError> {
        let [.., request] = std::mem::take(&mut self.message).bytes;
        if request > UPDATE_REQUESTED {
            return Err(RecordError::KeyUpdate(request));
        }
        self.read.renew(self.suite)?;
        if request == UPDATE_REQUESTED && !self.closed { self.renew_write() } else { Ok(()) }
    }

    /// Whether there is plaintext to read.
    ///
    /// # Errors
    /// The peer broke the protocol.
    pub fn ready(&self) -> io::Result<Plaintext> {
        if !self.plain.is_empty() {
            return Ok(Plaintext::Some);
        }
        match self.peer {
            Peer::Talks => Ok(Plaintext::Starved),
            Peer::Closed => Ok(Plaintext::End),
            Peer::Cut => Ok(Plaintext::Cut),
            Peer::Failed(error) => Err(io::Error::new(io::ErrorKind::InvalidData, error)),
        }
    }

    /// Plaintext, lent from where it was decrypted.
    pub fn chunk(&self) -> &[u8] {
        self.record.get(self.plain.clone()).unwrap_or_default()
    }

    /// Marks `n` bytes of the chunk as used.
    pub fn consume(&mut self, n: usize) {
        self.plain.start = self.plain.start.saturating_add(n).min(self.plain.end);
        if self.plain.is_empty() {
            self.record.clear();
        }
    }
}

impl Message {
    /// Adds what a record holds; whether the message is whole then. It must end with a record, because the next one has another key
    /// (RFC 8446 section 5.1).
    fn extend(&mut self, content: &[u8]) -> Result<bool, RecordError> {
        for byte in content {
            let next = self.bytes.get_mut(self.length).ok_or(RecordError::Unexpected(HANDSHAKE))?;
            *next = *byte;
            match KEY_UPDATE.get(self.length) {
                Some(expected) if self.length == 0 && byte != expected => {
                    return Err(RecordError::Unexpected(*byte));
                }
                Some(expected) if byte != expected => return Err(RecordError::Malformed(HANDSHAKE)),
                Some(_) | None => {}
            }
            self.length += 1;
        }
        Ok(self.length == self.bytes.len())
    }
}

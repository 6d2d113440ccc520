//! The read direction: assembles, decrypts and checks the peer's records.
//!
//! Invariant: plaintext is used only after its record is authenticated, and after an error nothing
//! is read.

use std::io;

use rustls::Side;

use super::framing::{HEADER, body_len};
use super::{
    ALERT, APPLICATION_DATA, BODY_MAX, CLOSE_NOTIFY, EMPTY_RECORDS_MAX, FATAL, FRAGMENT_MAX, HANDSHAKE,
    KEY_UPDATE, PeerState, RECORD_BUF_KEPT, RecordError, RecordLayer, UPDATE_REQUESTED, USER_CANCELED,
};
use crate::tls::PlaintextState;

/// NewSessionTicket (RFC 8446 section 4.6.1), which a server may send at any time.
const NEW_SESSION_TICKET: u8 = 4;
/// The largest handshake message, as in rustls, so that detaching shortens no ticket. Bytes.
const MESSAGE_MAX: usize = 0xffff;

/// The parser of the handshake messages of an established connection: KeyUpdate, and on a client
/// NewSessionTicket. A message may span several records.
pub(super) struct PostHandshakeMessages {
    side: Side,
    header: [u8; KEY_UPDATE.len()],
    /// Bytes of the header that were read.
    header_len: usize,
    /// Bytes of a ticket that were not read.
    body_missing: usize,
}

impl RecordLayer {
    /// Reads ciphertext up to the end of a record; returns how many bytes. Empty `data` means that
    /// the peer has ended its direction.
    pub fn read_tls(&mut self, data: &[u8]) -> usize {
        match self.peer {
            PeerState::Open if data.is_empty() => self.peer = PeerState::Truncated,
            PeerState::Open => {}
            // Ciphertext behind the end is dropped.
            PeerState::CloseNotify | PeerState::Truncated | PeerState::Failed(_) => return data.len(),
        }
        let mut rest = data;
        while let (missing @ 1.., false) = (self.bytes_missing(), rest.is_empty()) {
            let (now, later) = rest.split_at(missing.min(rest.len()));
            self.record.extend_from_slice(now);
            rest = later;
        }
        data.len() - rest.len()
    }

    /// The bytes that complete the record, or its header. An oversized record is not completed.
    fn bytes_missing(&mut self) -> usize {
        let Some(header) = self.record.first_chunk::<HEADER>() else {
            return HEADER - self.record.len();
        };
        let (record_len, len) = (HEADER + body_len(*header), self.record.len());
        if record_len > HEADER + BODY_MAX {
            return 0;
        }
        let capacity = self.record.capacity();
        if len == HEADER && (capacity < record_len || capacity > RECORD_BUF_KEPT.max(4 * record_len)) {
            let mut exact = Vec::with_capacity(record_len);
            exact.append(&mut self.record);
            self.record = exact;
        }
        record_len - len
    }

    /// Decrypts the record, if it is complete.
    ///
    /// # Errors
    /// [`RecordError`]; the alert is queued.
    pub fn process_new_packets(&mut self) -> Result<(), RecordError> {
        if let PeerState::Failed(error) = self.peer {
            return Err(error);
        }
        if self.peer != PeerState::Open || !self.plaintext.is_empty() || self.bytes_missing() > 0 {
            return Ok(());
        }
        let result = self.decrypt_record();
        if self.plaintext.is_empty() {
            self.record.clear();
        }
        result.inspect_err(|&error| {
            self.peer = PeerState::Failed(error);
            if let (Some(alert), false) = (error.alert(), self.write_closed) {
                self.write_closed = true;
                // If the alert cannot be encrypted, the connection ends without it.
                let _sealed = self.queue_record(ALERT, &[FATAL, alert]);
            }
        })
    }

    fn decrypt_record(&mut self) -> Result<(), RecordError> {
        let (header, body) = self.record.split_first_chunk_mut::<HEADER>().ok_or(RecordError::Keys)?;
        match *header {
            [APPLICATION_DATA, 3, 3, ..] if body_len(*header) > BODY_MAX => {
                return Err(RecordError::Oversized);
            }
            [APPLICATION_DATA, 3, 3, ..] => {}
            [APPLICATION_DATA, ..] => return Err(RecordError::Malformed(APPLICATION_DATA)),
            [outer, ..] => return Err(RecordError::Unexpected(outer)),
        }
        let inner_len = self.read.open(*header, body)?;
        // Content, type and padding together (section 5.4).
        if inner_len > FRAGMENT_MAX + 1 {
            return Err(RecordError::Oversized);
        }
        let inner = body.get(..inner_len).unwrap_or_default();
        // Zeros are padding; the last byte before them is the type (section 5.4).
        let last = inner.iter().rposition(|byte| *byte != 0).ok_or(RecordError::Unexpected(0))?;
        let (content, kind) = inner.split_at(last);
        let kind = kind.first().copied().unwrap_or_default();
        if !self.messages.is_at_boundary() && kind != HANDSHAKE {
            return Err(RecordError::Unexpected(kind));
        }
        match (kind, content) {
            (APPLICATION_DATA, []) => self.count_empty_record(),
            (APPLICATION_DATA, content) => {
                self.empty_records = 0;
                self.plaintext = HEADER..HEADER + content.len();
                Ok(())
            }
            (ALERT, &[_, CLOSE_NOTIFY]) => {
                self.peer = PeerState::CloseNotify;
                Ok(())
            }
            (ALERT, &[_, USER_CANCELED]) => self.count_empty_record(),
            (ALERT, &[_, alert]) => Err(RecordError::AlertReceived(alert)),
            (HANDSHAKE, [_, ..]) => {
                let request = self.messages.read(content)?;
                self.count_empty_record()?;
                request.map_or(Ok(()), |request| self.key_update(request))
            }
            (ALERT, [_, ..]) => Err(RecordError::Malformed(ALERT)),
            // An empty alert or handshake message, too (section 5.4).
            _ => Err(RecordError::Unexpected(kind)),
        }
    }

    fn count_empty_record(&mut self) -> Result<(), RecordError> {
        self.empty_records += 1;
        if self.empty_records > EMPTY_RECORDS_MAX { Err(RecordError::TooManyEmptyRecords) } else { Ok(()) }
    }

    /// Updates the read key; if the peer requests it, the write key follows before the next data.
    fn key_update(&mut self, request: u8) -> Result<(), RecordError> {
        if request > UPDATE_REQUESTED {
            return Err(RecordError::KeyUpdate(request));
        }
        self.read.update()?;
        self.key_update_requested |= request == UPDATE_REQUESTED;
        Ok(())
    }

    /// Whether there is plaintext to read.
    ///
    /// # Errors
    /// The peer broke the protocol.
    pub fn plaintext_state(&self) -> io::Result<PlaintextState> {
        if !self.plaintext.is_empty() {
            return Ok(PlaintextState::Available);
        }
        match self.peer {
            PeerState::Open => Ok(PlaintextState::NeedMoreData),
            PeerState::CloseNotify => Ok(PlaintextState::CloseNotify),
            PeerState::Truncated => Ok(PlaintextState::Truncated),
            PeerState::Failed(error) => Err(error.into()),
        }
    }

    /// The unread plaintext of the record.
    pub fn plaintext(&self) -> &[u8] {
        self.record.get(self.plaintext.clone()).unwrap_or_default()
    }

    /// Consumes `n` bytes of the plaintext.
    pub fn consume(&mut self, n: usize) {
        self.plaintext.start = self.plaintext.start.saturating_add(n).min(self.plaintext.end);
        if self.plaintext.is_empty() {
            self.record.clear();
        }
    }
}

impl PostHandshakeMessages {
    pub(super) fn new(side: Side) -> Self {
        Self { side, header: [0; _], header_len: 0, body_missing: 0 }
    }

    /// Whether no message is incomplete.
    fn is_at_boundary(&self) -> bool {
        self.header_len == 0
    }

    /// Reads the content of a record; returns the request of a KeyUpdate, if the record completes
    /// one. A KeyUpdate must end its record, since the next record has another key (RFC 8446
    /// section 5.1).
    fn read(&mut self, mut content: &[u8]) -> Result<Option<u8>, RecordError> {
        while let Some((&byte, rest)) = content.split_first() {
            if self.body_missing > 0 {
                let n = self.body_missing.min(content.len());
                content = content.get(n..).unwrap_or_default();
                self.body_missing -= n;
                if self.body_missing == 0 {
                    self.header_len = 0;
                }
                continue;
            }
            content = rest;
            let Some(next) = self.header.get_mut(self.header_len) else {
                self.header_len = 0;
                return if rest.is_empty() {
                    Ok(Some(byte))
                } else {
                    Err(RecordError::Unexpected(HANDSHAKE))
                };
            };
            *next = byte;
            self.header_len += 1;
            self.check_header()?;
        }
        Ok(None)
    }

    /// Checks the bytes of the header that were read.
    fn check_header(&mut self) -> Result<(), RecordError> {
        let [kind, high, middle, low] = self.header;
        let is_ticket = kind == NEW_SESSION_TICKET && self.side == Side::Client;
        match self.header_len {
            1 if is_ticket || KEY_UPDATE.starts_with(&[kind]) => Ok(()),
            1 => Err(RecordError::Unexpected(kind)),
            4 if is_ticket => {
                self.body_missing = u32::from_be_bytes([0, high, middle, low]) as usize;
                if (1..=MESSAGE_MAX).contains(&self.body_missing) {
                    Ok(())
                } else {
                    Err(RecordError::Malformed(HANDSHAKE))
                }
            }
            4 if self.header != KEY_UPDATE => Err(RecordError::Malformed(HANDSHAKE)),
            _ => Ok(()),
        }
    }
}

//! A rustls connection that can give its keys to our record layer.
//!
//! rustls gets one encrypted record at a time, so that its buffers never hold a part of the next
//! record. Invariant: the connection detaches only between two records and two handshake messages,
//! and while its keys follow from the first traffic secrets in at most [`KEY_UPDATES_MAX`] updates.

use std::io::{self, BufRead as _};

use rustls::{Connection, Error};

use crate::tls::record::framing::RecordFraming;
use crate::tls::record::{KEY_UPDATES_MAX, RecordLayer, TrafficSecrets};

/// A rustls connection, with what [`RecordLayer`] needs of it.
pub struct RustlsConnection {
    pub(in crate::tls) connection: Connection,
    framing: RecordFraming,
    /// `None`: the connection stays with rustls.
    pub(in crate::tls) secrets: Option<TrafficSecrets>,
    /// Decrypted and not read. Bytes.
    unread: usize,
    /// Records without data since the handshake; each may have been a KeyUpdate.
    records_without_data: u8,
    /// Whether the last record ended a handshake message, or carried data.
    aligned: bool,
}

impl RustlsConnection {
    /// `framing`: the position in the record that the connection reads next.
    pub(in crate::tls) fn new(connection: Connection, framing: RecordFraming) -> Self {
        Self { connection, framing, secrets: None, unread: 0, records_without_data: 0, aligned: true }
    }

    pub(in crate::tls) fn read_tls(&mut self, data: &[u8]) -> io::Result<usize> {
        let record = { self.framing }.advance(data);
        let record = data.get(..record).unwrap_or_default();
        let n = self.connection.read_tls(&mut &*record)?;
        self.framing.advance(record.get(..n).unwrap_or_default());
        Ok(n)
    }

    /// Continues the handshake.
    pub(in crate::tls) fn process_handshake(&mut self) -> Result<(), Error> {
        self.connection.process_new_packets().map(drop)
    }

    /// Decrypts records of the established connection, and notes whether a record carried data. A
    /// record without data carried handshake messages, which may continue in the next record; data
    /// comes only between two messages (RFC 8446 section 5.1).
    pub(super) fn process_new_packets(&mut self) -> Result<(), Error> {
        // After an error rustls still sends an alert, so the connection must stay with it.
        let state = self.connection.process_new_packets().inspect_err(|_| self.secrets = None)?;
        let unread = state.plaintext_bytes_to_read();
        if self.framing.is_at_boundary() {
            self.aligned = unread > self.unread;
            if !self.aligned {
                self.records_without_data = self.records_without_data.saturating_add(1);
            }
        }
        self.unread = unread;
        Ok(())
    }

    pub(in crate::tls) fn write_tls(&mut self, out: &mut Vec<u8>) {
        // A write to memory does not fail.
        while self.connection.wants_write() && self.connection.write_tls(out).is_ok() {}
    }

    pub(super) fn consume(&mut self, n: usize) {
        self.connection.reader().consume(n);
        self.unread = self.unread.saturating_sub(n);
    }

    pub(in crate::tls) fn send_close_notify(&mut self) {
        self.secrets = None;
        self.connection.send_close_notify();
    }

    /// Whether [`RustlsConnection::into_record_layer`] may be called, if no plaintext is unread.
    pub(super) fn can_detach(&self) -> bool {
        self.secrets.is_some()
            && self.framing.is_at_boundary()
            && self.aligned
            && self.records_without_data <= KEY_UPDATES_MAX
    }

    /// Continues the connection on our own record layer.
    ///
    /// # Errors
    /// As [`RecordLayer::from_rustls`].
    pub(super) fn into_record_layer(self) -> Result<RecordLayer, Vec<u8>> {
        RecordLayer::from_rustls(self.connection, self.secrets.ok_or_else(Vec::new)?)
    }
}

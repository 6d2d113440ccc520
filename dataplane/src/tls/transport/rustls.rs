//! One connection of rustls', and what is needed to go on without it.
//!
//! It is fed one encrypted record at a time, so that nothing that belongs to the next record is
//! ever inside; and its first traffic secrets are kept. Invariant: it is left only between two
//! records and two handshake messages, and while its keys follow from those secrets in at most
//! [`UPDATES_MAX`] steps.

use std::io::{self, BufRead as _};

use rustls::{ClientConnection, Connection, Error, ServerConnection};

use crate::tls::record::framing::RecordFraming;
use crate::tls::record::traffic_secrets::{self, TrafficSecrets};
use crate::tls::record::{KEY_UPDATES_MAX, RecordLayer};

/// A connection and its way out.
pub struct RustlsConnection {
    pub(super) connection: Connection,
    framing: RecordFraming,
    /// `None`: the connection stays with rustls.
    pub(in crate::tls) secrets: Option<TrafficSecrets>,
    /// Plaintext that was not read yet. Bytes.
    unread: usize,
    /// Records without data since the handshake, each of which may have been a KeyUpdate.
    records_without_data: u8,
    /// No handshake message has begun that has not ended.
    aligned: bool,
}

impl RustlsConnection {
    pub(super) fn client(connection: ClientConnection) -> Self {
        Self::new(connection.into(), RecordFraming::default(), None)
    }

    pub(super) fn server(
        connection: ServerConnection,
        framing: RecordFraming,
        traffic: Option<TrafficSecrets>,
    ) -> Self {
        Self::new(connection.into(), framing, traffic)
    }

    fn new(connection: Connection, framing: RecordFraming, traffic: Option<TrafficSecrets>) -> Self {
        Self { connection, framing, secrets: traffic, unread: 0, records_without_data: 0, aligned: true }
    }

    pub(super) fn read_tls(&mut self, data: &[u8]) -> io::Result<usize> {
        let one = { self.framing }.advance(data);
        let one = data.get(..one).unwrap_or_default();
        let taken = self.connection.read_tls(&mut &*one)?;
        self.framing.advance(one.get(..taken).unwrap_or_default());
        Ok(taken)
    }

    pub(super) fn process_new_packets(&mut self) -> Result<(), Error> {
        let advanced = if self.connection.is_handshaking() {
            let Self { connection, secrets: traffic, .. } = self;
            traffic_secrets::capture_traffic_secrets(traffic, || connection.process_new_packets()).map(drop)
        } else {
            self.process_established()
        };
        // What rustls still has to say is an alert.
        advanced.inspect_err(|_| self.secrets = None)
    }

    /// Goes on behind the handshake, and notes whether a whole record brought data. It did not if
    /// it was of messages, which may end in the next one; data comes only between two messages
    /// (RFC 8446 section 5.1).
    fn process_established(&mut self) -> Result<(), Error> {
        let there = self.connection.process_new_packets()?.plaintext_bytes_to_read();
        if self.framing.is_at_boundary() {
            self.aligned = there > self.unread;
            if !self.aligned {
                self.records_without_data = self.records_without_data.saturating_add(1);
            }
        }
        self.unread = there;
        Ok(())
    }

    pub(super) fn consume(&mut self, n: usize) {
        self.connection.reader().consume(n);
        self.unread = self.unread.saturating_sub(n);
    }

    pub(super) fn send_close_notify(&mut self) {
        self.secrets = None;
        self.connection.send_close_notify();
    }

    /// Whether [`Rustls::into_records`] may be called, as long as there is nothing to read.
    pub(super) fn can_detach(&self) -> bool {
        self.secrets.is_some()
            && self.framing.is_at_boundary()
            && self.aligned
            && self.records_without_data <= KEY_UPDATES_MAX
            && !self.connection.is_handshaking()
    }

    /// The connection's records without rustls.
    ///
    /// # Errors
    /// As [`Records::after`].
    pub(super) fn into_record_layer(self) -> Result<RecordLayer, Vec<u8>> {
        RecordLayer::from_rustls(self.connection, self.secrets.ok_or_else(Vec::new)?)
    }
}

//! One connection of rustls', and what is needed to go on without it.
//!
//! It is fed one encrypted record at a time, so that nothing that belongs to the next record is ever inside; and its first traffic secrets
//! are kept. Invariant: keys are taken over only while they are the first ones, which a record after the handshake that was
//! neither data nor a ticket may have changed.

use std::io;

use rustls::{ClientConnection, Connection, Error, ServerConnection};

use crate::tls::records::{
    RecordError, Records,
    framing::Framing,
    traffic::{self, Traffic},
};

/// A connection and its way out.
pub struct Rustls {
    pub(super) connection: Connection,
    framing: Framing,
    traffic: Option<Traffic>,
}

impl Rustls {
    pub(super) fn client(connection: ClientConnection) -> Self {
        Self { connection: connection.into(), framing: Framing::default(), traffic: None }
    }

    pub(super) fn server(connection: ServerConnection, framing: Framing, traffic: Option<Traffic>) -> Self {
        Self { connection: connection.into(), framing, traffic }
    }

    pub(super) fn take(&mut self, data: &[u8]) -> io::Result<usize> {
        let one = { self.framing }.pass(data);
        let one = data.get(..one).unwrap_or_default();
        let taken = self.connection.read_tls(&mut &*one)?;
        self.framing.pass(one.get(..taken).unwrap_or_default());
        Ok(taken)
    }

    pub(super) fn advance(&mut self) -> Result<(), Error> {
        if self.connection.is_handshaking() {
            let Self { connection, traffic, .. } = self;
            return traffic::overhear(traffic, || connection.process_new_packets()).map(drop);
        }
        let tickets = self.tickets();
        let state = self.connection.process_new_packets()?;
        // A KeyUpdate, for all that can be told from here.
        if state.plaintext_bytes_to_read() == 0 && self.framing.is_between() && self.tickets() == tickets {
            self.traffic = None;
        }
        Ok(())
    }

    /// How many a client has been given.
    fn tickets(&self) -> u32 {
        match &self.connection {
            Connection::Client(client) => client.tls13_tickets_received(),
            Connection::Server(_) => 0,
        }
    }

    /// Whether [`Rustls::into_records`] would succeed, as long as there is nothing to read.
    pub(super) fn may_leave(&self) -> bool {
        self.traffic.is_some()
            && self.framing.is_between()
            && !self.connection.is_handshaking()
            && !self.connection.wants_write()
    }

    /// The connection's records without rustls.
    ///
    /// # Errors
    /// [`RecordError::Keys`]: the connection is lost.
    pub(super) fn into_records(self) -> Result<Records, RecordError> {
        Records::after(self.connection, self.traffic.ok_or(RecordError::Keys)?)
    }
}

//! The records of a TLS 1.3 connection that stays (RFC 8446 section 5), in rustls' place.
//!
//! rustls shakes hands, and with it one connection takes some 7 KiB as long as it lives: a receive
//! buffer that nothing gives back, the client's certificates, what a handshake may still need. Once
//! a connection has shown that it stays, its traffic keys are taken over ([`Records::after`]). From
//! then on a record is decrypted where it lies, what is sent is encrypted where it is sent from,
//! and a connection on which nothing is under way holds two keys and two secrets.
//!
//! On either side; a client's tickets are passed over from then on. Stands behind
//! [`super::engine::Engine`]. Invariants: nothing of a record is used before it has proved
//! authentic; after an error nothing is read any more, and the last that is said is the alert.

use std::io::{self, Write as _};
use std::ops::Range;

use rustls::{Connection, Side};

use self::framing::HEADER;
use self::inbound::PostHandshakeMessages;
use self::traffic_keys::{RecordKey, TrafficKeys};
use self::traffic_secrets::TrafficSecrets;

pub mod framing;
mod inbound;
mod outbound;
mod traffic_keys;
pub mod traffic_secrets;

pub(super) use self::traffic_keys::KEY_UPDATES_MAX;

/// What a record may carry (RFC 8446 section 5.1). Bytes.
const FRAGMENT_MAX: usize = 1 << 14;
/// What its body may be long (section 5.2).
const BODY_MAX: usize = FRAGMENT_MAX + 256;
/// The most that one call encrypts, so that what is to be sent stays bounded. Bytes.
const WRITE_MAX: usize = 4 * FRAGMENT_MAX;
/// Records without a byte for the application that a client may send one after the other.
const EMPTY_RECORDS_MAX: u8 = 32;
/// The largest buffer that is kept from one record to the next. Bytes.
const RECORD_BUF_KEPT: usize = 4 * 1024;

/// Content types (RFC 8446 section 5.1).
const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;

/// Alerts (section 6).
const WARNING: u8 = 1;
const FATAL: u8 = 2;
const CLOSE_NOTIFY: u8 = 0;
const INTERNAL_ERROR: u8 = 80;
const USER_CANCELED: u8 = 90;

/// The header of what we send: its length is filled in when it is known.
const EMPTY_HEADER: [u8; HEADER] = [APPLICATION_DATA, 3, 3, 0, 0];
/// The header of KeyUpdate. What follows says whether the other side is to do the same (section
/// 4.6.3).
const KEY_UPDATE: [u8; 4] = [24, 0, 0, 1];
const UPDATE_NOT_REQUESTED: u8 = 0;
const UPDATE_REQUESTED: u8 = 1;

/// What ends a connection. All but the last two are the peer's doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// A record is not what its sender made: altered, repeated, left out, or of somebody else.
    #[error("a record does not decrypt")]
    Decrypt,
    /// Longer than a record may be.
    #[error("a record of more than {FRAGMENT_MAX} bytes")]
    Oversized,
    /// Of a type that has no place here.
    #[error("a record or message that does not belong into an established connection (type {0})")]
    Unexpected(u8),
    /// An alert or a KeyUpdate that is none.
    #[error("a record of type {0} that cannot be read")]
    Malformed(u8),
    /// A KeyUpdate that asks for something that there is not.
    #[error("a KeyUpdate with the request {0}, which is neither 0 nor 1")]
    KeyUpdate(u8),
    /// Nothing but empty records and KeyUpdates.
    #[error("more than {EMPTY_RECORDS_MAX} records in a row without any data")]
    TooManyEmptyRecords,
    /// The peer has given up, with this alert.
    #[error("the peer sent the fatal alert {0}")]
    AlertReceived(u8),
    /// Keys that do not go together; a defect.
    #[error("the keys of this connection cannot be used")]
    Keys,
}

impl RecordError {
    /// What the peer is told.
    fn alert(self) -> Option<u8> {
        match self {
            Self::Decrypt => Some(20),
            Self::Oversized => Some(22),
            Self::Unexpected(_) | Self::TooManyEmptyRecords => Some(10),
            Self::Malformed(_) => Some(50),
            Self::KeyUpdate(_) => Some(47),
            Self::Keys => Some(INTERNAL_ERROR),
            Self::AlertReceived(_) => None,
        }
    }
}

/// What the peer may still say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PeerState {
    Talks,
    /// It has said close_notify.
    CloseNotify,
    /// Its direction ended without.
    Truncated,
    /// It has done what must not be done.
    Failed(RecordError),
}

/// A connection's records, both ways.
pub struct RecordLayer {
    read: TrafficKeys,
    write: TrafficKeys,
    /// The peer has requested new keys of ours: a KeyUpdate goes before the next data, one for any
    /// number of requests.
    key_update_requested: bool,
    /// Records that one key may seal.
    confidentiality_limit: u64,
    /// The record under way, as far as it has come; then its plaintext.
    record: Vec<u8>,
    /// Where in `record` there is plaintext that nobody has used yet.
    plaintext: Range<usize>,
    messages: PostHandshakeMessages,
    empty_records: u8,
    peer: PeerState,
    /// Goes out before anything else.
    pending: Vec<u8>,
    /// Our direction has ended.
    write_closed: bool,
}

impl RecordLayer {
    /// Goes on where rustls is, between two records and two messages, with nothing unread. What
    /// rustls has not sent yet goes out before anything else.
    ///
    /// # Errors
    /// The connection is lost, because a key belongs to no secret that follows from `traffic`.
    /// Gives what is left to send: the alert `internal_error`, behind what rustls has not sent.
    pub fn from_rustls(mut connection: Connection, traffic: TrafficSecrets) -> Result<Self, Vec<u8>> {
        let mut pending = unsent(&mut connection);
        match extract(connection, traffic, &mut pending) {
            Ok((side, limit, read, write)) => Ok(Self {
                read,
                write,
                key_update_requested: false,
                confidentiality_limit: limit,
                record: Vec::new(),
                plaintext: 0..0,
                messages: PostHandshakeMessages::new(side),
                empty_records: 0,
                peer: PeerState::Talks,
                pending,
                write_closed: false,
            }),
            Err(_) => Err(pending),
        }
    }

    /// Gives back what nothing is in.
    pub fn shrink_buffers(&mut self) {
        if self.record.is_empty() {
            self.record = Vec::new();
        }
        if self.pending.is_empty() {
            self.pending = Vec::new();
        }
    }
}

/// What rustls would still send, sealed. A KeyUpdate that it owes it keeps back until something is
/// written, if only nothing.
fn unsent(connection: &mut Connection) -> Vec<u8> {
    let mut unsent = Vec::new();
    // Both fail only after an error of the connection, and then no secrets are extracted from it.
    let _flushed = connection.writer().write(&[]);
    while connection.wants_write() && connection.write_tls(&mut unsent).is_ok() {}
    unsent
}

/// Side, records that one key may seal, and the directions to read and to write.
fn extract(
    connection: Connection,
    traffic: TrafficSecrets,
    pending: &mut Vec<u8>,
) -> Result<(Side, u64, TrafficKeys, TrafficKeys), RecordError> {
    let (side, theirs, ours) = match connection {
        Connection::Server(_) => (Side::Server, traffic.client, traffic.server),
        Connection::Client(_) => (Side::Client, traffic.server, traffic.client),
    };
    let suite = connection.negotiated_cipher_suite().and_then(|suite| suite.tls13());
    let suite = suite.ok_or(RecordError::Keys)?;
    let keys = connection.dangerous_extract_secrets().map_err(|_| RecordError::Keys)?;
    let read = TrafficKeys::after(suite, theirs, (keys.rx.0, &keys.rx.1));
    let write = TrafficKeys::after(suite, ours, (keys.tx.0, &keys.tx.1));
    match (read, write) {
        (Ok(read), Ok(write)) => Ok((side, suite.common.confidentiality_limit, read, write)),
        (Err(error), _) | (_, Err(error)) => {
            // The key itself is rustls' and good for one more record; only what follows it is unknown.
            let mut key = RecordKey::from_rustls((keys.tx.0, &keys.tx.1))?;
            outbound::say(ALERT, &[FATAL, INTERNAL_ERROR], pending, |header, body| key.seal(header, body))?;
            Err(error)
        }
    }
}

impl From<RecordError> for io::Error {
    fn from(error: RecordError) -> Self {
        Self::new(io::ErrorKind::InvalidData, error)
    }
}

#[cfg(test)]
mod tests;

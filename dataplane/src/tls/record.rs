//! Our record layer of TLS 1.3 (RFC 8446 section 5), for connections that have detached from
//! rustls.
//!
//! A rustls connection holds some 7 KiB as long as it lives: a receive buffer, the client's
//! certificates, the state of its handshake. A connection that lives on detaches
//! ([`RecordLayer::from_rustls`]): then a record is decrypted in the buffer it was read into, data
//! is encrypted in the write buffer, and an idle connection holds two keys and two secrets.
//!
//! It serves both sides; a client ignores tickets from then on. Invariants: plaintext of a record
//! is used only after the record is authenticated; after an error nothing is read, and the last
//! record sent is the alert.

use std::io::{self, Write as _};
use std::ops::Range;

use rustls::crypto::tls13::OkmBlock;
use rustls::{Connection, Side};

use self::framing::HEADER;
use self::inbound::PostHandshakeMessages;
use self::traffic_keys::{RecordKey, TrafficKeys};

pub mod framing;
mod inbound;
mod outbound;
mod traffic_keys;

pub(super) use self::traffic_keys::KEY_UPDATES_MAX;

/// The largest plaintext of a record (RFC 8446 section 5.1). Bytes.
const FRAGMENT_MAX: usize = 1 << 14;
/// The largest body of a record (section 5.2). Bytes.
const BODY_MAX: usize = FRAGMENT_MAX + 256;
/// The largest plaintext of one call to `write`, to bound the write buffer. Bytes.
const WRITE_MAX: usize = 4 * FRAGMENT_MAX;
/// Consecutive records without application data that a peer may send.
const EMPTY_RECORDS_MAX: u8 = 32;
/// The largest record buffer that is kept for the next record. Bytes.
const RECORD_BUF_KEPT: usize = 4 * 1024;

/// Content types (section 5.1).
const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;

/// Alerts (section 6).
const WARNING: u8 = 1;
const FATAL: u8 = 2;
const CLOSE_NOTIFY: u8 = 0;
const INTERNAL_ERROR: u8 = 80;
const USER_CANCELED: u8 = 90;

/// The header of a record to send, before its length is known.
const EMPTY_HEADER: [u8; HEADER] = [APPLICATION_DATA, 3, 3, 0, 0];
/// The header of a KeyUpdate. Its body is one of the two bytes below (section 4.6.3).
const KEY_UPDATE: [u8; 4] = [24, 0, 0, 1];
const UPDATE_NOT_REQUESTED: u8 = 0;
const UPDATE_REQUESTED: u8 = 1;

/// Why the record layer failed. Only [`RecordError::Keys`] is not the peer's doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The record was altered, repeated or reordered, or has another sender.
    #[error("a record does not decrypt")]
    Decrypt,
    #[error("a record of more than {FRAGMENT_MAX} bytes")]
    Oversized,
    #[error("a record or message that does not belong into an established connection (type {0})")]
    Unexpected(u8),
    #[error("a record of type {0} that cannot be read")]
    Malformed(u8),
    #[error("a KeyUpdate with the request {0}, which is neither 0 nor 1")]
    KeyUpdate(u8),
    #[error("more than {EMPTY_RECORDS_MAX} records in a row without any data")]
    TooManyEmptyRecords,
    #[error("the peer sent the fatal alert {0}")]
    AlertReceived(u8),
    /// The keys of rustls do not belong to the captured secrets; a defect.
    #[error("the keys of this connection cannot be used")]
    Keys,
}

impl RecordError {
    /// The alert for the peer.
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

/// Which record layer serves established TLS 1.3 connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordLayerKind {
    /// [`RecordLayer`], as soon as a connection has shown that it lives on.
    Own,
    /// rustls, always. No secret leaves rustls.
    Rustls,
}

impl RecordLayerKind {
    /// Whether rustls must allow to extract keys (`enable_secret_extraction`).
    pub fn extracts_secrets(self) -> bool {
        self == Self::Own
    }
}

/// The first application traffic secrets of a connection (RFC 8446 section 7.1).
pub struct TrafficSecrets {
    pub(super) client: OkmBlock,
    pub(super) server: OkmBlock,
}

/// The state of the peer's direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PeerState {
    Open,
    CloseNotify,
    /// The connection ended without `close_notify`.
    Truncated,
    Failed(RecordError),
}

/// The record layer of one connection, both directions.
pub struct RecordLayer {
    read: TrafficKeys,
    write: TrafficKeys,
    /// The peer has requested a KeyUpdate. One precedes the next data, for any number of requests.
    key_update_requested: bool,
    /// Records that one key may encrypt.
    confidentiality_limit: u64,
    /// The record that is being read; then its plaintext.
    record: Vec<u8>,
    /// The unread plaintext in `record`.
    plaintext: Range<usize>,
    messages: PostHandshakeMessages,
    empty_records: u8,
    peer: PeerState,
    /// Records that precede any other.
    pending: Vec<u8>,
    /// Our direction has ended.
    write_closed: bool,
}

impl RecordLayer {
    /// Continues a rustls connection that is between two records and two handshake messages, and
    /// has no unread plaintext. What rustls has queued is sent first.
    ///
    /// # Errors
    /// A key of rustls does not follow from `secrets`. Returns the last ciphertext of the
    /// connection: what rustls has queued, and the alert `internal_error`.
    pub fn from_rustls(mut connection: Connection, secrets: TrafficSecrets) -> Result<Self, Vec<u8>> {
        let mut pending = unsent(&mut connection);
        match extract(connection, secrets, &mut pending) {
            Ok((side, confidentiality_limit, read, write)) => Ok(Self {
                read,
                write,
                key_update_requested: false,
                confidentiality_limit,
                record: Vec::new(),
                plaintext: 0..0,
                messages: PostHandshakeMessages::new(side),
                empty_records: 0,
                peer: PeerState::Open,
                pending,
                write_closed: false,
            }),
            Err(_) => Err(pending),
        }
    }

    /// Frees empty buffers.
    pub fn shrink_buffers(&mut self) {
        if self.record.is_empty() {
            self.record = Vec::new();
        }
        if self.pending.is_empty() {
            self.pending = Vec::new();
        }
    }
}

/// The ciphertext that rustls has queued. rustls queues a requested KeyUpdate only with a write, if
/// only an empty one.
fn unsent(connection: &mut Connection) -> Vec<u8> {
    let mut unsent = Vec::new();
    // Both fail only after an error of the connection, and then no secrets are extracted from it.
    let _flushed = connection.writer().write(&[]);
    while connection.wants_write() && connection.write_tls(&mut unsent).is_ok() {}
    unsent
}

/// The side, the confidentiality limit, and the keys of both directions (read, write).
fn extract(
    connection: Connection,
    secrets: TrafficSecrets,
    pending: &mut Vec<u8>,
) -> Result<(Side, u64, TrafficKeys, TrafficKeys), RecordError> {
    let (side, read_secret, write_secret) = match connection {
        Connection::Server(_) => (Side::Server, secrets.client, secrets.server),
        Connection::Client(_) => (Side::Client, secrets.server, secrets.client),
    };
    let suite = connection.negotiated_cipher_suite().and_then(|suite| suite.tls13());
    let suite = suite.ok_or(RecordError::Keys)?;
    let keys = connection.dangerous_extract_secrets().map_err(|_| RecordError::Keys)?;
    let read = TrafficKeys::from_rustls(suite, read_secret, (keys.rx.0, &keys.rx.1));
    let write = TrafficKeys::from_rustls(suite, write_secret, (keys.tx.0, &keys.tx.1));
    match (read, write) {
        (Ok(read), Ok(write)) => Ok((side, suite.common.confidentiality_limit, read, write)),
        (Err(error), _) | (_, Err(error)) => {
            // rustls' own key is good for one more record; only its successor is unknown.
            let mut key = RecordKey::from_rustls((keys.tx.0, &keys.tx.1))?;
            let alert = [FATAL, INTERNAL_ERROR];
            outbound::push_record(ALERT, &alert, pending, |header, body| key.seal(header, body))?;
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

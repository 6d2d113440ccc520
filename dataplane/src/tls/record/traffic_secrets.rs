//! The traffic secrets of a handshake, as rustls tells them while it computes them.
//!
//! rustls gives the keys of a connection away, but not what the next ones are made from when a
//! client asks for new ones (RFC 8446 section 7.2). Its log of keys is told those; nothing here
//! writes any of them anywhere. Invariant: outside of [`overhear`] nothing is kept, and
//! what is kept is wiped when it goes.

use std::cell::{Cell, RefCell};
use std::sync::Arc;

use rustls::crypto::tls13::OkmBlock;
use rustls::{KeyLog, NoKeyLog};

/// The names rustls gives to what is kept, which are those of the NSS key log format.
const CLIENT_LABEL: &str = "CLIENT_TRAFFIC_SECRET_0";
const SERVER_LABEL: &str = "SERVER_TRAFFIC_SECRET_0";

thread_local! {
    static CAPTURING: Cell<bool> = const { Cell::new(false) };
    static CAPTURED: RefCell<CapturedSecrets> = const { RefCell::new(CapturedSecrets { client: None, server: None }) };
}

#[derive(Default)]
struct CapturedSecrets {
    client: Option<OkmBlock>,
    server: Option<OkmBlock>,
}

/// What the first keys of both directions were made from.
pub struct TrafficSecrets {
    /// The client's, which the server reads by.
    pub(super) client: OkmBlock,
    /// The server's.
    pub(super) server: OkmBlock,
}

/// Runs a step of a handshake and keeps what rustls tells meanwhile, if that is all; not where it
/// has been told already.
pub fn capture_traffic_secrets<T>(traffic: &mut Option<TrafficSecrets>, step: impl FnOnce() -> T) -> T {
    if traffic.is_some() {
        return step();
    }
    CAPTURING.set(true);
    let done = step();
    CAPTURING.set(false);
    if let CapturedSecrets { client: Some(client), server: Some(server) } = CAPTURED.take() {
        *traffic = Some(TrafficSecrets { client, server });
    }
    done
}

/// Who reads and writes the records of an established TLS 1.3 connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordLayerKind {
    /// [`super::Records`], as soon as a connection has shown that it stays.
    Own,
    /// rustls, always. No secret leaves it.
    Rustls,
}

impl RecordLayerKind {
    /// Whether a connection may be asked for its keys (`enable_secret_extraction` of a
    /// configuration).
    pub fn extracts_secrets(self) -> bool {
        self == Self::Own
    }

    /// What a configuration logs its secrets to.
    pub fn key_log(self) -> Arc<dyn KeyLog> {
        match self {
            Self::Own => Arc::new(SecretCapture),
            Self::Rustls => Arc::new(NoKeyLog {}),
        }
    }
}

/// What rustls tells its secrets to.
#[derive(Debug)]
pub struct SecretCapture;

impl KeyLog for SecretCapture {
    fn log(&self, label: &str, _client_random: &[u8], secret: &[u8]) {
        CAPTURED.with_borrow_mut(|heard| match label {
            CLIENT_LABEL => heard.client = Some(OkmBlock::new(secret)),
            SERVER_LABEL => heard.server = Some(OkmBlock::new(secret)),
            _ => {}
        });
    }

    fn will_log(&self, label: &str) -> bool {
        CAPTURING.get() && (label == CLIENT_LABEL || label == SERVER_LABEL)
    }
}

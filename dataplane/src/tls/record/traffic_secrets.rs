//! The traffic secrets of a handshake, as rustls tells them while it computes them.
//!
//! rustls gives the keys of a connection away, but not what the next ones are made from when a client asks for new ones (RFC 8446
//! section 7.2). Its log of keys is told those; nothing here writes any of them anywhere. Invariant: outside of [`overhear`] nothing is kept, and
//! what is kept is wiped when it goes.

use std::cell::{Cell, RefCell};
use std::sync::Arc;

use rustls::crypto::tls13::OkmBlock;
use rustls::{KeyLog, NoKeyLog};

/// The names rustls gives to what is kept, which are those of the NSS key log format.
const OF_CLIENT: &str = "CLIENT_TRAFFIC_SECRET_0";
const OF_SERVER: &str = "SERVER_TRAFFIC_SECRET_0";

thread_local! {
    static LISTENING: Cell<bool> = const { Cell::new(false) };
    static HEARD: RefCell<Heard> = const { RefCell::new(Heard { client: None, server: None }) };
}

#[derive(Default)]
struct Heard {
    client: Option<OkmBlock>,
    server: Option<OkmBlock>,
}

/// What the first keys of both directions were made from.
pub struct Traffic {
    /// The client's, which the server reads by.
    pub(super) client: OkmBlock,
    /// The server's.
    pub(super) server: OkmBlock,
}

/// Runs a step of a handshake and keeps what rustls tells meanwhile, if that is all; not where it has been told already.
pub fn overhear<T>(traffic: &mut Option<Traffic>, step: impl FnOnce() -> T) -> T {
    if traffic.is_some() {
        return step();
    }
    LISTENING.set(true);
    let done = step();
    LISTENING.set(false);
    if let Heard { client: Some(client), server: Some(server) } = HEARD.take() {
        *traffic = Some(Traffic { client, server });
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
    /// Whether a connection may be asked for its keys (`enable_secret_extraction` of a configuration).
    pub fn extracts_secrets(self) -> bool {
        self == Self::Own
    }

    /// What a configuration logs its secrets to.
    pub fn key_log(self) -> Arc<dyn KeyLog> {
        match self {
            Self::Own => Arc::new(Overheard),
            Self::Rustls => Arc::new(NoKeyLog {}),
        }
    }
}

/// What rustls tells its secrets to.
#[derive(Debug)]
pub struct Overheard;

impl KeyLog for Overheard {
    fn log(&self, label: &str, _client_random: &[u8], secret: &[u8]) {
        HEARD.with_borrow_mut(|heard| match label {
            OF_CLIENT => heard.client = Some(OkmBlock::new(secret)),
            OF_SERVER => heard.server = Some(OkmBlock::new(secret)),
            _ => {}
        });
    }

    fn will_log(&self, label: &str) -> bool {
        LISTENING.get() && (label == OF_CLIENT || label == OF_SERVER)
    }
}

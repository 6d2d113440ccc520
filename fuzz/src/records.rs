//! Our record layer, compared with rustls: both get the same records under the same keys, on either
//! side of a connection.
//!
//! The handshake is deterministic (fixed random bytes, key exchange and signature), so that two
//! connections have the same secrets. Properties: both return the same plaintext; both reject the
//! same input with the same alert, except for the cases in [`Outcome::may_differ`]; there is no
//! difference while ours still uses rustls; and the peer can open our records under the next key
//! and number.

use std::sync::LazyLock;

use dataplane::testing::tls::PlaintextState;
use dataplane::testing::tls::record::RecordError;
use dataplane::testing::tls::record::framing::RecordFraming;
use dataplane::testing::tls::transport::{TlsTransport, TransportError};
use rustls::{Connection, Error, PeerMisbehaved};

use self::forge::Keys;
use self::peers::{Role, Secrets};

mod forge;
mod peers;

const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;
const CLOSE_NOTIFY: u8 = 0;
const USER_CANCELED: u8 = 90;
/// Events of one connection: fewer than either side's limit of records without data.
const EVENTS: usize = 30;
/// Lengths of content and padding, around every limit.
const LENGTHS: [usize; 10] = [0, 1, 2, 15, 300, 16_383, 16_384, 16_385, 16_623, 16_640];
/// NewSessionTicket (RFC 8446 section 4.6.1).
const TICKET: [u8; 21] = [4, 0, 0, 17, 0, 0, 1, 0, 0, 0, 0, 7, 1, 5, 0, 3, 9, 9, 9, 0, 0];

/// The bytes that choose the events; zeros at the end.
struct Script<'a>(&'a [u8]);

impl<'a> Script<'a> {
    fn byte(&mut self) -> u8 {
        let Some((&byte, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        byte
    }

    fn bytes(&mut self) -> &'a [u8] {
        let length = usize::from(self.byte() % 32).min(self.0.len());
        let (now, later) = self.0.split_at(length);
        self.0 = later;
        now
    }

    fn length(&mut self) -> usize {
        LENGTHS[usize::from(self.byte()) % LENGTHS.len()]
    }
}

/// The state of a side after the received records.
#[derive(Debug)]
enum Outcome<E> {
    Open,
    Closed,
    /// rustls' buffer for an incomplete handshake message is full.
    Full,
    Failed(E),
}

type Ours = Outcome<TransportError>;
type Judge = Outcome<Error>;

/// The first byte chooses suite and side, the second when ours leaves rustls; then one byte per
/// event, and its arguments.
pub fn check(data: &[u8]) {
    let mut script = Script(data);
    let (first, leaves) = (script.byte(), usize::from(script.byte()) % 6);
    let role = if (first / 3).is_multiple_of(2) { Role::Server } else { Role::Client };
    let mut run = Run::new(usize::from(first) % 3, role);
    for number in 0..EVENTS {
        if script.0.is_empty() {
            return;
        }
        if number >= leaves {
            run.ours.detach_from_rustls();
        }
        let wire = run.event(&mut script);
        if !run.deliver(&wire) {
            return;
        }
    }
}

struct Run {
    role: Role,
    ours: TlsTransport,
    judge: Connection,
    /// The peer's write keys.
    peer: Keys,
    /// The peer's read state: for ours, and for the reference.
    heard: [Heard; 2],
}

/// The records sent by one side.
struct Heard {
    keys: Keys,
    data: Vec<u8>,
    updates: usize,
    alert: Option<u8>,
}

impl Run {
    fn new(suite: usize, role: Role) -> Self {
        static PEERS: LazyLock<peers::Peers> = LazyLock::new(peers::Peers::new);
        let (ours, judge, Secrets { theirs, own }) = PEERS.connect(suite, role);
        let heard =
            || Heard { keys: Keys::new(suite, own.clone()), data: Vec::new(), updates: 0, alert: None };
        let heard = [heard(), heard()];
        Self { role, ours, judge, peer: Keys::new(suite, theirs), heard }
    }

    /// The peer's records of one event.
    fn event(&mut self, script: &mut Script<'_>) -> Vec<u8> {
        match script.byte() % 12 {
            0 => self.peer.seal(APPLICATION_DATA, &vec![b'a'; script.length()], 0),
            1 => {
                let (kind, content) = (script.byte(), script.bytes());
                self.peer.seal(kind, content, script.length())
            }
            2 => {
                let (tickets, request) = (script.byte(), script.byte());
                let tickets = match self.role {
                    Role::Client => TICKET.repeat(usize::from(tickets % 4)),
                    Role::Server => Vec::new(),
                };
                let wire =
                    self.peer.seal(HANDSHAKE, &[&tickets, [24, 0, 0, 1, request].as_slice()].concat(), 0);
                self.peer.renew();
                wire
            }
            3 => self.peer.seal(HANDSHAKE, &TICKET, 0),
            4 => self.peer.seal(ALERT, &[1 + script.byte() % 2, script.byte()], script.length()),
            5 => {
                let (kind, body) = (script.byte(), script.bytes());
                self.peer.seal(HANDSHAKE, &[&[kind, 0, 0, body.len() as u8], body].concat(), 0)
            }
            6 => self.peer.seal(APPLICATION_DATA, &vec![b'b'; script.length()], script.length()),
            7 => self.in_parts(script),
            8 => {
                let mut wire = self.peer.seal(APPLICATION_DATA, b"damaged", 0);
                let at = usize::from(script.byte()) % wire.len();
                wire[at] ^= script.byte();
                wire
            }
            9 => {
                let (kind, content) = (script.byte(), script.bytes());
                [&[kind, 3, 3, 0, content.len() as u8], content].concat()
            }
            10 => {
                self.write(script.length());
                Vec::new()
            }
            _ => {
                self.hear();
                Vec::new()
            }
        }
    }

    /// A message in two records.
    fn in_parts(&mut self, script: &mut Script<'_>) -> Vec<u8> {
        let update = script.byte().is_multiple_of(2) || self.role == Role::Server;
        let message: &[u8] = if update { &[24, 0, 0, 1, 1] } else { &TICKET };
        let (before, after) = message.split_at(1 + usize::from(script.byte()) % (message.len() - 1));
        let wire = [self.peer.seal(HANDSHAKE, before, 0), self.peer.seal(HANDSHAKE, after, 0)].concat();
        if update {
            self.peer.renew();
        }
        wire
    }

    /// Both sides write the same data, behind a KeyUpdate when one is pending.
    fn write(&mut self, length: usize) {
        let data = vec![b'w'; length];
        let mut out = Vec::new();
        let mut rest = data.as_slice();
        while !rest.is_empty() {
            let written = self.ours.write(rest, &mut out).expect("an open connection can be written to");
            rest = &rest[written..];
        }
        self.heard[0].read(&out);
        std::io::Write::write_all(&mut self.judge.writer(), &data).expect("so can rustls'");
        self.hear();
        let [ours, judge] = &mut self.heard;
        assert_eq!(ours.data, judge.data, "what was written");
        if length > 0 {
            assert_eq!(ours.updates > 0, judge.updates > 0, "KeyUpdates before the data");
            (ours.updates, judge.updates) = (0, 0);
        }
    }

    /// Delivers the output of both sides to the peer.
    fn hear(&mut self) {
        let mut out = Vec::new();
        self.ours.write_tls(&mut out);
        self.heard[0].read(&out);
        out.clear();
        while self.judge.wants_write() {
            self.judge.write_tls(&mut out).expect("there is room");
        }
        self.heard[1].read(&out);
    }

    /// Delivers the same bytes to both; returns whether the run continues.
    fn deliver(&mut self, wire: &[u8]) -> bool {
        let with_rustls = matches!(self.ours, TlsTransport::Rustls(_));
        let (plain, ours) = feed(&mut self.ours, wire);
        let (expected, judge) = feed_judge(&mut self.judge, wire);
        match (&ours, &judge) {
            (Outcome::Open, Outcome::Open) => assert_eq!(plain, expected, "the plaintext"),
            (Outcome::Closed, Outcome::Closed) | (Outcome::Full, Outcome::Full) => {
                assert_eq!(plain, expected, "the plaintext");
            }
            _ => {
                self.hear();
                let alerts = [self.heard[0].alert, self.heard[1].alert];
                let same = matches!((&ours, &judge), (Outcome::Failed(_), Outcome::Failed(_)))
                    && alerts[0] == alerts[1];
                assert!(same || !with_rustls, "rustls differs from itself: {ours:?}, {judge:?}");
                assert!(
                    same || ours.may_differ(&judge, alerts),
                    "{ours:?}, rustls: {judge:?}, {alerts:?}, {wire:?}"
                );
                assert!(
                    plain.starts_with(&expected) || expected.starts_with(&plain),
                    "the plaintext before it"
                );
            }
        }
        matches!((ours, judge), (Outcome::Open, Outcome::Open))
    }
}

impl Ours {
    /// The accepted differences, each with its reason.
    fn may_differ(&self, judge: &Judge, alerts: [Option<u8>; 2]) -> bool {
        use RecordError as E;
        const UNEXPECTED: Option<u8> = Some(10);
        let ours = match self {
            Outcome::Failed(TransportError::RecordLayer(error)) => Some(*error),
            _ => None,
        };
        match (ours, judge, alerts) {
            // RFC 8446 section 5.4 (MUST): an empty alert or handshake record is
            // unexpected_message. rustls rejects the second one.
            (Some(E::Unexpected(ALERT | HANDSHAKE)), _, [UNEXPECTED, Some(50) | None]) => true,
            // Ours rejects an unexpected message by its first byte; rustls first waits for the rest
            // of it and parses it.
            (
                Some(E::Unexpected(_)),
                Outcome::Open | Outcome::Failed(Error::InvalidMessage(_)),
                [UNEXPECTED, _],
            ) => true,
            // Likewise for the length of a KeyUpdate or a ticket.
            (Some(E::Malformed(HANDSHAKE)), Outcome::Open, [Some(50), None]) => true,
            // Ours reports a record in the clear; rustls tries to decrypt it.
            (Some(E::Unexpected(_)), Outcome::Failed(Error::DecryptError), [UNEXPECTED, Some(20)]) => true,
            // Section 5.2: any other version than 3.3 is malformed; rustls ignores the field when
            // it decrypts, or sends another alert.
            (Some(E::Malformed(APPLICATION_DATA)), _, [Some(50), _]) => true,
            // Section 5.2: ours checks the length in the header; rustls waits for the record, or
            // has a looser limit.
            (
                Some(E::Oversized),
                Outcome::Open | Outcome::Failed(Error::InvalidMessage(_)),
                [Some(22), _],
            ) => true,
            // rustls sends no alert for these; the RFC has unexpected_message (sections 5.1 and
            // 5.4).
            (Some(E::Unexpected(_)), Outcome::Failed(Error::PeerMisbehaved(why)), [UNEXPECTED, None]) => {
                matches!(
                    why,
                    PeerMisbehaved::MessageInterleavedWithHandshakeMessage
                        | PeerMisbehaved::IllegalTlsInnerPlaintext
                )
            }
            // Section 6.2: every error alert ends the connection, regardless of its level, and gets
            // no response.
            (Some(E::AlertReceived(_)), Outcome::Failed(Error::AlertReceived(_)), [None, _]) => true,
            // Section 6: the level is ignored, so user_canceled is never fatal and has no limit of
            // its own.
            (None, Outcome::Failed(Error::AlertReceived(alert)), [None, None]) => {
                u8::from(*alert) == USER_CANCELED
            }
            (
                None,
                Outcome::Failed(Error::PeerMisbehaved(PeerMisbehaved::TooManyWarningAlertsReceived)),
                _,
            ) => true,
            // Section 6: the level is ignored; rustls accepts close_notify only with the level
            // warning.
            (
                None,
                Outcome::Failed(Error::AlertReceived(rustls::AlertDescription::CloseNotify)),
                [None, Some(47)],
            ) => {
                matches!(self, Outcome::Closed)
            }
            // Ours skips tickets without parsing them.
            (None, Outcome::Failed(Error::InvalidMessage(_)), [None, Some(50)]) => true,
            // Ours has one common limit for records without data.
            (Some(E::TooManyEmptyRecords), _, _) => true,
            _ => false,
        }
    }
}

fn feed(transport: &mut TlsTransport, mut wire: &[u8]) -> (Vec<u8>, Ours) {
    let mut plain = Vec::new();
    while !wire.is_empty() {
        let Ok(taken) = transport.read_tls(wire) else { return (plain, Outcome::Full) };
        wire = &wire[taken..];
        if let Err(error) = transport.process_new_packets() {
            return (plain, Outcome::Failed(error));
        }
        while let Ok(PlaintextState::Available) = transport.plaintext_state() {
            let chunk = transport.plaintext().expect("there is some");
            plain.extend_from_slice(chunk);
            let length = chunk.len();
            transport.consume(length);
        }
        if let Ok(PlaintextState::CloseNotify) = transport.plaintext_state() {
            return (plain, Outcome::Closed);
        }
    }
    (plain, Outcome::Open)
}

fn feed_judge(judge: &mut Connection, mut wire: &[u8]) -> (Vec<u8>, Judge) {
    let mut plain = Vec::new();
    let mut framing = RecordFraming::default();
    while !wire.is_empty() {
        // Record by record, like ours: otherwise an error would hide the plaintext before it.
        let length = framing.advance(wire);
        let (mut record, later) = wire.split_at(length);
        wire = later;
        while !record.is_empty() {
            if judge.read_tls(&mut record).is_err() {
                return (plain, Outcome::Full);
            }
            let state = match judge.process_new_packets() {
                Ok(state) => state,
                Err(error) => return (plain, Outcome::Failed(error)),
            };
            let start = plain.len();
            plain.resize(start + state.plaintext_bytes_to_read(), 0);
            std::io::Read::read_exact(&mut judge.reader(), &mut plain[start..]).expect("it is there");
            if state.peer_has_closed() {
                return (plain, Outcome::Closed);
            }
        }
    }
    (plain, Outcome::Open)
}

impl Heard {
    fn read(&mut self, mut wire: &[u8]) {
        while !wire.is_empty() {
            let (kind, content, rest) = self.keys.open(wire);
            wire = rest;
            match (kind, content.as_slice()) {
                (APPLICATION_DATA, data) => self.data.extend_from_slice(data),
                (HANDSHAKE, [24, 0, 0, 1, 0]) => {
                    self.updates += 1;
                    self.keys.renew();
                }
                (ALERT, &[_, alert]) if alert != CLOSE_NOTIFY => self.alert = Some(alert),
                other => panic!("nothing of ours: {other:?}"),
            }
        }
    }
}

//! Both sides are engines of ours: `ours` still has rustls, and `peer` has left it, so that it can
//! seal any message, and reads no record that is not under the one key and number that come next.

use std::sync::Arc;

use rustls::{CipherSuite, ServerConnection, Side};

use super::super::framing::RecordFraming;
use super::super::traffic_secrets::TrafficSecrets;
use super::super::{HANDSHAKE, KEY_UPDATE};
use super::pair::{client, configs};
use crate::tls::transport::{PlaintextState, TlsTransport};

/// A connection past its handshake.
pub(super) struct Duo {
    pub(super) ours: TlsTransport,
    peer: TlsTransport,
    /// Under way to our side.
    sent: Vec<u8>,
}

impl Duo {
    /// Ours is this side; a server sends no tickets of its own.
    pub(super) fn new(ours: Side, suite: CipherSuite) -> Self {
        let (for_client, mut for_server) = configs(suite);
        for_server.send_tls13_tickets = 0;
        let server = ServerConnection::new(Arc::new(for_server)).unwrap();
        let mut server = TlsTransport::server(server, RecordFraming::default(), None);
        let mut client = TlsTransport::from(client(for_client));
        while server.is_handshaking() || client.is_handshaking() {
            carry(&mut client, &mut server).unwrap();
            carry(&mut server, &mut client).unwrap();
        }
        let (ours, mut peer) = if ours == Side::Server { (server, client) } else { (client, server) };
        peer.detach_from_rustls();
        assert!(matches!(peer, TlsTransport::RecordLayer(_)));
        Self { ours, peer, sent: Vec::new() }
    }

    /// The traffic secrets of our side, which stays with rustls.
    pub(super) fn traffic(self) -> TrafficSecrets {
        let TlsTransport::Rustls(tls) = self.ours else { panic!("rustls has it") };
        tls.secrets.unwrap()
    }

    /// Our side holds these for its own.
    pub(super) fn with_traffic(&mut self, traffic: TrafficSecrets) {
        let TlsTransport::Rustls(tls) = &mut self.ours else { panic!("rustls has it") };
        tls.secrets = Some(traffic);
    }

    /// A record of the peer's.
    pub(super) fn forge(&mut self, kind: u8, content: &[u8]) {
        let TlsTransport::RecordLayer(peer) = &mut self.peer else { panic!("the peer has left rustls") };
        peer.queue_record(kind, content).unwrap();
        peer.write_tls(&mut self.sent);
    }

    /// A KeyUpdate of the peer's, behind other messages in the same record.
    pub(super) fn forge_key_update(&mut self, before: &[u8], request: u8) {
        self.forge(HANDSHAKE, &[before, &KEY_UPDATE, &[request]].concat());
        self.renew_peer();
    }

    /// The peer seals with its next key from here on.
    pub(super) fn renew_peer(&mut self) {
        let TlsTransport::RecordLayer(peer) = &mut self.peer else { panic!("the peer has left rustls") };
        peer.write.update().unwrap();
    }

    /// What is under way arrives; gives the plaintext.
    pub(super) fn deliver(&mut self) -> Result<Vec<u8>, String> {
        let sent = std::mem::take(&mut self.sent);
        feed(&sent, &mut self.ours)
    }

    /// What the peer says arrives with us.
    pub(super) fn say(&mut self, data: &[u8]) {
        self.peer.write(data, &mut self.sent).unwrap();
        assert_eq!(self.deliver().as_deref(), Ok(data));
    }

    /// What we say beside data arrives at the peer.
    pub(super) fn answer(&mut self) -> Result<Vec<u8>, String> {
        carry(&mut self.ours, &mut self.peer)
    }

    /// These records arrive at the peer.
    pub(super) fn hear(&mut self, records: &[u8]) -> Result<Vec<u8>, String> {
        feed(records, &mut self.peer)
    }

    /// What we say arrives at the peer.
    pub(super) fn reply(&mut self, data: &[u8]) {
        let mut out = Vec::new();
        assert_eq!(self.ours.write(data, &mut out).unwrap(), data.len());
        assert_eq!(feed(&out, &mut self.peer).as_deref(), Ok(data));
    }

    pub(super) fn both_ways(&mut self) {
        for said in [b"one".as_slice(), b"two"] {
            self.say(said);
            self.reply(said);
        }
    }
}

fn carry(from: &mut TlsTransport, to: &mut TlsTransport) -> Result<Vec<u8>, String> {
    let mut out = Vec::new();
    from.write_tls(&mut out).unwrap();
    feed(&out, to)
}

fn feed(mut data: &[u8], to: &mut TlsTransport) -> Result<Vec<u8>, String> {
    let mut heard = Vec::new();
    while !data.is_empty() {
        let taken = to.read_tls(data).unwrap();
        data = &data[taken..];
        to.process_new_packets().map_err(|error| error.to_string())?;
        while to.plaintext_state().is_ok_and(|ready| ready == PlaintextState::Available) {
            let chunk = to.plaintext().unwrap();
            heard.extend_from_slice(chunk);
            let n = chunk.len();
            to.consume(n);
        }
    }
    Ok(heard)
}

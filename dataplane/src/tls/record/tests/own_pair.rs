//! A connection with our code on both sides: `ours` still has rustls, and `peer` has detached from
//! it, so that it can send any message, and reads only a record with the next key and number.

use std::sync::Arc;

use rustls::{CipherSuite, ServerConnection, Side};

use super::super::framing::RecordFraming;
use super::super::{HANDSHAKE, KEY_UPDATE, RecordLayer, TrafficSecrets};
use super::rustls_pair::{client, configs};
use crate::tls::PlaintextState;
use crate::tls::handshake::TlsHandshake;
use crate::tls::handshake_state::HandshakeState;
use crate::tls::transport::TlsTransport;

pub(super) struct OwnPair {
    pub(super) ours: TlsTransport,
    peer: TlsTransport,
    /// Ciphertext on its way to our side.
    sent: Vec<u8>,
}

impl OwnPair {
    /// `ours`: our side. A server sends no tickets of its own.
    pub(super) fn new(ours: Side, suite: CipherSuite) -> Self {
        let (client_config, mut server_config) = configs(suite);
        server_config.send_tls13_tickets = 0;
        let server = ServerConnection::new(Arc::new(server_config)).unwrap();
        let mut server = TlsHandshake::server(server, RecordFraming::default(), HandshakeState::default());
        let mut client = TlsHandshake::from(client(client_config));
        while server.is_handshaking() || client.is_handshaking() {
            carry_handshake(&mut client, &mut server);
            carry_handshake(&mut server, &mut client);
        }
        let (server, client) = (server.into_transport(), client.into_transport());
        let (ours, mut peer) = if ours == Side::Server { (server, client) } else { (client, server) };
        peer.detach_from_rustls();
        assert!(matches!(peer, TlsTransport::RecordLayer(_)));
        Self { ours, peer, sent: Vec::new() }
    }

    /// The traffic secrets of our side.
    pub(super) fn into_secrets(self) -> TrafficSecrets {
        let TlsTransport::Rustls(tls) = self.ours else { panic!("detached") };
        tls.secrets.unwrap()
    }

    /// Replaces the traffic secrets of our side.
    pub(super) fn set_secrets(&mut self, secrets: TrafficSecrets) {
        let TlsTransport::Rustls(tls) = &mut self.ours else { panic!("detached") };
        tls.secrets = Some(secrets);
    }

    fn peer_records(&mut self) -> &mut RecordLayer {
        let TlsTransport::RecordLayer(records) = &mut self.peer else { panic!("not detached") };
        records
    }

    /// The peer sends a record of any type and content.
    pub(super) fn forge(&mut self, kind: u8, content: &[u8]) {
        let TlsTransport::RecordLayer(peer) = &mut self.peer else { panic!("not detached") };
        peer.queue_record(kind, content).unwrap();
        peer.write_tls(&mut self.sent);
    }

    /// The peer sends a KeyUpdate, behind other messages in the same record.
    pub(super) fn forge_key_update(&mut self, before: &[u8], request: u8) {
        self.forge(HANDSHAKE, &[before, &KEY_UPDATE, &[request]].concat());
        self.update_peer_key();
    }

    /// The peer writes with its next key.
    pub(super) fn update_peer_key(&mut self) {
        self.peer_records().write.update().unwrap();
    }

    /// Our side reads what was sent; returns the plaintext.
    pub(super) fn deliver(&mut self) -> Result<Vec<u8>, String> {
        let sent = std::mem::take(&mut self.sent);
        receive(&sent, &mut self.ours)
    }

    /// The peer sends data, and our side receives it.
    pub(super) fn peer_send(&mut self, data: &[u8]) {
        self.peer.write(data, &mut self.sent).unwrap();
        assert_eq!(self.deliver().as_deref(), Ok(data));
    }

    /// Our side sends what it has queued; returns what the peer receives.
    pub(super) fn flush(&mut self) -> Result<Vec<u8>, String> {
        let mut out = Vec::new();
        self.ours.write_tls(&mut out);
        self.peer_receive(&out)
    }

    /// The peer reads ciphertext; returns the plaintext.
    pub(super) fn peer_receive(&mut self, records: &[u8]) -> Result<Vec<u8>, String> {
        receive(records, &mut self.peer)
    }

    /// Our side sends data, and the peer receives it.
    pub(super) fn send(&mut self, data: &[u8]) {
        let mut out = Vec::new();
        assert_eq!(self.ours.write(data, &mut out).unwrap(), data.len());
        assert_eq!(self.peer_receive(&out).as_deref(), Ok(data));
    }

    /// Both sides send and receive data.
    pub(super) fn exchange_data(&mut self) {
        for data in [b"one".as_slice(), b"two"] {
            self.peer_send(data);
            self.send(data);
        }
    }
}

fn carry_handshake(from: &mut TlsHandshake, to: &mut TlsHandshake) {
    let mut out = Vec::new();
    from.write_tls(&mut out);
    let mut data = out.as_slice();
    while !data.is_empty() {
        let n = to.read_tls(data).unwrap();
        data = &data[n..];
        to.process_new_packets().unwrap();
    }
}

fn receive(mut data: &[u8], to: &mut TlsTransport) -> Result<Vec<u8>, String> {
    let mut received = Vec::new();
    while !data.is_empty() {
        let n = to.read_tls(data).unwrap();
        data = &data[n..];
        to.process_new_packets().map_err(|error| error.to_string())?;
        while to.plaintext_state().is_ok_and(|state| state == PlaintextState::Available) {
            let plaintext = to.plaintext().unwrap();
            received.extend_from_slice(plaintext);
            let n = plaintext.len();
            to.consume(n);
        }
    }
    Ok(received)
}

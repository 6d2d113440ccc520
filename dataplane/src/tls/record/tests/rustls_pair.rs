//! A connection whose peer is rustls and whose other side is ours, past its handshake, in memory.

use std::io::{Read as _, Write as _};
use std::sync::Arc;

use pki::ca::{Authority, AuthoritySpec, LeafSpec};
use rustls::crypto::CryptoProvider;
use rustls::internal::msgs::codec::Codec;
use rustls::server::Acceptor;
use rustls::{
    CipherSuite, ClientConfig, ClientConnection, Connection, RootCertStore, ServerConfig, ServerConnection,
};

use super::super::framing::RecordFraming;
use super::super::traffic_keys::TAG;
use super::super::{EMPTY_HEADER, RecordError, RecordLayer, RecordLayerKind};
use crate::tls::handshake::TlsHandshake;
use crate::tls::handshake_state::HandshakeState;
use crate::tls::transport::TlsTransport;
use crate::tls::{PlaintextState, site_config};

pub(super) const SUITES: [CipherSuite; 3] = [
    CipherSuite::TLS13_AES_128_GCM_SHA256,
    CipherSuite::TLS13_AES_256_GCM_SHA384,
    CipherSuite::TLS13_CHACHA20_POLY1305_SHA256,
];

pub(super) struct RustlsPair {
    pub(super) peer: Connection,
    pub(super) ours: TlsTransport,
    /// Ciphertext on its way to our side.
    pub(super) sent: Vec<u8>,
}

fn provider(suite: CipherSuite) -> Arc<CryptoProvider> {
    let mut provider = site_config::crypto_provider();
    provider.cipher_suites.retain(|known| known.suite() == suite);
    Arc::new(provider)
}

/// The configurations of both sides.
pub(super) fn configs(suite: CipherSuite) -> (ClientConfig, ServerConfig) {
    let root = Authority::root(&AuthoritySpec::new("Root")).unwrap();
    let issued = root.issue(&LeafSpec::server("app.test")).unwrap();
    let chain = vec![issued.certificate.der().clone()];
    let server = ServerConfig::builder_with_provider(provider(suite))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth();
    let mut server = server.with_single_cert(chain, issued.key().unwrap().der().clone_key()).unwrap();
    server.key_log = RecordLayerKind::Own.key_log();
    server.enable_secret_extraction = true;
    let mut roots = RootCertStore::empty();
    roots.add(root.certificate().der().clone()).unwrap();
    let mut client = ClientConfig::builder_with_provider(provider(suite))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.key_log = RecordLayerKind::Own.key_log();
    client.enable_secret_extraction = true;
    (client, server)
}

pub(super) fn client(config: ClientConfig) -> ClientConnection {
    ClientConnection::new(Arc::new(config), "app.test".try_into().unwrap()).unwrap()
}

impl RustlsPair {
    /// Our side is the server.
    pub(super) fn server(suite: CipherSuite) -> Self {
        let (client_config, server_config) = configs(suite);
        let mut client = client(client_config);
        let mut hello = Vec::new();
        client.write_tls(&mut hello).unwrap();
        let (mut acceptor, mut framing) = (Acceptor::default(), RecordFraming::default());
        assert_eq!(framing.advance(&hello), hello.len());
        acceptor.read_tls(&mut hello.as_slice()).unwrap();
        let accepted = acceptor.accept().map_err(|(error, _)| error).unwrap().unwrap();
        let mut state = HandshakeState::default();
        let connection = state.in_scope(|| accepted.into_connection(Arc::new(server_config)));
        let connection = connection.map_err(|(error, _)| error).unwrap();
        Self::complete(client.into(), TlsHandshake::server(connection, framing, state))
    }

    /// Our side is the client.
    pub(super) fn client(suite: CipherSuite) -> Self {
        let (client_config, server_config) = configs(suite);
        let peer = ServerConnection::new(Arc::new(server_config)).unwrap().into();
        Self::complete(peer, TlsHandshake::from(client(client_config)))
    }

    fn complete(mut peer: Connection, mut ours: TlsHandshake) -> Self {
        let mut sent = Vec::new();
        while ours.is_handshaking() || peer.is_handshaking() {
            let mut out = Vec::new();
            ours.write_tls(&mut out);
            peer_read(&mut peer, &out).unwrap();
            peer_write(&mut peer, &mut sent);
            while ours.is_handshaking() && !sent.is_empty() {
                let n = ours.read_tls(&sent).unwrap();
                sent.drain(..n);
                ours.process_new_packets().unwrap();
            }
        }
        let mut pair = Self { peer, ours: ours.into_transport(), sent };
        // The tickets.
        pair.flush();
        pair.deliver().unwrap();
        pair
    }

    /// Our side detaches from rustls, after data behind the tickets.
    pub(super) fn detached(mut self) -> Self {
        self.peer_send(b"data");
        assert_eq!(self.deliver().unwrap(), b"data");
        self.ours.detach_from_rustls();
        assert!(matches!(self.ours, TlsTransport::RecordLayer(_)));
        self
    }

    pub(super) fn record_layer(&mut self) -> &mut RecordLayer {
        let TlsTransport::RecordLayer(records) = &mut self.ours else { panic!("not detached") };
        records
    }

    /// The peer sends what it has queued.
    pub(super) fn peer_flush(&mut self) {
        peer_write(&mut self.peer, &mut self.sent);
    }

    pub(super) fn peer_send(&mut self, data: &[u8]) {
        self.peer.writer().write_all(data).unwrap();
        self.peer_flush();
    }

    /// Our side reads what was sent; returns the plaintext.
    pub(super) fn deliver(&mut self) -> Result<Vec<u8>, String> {
        let sent = std::mem::take(&mut self.sent);
        self.deliver_in(&sent, usize::MAX)
    }

    /// Our side reads ciphertext in pieces of this size.
    pub(super) fn deliver_in(&mut self, sent: &[u8], size: usize) -> Result<Vec<u8>, String> {
        let mut received = Vec::new();
        for mut data in sent.chunks(size) {
            while !data.is_empty() {
                let n = self.ours.read_tls(data).unwrap();
                data = &data[n..];
                self.ours.process_new_packets().map_err(|error| error.to_string())?;
                while self.ours.plaintext_state().is_ok_and(|state| state == PlaintextState::Available) {
                    let plaintext = self.ours.plaintext().unwrap();
                    received.extend_from_slice(plaintext);
                    let n = plaintext.len();
                    self.ours.consume(n);
                }
            }
        }
        Ok(received)
    }

    /// Our side sends what it has queued.
    pub(super) fn flush(&mut self) {
        let mut out = Vec::new();
        self.ours.write_tls(&mut out);
        self.peer_receive(&out).unwrap();
    }

    /// The peer reads ciphertext; returns the plaintext.
    pub(super) fn peer_receive(&mut self, records: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        peer_read(&mut self.peer, records)
    }

    /// Our side sends data; returns what the peer receives.
    pub(super) fn send(&mut self, data: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        assert_eq!(self.ours.write(data, &mut out).unwrap(), data.len());
        self.peer_receive(&out).unwrap()
    }

    /// Both sides send and receive data.
    pub(super) fn exchange_data(&mut self) {
        for data in [b"one".as_slice(), b"two"] {
            self.peer_send(data);
            assert_eq!(self.deliver().unwrap(), data);
            assert_eq!(self.send(data), data);
        }
    }

    /// The peer sends a record of any type and content.
    pub(super) fn forge(&mut self, kind: u8, content: &[u8]) {
        let records = self.record_layer();
        let mut body = [content, &[kind]].concat();
        let [a, b, c, ..] = EMPTY_HEADER;
        let [high, low] = ((body.len() + TAG) as u16).to_be_bytes();
        let header = [a, b, c, high, low];
        let tag = records.read.seal_as_peer(header, &mut body);
        self.sent.extend([header.as_slice(), &body, &tag].concat());
    }

    /// Asserts that what was sent fails with this error, that the peer gets this alert, and that
    /// our side then neither reads nor writes.
    pub(super) fn assert_fails(mut self, error: RecordError, alert: Option<u8>) {
        assert_eq!(self.deliver(), Err(error.to_string()));
        assert!(self.ours.plaintext_state().is_err());
        assert!(self.ours.process_new_packets().is_err(), "the error stays");
        self.ours.send_close_notify();
        let mut out = Vec::new();
        self.ours.write_tls(&mut out);
        match alert {
            Some(alert) => {
                let received = self.peer_receive(&out).unwrap_err();
                let expected = rustls::AlertDescription::read_bytes(&[alert]).unwrap();
                assert_eq!(received, rustls::Error::AlertReceived(expected));
                assert!(self.ours.write(b"more", &mut out).is_err());
            }
            None => assert!(self.peer_receive(&out).unwrap().is_empty()),
        }
    }

    /// As [`RustlsPair::assert_fails`], if the peer has missed a record and cannot read the alert.
    pub(super) fn assert_fails_without_alert(mut self, error: RecordError) {
        assert_eq!(self.deliver(), Err(error.to_string()));
    }
}

fn peer_write(peer: &mut Connection, sent: &mut Vec<u8>) {
    while peer.wants_write() {
        peer.write_tls(sent).unwrap();
    }
}

fn peer_read(peer: &mut Connection, mut records: &[u8]) -> Result<Vec<u8>, rustls::Error> {
    let mut received = Vec::new();
    while !records.is_empty() {
        peer.read_tls(&mut records).unwrap();
        let state = peer.process_new_packets()?;
        let mut plaintext = vec![0; state.plaintext_bytes_to_read()];
        peer.reader().read_exact(&mut plaintext).unwrap();
        received.append(&mut plaintext);
    }
    Ok(received)
}

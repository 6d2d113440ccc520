//! One side as rustls has it, and ours past its handshake, with nothing between them.

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
use super::super::traffic_secrets::{self, SecretCapture};
use super::super::{EMPTY_HEADER, RecordError, RecordLayer};
use crate::tls::site_config;
use crate::tls::transport::{PlaintextState, TlsTransport};

pub(super) const SUITES: [CipherSuite; 3] = [
    CipherSuite::TLS13_AES_128_GCM_SHA256,
    CipherSuite::TLS13_AES_256_GCM_SHA384,
    CipherSuite::TLS13_CHACHA20_POLY1305_SHA256,
];

/// A connection whose one side stays with rustls.
pub(super) struct Pair {
    pub(super) peer: Connection,
    pub(super) ours: TlsTransport,
    /// Under way to our side.
    pub(super) sent: Vec<u8>,
}

fn provider(suite: CipherSuite) -> Arc<CryptoProvider> {
    let mut provider = site_config::crypto_provider();
    provider.cipher_suites.retain(|known| known.suite() == suite);
    Arc::new(provider)
}

/// What both sides shake hands by.
pub(super) fn configs(suite: CipherSuite) -> (ClientConfig, ServerConfig) {
    let root = Authority::root(&AuthoritySpec::new("Root")).unwrap();
    let minted = root.issue(&LeafSpec::server("app.test")).unwrap();
    let chain = vec![minted.certificate.der().clone()];
    let server = ServerConfig::builder_with_provider(provider(suite))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth();
    let mut server = server.with_single_cert(chain, minted.key().unwrap().der().clone_key()).unwrap();
    server.key_log = Arc::new(SecretCapture);
    server.enable_secret_extraction = true;
    let mut roots = RootCertStore::empty();
    roots.add(root.certificate().der().clone()).unwrap();
    let mut client = ClientConfig::builder_with_provider(provider(suite))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.key_log = Arc::new(SecretCapture);
    client.enable_secret_extraction = true;
    (client, server)
}

pub(super) fn client(config: ClientConfig) -> ClientConnection {
    ClientConnection::new(Arc::new(config), "app.test".try_into().unwrap()).unwrap()
}

impl Pair {
    /// Ours is the server, and the handshake is done.
    pub(super) fn server(suite: CipherSuite) -> Self {
        let (for_client, for_server) = configs(suite);
        let mut client = client(for_client);
        let mut hello = Vec::new();
        client.write_tls(&mut hello).unwrap();
        let (mut acceptor, mut framing) = (Acceptor::default(), RecordFraming::default());
        assert_eq!(framing.advance(&hello), hello.len());
        acceptor.read_tls(&mut hello.as_slice()).unwrap();
        let accepted = acceptor.accept().map_err(|(error, _)| error).unwrap().unwrap();
        let mut heard = None;
        let begun = traffic_secrets::capture_traffic_secrets(&mut heard, || {
            accepted.into_connection(Arc::new(for_server))
        });
        let ours = TlsTransport::server(begun.map_err(|(error, _)| error).unwrap(), framing, heard);
        Self { peer: client.into(), ours, sent: Vec::new() }.shaken()
    }

    /// Ours is the client.
    pub(super) fn client(suite: CipherSuite) -> Self {
        let (for_client, for_server) = configs(suite);
        let peer = ServerConnection::new(Arc::new(for_server)).unwrap().into();
        Self { peer, ours: TlsTransport::from(client(for_client)), sent: Vec::new() }.shaken()
    }

    fn shaken(mut self) -> Self {
        while self.ours.is_handshaking() || self.peer.is_handshaking() {
            self.answer();
            self.send();
            self.deliver().unwrap();
        }
        // The tickets.
        self.answer();
        self.send();
        self.deliver().unwrap();
        self
    }

    /// Rustls leaves our side, once it has seen data behind the tickets.
    pub(super) fn taken_over(mut self) -> Self {
        self.say(b"data");
        assert_eq!(self.deliver().unwrap(), b"data");
        self.ours.detach_from_rustls();
        assert!(matches!(self.ours, TlsTransport::RecordLayer(_)));
        self
    }

    pub(super) fn records(&mut self) -> &mut RecordLayer {
        let TlsTransport::RecordLayer(records) = &mut self.ours else { panic!("rustls has not left") };
        records
    }

    /// What the peer has to say is under way.
    pub(super) fn send(&mut self) {
        while self.peer.wants_write() {
            self.peer.write_tls(&mut self.sent).unwrap();
        }
    }

    pub(super) fn say(&mut self, data: &[u8]) {
        self.peer.writer().write_all(data).unwrap();
        self.send();
    }

    /// What is under way arrives; gives the plaintext.
    pub(super) fn deliver(&mut self) -> Result<Vec<u8>, String> {
        let sent = std::mem::take(&mut self.sent);
        self.deliver_in(&sent, usize::MAX)
    }

    pub(super) fn deliver_in(&mut self, sent: &[u8], piece: usize) -> Result<Vec<u8>, String> {
        let mut heard = Vec::new();
        for mut data in sent.chunks(piece) {
            while !data.is_empty() {
                let taken = self.ours.read_tls(data).unwrap();
                data = &data[taken..];
                self.ours.process_new_packets().map_err(|error| error.to_string())?;
                while self.ours.plaintext_state().is_ok_and(|ready| ready == PlaintextState::Available) {
                    let chunk = self.ours.plaintext().unwrap();
                    heard.extend_from_slice(chunk);
                    let n = chunk.len();
                    self.ours.consume(n);
                }
            }
        }
        Ok(heard)
    }

    /// What we have to say beside data arrives at the peer.
    pub(super) fn answer(&mut self) {
        let mut out = Vec::new();
        self.ours.write_tls(&mut out).unwrap();
        self.hear(&out).unwrap();
    }

    /// These records arrive at the peer; gives the plaintext, or what it says of them.
    pub(super) fn hear(&mut self, mut records: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        let mut heard = Vec::new();
        while !records.is_empty() {
            self.peer.read_tls(&mut records).unwrap();
            let state = self.peer.process_new_packets()?;
            let mut plain = vec![0; state.plaintext_bytes_to_read()];
            self.peer.reader().read_exact(&mut plain).unwrap();
            heard.append(&mut plain);
        }
        Ok(heard)
    }

    pub(super) fn reply(&mut self, data: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        assert_eq!(self.ours.write(data, &mut out).unwrap(), data.len());
        self.hear(&out).unwrap()
    }

    pub(super) fn both_ways(&mut self) {
        for said in [b"one".as_slice(), b"two"] {
            self.say(said);
            assert_eq!(self.deliver().unwrap(), said);
            assert_eq!(self.reply(said), said);
        }
    }

    /// A record as the peer would make it, of any type and content.
    pub(super) fn forge(&mut self, kind: u8, content: &[u8]) {
        let records = self.records();
        let mut body = [content, &[kind]].concat();
        let [a, b, c, ..] = EMPTY_HEADER;
        let [high, low] = ((body.len() + TAG) as u16).to_be_bytes();
        let header = [a, b, c, high, low];
        let tag = records.read.seal_as_peer(header, &mut body);
        self.sent.extend([header.as_slice(), &body, &tag].concat());
    }

    /// We refuse what is under way with this error, tell the peer so with this alert, and go on
    /// with neither reading nor writing.
    pub(super) fn refuses(mut self, error: RecordError, alert: Option<u8>) {
        assert_eq!(self.deliver(), Err(error.to_string()));
        assert!(self.ours.plaintext_state().is_err());
        assert!(self.ours.process_new_packets().is_err(), "it stays with that");
        self.ours.send_close_notify();
        let mut out = Vec::new();
        self.ours.write_tls(&mut out).unwrap();
        match alert {
            Some(alert) => {
                let heard = self.hear(&out).unwrap_err();
                let expected = rustls::AlertDescription::read_bytes(&[alert]).unwrap();
                assert_eq!(heard, rustls::Error::AlertReceived(expected));
                assert!(self.ours.write(b"more", &mut out).is_err());
            }
            None => assert!(self.hear(&out).unwrap().is_empty()),
        }
    }

    /// As [`Pair::refuses`], where the peer has missed a record of ours and cannot read the alert.
    pub(super) fn refuses_quietly(mut self, error: RecordError) {
        assert_eq!(self.deliver(), Err(error.to_string()));
    }
}

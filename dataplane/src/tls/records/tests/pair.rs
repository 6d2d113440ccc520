//! A client of rustls' and a server past its handshake, with nothing between them.

use std::{
    io::{Read as _, Write as _},
    sync::Arc,
};

use pki::mint::{Authority, AuthoritySpec, LeafSpec};
use rustls::{
    CipherSuite, ClientConfig, ClientConnection, RootCertStore, ServerConfig, crypto::CryptoProvider,
    internal::msgs::codec::Codec, server::Acceptor,
};

use super::super::{
    BLANK, RecordError,
    direction::TAG,
    framing::Framing,
    traffic::{self, Overheard},
};
use crate::tls::{
    engine::{Engine, Plaintext},
    site,
};

pub(super) const SUITES: [CipherSuite; 3] = [
    CipherSuite::TLS13_AES_128_GCM_SHA256,
    CipherSuite::TLS13_AES_256_GCM_SHA384,
    CipherSuite::TLS13_CHACHA20_POLY1305_SHA256,
];

/// A client of rustls', and a server that is past its handshake.
pub(super) struct Pair {
    pub(super) client: ClientConnection,
    pub(super) server: Engine,
    /// Under way to the server.
    pub(super) sent: Vec<u8>,
}

fn provider(suite: CipherSuite) -> Arc<CryptoProvider> {
    let mut provider = site::provider();
    provider.cipher_suites.retain(|known| known.suite() == suite);
    Arc::new(provider)
}

impl Pair {
    /// Both sides with the handshake done, by rustls.
    pub(super) fn established(suite: CipherSuite) -> Self {
        let root = Authority::root(&AuthoritySpec::new("Root")).unwrap();
        let minted = root.issue(&LeafSpec::server("app.test")).unwrap();
        let chain = vec![minted.certificate.der().clone()];
        let config = ServerConfig::builder_with_provider(provider(suite))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth();
        let mut config = config.with_single_cert(chain, minted.key().unwrap().der().clone_key()).unwrap();
        config.key_log = Arc::new(Overheard);
        config.enable_secret_extraction = true;
        let mut roots = RootCertStore::empty();
        roots.add(root.certificate().der().clone()).unwrap();
        let builder = ClientConfig::builder_with_provider(provider(suite));
        let trusting = builder
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let mut client = ClientConnection::new(Arc::new(trusting), "app.test".try_into().unwrap()).unwrap();

        let mut hello = Vec::new();
        client.write_tls(&mut hello).unwrap();
        let (mut acceptor, mut framing) = (Acceptor::default(), Framing::default());
        assert_eq!(framing.pass(&hello), hello.len());
        acceptor.read_tls(&mut hello.as_slice()).unwrap();
        let accepted = acceptor.accept().map_err(|(error, _)| error).unwrap().unwrap();
        let (begun, heard) = traffic::overhear(|| accepted.into_connection(Arc::new(config)));
        let server = Engine::server(begun.map_err(|(error, _)| error).unwrap(), framing, heard);
        let mut pair = Self { client, server, sent: Vec::new() };
        while pair.server.is_handshaking() {
            pair.answer();
            pair.send();
            pair.deliver().unwrap();
        }
        // The tickets.
        pair.answer();
        pair
    }

    /// The same, and rustls has left.
    pub(super) fn taken_over(suite: CipherSuite) -> Self {
        let mut pair = Self::established(suite);
        pair.server.take_over().unwrap();
        assert!(matches!(pair.server, Engine::Records(_)));
        pair
    }

    /// What the client has to say is under way.
    pub(super) fn send(&mut self) {
        while self.client.wants_write() {
            self.client.write_tls(&mut self.sent).unwrap();
        }
    }

    pub(super) fn say(&mut self, data: &[u8]) {
        self.client.writer().write_all(data).unwrap();
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
                let taken = self.server.take(data).unwrap();
                data = &data[taken..];
                self.server.advance().map_err(|error| error.to_string())?;
                while self.server.ready().is_ok_and(|ready| ready == Plaintext::Some) {
                    let chunk = self.server.chunk().unwrap();
                    heard.extend_from_slice(chunk);
                    let n = chunk.len();
                    self.server.consume(n);
                }
            }
        }
        Ok(heard)
    }

    /// What the server has to say beside data arrives at the client.
    pub(super) fn answer(&mut self) {
        let mut out = Vec::new();
        self.server.stage(&mut out).unwrap();
        self.hear(&out).unwrap();
    }

    /// These records arrive at the client; gives the plaintext, or what it says of them.
    pub(super) fn hear(&mut self, mut records: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        let mut heard = Vec::new();
        while !records.is_empty() {
            self.client.read_tls(&mut records).unwrap();
            let state = self.client.process_new_packets()?;
            let mut plain = vec![0; state.plaintext_bytes_to_read()];
            self.client.reader().read_exact(&mut plain).unwrap();
            heard.append(&mut plain);
        }
        Ok(heard)
    }

    pub(super) fn reply(&mut self, data: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        assert_eq!(self.server.write(data, &mut out).unwrap(), data.len());
        self.hear(&out).unwrap()
    }

    pub(super) fn both_ways(&mut self) {
        for said in [b"one".as_slice(), b"two"] {
            self.say(said);
            assert_eq!(self.deliver().unwrap(), said);
            assert_eq!(self.reply(said), said);
        }
    }

    /// A record as the client would make it, of any type and content.
    pub(super) fn forge(&mut self, kind: u8, content: &[u8]) {
        let Engine::Records(records) = &mut self.server else { panic!("rustls has not left") };
        let sequence = records.read.sequence;
        let mut body = [content, &[kind]].concat();
        let [a, b, c, ..] = BLANK;
        let [high, low] = ((body.len() + TAG) as u16).to_be_bytes();
        let header = [a, b, c, high, low];
        let tag = records.read.seal(header, &mut body).unwrap();
        records.read.sequence = sequence;
        self.sent.extend([header.as_slice(), &body, &tag].concat());
    }

    /// The server refuses what is under way with this error, tells the client so with this alert, and goes on with neither reading nor
    /// writing.
    pub(super) fn refuses(mut self, error: RecordError, alert: Option<u8>) {
        assert_eq!(self.deliver(), Err(error.to_string()));
        assert!(self.server.ready().is_err());
        assert!(self.server.advance().is_err(), "it stays with that");
        self.server.close();
        let mut out = Vec::new();
        self.server.stage(&mut out).unwrap();
        match alert {
            Some(alert) => {
                let heard = self.hear(&out).unwrap_err();
                let expected = rustls::AlertDescription::read_bytes(&[alert]).unwrap();
                assert_eq!(heard, rustls::Error::AlertReceived(expected));
                assert!(self.server.write(b"more", &mut out).is_err());
            }
            None => assert!(self.hear(&out).unwrap().is_empty()),
        }
    }

    /// As [`Pair::refuses`], where the client has missed a record of ours and cannot read the alert.
    pub(super) fn refuses_quietly(mut self) {
        assert_eq!(self.deliver(), Err(RecordError::Corrupt.to_string()));
    }
}

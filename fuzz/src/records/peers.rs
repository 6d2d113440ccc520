//! A deterministic handshake and its two ends: the code under test, and rustls as the reference.
//! Two connections have the same secrets: one for each.

use std::sync::{Arc, Mutex};

use dataplane::testing::tls::handshake::TlsHandshake;
use dataplane::testing::tls::handshake_state::HandshakeState;
use dataplane::testing::tls::record::RecordLayerKind;
use dataplane::testing::tls::record::framing::RecordFraming;
use dataplane::testing::tls::site_config;
use dataplane::testing::tls::transport::TlsTransport;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{
    ActiveKeyExchange, CryptoProvider, GetRandomFailed, SecureRandom, SharedSecret, SupportedKxGroup,
};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::sign::{CertifiedKey, Signer, SigningKey, SingleCertAndKey};
use rustls::{
    CipherSuite, ClientConfig, ClientConnection, Connection, DigitallySignedStruct, Error, KeyLog,
    NamedGroup, ServerConfig, ServerConnection, SignatureAlgorithm, SignatureScheme,
};

/// The cipher suites of a run.
pub const SUITES: [CipherSuite; 3] = [
    CipherSuite::TLS13_AES_128_GCM_SHA256,
    CipherSuite::TLS13_AES_256_GCM_SHA384,
    CipherSuite::TLS13_CHACHA20_POLY1305_SHA256,
];

/// The side of the code under test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Server,
    Client,
}

/// Traffic secrets.
pub struct Secrets {
    /// The peer's write secret.
    pub theirs: Vec<u8>,
    /// The write secret of both sides under test.
    pub own: Vec<u8>,
}

/// Fixed replacements for everything random.
#[derive(Debug)]
struct Fixed;

/// The secrets that a handshake logs.
#[derive(Debug, Default)]
struct Log(Mutex<[Vec<u8>; 2]>);

/// The crypto providers of all connections.
pub struct Peers(Vec<Arc<CryptoProvider>>);

impl Peers {
    pub fn new() -> Self {
        let provider = |suite| {
            let mut provider = site_config::crypto_provider();
            provider.cipher_suites.retain(|known| known.suite() == suite);
            Arc::new(CryptoProvider { kx_groups: vec![&Fixed], secure_random: &Fixed, ..provider })
        };
        Self(SUITES.map(provider).into())
    }

    /// Connects the code under test and the reference.
    pub fn connect(&self, suite: usize, role: Role) -> (TlsTransport, Connection, Secrets) {
        let log = Arc::new(Log::default());
        let (ours, judge) = match role {
            Role::Server => {
                let connection = self.server(suite, own_log());
                let mut ours =
                    TlsHandshake::server(connection, RecordFraming::default(), HandshakeState::default());
                shake(&mut ours, &mut self.client(suite, own_log()).into());
                let mut judge = self.server(suite, Arc::clone(&log) as _).into();
                shake_judge(&mut judge, &mut self.client(suite, own_log()).into());
                (ours.into_transport(), judge)
            }
            Role::Client => {
                let mut ours = TlsHandshake::from(self.client(suite, own_log()));
                shake(&mut ours, &mut self.server(suite, own_log()).into());
                let mut judge = self.client(suite, Arc::clone(&log) as _).into();
                shake_judge(&mut judge, &mut self.server(suite, own_log()).into());
                (ours.into_transport(), judge)
            }
        };
        let [client, server] = std::mem::take(&mut *log.0.lock().expect("nothing panics meanwhile"));
        let (theirs, own) = if role == Role::Server { (client, server) } else { (server, client) };
        (ours, judge, Secrets { theirs, own })
    }

    fn client(&self, suite: usize, log: Arc<dyn KeyLog>) -> ClientConnection {
        let mut config = ClientConfig::builder_with_provider(Arc::clone(&self.0[suite]))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Fixed))
            .with_no_client_auth();
        config.key_log = log;
        config.enable_secret_extraction = true;
        config.resumption = rustls::client::Resumption::disabled();
        ClientConnection::new(Arc::new(config), "app.test".try_into().expect("a name")).expect("a client")
    }

    fn server(&self, suite: usize, log: Arc<dyn KeyLog>) -> ServerConnection {
        let key = CertifiedKey::new(vec![CertificateDer::from(vec![0x30, 0])], Arc::new(Fixed));
        let mut config = ServerConfig::builder_with_provider(Arc::clone(&self.0[suite]))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
        config.key_log = log;
        config.enable_secret_extraction = true;
        config.send_tls13_tickets = 0;
        ServerConnection::new(Arc::new(config)).expect("a server")
    }
}

fn own_log() -> Arc<dyn KeyLog> {
    RecordLayerKind::Own.key_log()
}

fn shake(ours: &mut TlsHandshake, peer: &mut Connection) {
    while ours.is_handshaking() || peer.is_handshaking() {
        let mut wire = Vec::new();
        ours.write_tls(&mut wire);
        take(peer, &wire);
        let wire = written(peer);
        let mut rest = wire.as_slice();
        while !rest.is_empty() {
            let taken = ours.read_tls(rest).expect("nothing is unread");
            rest = &rest[taken..];
            ours.process_new_packets().expect("a handshake without a fault");
        }
    }
}

fn shake_judge(judge: &mut Connection, peer: &mut Connection) {
    while judge.is_handshaking() || peer.is_handshaking() {
        let wire = written(judge);
        take(peer, &wire);
        let wire = written(peer);
        take(judge, &wire);
    }
}

fn written(from: &mut Connection) -> Vec<u8> {
    let mut wire = Vec::new();
    while from.wants_write() {
        from.write_tls(&mut wire).expect("there is room");
    }
    wire
}

fn take(to: &mut Connection, mut wire: &[u8]) {
    while !wire.is_empty() {
        to.read_tls(&mut wire).expect("there is room");
        to.process_new_packets().expect("a handshake without a fault");
    }
}

impl KeyLog for Log {
    fn log(&self, label: &str, _client_random: &[u8], secret: &[u8]) {
        let [client, server] = &mut *self.0.lock().expect("nothing panics meanwhile");
        match label {
            "CLIENT_TRAFFIC_SECRET_0" => *client = secret.to_vec(),
            "SERVER_TRAFFIC_SECRET_0" => *server = secret.to_vec(),
            _ => {}
        }
    }
}

impl SecureRandom for Fixed {
    fn fill(&self, buf: &mut [u8]) -> Result<(), GetRandomFailed> {
        buf.fill(0x5a);
        Ok(())
    }
}

impl SupportedKxGroup for Fixed {
    fn start(&self) -> Result<Box<dyn ActiveKeyExchange>, Error> {
        Ok(Box::new(Self))
    }

    fn name(&self) -> NamedGroup {
        NamedGroup::X25519
    }
}

impl ActiveKeyExchange for Fixed {
    fn complete(self: Box<Self>, _peer_pub_key: &[u8]) -> Result<SharedSecret, Error> {
        Ok(SharedSecret::from([9; 32].as_slice()))
    }

    fn pub_key(&self) -> &[u8] {
        &[7; 32]
    }

    fn group(&self) -> NamedGroup {
        NamedGroup::X25519
    }
}

impl SigningKey for Fixed {
    fn choose_scheme(&self, _offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        Some(Box::new(Self))
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ED25519
    }
}

impl Signer for Fixed {
    fn sign(&self, _message: &[u8]) -> Result<Vec<u8>, Error> {
        Ok(vec![1; 64])
    }

    fn scheme(&self) -> SignatureScheme {
        SignatureScheme::ED25519
    }
}

impl ServerCertVerifier for Fixed {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

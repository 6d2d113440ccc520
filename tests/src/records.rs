//! One side of a TLS 1.3 connection with hand-made records, which no TLS library sends: several
//! handshake messages in one record, any content type, any length.
//!
//! rustls does the handshake and gives away the keys.
//!
//! Invariant: a record of the gateway is decrypted with the next key and sequence number only, so a
//! reused one fails the test.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use aws_lc_rs::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Prk};
use rustls::pki_types::ServerName;
use rustls::{CipherSuite, ClientConfig, ClientConnection, Connection, KeyLog, ServerConnection};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::credentials::Credential;
use crate::tls::server_config;

/// Content types (RFC 8446 section 5.1).
pub const ALERT: u8 = 21;
pub const HANDSHAKE: u8 = 22;
pub const APPLICATION_DATA: u8 = 23;

const KEY_UPDATE: u8 = 24;

pub struct RawTls {
    tcp: TcpStream,
    read: TrafficKeys,
    write: TrafficKeys,
    /// KeyUpdates that the gateway has sent.
    pub updates: usize,
}

/// The secrets that rustls logs.
#[derive(Debug, Default)]
struct Secrets(Mutex<HashMap<String, Vec<u8>>>);

impl KeyLog for Secrets {
    fn log(&self, label: &str, _client_random: &[u8], secret: &[u8]) {
        self.0.lock().expect("nothing panics meanwhile").insert(label.to_owned(), secret.to_vec());
    }
}

impl Secrets {
    fn take(&self, label: &str) -> Vec<u8> {
        let secret = self.0.lock().expect("nothing panics meanwhile").remove(label);
        secret.expect("a finished handshake has traffic secrets")
    }
}

impl RawTls {
    pub async fn accept(tcp: TcpStream, credential: &Credential) -> Self {
        let mut config = server_config(&[&rustls::version::TLS13], credential, None);
        let secrets = Arc::new(Secrets::default());
        config.key_log = Arc::clone(&secrets) as _;
        config.enable_secret_extraction = true;
        config.send_tls13_tickets = 0;
        let connection = ServerConnection::new(Arc::new(config)).expect("a valid configuration");
        Self::after_handshake(tcp, connection.into(), &secrets).await
    }

    pub async fn connect(address: SocketAddr, mut config: ClientConfig, name: ServerName<'static>) -> Self {
        let secrets = Arc::new(Secrets::default());
        config.key_log = Arc::clone(&secrets) as _;
        config.enable_secret_extraction = true;
        let tcp = TcpStream::connect(address).await.expect("the gateway accepts connections");
        let connection = ClientConnection::new(Arc::new(config), name).expect("a valid configuration");
        Self::after_handshake(tcp, connection.into(), &secrets).await
    }

    async fn after_handshake(mut tcp: TcpStream, mut connection: Connection, secrets: &Secrets) -> Self {
        tcp.set_nodelay(true).expect("TCP_NODELAY can be set");
        loop {
            let mut out = Vec::new();
            while connection.wants_write() {
                connection.write_tls(&mut out).expect("a vector takes every byte");
            }
            tcp.write_all(&out).await.expect("the gateway reads the handshake");
            if !connection.is_handshaking() {
                break;
            }
            // Byte by byte, so that rustls reads nothing after the handshake.
            let byte = tcp.read_u8().await.expect("the gateway goes on with the handshake");
            connection.read_tls(&mut [byte].as_slice()).expect("there is room for a byte");
            connection.process_new_packets().expect("a handshake without a fault");
        }
        let suite = connection.negotiated_cipher_suite().map(|suite| suite.suite());
        assert_eq!(suite, Some(CipherSuite::TLS13_AES_128_GCM_SHA256), "the one that is known here");
        let is_client = matches!(connection, Connection::Client(_));
        let [client, server] = ["CLIENT_TRAFFIC_SECRET_0", "SERVER_TRAFFIC_SECRET_0"]
            .map(|label| TrafficKeys::of(secrets.take(label)));
        let (read, write) = if is_client { (server, client) } else { (client, server) };
        Self { tcp, read, write, updates: 0 }
    }

    pub async fn send(&mut self, kind: u8, content: &[u8]) {
        let record = self.write.seal(&[content, &[kind]].concat());
        self.tcp.write_all(&record).await.expect("the gateway reads records");
    }

    /// Sends a KeyUpdate after other messages in the same record, and switches to the next key.
    pub async fn key_update(&mut self, before: &[u8], requested: bool) {
        self.send(HANDSHAKE, &[before, &[KEY_UPDATE, 0, 0, 1, requested.into()]].concat()).await;
        self.write.renew();
    }

    /// The type and content of the next record that is no handshake message. KeyUpdates are applied
    /// and counted, tickets are skipped.
    pub async fn receive(&mut self) -> (u8, Vec<u8>) {
        loop {
            let mut header = [0; 5];
            self.tcp.read_exact(&mut header).await.expect("a record");
            let mut body = vec![0; u16::from_be_bytes([header[3], header[4]]).into()];
            self.tcp.read_exact(&mut body).await.expect("the rest of a record");
            let (kind, content) = self.read.open(header, &mut body);
            if kind != HANDSHAKE {
                return (kind, content);
            }
            if content[0] == KEY_UPDATE {
                self.updates += 1;
                self.read.renew();
            }
        }
    }

    /// Application data up to this end, or the two bytes of an alert.
    pub async fn receive_until(&mut self, end: &str) -> Vec<u8> {
        let mut all = Vec::new();
        while !all.ends_with(end.as_bytes()) {
            let (kind, content) = self.receive().await;
            if kind == ALERT {
                return content;
            }
            all.extend(content);
        }
        all
    }
}

/// One direction (RFC 8446 sections 5.2, 5.3, 7.2 and 7.3).
struct TrafficKeys {
    secret: Vec<u8>,
    key: LessSafeKey,
    iv: [u8; 12],
    sequence: u64,
}

impl TrafficKeys {
    fn of(secret: Vec<u8>) -> Self {
        let key = UnboundKey::new(&AES_128_GCM, &expand(&secret, "key", 16)).expect("sixteen bytes");
        let iv = expand(&secret, "iv", 12).try_into().expect("twelve bytes");
        Self { secret, key: LessSafeKey::new(key), iv, sequence: 0 }
    }

    fn renew(&mut self) {
        *self = Self::of(expand(&self.secret, "traffic upd", 32));
    }

    fn nonce(&mut self) -> Nonce {
        let mut nonce = self.iv;
        for (byte, number) in nonce.iter_mut().rev().zip(self.sequence.to_le_bytes()) {
            *byte ^= number;
        }
        self.sequence += 1;
        Nonce::assume_unique_for_key(nonce)
    }

    fn seal(&mut self, inner: &[u8]) -> Vec<u8> {
        let [high, low] = u16::try_from(inner.len() + 16).expect("a length of two bytes").to_be_bytes();
        let header = [APPLICATION_DATA, 3, 3, high, low];
        let (nonce, mut body) = (self.nonce(), inner.to_vec());
        self.key.seal_in_place_append_tag(nonce, Aad::from(header), &mut body).expect("it can be sealed");
        [header.as_slice(), &body].concat()
    }

    fn open(&mut self, header: [u8; 5], body: &mut [u8]) -> (u8, Vec<u8>) {
        let nonce = self.nonce();
        let inner = self.key.open_in_place(nonce, Aad::from(header), body);
        let inner = inner.expect("a record under the next key and number");
        let last = inner.iter().rposition(|byte| *byte != 0).expect("a content type");
        (inner[last], inner[..last].to_vec())
    }
}

/// HKDF-Expand-Label without context (RFC 8446 section 7.1).
fn expand(secret: &[u8], label: &str, length: u8) -> Vec<u8> {
    struct Length(usize);
    impl KeyType for Length {
        fn len(&self) -> usize {
            self.0
        }
    }
    let label = format!("tls13 {label}");
    let named = [u8::try_from(label.len()).expect("a short label")];
    let info = [&[0, length], named.as_slice(), label.as_bytes(), &[0]];
    let mut out = vec![0; length.into()];
    Prk::new_less_safe(HKDF_SHA256, secret)
        .expand(&info, Length(length.into()))
        .and_then(|okm| okm.fill(&mut out))
        .expect("a length that HKDF can give");
    out
}

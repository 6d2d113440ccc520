//! The peer's records, sealed and opened without the code under test (RFC 8446 sections 5.2, 5.3,
//! 7.2 and 7.3).

use aws_lc_rs::aead::{
    AES_128_GCM, AES_256_GCM, Aad, Algorithm, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey,
};
use aws_lc_rs::hkdf::{self, HKDF_SHA256, HKDF_SHA384, KeyType, Prk};

/// In the order of [`super::peers::SUITES`].
static SUITES: [(&Algorithm, hkdf::Algorithm); 3] =
    [(&AES_128_GCM, HKDF_SHA256), (&AES_256_GCM, HKDF_SHA384), (&CHACHA20_POLY1305, HKDF_SHA256)];

/// The keys of one direction.
pub struct Keys {
    suite: usize,
    secret: Vec<u8>,
    key: LessSafeKey,
    iv: [u8; 12],
    sequence: u64,
}

impl Keys {
    pub fn new(suite: usize, secret: Vec<u8>) -> Self {
        let (algorithm, hash) = SUITES[suite];
        let key = UnboundKey::new(algorithm, &expand(hash, &secret, "key", algorithm.key_len()));
        let iv = expand(hash, &secret, "iv", 12).try_into().expect("twelve bytes");
        Self { suite, secret, key: LessSafeKey::new(key.expect("a key's length")), iv, sequence: 0 }
    }

    pub fn renew(&mut self) {
        let (_, hash) = SUITES[self.suite];
        *self = Self::new(self.suite, expand(hash, &self.secret, "traffic upd", self.secret.len()));
    }

    fn nonce(&mut self) -> Nonce {
        let mut nonce = self.iv;
        for (byte, number) in nonce.iter_mut().rev().zip(self.sequence.to_le_bytes()) {
            *byte ^= number;
        }
        self.sequence += 1;
        Nonce::assume_unique_for_key(nonce)
    }

    /// Seals a record of any type with padding.
    pub fn seal(&mut self, kind: u8, content: &[u8], padding: usize) -> Vec<u8> {
        let mut body = [content, &[kind], &vec![0; padding]].concat();
        let [high, low] = ((body.len() + 16) as u16).to_be_bytes();
        let header = [23, 3, 3, high, low];
        let nonce = self.nonce();
        self.key.seal_in_place_append_tag(nonce, Aad::from(header), &mut body).expect("it can be sealed");
        [header.as_slice(), &body].concat()
    }

    /// Opens the first record and returns its type, its content and the remaining bytes.
    pub fn open<'a>(&mut self, wire: &'a [u8]) -> (u8, Vec<u8>, &'a [u8]) {
        let (header, rest) = wire.split_first_chunk::<5>().expect("a whole header");
        let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
        let (body, rest) = rest.split_at(length);
        let (nonce, mut body) = (self.nonce(), body.to_vec());
        let inner = self.key.open_in_place(nonce, Aad::from(*header), &mut body);
        let inner = inner.expect("a record under the next key and number");
        let last = inner.iter().rposition(|byte| *byte != 0).expect("a content type");
        (inner[last], inner[..last].to_vec(), rest)
    }
}

/// HKDF-Expand-Label without context (section 7.1).
fn expand(hash: hkdf::Algorithm, secret: &[u8], label: &str, length: usize) -> Vec<u8> {
    struct Length(usize);
    impl KeyType for Length {
        fn len(&self) -> usize {
            self.0
        }
    }
    let label = format!("tls13 {label}");
    let info = [&[0, length as u8, label.len() as u8], label.as_bytes(), &[0]];
    let mut out = vec![0; length];
    Prk::new_less_safe(hash, secret)
        .expand(&info, Length(length))
        .and_then(|okm| okm.fill(&mut out))
        .expect("a length that HKDF can give");
    out
}

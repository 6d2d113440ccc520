//! The second engine: BoringSSL, for sites whose `ssl_protocols` ask for TLSv1.1 (cargo feature
//! `engine-boring`).
//!
//! Stands where rustls stands behind [`super::engine::Engine`]: here the connection without IO,
//! over two buffers in memory; `boring/site.rs` prepares a site's configuration, `boring/hello.rs`
//! reads what rustls will not. Invariant: everything about clients is `pki`'s verdict through
//! `tls/verify`, as with rustls; nothing of BoringSSL's own X.509 checks is asked.

pub mod hello;
pub mod site;

use std::io::{self, Read, Write};

use boring::ssl::{ErrorCode, Ssl, SslRef, SslStream, SslVersion};
use model::TlsVersion;
use rustls::pki_types::CertificateDer;

use self::site::BoringSite;
use super::engine::Plaintext;

/// Ciphertext held for BoringSSL at most: more than the longest record, so that a starved engine
/// always has room. Bytes.
const INPUT_MAX: usize = 32 * 1024;
/// Ciphertext buffers larger than this are given back when they are empty. Bytes.
const KEEP_MAX: usize = 4 * 1024;
/// Plaintext is moved in pieces of at most this. Bytes.
const READ_PIECE: usize = 8 * 1024;
/// What one write encrypts at most. Bytes.
const WRITE_MAX: usize = 64 * 1024;
/// What one record holds at most. Bytes.
const RECORD_MAX: usize = 16 * 1024;

/// Why BoringSSL gave up: its own words, such as `NO_SHARED_CIPHER`, the first cause first.
#[derive(Debug, thiserror::Error)]
#[error("{}", .reasons.join(", "))]
pub struct BoringError {
    reasons: Vec<String>,
}

impl BoringError {
    /// Whether this is among the causes.
    pub fn is(&self, reason: &str) -> bool {
        self.reasons.iter().any(|found| found == reason)
    }

    /// Whether the peer refused us with an alert.
    pub fn is_alert(&self) -> bool {
        self.reasons.iter().any(|found| found.starts_with("TLSV1_") || found.starts_with("SSLV3_ALERT_"))
    }
}

impl From<boring::error::ErrorStack> for BoringError {
    fn from(stack: boring::error::ErrorStack) -> Self {
        let reasons = stack.errors().iter().map(|error| error.reason().unwrap_or("UNKNOWN").to_owned());
        Self { reasons: reasons.collect() }
    }
}

impl From<boring::ssl::Error> for BoringError {
    fn from(error: boring::ssl::Error) -> Self {
        match error.ssl_error() {
            Some(stack) => stack.clone().into(),
            None => Self { reasons: vec![error.to_string()] },
        }
    }
}

/// Both directions of the ciphertext, in memory.
#[derive(Default)]
struct Duplex {
    input: Vec<u8>,
    taken: usize,
    /// The peer has ended its direction.
    ended: bool,
    output: Vec<u8>,
}

impl Duplex {
    fn waiting(&self) -> usize {
        self.input.len().saturating_sub(self.taken)
    }

    fn push(&mut self, data: &[u8]) -> usize {
        let n = data.len().min(INPUT_MAX.saturating_sub(self.waiting()));
        self.input.drain(..self.taken);
        self.taken = 0;
        self.input.extend_from_slice(data.get(..n).unwrap_or_default());
        n
    }
}

impl Read for Duplex {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let mut waiting = self.input.get(self.taken..).unwrap_or_default();
        if waiting.is_empty() && !self.ended {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let n = waiting.read(buf)?;
        self.taken = self.taken.saturating_add(n);
        if self.waiting() == 0 {
            self.taken = 0;
            self.input.clear();
            if self.input.capacity() > KEEP_MAX {
                self.input = Vec::new();
            }
        }
        Ok(n)
    }
}

impl Write for Duplex {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.output.write(data)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// One connection of this engine, server side.
pub struct Session {
    tls: SslStream<Duplex>,
    /// What was decrypted last...
    plain: Vec<u8>,
    /// ...and how much of it was used.
    used: usize,
}

impl Session {
    /// Starts the handshake under a site's configuration. `received` is what the client has sent so
    /// far.
    ///
    /// # Errors
    /// Only when there is no memory.
    pub fn begin(site: &BoringSite, received: Vec<u8>) -> Result<Self, BoringError> {
        let duplex = Duplex { input: received, ..Duplex::default() };
        Ok(Self { tls: SslStream::new(Ssl::new(site.context())?, duplex)?, plain: Vec::new(), used: 0 })
    }

    /// See `Engine::take`.
    pub fn take(&mut self, data: &[u8]) -> usize {
        let duplex = self.tls.get_mut();
        duplex.ended |= data.is_empty();
        duplex.push(data)
    }

    /// See `Engine::advance`. Once the handshake is done it is reading that decrypts.
    ///
    /// # Errors
    /// [`BoringError`].
    pub fn advance(&mut self) -> Result<(), BoringError> {
        if !self.is_handshaking() {
            return Ok(());
        }
        match self.tls.accept() {
            Err(error) if error.code() != ErrorCode::WANT_READ => Err(error.into()),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// See `Engine::stage`.
    pub fn stage(&mut self, out: &mut Vec<u8>) {
        let made = &mut self.tls.get_mut().output;
        if out.is_empty() {
            std::mem::swap(out, made);
        } else {
            out.append(made);
        }
        if made.capacity() > KEEP_MAX {
            *made = Vec::new();
        }
    }

    /// See `Engine::ready`.
    ///
    /// # Errors
    /// The peer broke the protocol.
    pub fn ready(&mut self) -> io::Result<Plaintext> {
        if !self.chunk().is_empty() {
            return Ok(Plaintext::Some);
        }
        let mut piece = [0; READ_PIECE];
        match self.tls.ssl_read(&mut piece) {
            Ok(n) => {
                self.used = 0;
                self.plain.clear();
                self.plain.extend_from_slice(piece.get(..n).unwrap_or_default());
                Ok(Plaintext::Some)
            }
            Err(error) => match error.code() {
                ErrorCode::WANT_READ => Ok(Plaintext::Starved),
                ErrorCode::ZERO_RETURN => Ok(Plaintext::End),
                // Ended without close_notify, as with rustls.
                ErrorCode::SYSCALL if error.ssl_error().is_none() => Ok(Plaintext::Cut),
                _ => Err(invalid(error)),
            },
        }
    }

    /// See `Engine::chunk`.
    pub fn chunk(&self) -> &[u8] {
        self.plain.get(self.used..).unwrap_or_default()
    }

    /// See `Engine::consume`. A quiet connection keeps no buffer.
    pub fn consume(&mut self, n: usize) {
        self.used = self.used.saturating_add(n);
        if self.chunk().is_empty() {
            (self.plain, self.used) = (Vec::new(), 0);
        }
    }

    /// See `Engine::write`.
    ///
    /// # Errors
    /// When nothing can be sent any more.
    pub fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.tls.ssl_write(data.get(..WRITE_MAX).unwrap_or(data)).map_err(invalid)
    }

    /// See `Engine::write_vectored`: small pieces share a record.
    ///
    /// # Errors
    /// As [`Session::write`].
    pub fn write_vectored(&mut self, bufs: &[io::IoSlice<'_>]) -> io::Result<usize> {
        let mut pieces = bufs.iter().filter(|buf| !buf.is_empty());
        let Some(first) = pieces.next() else { return Ok(0) };
        if first.len() >= RECORD_MAX {
            return self.write(first);
        }
        let mut record = first.to_vec();
        for piece in pieces {
            let room = RECORD_MAX.saturating_sub(record.len());
            record.extend_from_slice(piece.get(..room).unwrap_or(piece));
        }
        self.write(&record)
    }

    /// See `Engine::close`.
    pub fn close(&mut self) {
        // Fails only where nothing can be sent any more.
        let _said = self.tls.shutdown();
    }

    /// See `Engine::is_handshaking`.
    pub fn is_handshaking(&self) -> bool {
        !self.tls.ssl().is_init_finished()
    }

    /// See `Engine::version`.
    pub fn version(&self) -> Option<TlsVersion> {
        version_of(self.tls.ssl())
    }

    /// See `Engine::cipher`.
    pub fn cipher(&self) -> Option<&'static str> {
        self.tls.ssl().current_cipher()?.standard_name()
    }

    /// See `Engine::alpn`.
    pub fn alpn(&self) -> Option<&[u8]> {
        self.tls.ssl().selected_alpn_protocol()
    }

    /// See `Engine::is_resumed`.
    pub fn is_resumed(&self) -> bool {
        self.tls.ssl().session_reused()
    }

    /// See `Engine::peer_chain`.
    pub fn peer_chain(&self) -> Vec<CertificateDer<'static>> {
        peer_chain(self.tls.ssl())
    }
}

fn invalid(error: boring::ssl::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, BoringError::from(error))
}

fn version_of(tls: &SslRef) -> Option<TlsVersion> {
    match tls.version2()? {
        SslVersion::TLS1_1 => Some(TlsVersion::V11),
        SslVersion::TLS1_2 => Some(TlsVersion::V12),
        SslVersion::TLS1_3 => Some(TlsVersion::V13),
        _ => None,
    }
}

/// What the client showed, byte by byte as it was sent.
fn peer_chain(tls: &SslRef) -> Vec<CertificateDer<'static>> {
    let leaf = tls.peer_certificate();
    let others = tls.peer_cert_chain().into_iter().flatten();
    leaf.iter()
        .map(AsRef::as_ref)
        .chain(others)
        .map(|certificate| certificate.to_der().unwrap_or_default().into())
        .collect()
}

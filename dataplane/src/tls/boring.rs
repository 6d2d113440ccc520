//! BoringSSL, for sites with TLSv1.1 in `ssl_protocols` (cargo feature `engine-boring`).
//!
//! Here the connection without I/O, over two buffers in memory, and the ClientHello that rustls
//! does not read; `boring/site_config.rs` prepares the configuration of a site. Invariant: `pki`
//! verifies every client through `tls/client_verifier`, as with rustls; BoringSSL's X.509 checks
//! are not used.

pub(crate) mod site_config;

use std::io::{self, Read, Write};

use boring::error::ErrorStack;
use boring::ssl::{
    ErrorCode, NameType, SelectCertError, Ssl, SslContext, SslMethod, SslRef, SslStream, SslVersion,
};
use model::TlsVersion;
use rustls::pki_types::CertificateDer;

use self::site_config::BoringSiteConfig;
use super::PlaintextState;

/// The most ciphertext that is buffered for BoringSSL: more than the longest record, so that there
/// is room whenever BoringSSL needs more. Bytes.
const INPUT_MAX: usize = 32 * 1024;
/// The largest ciphertext buffer that is kept when it is empty. Bytes.
const BUF_KEPT: usize = 4 * 1024;
/// The size of one read of plaintext. Bytes.
const READ_SIZE: usize = 8 * 1024;
/// The most that one write encrypts. Bytes.
const WRITE_MAX: usize = 64 * 1024;
/// The largest plaintext of a record. Bytes.
const FRAGMENT_MAX: usize = 16 * 1024;

/// The error codes of BoringSSL, such as `NO_SHARED_CIPHER`, the first cause first.
#[derive(Debug, thiserror::Error)]
#[error("{}", .codes.join(", "))]
pub struct BoringError {
    codes: Vec<String>,
}

impl BoringError {
    /// Whether `code` is among the causes.
    pub fn is(&self, code: &str) -> bool {
        self.codes.iter().any(|cause| cause == code)
    }

    /// Whether the peer sent an alert.
    pub fn is_alert(&self) -> bool {
        self.codes.iter().any(|cause| cause.starts_with("TLSV1_") || cause.starts_with("SSLV3_ALERT_"))
    }
}

impl From<ErrorStack> for BoringError {
    fn from(stack: ErrorStack) -> Self {
        let codes = stack.errors().iter().map(|error| error.reason().unwrap_or("UNKNOWN").to_owned());
        Self { codes: codes.collect() }
    }
}

impl From<boring::ssl::Error> for BoringError {
    fn from(error: boring::ssl::Error) -> Self {
        match error.ssl_error() {
            Some(stack) => stack.clone().into(),
            None => Self { codes: vec![error.to_string()] },
        }
    }
}

/// The ciphertext of both directions.
#[derive(Default)]
struct MemoryIo {
    input: Vec<u8>,
    /// Bytes of `input` that BoringSSL has read.
    consumed: usize,
    /// The peer has ended its direction.
    eof: bool,
    output: Vec<u8>,
}

impl MemoryIo {
    fn unread(&self) -> usize {
        self.input.len().saturating_sub(self.consumed)
    }

    fn push(&mut self, data: &[u8]) -> usize {
        let n = data.len().min(INPUT_MAX.saturating_sub(self.unread()));
        self.input.drain(..self.consumed);
        self.consumed = 0;
        self.input.extend_from_slice(data.get(..n).unwrap_or_default());
        n
    }
}

impl Read for MemoryIo {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let mut unread = self.input.get(self.consumed..).unwrap_or_default();
        if unread.is_empty() && !self.eof {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let n = unread.read(buf)?;
        self.consumed = self.consumed.saturating_add(n);
        if self.unread() == 0 {
            self.consumed = 0;
            self.input.clear();
            if self.input.capacity() > BUF_KEPT {
                self.input = Vec::new();
            }
        }
        Ok(n)
    }
}

impl Write for MemoryIo {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.output.write(data)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// One connection of BoringSSL, server side: its handshake, then its transport.
pub struct BoringConnection {
    tls: SslStream<MemoryIo>,
    /// The plaintext that was decrypted last.
    plaintext: Vec<u8>,
    consumed: usize,
}

impl BoringConnection {
    /// A handshake with the configuration of a site. `received`: the bytes of the ClientHello.
    ///
    /// # Errors
    /// Only without memory.
    pub fn new(config: &BoringSiteConfig, received: Vec<u8>) -> Result<Self, BoringError> {
        let io = MemoryIo { input: received, ..MemoryIo::default() };
        let tls = SslStream::new(Ssl::new(config.context())?, io)?;
        Ok(Self { tls, plaintext: Vec::new(), consumed: 0 })
    }

    /// Reads ciphertext; returns how many bytes. Empty `data` means that the peer has ended its
    /// direction.
    pub fn read_tls(&mut self, data: &[u8]) -> usize {
        let io = self.tls.get_mut();
        io.eof |= data.is_empty();
        io.push(data)
    }

    /// Continues the handshake.
    ///
    /// # Errors
    /// [`BoringError`]; an alert is queued.
    pub fn process_handshake(&mut self) -> Result<(), BoringError> {
        match self.tls.accept() {
            Err(error) if error.code() != ErrorCode::WANT_READ => Err(error.into()),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Appends the queued ciphertext to `out`.
    pub fn write_tls(&mut self, out: &mut Vec<u8>) {
        let queued = &mut self.tls.get_mut().output;
        if out.is_empty() {
            std::mem::swap(out, queued);
        } else {
            out.append(queued);
        }
        if queued.capacity() > BUF_KEPT {
            *queued = Vec::new();
        }
    }

    /// Whether there is plaintext to read.
    ///
    /// # Errors
    /// The peer broke the protocol.
    pub fn plaintext_state(&mut self) -> io::Result<PlaintextState> {
        if !self.plaintext().is_empty() {
            return Ok(PlaintextState::Available);
        }
        let mut buf = [0; READ_SIZE];
        match self.tls.ssl_read(&mut buf) {
            Ok(n) => {
                self.consumed = 0;
                self.plaintext.clear();
                self.plaintext.extend_from_slice(buf.get(..n).unwrap_or_default());
                Ok(PlaintextState::Available)
            }
            Err(error) => match error.code() {
                ErrorCode::WANT_READ => Ok(PlaintextState::NeedMoreData),
                ErrorCode::ZERO_RETURN => Ok(PlaintextState::CloseNotify),
                // Without close_notify, as with rustls.
                ErrorCode::SYSCALL if error.ssl_error().is_none() => Ok(PlaintextState::Truncated),
                _ => Err(invalid_data(error)),
            },
        }
    }

    /// The unread plaintext.
    pub fn plaintext(&self) -> &[u8] {
        self.plaintext.get(self.consumed..).unwrap_or_default()
    }

    /// Consumes `n` bytes of the plaintext. An idle connection keeps no buffer.
    pub fn consume(&mut self, n: usize) {
        self.consumed = self.consumed.saturating_add(n);
        if self.plaintext().is_empty() {
            (self.plaintext, self.consumed) = (Vec::new(), 0);
        }
    }

    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.tls.ssl_write(data.get(..WRITE_MAX).unwrap_or(data)).map_err(invalid_data)
    }

    /// Encrypts a prefix of the buffers; returns its length. Small buffers share a record.
    ///
    /// # Errors
    /// Our direction has ended.
    pub fn write_vectored(&mut self, bufs: &[io::IoSlice<'_>]) -> io::Result<usize> {
        let mut bufs = bufs.iter().filter(|buf| !buf.is_empty());
        let Some(first) = bufs.next() else { return Ok(0) };
        if first.len() >= FRAGMENT_MAX {
            return self.write(first);
        }
        let mut record = first.to_vec();
        for buf in bufs {
            let room = FRAGMENT_MAX.saturating_sub(record.len());
            record.extend_from_slice(buf.get(..room).unwrap_or(buf));
        }
        self.write(&record)
    }

    /// Queues the alert `close_notify`.
    pub fn send_close_notify(&mut self) {
        // Fails only after our direction has ended.
        let _shutdown = self.tls.shutdown();
    }

    pub fn is_handshaking(&self) -> bool {
        !self.tls.ssl().is_init_finished()
    }

    pub fn version(&self) -> Option<TlsVersion> {
        version_of(self.tls.ssl())
    }

    /// The IANA name of the cipher suite.
    pub fn cipher_suite(&self) -> Option<&'static str> {
        self.tls.ssl().current_cipher()?.standard_name()
    }

    pub fn alpn(&self) -> Option<&[u8]> {
        self.tls.ssl().selected_alpn_protocol()
    }

    pub fn is_resumed(&self) -> bool {
        self.tls.ssl().session_reused()
    }

    pub fn peer_chain(&self) -> Vec<CertificateDer<'static>> {
        peer_chain(self.tls.ssl())
    }
}

fn invalid_data(error: boring::ssl::Error) -> io::Error {
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

/// The certificates that the client presented, byte by byte as it sent them.
fn peer_chain(tls: &SslRef) -> Vec<CertificateDer<'static>> {
    let leaf = tls.peer_certificate();
    let others = tls.peer_cert_chain().into_iter().flatten();
    leaf.iter()
        .map(AsRef::as_ref)
        .chain(others)
        .map(|certificate| certificate.to_der().unwrap_or_default().into())
        .collect()
}

thread_local! {
    static HELLO_PARSER: Option<SslContext> = hello_parser().ok();
}

/// Stops at the ClientHello: it has no certificate, and sends nothing.
fn hello_parser() -> Result<SslContext, ErrorStack> {
    let mut context = SslContext::builder(SslMethod::tls())?;
    context.set_min_proto_version(Some(SslVersion::TLS1_1))?;
    context.set_select_certificate_callback(|_hello| Err(SelectCertError::RETRY));
    Ok(context.build())
}

/// The server name of a ClientHello that rustls does not read, because a TLS 1.1 client sends no
/// signature_algorithms; `Some(None)` without a server name, `None` if BoringSSL does not read it.
///
/// The name selects the site, and the site the configuration, so the handshake reads the same bytes
/// again.
pub(super) fn server_name(received: &[u8]) -> Option<Option<String>> {
    HELLO_PARSER.with(|context| {
        let io = MemoryIo { input: received.to_vec(), ..MemoryIo::default() };
        let mut tls = SslStream::new(Ssl::new(context.as_ref()?).ok()?, io).ok()?;
        let stop = tls.accept().err()?;
        let is_parsed = stop.code() == ErrorCode::PENDING_CERTIFICATE;
        is_parsed.then(|| tls.ssl().servername(NameType::HOST_NAME).map(str::to_owned))
    })
}

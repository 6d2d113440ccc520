//! The server name of a ClientHello that is passed on: read, and left as it is.
//!
//! rustls' `Acceptor` reads it too, but consumes it, and rejects what the upstream may accept (TLS
//! 1.1 alone, for example). Invariants: the bytes are copied out, and put back as they came
//! ([`BufferedSocket::unread`]); a ClientHello in which two readers could find two names is
//! rejected; its bytes are bounded ([`BYTES_MAX`]), and each is looked at once.

use std::future::poll_fn;
use std::io;
use std::net::IpAddr;
use std::task::ready;

use model::HostName;

use crate::io::buffered::BufferedSocket;
use crate::runtime::{Reader, Writer};

/// The largest ClientHello, with the headers of its records.
pub const BYTES_MAX: usize = 64 * 1024;

/// Of a record: type, version, length (RFC 8446 section 5.1).
const RECORD_HEADER: usize = 5;
const HANDSHAKE_RECORD: u8 = 22;
/// The most bytes in a record.
const FRAGMENT_MAX: usize = 1 << 14;
/// Of a handshake message: type, length (RFC 8446 section 4).
const MESSAGE_HEADER: usize = 4;
const CLIENT_HELLO: u8 = 1;
/// The extension `server_name` and its only name type, `host_name` (RFC 6066 section 3).
const SERVER_NAME: u16 = 0;
const HOST_NAME: u8 = 0;

/// No ClientHello was read, or it is rejected.
#[derive(Debug, thiserror::Error)]
pub enum SniError {
    /// The first byte begins an HTTP method.
    #[error("plain HTTP was spoken to the TLS port")]
    PlainHttp,
    #[error("the peer does not speak TLS")]
    NotTls,
    #[error("the first handshake message is no ClientHello")]
    Message,
    #[error("the ClientHello is longer than {BYTES_MAX} bytes")]
    TooLong,
    /// A length does not fit, or bytes are left over.
    #[error("the ClientHello is malformed")]
    Malformed,
    #[error("the ClientHello does not name exactly one host")]
    Ambiguous,
    #[error("the name in the ClientHello is no host name")]
    Name,
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
    #[error("the peer ended the connection before its ClientHello was complete")]
    UnexpectedEof,
}

/// Reads the server name of a ClientHello; `None`: it has none. All bytes are put back into the
/// read buffer.
///
/// # Errors
/// [`SniError`]; nothing is in the write buffer.
pub async fn read<R: Reader, W: Writer>(
    socket: &mut BufferedSocket<R, W>,
) -> Result<Option<HostName>, SniError> {
    let mut partial = PartialHello::default();
    let result = poll_fn(|cx| {
        loop {
            let data = ready!(socket.poll_fill_buf(cx))?;
            if data.is_empty() {
                return Err(SniError::UnexpectedEof).into();
            }
            let n = data.len();
            let name = partial.push(data);
            socket.consume(n);
            if let Some(name) = name? {
                return Ok(name).into();
            }
        }
    })
    .await;
    socket.unread(partial.bytes);
    result
}

/// The bytes of a ClientHello as far as they have arrived.
#[derive(Debug, Default)]
pub struct PartialHello {
    /// All bytes, with those behind the ClientHello that came with it.
    bytes: Vec<u8>,
    /// How many of them were read.
    read: usize,
    /// The bytes that the current record still lacks.
    record: usize,
    /// The handshake message, out of its records.
    message: Vec<u8>,
}

impl PartialHello {
    /// Takes the next bytes of the connection. The server name, once the ClientHello is complete.
    ///
    /// # Errors
    /// [`SniError`], as early as the bytes allow.
    pub fn push(&mut self, data: &[u8]) -> Result<Option<Option<HostName>>, SniError> {
        self.bytes.extend_from_slice(data);
        loop {
            let missing = missing_bytes(&self.message)?;
            if missing == 0 {
                let hello = self.message.get(MESSAGE_HEADER..).unwrap_or_default();
                return server_name(hello).map(Some);
            }
            if self.record == 0 && !self.read_record_header()? {
                return Ok(None);
            }
            let rest = self.bytes.get(self.read..).unwrap_or_default();
            let part = rest.get(..missing.min(self.record).min(rest.len())).unwrap_or_default();
            if part.is_empty() {
                return Ok(None);
            }
            self.message.extend_from_slice(part);
            self.read = self.read.saturating_add(part.len());
            self.record = self.record.saturating_sub(part.len());
            if self.read > BYTES_MAX {
                return Err(SniError::TooLong);
            }
        }
    }

    /// Reads the header of the next record, if it is there.
    fn read_record_header(&mut self) -> Result<bool, SniError> {
        let rest = self.bytes.get(self.read..).unwrap_or_default();
        match rest {
            [HANDSHAKE_RECORD] | [HANDSHAKE_RECORD, 3, ..] | [] => {}
            [byte, ..] if self.read == 0 && byte.is_ascii_uppercase() => return Err(SniError::PlainHttp),
            _ => return Err(SniError::NotTls),
        }
        let Some([_, _, _, high, low]) = rest.first_chunk::<RECORD_HEADER>() else { return Ok(false) };
        self.record = usize::from(u16::from_be_bytes([*high, *low]));
        // An empty fragment of a handshake message is forbidden.
        if self.record == 0 || self.record > FRAGMENT_MAX {
            return Err(SniError::Malformed);
        }
        self.read = self.read.saturating_add(RECORD_HEADER);
        Ok(true)
    }
}

/// How many bytes the ClientHello lacks: first of its header, then of its body.
fn missing_bytes(message: &[u8]) -> Result<usize, SniError> {
    if message.first().is_some_and(|kind| *kind != CLIENT_HELLO) {
        return Err(SniError::Message);
    }
    let Some((&[_, high, middle, low], body)) = message.split_first_chunk::<MESSAGE_HEADER>() else {
        return Ok(MESSAGE_HEADER.saturating_sub(message.len()));
    };
    let length = usize::try_from(u32::from_be_bytes([0, high, middle, low])).unwrap_or(usize::MAX);
    if length > BYTES_MAX {
        return Err(SniError::TooLong);
    }
    Ok(length.saturating_sub(body.len()))
}

/// The server name in the body of a ClientHello (RFC 8446 section 4.1.2, RFC 6066 section 3).
fn server_name(hello: &[u8]) -> Result<Option<HostName>, SniError> {
    let mut hello = MessageReader(hello);
    // Version and random.
    hello.take(34)?;
    let _session_id = hello.vector_u8()?;
    let _cipher_suites = hello.vector_u16()?;
    let _compression_methods = hello.vector_u8()?;
    if hello.0.is_empty() {
        // Before TLS 1.2, a ClientHello may end here.
        return Ok(None);
    }
    let mut extensions = MessageReader(hello.vector_u16()?);
    if !hello.0.is_empty() {
        return Err(SniError::Malformed);
    }
    let mut name = None;
    while !extensions.0.is_empty() {
        let kind = extensions.u16()?;
        let data = extensions.vector_u16()?;
        if kind == SERVER_NAME && name.replace(data).is_some() {
            return Err(SniError::Ambiguous);
        }
    }
    name.map_or(Ok(None), host_name)
}

/// The only name of the extension. As in rustls, an address counts as none.
fn host_name(extension: &[u8]) -> Result<Option<HostName>, SniError> {
    let mut extension = MessageReader(extension);
    let mut names = MessageReader(extension.vector_u16()?);
    let kind = names.take(1)?;
    let name = names.vector_u16()?;
    if !extension.0.is_empty() {
        return Err(SniError::Malformed);
    }
    if kind != [HOST_NAME] || !names.0.is_empty() {
        return Err(SniError::Ambiguous);
    }
    let name = str::from_utf8(name).map_err(|_| SniError::Name)?;
    if name.parse::<IpAddr>().is_ok() {
        return Ok(None);
    }
    HostName::from_sni(name).map(Some).ok_or(SniError::Name)
}

/// The fields of a message that are not read yet.
struct MessageReader<'a>(&'a [u8]);

impl<'a> MessageReader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], SniError> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(SniError::Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    fn u16(&mut self) -> Result<u16, SniError> {
        let (bytes, rest) = self.0.split_first_chunk::<2>().ok_or(SniError::Malformed)?;
        self.0 = rest;
        Ok(u16::from_be_bytes(*bytes))
    }

    /// A vector with a length of one byte.
    fn vector_u8(&mut self) -> Result<&'a [u8], SniError> {
        let (length, rest) = self.0.split_first().ok_or(SniError::Malformed)?;
        self.0 = rest;
        self.take(usize::from(*length))
    }

    /// A vector with a length of two bytes.
    fn vector_u16(&mut self) -> Result<&'a [u8], SniError> {
        let length = self.u16()?;
        self.take(usize::from(length))
    }
}

#[cfg(test)]
mod tests;

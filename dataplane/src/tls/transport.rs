//! The TLS transport of an established connection: ciphertext and plaintext, without I/O.
//!
//! An enum, not a trait object, so that the calls stay rustls' own. A TLS 1.3 connection that lives
//! on detaches from rustls ([`TlsTransport::detach_from_rustls`]). What the handshake negotiated,
//! only [`super::handshake::TlsHandshake`] knows.

use std::io::{self, BufRead as _, IoSlice, Write as _};
use std::ops::Deref;

use self::rustls_connection::RustlsConnection;
use super::PlaintextState;
use super::record::{RecordError, RecordLayer};

pub(super) mod rustls_connection;

/// The connection failed; an alert for the peer is queued.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    #[error(transparent)]
    Rustls(#[from] rustls::Error),
    #[error(transparent)]
    RecordLayer(#[from] RecordError),
}

/// One established connection, client or server side.
pub enum TlsTransport {
    /// Boxed, because it is over a kilobyte, which futures and hyper would hold several times.
    Rustls(Box<RustlsConnection>),
    /// A TLS 1.3 connection that has detached from rustls.
    RecordLayer(Box<RecordLayer>),
    /// A connection whose keys could not be extracted. Only the ciphertext here is still sent.
    Failed(Vec<u8>),
    /// BoringSSL, for sites with TLSv1.1. Server side only.
    #[cfg(feature = "engine-boring")]
    Boring(super::boring::BoringConnection),
}

fn keys_error() -> io::Error {
    RecordError::Keys.into()
}

impl TlsTransport {
    /// Detaches from rustls, if the connection is at a point where that is possible. If that fails,
    /// the next read or write returns an error.
    pub fn detach_from_rustls(&mut self) {
        if !matches!(self, Self::Rustls(tls) if tls.can_detach())
            || !matches!(self.plaintext_state(), Ok(PlaintextState::NeedMoreData))
        {
            return;
        }
        if let Self::Rustls(tls) = std::mem::replace(self, Self::Failed(Vec::new())) {
            *self = match tls.into_record_layer() {
                Ok(records) => Self::RecordLayer(Box::new(records)),
                Err(unsent) => Self::Failed(unsent),
            };
        }
    }

    /// Frees empty buffers.
    pub fn shrink_buffers(&mut self) {
        if let Self::RecordLayer(tls) = self {
            tls.shrink_buffers();
        }
    }

    /// Reads ciphertext; returns how many bytes. Empty `data` means that the peer has ended its
    /// direction.
    ///
    /// # Errors
    /// The buffers are full of plaintext that must be read first.
    pub fn read_tls(&mut self, data: &[u8]) -> io::Result<usize> {
        match self {
            Self::Rustls(tls) => tls.read_tls(data),
            Self::RecordLayer(tls) => Ok(tls.read_tls(data)),
            Self::Failed(_) => Ok(data.len()),
            #[cfg(feature = "engine-boring")]
            Self::Boring(tls) => Ok(tls.read_tls(data)),
        }
    }

    /// Decrypts what was read.
    ///
    /// # Errors
    /// [`TransportError`].
    pub fn process_new_packets(&mut self) -> Result<(), TransportError> {
        match self {
            Self::Rustls(tls) => tls.process_new_packets().map_err(TransportError::from),
            Self::RecordLayer(tls) => tls.process_new_packets().map_err(TransportError::from),
            Self::Failed(_) => Err(RecordError::Keys.into()),
            // BoringSSL decrypts when plaintext is read.
            #[cfg(feature = "engine-boring")]
            Self::Boring(_) => Ok(()),
        }
    }

    /// Appends the queued ciphertext to `out`.
    pub fn write_tls(&mut self, out: &mut Vec<u8>) {
        match self {
            Self::Rustls(tls) => tls.write_tls(out),
            Self::RecordLayer(tls) => tls.write_tls(out),
            Self::Failed(unsent) => out.append(unsent),
            #[cfg(feature = "engine-boring")]
            Self::Boring(tls) => tls.write_tls(out),
        }
    }

    /// Whether there is plaintext to read.
    ///
    /// # Errors
    /// The peer broke the protocol.
    pub fn plaintext_state(&mut self) -> io::Result<PlaintextState> {
        match self {
            Self::Rustls(tls) => match tls.connection.reader().fill_buf() {
                Ok([]) => Ok(PlaintextState::CloseNotify),
                Ok(_) => Ok(PlaintextState::Available),
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(PlaintextState::Truncated),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(PlaintextState::NeedMoreData),
                Err(error) => Err(error),
            },
            Self::RecordLayer(tls) => tls.plaintext_state(),
            Self::Failed(_) => Err(keys_error()),
            #[cfg(feature = "engine-boring")]
            Self::Boring(tls) => tls.plaintext_state(),
        }
    }

    /// Plaintext, in the buffer it was decrypted in. [`TlsTransport::consume`] must follow.
    ///
    /// # Errors
    /// [`TlsTransport::plaintext_state`] is not [`PlaintextState::Available`].
    pub fn plaintext(&mut self) -> io::Result<&[u8]> {
        match self {
            Self::Rustls(tls) => tls.connection.reader().into_first_chunk(),
            Self::RecordLayer(tls) => Ok(tls.plaintext()),
            Self::Failed(_) => Err(keys_error()),
            #[cfg(feature = "engine-boring")]
            Self::Boring(tls) => Ok(tls.plaintext()),
        }
    }

    /// Consumes `n` bytes of the plaintext.
    pub fn consume(&mut self, n: usize) {
        match self {
            Self::Rustls(tls) => tls.consume(n),
            Self::RecordLayer(tls) => tls.consume(n),
            Self::Failed(_) => {}
            #[cfg(feature = "engine-boring")]
            Self::Boring(tls) => tls.consume(n),
        }
    }

    /// Encrypts a prefix of `data` to the end of `out`; returns its length.
    ///
    /// # Errors
    /// Our direction has ended.
    pub fn write(&mut self, data: &[u8], out: &mut Vec<u8>) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(data)], out)
    }

    /// As [`TlsTransport::write`], of several buffers.
    ///
    /// # Errors
    /// As [`TlsTransport::write`].
    pub fn write_vectored(&mut self, bufs: &[IoSlice<'_>], out: &mut Vec<u8>) -> io::Result<usize> {
        let written = match self {
            Self::Rustls(tls) => tls.connection.writer().write_vectored(bufs),
            Self::RecordLayer(tls) => return tls.write(bufs.iter().map(Deref::deref), out),
            Self::Failed(_) => return Err(keys_error()),
            #[cfg(feature = "engine-boring")]
            Self::Boring(tls) => tls.write_vectored(bufs),
        }?;
        self.write_tls(out);
        Ok(written)
    }

    /// Queues the alert `close_notify`.
    pub fn send_close_notify(&mut self) {
        match self {
            Self::Rustls(tls) => tls.send_close_notify(),
            Self::RecordLayer(tls) => tls.send_close_notify(),
            Self::Failed(_) => {}
            #[cfg(feature = "engine-boring")]
            Self::Boring(tls) => tls.send_close_notify(),
        }
    }
}

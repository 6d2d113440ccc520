//! The TLS engine of one connection, without IO: ciphertext and plaintext go in and out by hand.
//!
//! The seam between the stages that move bytes (`handshake`, `stream`, on both sides of the
//! gateway) and whoever does the cryptography. An enum, not a trait object: with one engine built
//! in, its calls are rustls' own. A connection that stays goes on without rustls
//! ([`Engine::take_over`]).

use std::borrow::Cow;
use std::io::{self, BufRead as _, IoSlice, Write as _};
use std::ops::Deref;

use ::rustls::pki_types::CertificateDer;
use ::rustls::{ClientConnection, HandshakeKind, NamedGroup, ProtocolVersion, ServerConnection};
use model::TlsVersion;

use self::rustls::RustlsConnection;
use super::record::framing::RecordFraming;
use super::record::traffic_secrets::TrafficSecrets;
use super::record::{RecordError, RecordLayer};

mod rustls;

/// Why an engine gave up. The alert that says so to the peer waits to be staged.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// rustls did.
    #[error(transparent)]
    Rustls(#[from] ::rustls::Error),
    /// An established connection's records are not in order.
    #[error(transparent)]
    RecordLayer(#[from] RecordError),
    /// BoringSSL did.
    #[cfg(feature = "engine-boring")]
    #[error(transparent)]
    Boring(#[from] super::boring::BoringError),
}

/// What there is to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlaintextState {
    /// Some is there.
    Available,
    /// The peer has said that it has no more (`close_notify`).
    CloseNotify,
    /// It ended without saying so: something may have been cut off.
    Truncated,
    /// None before more ciphertext comes.
    NeedMoreData,
}

/// One connection's engine and state.
pub enum TlsTransport {
    /// rustls. Boxed: over a kilobyte, which futures and hyper would otherwise hold several times
    /// over.
    Rustls(Box<RustlsConnection>),
    /// A connection that rustls has established and that goes on without it. It moves bytes; what
    /// was agreed was asked before.
    RecordLayer(Box<RecordLayer>),
    /// A connection whose keys could not be taken over: nothing passes any more but what waits here
    /// to be staged.
    Failed(Vec<u8>),
    /// BoringSSL, for sites that ask for TLSv1.1. Server side only.
    #[cfg(feature = "engine-boring")]
    Boring(super::boring::Session),
}

impl From<ClientConnection> for TlsTransport {
    fn from(connection: ClientConnection) -> Self {
        Self::Rustls(Box::new(RustlsConnection::client(connection)))
    }
}

impl TlsTransport {
    /// A server's connection, of which the ClientHello was read to where `framing` is; and the
    /// traffic secrets, if they have been heard already.
    pub fn server(
        connection: ServerConnection,
        framing: RecordFraming,
        traffic: Option<TrafficSecrets>,
    ) -> Self {
        Self::Rustls(Box::new(RustlsConnection::server(connection, framing, traffic)))
    }

    /// From here on without rustls, if this is a moment at which that can be, and a connection that
    /// can do without. If it is lost by that, the next read or write says so.
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

    /// Nothing is expected for a while: gives back buffers that nothing is in.
    pub fn shrink_buffers(&mut self) {
        if let Self::RecordLayer(tls) = self {
            tls.shrink_buffers();
        }
    }
}

fn keys_error() -> io::Error {
    RecordError::Keys.into()
}

/// Moving bytes.
impl TlsTransport {
    /// Takes ciphertext, and says how much of it; none given means that the peer has ended its
    /// direction.
    ///
    /// # Errors
    /// When the engine's buffers are full of what should have been read first.
    pub fn read_tls(&mut self, data: &[u8]) -> io::Result<usize> {
        match self {
            Self::Rustls(tls) => tls.read_tls(data),
            Self::RecordLayer(tls) => Ok(tls.read_tls(data)),
            Self::Failed(_) => Ok(data.len()),
            #[cfg(feature = "engine-boring")]
            Self::Boring(tls) => Ok(tls.take(data)),
        }
    }

    /// Goes on with what was taken: the handshake, or decryption.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn process_new_packets(&mut self) -> Result<(), TransportError> {
        match self {
            Self::Rustls(tls) => tls.process_new_packets().map_err(TransportError::from),
            Self::RecordLayer(tls) => tls.process_new_packets().map_err(TransportError::from),
            Self::Failed(_) => Err(RecordError::Keys.into()),
            #[cfg(feature = "engine-boring")]
            Self::Boring(tls) => tls.advance().map_err(TransportError::from),
        }
    }

    /// Moves all ciphertext that is to be sent to the end of `out`.
    ///
    /// # Errors
    /// None that a buffer in memory could cause.
    pub fn write_tls(&mut self, out: &mut Vec<u8>) -> io::Result<()> {
        match self {
            Self::Rustls(tls) => {
                while tls.connection.wants_write() {
                    tls.connection.write_tls(out)?;
                }
                Ok(())
            }
            Self::RecordLayer(tls) => {
                tls.write_tls(out);
                Ok(())
            }
            Self::Failed(unsent) => {
                out.append(unsent);
                Ok(())
            }
            #[cfg(feature = "engine-boring")]
            Self::Boring(tls) => {
                tls.stage(out);
                Ok(())
            }
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
            Self::Boring(tls) => tls.ready(),
        }
    }

    /// Plaintext, lent from where it was decrypted; to be followed by [`Engine::consume`] of as
    /// much as was used.
    ///
    /// # Errors
    /// When [`Engine::ready`] did not say that there is some.
    pub fn plaintext(&mut self) -> io::Result<&[u8]> {
        match self {
            Self::Rustls(tls) => tls.connection.reader().into_first_chunk(),
            Self::RecordLayer(tls) => Ok(tls.plaintext()),
            Self::Failed(_) => Err(keys_error()),
            #[cfg(feature = "engine-boring")]
            Self::Boring(tls) => Ok(tls.chunk()),
        }
    }

    /// Marks `n` bytes of the chunk as used.
    pub fn consume(&mut self, n: usize) {
        match self {
            Self::Rustls(tls) => tls.consume(n),
            Self::RecordLayer(tls) => tls.consume(n),
            Self::Failed(_) => {}
            #[cfg(feature = "engine-boring")]
            Self::Boring(tls) => tls.consume(n),
        }
    }

    /// Encrypts some of it to the end of `out`, and says how much.
    ///
    /// # Errors
    /// When nothing can be sent any more.
    pub fn write(&mut self, data: &[u8], out: &mut Vec<u8>) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(data)], out)
    }

    /// As [`Engine::write`], of several pieces.
    ///
    /// # Errors
    /// As [`Engine::write`].
    pub fn write_vectored(&mut self, bufs: &[IoSlice<'_>], out: &mut Vec<u8>) -> io::Result<usize> {
        let written = match self {
            Self::Rustls(tls) => tls.connection.writer().write_vectored(bufs),
            Self::RecordLayer(tls) => return tls.write(bufs.iter().map(Deref::deref), out),
            Self::Failed(_) => return Err(keys_error()),
            #[cfg(feature = "engine-boring")]
            Self::Boring(tls) => tls.write_vectored(bufs),
        }?;
        self.write_tls(out)?;
        Ok(written)
    }

    /// Says goodbye: the alert close_notify waits to be staged.
    pub fn send_close_notify(&mut self) {
        match self {
            Self::Rustls(tls) => tls.send_close_notify(),
            Self::RecordLayer(tls) => tls.send_close_notify(),
            Self::Failed(_) => {}
            #[cfg(feature = "engine-boring")]
            Self::Boring(tls) => tls.close(),
        }
    }
}

/// What was agreed.
impl TlsTransport {
    /// Whether the handshake goes on.
    pub fn is_handshaking(&self) -> bool {
        match self {
            Self::Rustls(tls) => tls.connection.is_handshaking(),
            Self::RecordLayer(_) | Self::Failed(_) => false,
            #[cfg(feature = "engine-boring")]
            Self::Boring(tls) => tls.is_handshaking(),
        }
    }

    /// The TLS version.
    pub fn version(&self) -> Option<TlsVersion> {
        match self {
            Self::Rustls(tls) => match tls.connection.protocol_version()? {
                ProtocolVersion::TLSv1_3 => Some(TlsVersion::V13),
                ProtocolVersion::TLSv1_2 => Some(TlsVersion::V12),
                _ => None,
            },
            Self::RecordLayer(_) | Self::Failed(_) => Some(TlsVersion::V13),
            #[cfg(feature = "engine-boring")]
            Self::Boring(tls) => tls.version(),
        }
    }

    /// The cipher suite, by its IANA name.
    pub fn cipher(&self) -> Option<&'static str> {
        match self {
            Self::Rustls(tls) => Some(match tls.connection.negotiated_cipher_suite()?.suite().as_str()? {
                "TLS13_AES_128_GCM_SHA256" => "TLS_AES_128_GCM_SHA256",
                "TLS13_AES_256_GCM_SHA384" => "TLS_AES_256_GCM_SHA384",
                "TLS13_CHACHA20_POLY1305_SHA256" => "TLS_CHACHA20_POLY1305_SHA256",
                tls12 => tls12,
            }),
            Self::RecordLayer(_) | Self::Failed(_) => None,
            #[cfg(feature = "engine-boring")]
            Self::Boring(tls) => tls.cipher(),
        }
    }

    /// The key exchange's group, as far as the engine tells.
    pub fn group(&self) -> Option<NamedGroup> {
        match self {
            Self::Rustls(tls) => tls.connection.negotiated_key_exchange_group().map(|group| group.name()),
            Self::RecordLayer(_) | Self::Failed(_) => None,
            #[cfg(feature = "engine-boring")]
            Self::Boring(_) => None,
        }
    }

    /// The protocol chosen by ALPN.
    pub fn alpn(&self) -> Option<&[u8]> {
        match self {
            Self::Rustls(tls) => tls.connection.alpn_protocol(),
            Self::RecordLayer(_) | Self::Failed(_) => None,
            #[cfg(feature = "engine-boring")]
            Self::Boring(tls) => tls.alpn(),
        }
    }

    /// Whether an earlier session was resumed.
    pub fn is_resumed(&self) -> bool {
        match self {
            Self::Rustls(tls) => tls.connection.handshake_kind() == Some(HandshakeKind::Resumed),
            Self::RecordLayer(_) | Self::Failed(_) => false,
            #[cfg(feature = "engine-boring")]
            Self::Boring(tls) => tls.is_resumed(),
        }
    }

    /// What the peer showed, its own certificate first; empty if none.
    pub fn peer_chain(&self) -> Cow<'_, [CertificateDer<'static>]> {
        match self {
            Self::Rustls(tls) => Cow::Borrowed(tls.connection.peer_certificates().unwrap_or_default()),
            Self::RecordLayer(_) | Self::Failed(_) => Cow::Borrowed(&[]),
            #[cfg(feature = "engine-boring")]
            Self::Boring(tls) => Cow::Owned(tls.peer_chain()),
        }
    }
}

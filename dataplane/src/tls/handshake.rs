//! A TLS handshake, without I/O ([`TlsHandshake`]) and over a buffered socket ([`drive`]), on the
//! client and the server side.
//!
//! Invariant: when a handshake fails, its alert is in the write buffer of the socket. A lingering
//! close delivers it: data that the peer still sends must not turn it into a reset.

use std::borrow::Cow;
use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll, ready};

use model::TlsVersion;
use rustls::pki_types::CertificateDer;
use rustls::{ClientConnection, HandshakeKind, NamedGroup, ProtocolVersion, ServerConnection};

#[cfg(feature = "engine-boring")]
use super::boring::{BoringConnection, BoringError};
use super::handshake_state::{HandshakeState, RejectedCertificate};
use super::record::framing::RecordFraming;
use super::transport::TlsTransport;
use super::transport::rustls_connection::RustlsConnection;
use crate::io::buffered::BufferedSocket;
use crate::observability::TicketRejection;
use crate::runtime::{Reader, Writer};

/// The handshake failed. The alert for the peer, if there is one, is in the write buffer.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The peer broke the protocol, sent an alert, or was rejected.
    #[error("{}", rustls_text(.0))]
    Rustls(#[from] rustls::Error),
    #[cfg(feature = "engine-boring")]
    #[error(transparent)]
    Boring(#[from] BoringError),
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
    #[error("the peer ended the connection during the handshake")]
    UnexpectedEof,
}

/// The text of an error. One of our own verifiers has a whole one, which to rustls is unexpected.
fn rustls_text(error: &rustls::Error) -> String {
    match error {
        rustls::Error::General(text) => text.clone(),
        error => error.to_string(),
    }
}

/// A handshake of rustls or BoringSSL; afterwards it tells what was negotiated.
pub struct TlsHandshake {
    engine: Engine,
    state: HandshakeState,
}

enum Engine {
    Rustls(Box<RustlsConnection>),
    #[cfg(feature = "engine-boring")]
    Boring(BoringConnection),
}

impl From<ClientConnection> for TlsHandshake {
    fn from(connection: ClientConnection) -> Self {
        let connection = RustlsConnection::new(connection.into(), RecordFraming::default());
        Self { engine: Engine::Rustls(Box::new(connection)), state: HandshakeState::default() }
    }
}

impl TlsHandshake {
    /// The handshake of a server that has read the ClientHello. `framing`: the position behind it;
    /// `state`: what the handshake knows since then.
    pub fn server(connection: ServerConnection, framing: RecordFraming, state: HandshakeState) -> Self {
        let connection = RustlsConnection::new(connection.into(), framing);
        Self { engine: Engine::Rustls(Box::new(connection)), state }
    }

    #[cfg(feature = "engine-boring")]
    pub(super) fn boring(connection: BoringConnection) -> Self {
        Self { engine: Engine::Boring(connection), state: HandshakeState::default() }
    }

    pub fn is_handshaking(&self) -> bool {
        match &self.engine {
            Engine::Rustls(tls) => tls.connection.is_handshaking(),
            #[cfg(feature = "engine-boring")]
            Engine::Boring(tls) => tls.is_handshaking(),
        }
    }

    /// Reads ciphertext; returns how many bytes.
    ///
    /// # Errors
    /// The buffers are full.
    pub fn read_tls(&mut self, data: &[u8]) -> io::Result<usize> {
        match &mut self.engine {
            Engine::Rustls(tls) => tls.read_tls(data),
            #[cfg(feature = "engine-boring")]
            Engine::Boring(tls) => Ok(tls.read_tls(data)),
        }
    }

    /// Continues the handshake with what was read.
    ///
    /// # Errors
    /// [`HandshakeError::Rustls`] or `HandshakeError::Boring`; an alert is queued.
    pub fn process_new_packets(&mut self) -> Result<(), HandshakeError> {
        let Self { engine, state } = self;
        state.in_scope(|| match engine {
            Engine::Rustls(tls) => tls.process_handshake().map_err(HandshakeError::from),
            #[cfg(feature = "engine-boring")]
            Engine::Boring(tls) => tls.process_handshake().map_err(HandshakeError::from),
        })
    }

    /// Appends the queued ciphertext to `out`.
    pub fn write_tls(&mut self, out: &mut Vec<u8>) {
        match &mut self.engine {
            Engine::Rustls(tls) => tls.write_tls(out),
            #[cfg(feature = "engine-boring")]
            Engine::Boring(tls) => tls.write_tls(out),
        }
    }

    /// Queues the alert `close_notify`.
    pub fn send_close_notify(&mut self) {
        match &mut self.engine {
            Engine::Rustls(tls) => tls.send_close_notify(),
            #[cfg(feature = "engine-boring")]
            Engine::Boring(tls) => tls.send_close_notify(),
        }
    }

    /// The tickets that the client offered in vain.
    pub fn ticket_rejections(&self) -> &[TicketRejection] {
        self.state.ticket_rejections()
    }

    /// The client certificate for which the handshake failed.
    pub fn take_rejected_certificate(&mut self) -> Option<RejectedCertificate> {
        self.state.take_rejected_certificate()
    }

    /// The transport of the established connection.
    pub fn into_transport(self) -> TlsTransport {
        let Self { engine, mut state } = self;
        match engine {
            Engine::Rustls(mut tls) => {
                tls.secrets = state.take_traffic_secrets();
                TlsTransport::Rustls(tls)
            }
            #[cfg(feature = "engine-boring")]
            Engine::Boring(tls) => TlsTransport::Boring(tls),
        }
    }
}

/// What was negotiated.
impl TlsHandshake {
    pub fn version(&self) -> Option<TlsVersion> {
        match &self.engine {
            Engine::Rustls(tls) => match tls.connection.protocol_version()? {
                ProtocolVersion::TLSv1_3 => Some(TlsVersion::V13),
                ProtocolVersion::TLSv1_2 => Some(TlsVersion::V12),
                _ => None,
            },
            #[cfg(feature = "engine-boring")]
            Engine::Boring(tls) => tls.version(),
        }
    }

    /// The IANA name of the cipher suite.
    pub fn cipher_suite(&self) -> Option<&'static str> {
        match &self.engine {
            Engine::Rustls(tls) => {
                Some(match tls.connection.negotiated_cipher_suite()?.suite().as_str()? {
                    "TLS13_AES_128_GCM_SHA256" => "TLS_AES_128_GCM_SHA256",
                    "TLS13_AES_256_GCM_SHA384" => "TLS_AES_256_GCM_SHA384",
                    "TLS13_CHACHA20_POLY1305_SHA256" => "TLS_CHACHA20_POLY1305_SHA256",
                    tls12 => tls12,
                })
            }
            #[cfg(feature = "engine-boring")]
            Engine::Boring(tls) => tls.cipher_suite(),
        }
    }

    /// The key exchange group; BoringSSL does not expose it.
    pub fn group(&self) -> Option<NamedGroup> {
        match &self.engine {
            Engine::Rustls(tls) => tls.connection.negotiated_key_exchange_group().map(|group| group.name()),
            #[cfg(feature = "engine-boring")]
            Engine::Boring(_) => None,
        }
    }

    /// The protocol that ALPN selected.
    pub fn alpn(&self) -> Option<&[u8]> {
        match &self.engine {
            Engine::Rustls(tls) => tls.connection.alpn_protocol(),
            #[cfg(feature = "engine-boring")]
            Engine::Boring(tls) => tls.alpn(),
        }
    }

    pub fn is_resumed(&self) -> bool {
        match &self.engine {
            Engine::Rustls(tls) => tls.connection.handshake_kind() == Some(HandshakeKind::Resumed),
            #[cfg(feature = "engine-boring")]
            Engine::Boring(tls) => tls.is_resumed(),
        }
    }

    /// The certificates that the peer presented, its leaf first; may be empty.
    pub fn peer_chain(&self) -> Cow<'_, [CertificateDer<'static>]> {
        match &self.engine {
            Engine::Rustls(tls) => Cow::Borrowed(tls.connection.peer_certificates().unwrap_or_default()),
            #[cfg(feature = "engine-boring")]
            Engine::Boring(tls) => Cow::Owned(tls.peer_chain()),
        }
    }
}

/// Drives a handshake to completion.
///
/// The last flight (the tickets of a TLS 1.3 server, the Finished of a TLS 1.3 client) stays in the
/// write buffer, to leave with the first application data.
///
/// # Errors
/// [`HandshakeError`]; a lingering close must follow.
pub async fn drive<R: Reader, W: Writer>(
    handshake: &mut TlsHandshake,
    socket: &mut BufferedSocket<R, W>,
) -> Result<(), HandshakeError> {
    poll_fn(|cx| poll_drive(handshake, socket, cx)).await
}

fn poll_drive<R: Reader, W: Writer>(
    handshake: &mut TlsHandshake,
    socket: &mut BufferedSocket<R, W>,
    cx: &mut Context<'_>,
) -> Poll<Result<(), HandshakeError>> {
    loop {
        handshake.write_tls(socket.write_buf());
        if !handshake.is_handshaking() {
            // Before TLS 1.3 the client waits for the server's Finished, which is the last message.
            if handshake.version() != Some(TlsVersion::V13)
                && let Poll::Ready(result) = socket.poll_start_write(cx)
            {
                result?;
            }
            return Poll::Ready(Ok(()));
        }
        // The peer answers a flight that is on its way; there is no need to wait for its end.
        if !socket.is_flushed()
            && let Poll::Ready(result) = socket.poll_start_write(cx)
        {
            result?;
        }
        let data = ready!(socket.poll_fill_buf(cx))?;
        if data.is_empty() {
            return Poll::Ready(Err(HandshakeError::UnexpectedEof));
        }
        let n = handshake.read_tls(data)?;
        socket.consume(n);
        if let Err(error) = handshake.process_new_packets() {
            handshake.write_tls(socket.write_buf());
            return Poll::Ready(Err(error));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_of_a_verifier_stands_alone() {
        let error = |error: rustls::Error| HandshakeError::from(error).to_string();
        assert_eq!(error(rustls::Error::General("no trusted CA".to_owned())), "no trusted CA");
        assert_eq!(error(rustls::Error::DecryptError), rustls::Error::DecryptError.to_string());
    }
}

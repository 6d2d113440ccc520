//! Drives a TLS handshake to its end over a pump, on either side of the gateway.
//!
//! Invariant: when a handshake fails, the alert the engine chose is sent before the socket ends,
//! and the end is a clean one: data the peer has under way must not turn the alert into a reset.

use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll, ready};

use model::TlsVersion;

use super::ticket::HandshakeState;
use super::transport::{TlsTransport, TransportError};
use crate::io::buffered::BufferedSocket;
use crate::runtime::{Reader, Writer};

/// Why a handshake did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The peer broke the protocol, refused us, or was refused by the verifier.
    #[error(transparent)]
    Tls(#[from] TransportError),
    /// The connection failed underneath.
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
    /// The peer ended the connection.
    #[error("the peer ended the connection during the handshake")]
    UnexpectedEof,
}

/// Shakes hands. On success what is left to send (in TLS 1.3 a server's tickets, a client's last
/// flight) waits for the first flush of the stream: it then shares a write with what is said first.
///
/// # Errors
/// [`HandshakeError`]; an alert has been put into the pump: call [`part`].
pub async fn drive<R: Reader, W: Writer>(
    tls: &mut TlsTransport,
    pump: &mut BufferedSocket<R, W>,
) -> Result<(), HandshakeError> {
    drive_with(tls, pump, &mut HandshakeState::default()).await
}

/// As [`drive`], for a server whose handshake may resume a session: `resumption` is what it knows
/// of that so far.
///
/// # Errors
/// As [`drive`].
pub async fn drive_with<R: Reader, W: Writer>(
    tls: &mut TlsTransport,
    pump: &mut BufferedSocket<R, W>,
    resumption: &mut HandshakeState,
) -> Result<(), HandshakeError> {
    poll_fn(|cx| poll_drive(tls, pump, resumption, cx)).await
}

fn poll_drive<R: Reader, W: Writer>(
    tls: &mut TlsTransport,
    pump: &mut BufferedSocket<R, W>,
    resumption: &mut HandshakeState,
    cx: &mut Context<'_>,
) -> Poll<Result<(), HandshakeError>> {
    loop {
        if !tls.is_handshaking() {
            tls.write_tls(pump.write_buf())?;
            // Before TLS 1.3 the server's Finished comes last, and the client waits for it.
            if tls.version() != Some(TlsVersion::V13)
                && let Poll::Ready(result) = pump.poll_start_write(cx)
            {
                result?;
            }
            return Poll::Ready(Ok(()));
        }
        tls.write_tls(pump.write_buf())?;
        // The flight has to be under way before the peer can answer it; its end need not be waited for.
        if !pump.is_flushed()
            && let Poll::Ready(result) = pump.poll_start_write(cx)
        {
            result?;
        }
        let data = ready!(pump.poll_fill_buf(cx))?;
        if data.is_empty() {
            return Poll::Ready(Err(HandshakeError::UnexpectedEof));
        }
        let n = tls.read_tls(data)?;
        pump.consume(n);
        if let Err(error) = resumption.in_scope(|| tls.process_new_packets()) {
            tls.write_tls(pump.write_buf())?;
            return Poll::Ready(Err(error.into()));
        }
    }
}

//! The ClientHello: read within bounds, and what it says before a site is chosen.
//!
//! The first step of a TLS connection. rustls bounds it in bytes (a handshake message of at most
//! 64 KiB), the handshake timeout in time.

use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll, ready};

use model::HostName;
use rustls::server::{Accepted, AcceptedAlert, Acceptor};
#[cfg(feature = "engine-boring")]
use rustls::{PeerIncompatible, pki_types::ServerName};

#[cfg(feature = "engine-boring")]
use super::boring::{self, BoringConnection};
use super::handshake::{HandshakeError, TlsHandshake};
use super::handshake_state::HandshakeState;
use super::record::framing::RecordFraming;
use super::site_config::SiteConfig;
use crate::io::buffered::BufferedSocket;
use crate::runtime::{Reader, Writer};

/// The first byte of every TLS connection: a record of type handshake.
const HANDSHAKE_RECORD: u8 = 22;

/// No ClientHello was read.
#[derive(Debug, thiserror::Error)]
pub enum ClientHelloError {
    /// The first byte begins an HTTP method.
    #[error("plain HTTP was spoken to the TLS port")]
    PlainHttp,
    #[error("the peer does not speak TLS")]
    NotTls,
    /// rustls does not read the ClientHello; an alert is in the write buffer.
    #[error(transparent)]
    Tls(#[from] rustls::Error),
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
    #[error("the peer ended the connection before its ClientHello was complete")]
    UnexpectedEof,
}

/// A ClientHello, and the position behind it.
pub struct AcceptedHello {
    parsed: ParsedHello,
    framing: RecordFraming,
    #[cfg(feature = "engine-boring")]
    received: ReceivedBytes,
}

#[cfg_attr(
    feature = "engine-boring",
    expect(
        clippy::large_enum_variant,
        reason = "the large one is the usual one, and no other is kept beside it"
    )
)]
enum ParsedHello {
    Rustls(Accepted),
    #[cfg(feature = "engine-boring")]
    Boring(BoringHello),
}

/// A ClientHello that only BoringSSL reads, with rustls' answer for sites of rustls.
#[cfg(feature = "engine-boring")]
struct BoringHello {
    server_name: Option<String>,
    error: rustls::Error,
    alert: AcceptedAlert,
}

/// The bytes of the ClientHello, which BoringSSL reads again; empty without BoringSSL.
#[derive(Default)]
struct ReceivedBytes(#[cfg(feature = "engine-boring")] Vec<u8>);

impl ReceivedBytes {
    fn push(&mut self, _data: &[u8]) {
        #[cfg(feature = "engine-boring")]
        self.0.extend_from_slice(_data);
    }
}

/// Reads the ClientHello. The bytes behind it stay in the read buffer.
///
/// # Errors
/// [`ClientHelloError`].
pub async fn read<R: Reader, W: Writer>(
    socket: &mut BufferedSocket<R, W>,
) -> Result<AcceptedHello, ClientHelloError> {
    let mut acceptor = Acceptor::default();
    let (mut received, mut framing) = (ReceivedBytes::default(), RecordFraming::default());
    let mut is_first = true;
    poll_fn(|cx| poll_read(&mut acceptor, &mut received, &mut framing, &mut is_first, socket, cx)).await
}

fn poll_read<R: Reader, W: Writer>(
    acceptor: &mut Acceptor,
    received: &mut ReceivedBytes,
    framing: &mut RecordFraming,
    is_first: &mut bool,
    socket: &mut BufferedSocket<R, W>,
    cx: &mut Context<'_>,
) -> Poll<Result<AcceptedHello, ClientHelloError>> {
    loop {
        let data = ready!(socket.poll_fill_buf(cx))?;
        match data.first() {
            None => return Poll::Ready(Err(ClientHelloError::UnexpectedEof)),
            Some(&byte) if *is_first && byte != HANDSHAKE_RECORD => {
                let is_http = byte.is_ascii_uppercase();
                let error = if is_http { ClientHelloError::PlainHttp } else { ClientHelloError::NotTls };
                return Poll::Ready(Err(error));
            }
            Some(_) => *is_first = false,
        }
        let records = data.get(..{ *framing }.advance(data)).unwrap_or_default();
        let n = acceptor.read_tls(&mut &*records)?;
        let data = data.get(..n).unwrap_or_default();
        framing.advance(data);
        received.push(data);
        socket.consume(n);
        match acceptor.accept() {
            Ok(Some(accepted)) => {
                let parsed = ParsedHello::Rustls(accepted);
                return Poll::Ready(Ok(AcceptedHello::new(parsed, *framing, received)));
            }
            Ok(None) => {}
            Err((error, alert)) => {
                return Poll::Ready(rejected(error, alert, *framing, received, socket));
            }
        }
    }
}

/// BoringSSL may read a ClientHello that rustls rejects.
fn rejected<R: Reader, W: Writer>(
    error: rustls::Error,
    mut alert: AcceptedAlert,
    _framing: RecordFraming,
    _received: &mut ReceivedBytes,
    socket: &mut BufferedSocket<R, W>,
) -> Result<AcceptedHello, ClientHelloError> {
    #[cfg(feature = "engine-boring")]
    if error == PeerIncompatible::SignatureAlgorithmsExtensionRequired.into()
        && let Some(server_name) = boring::server_name(&_received.0)
    {
        let parsed = ParsedHello::Boring(BoringHello { server_name, error, alert });
        return Ok(AcceptedHello::new(parsed, _framing, _received));
    }
    alert.write_all(socket.write_buf())?;
    Err(error.into())
}

impl AcceptedHello {
    fn new(parsed: ParsedHello, framing: RecordFraming, _received: &mut ReceivedBytes) -> Self {
        Self {
            parsed,
            framing,
            #[cfg(feature = "engine-boring")]
            received: std::mem::take(_received),
        }
    }

    /// The server name; `fallback` (`apisix.ssl.fallback_sni`) if the client sends none.
    pub fn server_name(&self, fallback: Option<&HostName>) -> Option<HostName> {
        match &self.parsed {
            ParsedHello::Rustls(accepted) => match accepted.client_hello().server_name() {
                Some(sni) => HostName::from_sni(sni),
                None => fallback.cloned(),
            },
            // As rustls does: an invalid name is rejected, and an address counts as no name (RFC
            // 6066 section 3).
            #[cfg(feature = "engine-boring")]
            ParsedHello::Boring(hello) => match hello.server_name.as_deref().map(ServerName::try_from) {
                Some(Ok(ServerName::DnsName(sni))) => HostName::from_sni(sni.as_ref()),
                Some(Err(_)) => None,
                Some(Ok(_)) | None => fallback.cloned(),
            },
        }
    }

    /// Starts the handshake with the configuration of the site.
    ///
    /// # Errors
    /// ClientHello and configuration do not match; the alert is in `out`.
    pub fn start_handshake(
        self,
        config: SiteConfig,
        out: &mut Vec<u8>,
    ) -> Result<TlsHandshake, HandshakeError> {
        match (self.parsed, config) {
            (ParsedHello::Rustls(accepted), SiteConfig::Rustls(config)) => {
                let mut state = HandshakeState::default();
                match state.in_scope(|| accepted.into_connection(config)) {
                    Ok(connection) => Ok(TlsHandshake::server(connection, self.framing, state)),
                    Err((error, alert)) => Err(with_alert(error, alert, out)),
                }
            }
            #[cfg(feature = "engine-boring")]
            (ParsedHello::Boring(hello), SiteConfig::Rustls(_)) => {
                Err(with_alert(hello.error, hello.alert, out))
            }
            #[cfg(feature = "engine-boring")]
            (_, SiteConfig::Boring(config)) => {
                let connection = BoringConnection::new(&config, self.received.0)?;
                let mut handshake = TlsHandshake::boring(connection);
                match handshake.process_new_packets() {
                    Ok(()) => Ok(handshake),
                    Err(error) => {
                        handshake.write_tls(out);
                        Err(error)
                    }
                }
            }
        }
    }
}

/// Writes the alert to `out`.
fn with_alert(error: rustls::Error, mut alert: AcceptedAlert, out: &mut Vec<u8>) -> HandshakeError {
    // A write to memory does not fail.
    let _written = alert.write_all(out);
    error.into()
}

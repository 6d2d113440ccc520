//! The ClientHello: read within bounds, and what it says before anything is decided.
//!
//! First TLS step of a connection: it leads from bytes to the name by which the snapshot chooses
//! the site. Bounded in bytes by rustls (a handshake message of at most 64 KiB) and in time by the
//! caller.

use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll, ready};

use model::HostName;
use rustls::server::{Accepted, AcceptedAlert, Acceptor};
#[cfg(feature = "engine-boring")]
use rustls::{PeerIncompatible, pki_types::ServerName};

#[cfg(feature = "engine-boring")]
use super::boring::Session;
use super::record::framing::RecordFraming;
use super::record::traffic_secrets;
use super::site_config::SiteConfig;
use super::transport::{TlsTransport, TransportError};
use crate::io::buffered::BufferedSocket;
use crate::runtime::{Reader, Writer};

/// The first byte of every TLS connection: a record of type handshake.
const HANDSHAKE_RECORD: u8 = 22;

/// No ClientHello.
#[derive(Debug, thiserror::Error)]
pub enum ClientHelloError {
    /// A request line came instead.
    #[error("plain HTTP was spoken to the TLS port")]
    PlainHttp,
    /// Something else came instead.
    #[error("the peer does not speak TLS")]
    NotTls,
    /// TLS, but not a ClientHello we can read. An alert has been staged.
    #[error(transparent)]
    Tls(#[from] rustls::Error),
    /// The connection failed underneath.
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
    /// The peer went away.
    #[error("the peer ended the connection before its ClientHello was complete")]
    UnexpectedEof,
}

/// A ClientHello that was read, and what came with it.
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
    /// By BoringSSL, in whose place rustls has this to say.
    #[cfg(feature = "engine-boring")]
    Old(Old),
}

#[cfg(feature = "engine-boring")]
struct Old {
    name: Option<String>,
    error: rustls::Error,
    alert: AcceptedAlert,
}

/// All that was received, for an engine that begins from the bytes; nothing is kept where there is
/// no such engine.
#[derive(Default)]
struct ReceivedBytes(#[cfg(feature = "engine-boring")] Vec<u8>);

impl ReceivedBytes {
    fn push(&mut self, _data: &[u8]) {
        #[cfg(feature = "engine-boring")]
        self.0.extend_from_slice(_data);
    }
}

/// Reads the ClientHello. What follows it stays with the pump.
///
/// # Errors
/// [`HelloError`]; where TLS was spoken the alert is staged in the pump.
pub async fn read<R: Reader, W: Writer>(
    pump: &mut BufferedSocket<R, W>,
) -> Result<AcceptedHello, ClientHelloError> {
    let mut acceptor = Acceptor::default();
    let (mut received, mut framing) = (ReceivedBytes::default(), RecordFraming::default());
    let mut first = true;
    poll_fn(|cx| poll_read(&mut acceptor, &mut received, &mut framing, &mut first, pump, cx)).await
}

fn poll_read<R: Reader, W: Writer>(
    acceptor: &mut Acceptor,
    received: &mut ReceivedBytes,
    framing: &mut RecordFraming,
    first: &mut bool,
    pump: &mut BufferedSocket<R, W>,
    cx: &mut Context<'_>,
) -> Poll<Result<AcceptedHello, ClientHelloError>> {
    loop {
        let data = ready!(pump.poll_fill_buf(cx))?;
        match data.first() {
            None => return Poll::Ready(Err(ClientHelloError::UnexpectedEof)),
            Some(&byte) if *first && byte != HANDSHAKE_RECORD => {
                let error = if byte.is_ascii_uppercase() {
                    ClientHelloError::PlainHttp
                } else {
                    ClientHelloError::NotTls
                };
                return Poll::Ready(Err(error));
            }
            Some(_) => *first = false,
        }
        let one = data.get(..{ *framing }.advance(data)).unwrap_or_default();
        let n = acceptor.read_tls(&mut &*one)?;
        let taken = data.get(..n).unwrap_or_default();
        framing.advance(taken);
        received.push(taken);
        pump.consume(n);
        match acceptor.accept() {
            Ok(Some(accepted)) => {
                return Poll::Ready(Ok(AcceptedHello::new(
                    ParsedHello::Rustls(accepted),
                    *framing,
                    received,
                )));
            }
            Ok(None) => {}
            Err((error, alert)) => return Poll::Ready(rejected(error, alert, *framing, received, pump)),
        }
    }
}

/// What rustls cannot read may still be a ClientHello for the other engine.
fn rejected<R: Reader, W: Writer>(
    error: rustls::Error,
    mut alert: AcceptedAlert,
    _framing: RecordFraming,
    _received: &mut ReceivedBytes,
    pump: &mut BufferedSocket<R, W>,
) -> Result<AcceptedHello, ClientHelloError> {
    #[cfg(feature = "engine-boring")]
    if error == PeerIncompatible::SignatureAlgorithmsExtensionRequired.into()
        && let Some(name) = super::boring::hello::server_name(&_received.0)
    {
        return Ok(AcceptedHello::new(ParsedHello::Old(Old { name, error, alert }), _framing, _received));
    }
    alert.write_all(pump.write_buf())?;
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

    /// The name the client asks for; `fallback` stands in for an absent one
    /// (`apisix.ssl.fallback_sni`).
    pub fn server_name(&self, fallback: Option<&HostName>) -> Option<HostName> {
        match &self.parsed {
            ParsedHello::Rustls(accepted) => match accepted.client_hello().server_name() {
                Some(sni) => HostName::from_sni(sni),
                None => fallback.cloned(),
            },
            // rustls has refused what is no name, and takes an address for an absent name (RFC 6066 section
            // 3).
            #[cfg(feature = "engine-boring")]
            ParsedHello::Old(old) => match old.name.as_deref().map(ServerName::try_from) {
                Some(Ok(ServerName::DnsName(sni))) => HostName::from_sni(sni.as_ref()),
                Some(Err(_)) => None,
                Some(Ok(_)) | None => fallback.cloned(),
            },
        }
    }

    /// Starts the handshake under the configuration of the site that was chosen.
    ///
    /// # Errors
    /// The two do not go together; the alert that says so is put into `out`.
    pub fn start_handshake(
        self,
        config: SiteConfig,
        out: &mut Vec<u8>,
    ) -> Result<TlsTransport, TransportError> {
        match (self.parsed, config) {
            (ParsedHello::Rustls(accepted), SiteConfig::Rustls(config)) => {
                let mut traffic = None;
                match traffic_secrets::capture_traffic_secrets(&mut traffic, || {
                    accepted.into_connection(config)
                }) {
                    Ok(connection) => Ok(TlsTransport::server(connection, self.framing, traffic)),
                    Err((error, alert)) => Err(with_alert(error, alert, out)),
                }
            }
            #[cfg(feature = "engine-boring")]
            (ParsedHello::Old(old), SiteConfig::Rustls(_)) => Err(with_alert(old.error, old.alert, out)),
            #[cfg(feature = "engine-boring")]
            (_, SiteConfig::Boring(site)) => {
                let mut tls = TlsTransport::Boring(Session::begin(&site, self.received.0)?);
                match tls.advance() {
                    Ok(()) => Ok(tls),
                    Err(error) => {
                        let _staging_never_fails = tls.stage(out);
                        Err(error)
                    }
                }
            }
        }
    }
}

/// The alert into `out`.
fn with_alert(error: rustls::Error, mut alert: AcceptedAlert, out: &mut Vec<u8>) -> TransportError {
    let _staging_never_fails = alert.write_all(out);
    error.into()
}

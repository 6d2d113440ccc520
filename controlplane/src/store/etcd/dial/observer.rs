//! Observes the bytes of one connection: the first frame, and the first error with its type.
//!
//! The HTTP/2 library keeps only the text of an error, and TLS 1.3 reports a rejected client
//! certificate on the first read. Invariant: bytes pass unchanged.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use pki::VerifyError;
use rustls::client::ResolvesClientCert;
use rustls::pki_types::ServerName;
use rustls::sign::CertifiedKey;
use rustls::{AlertDescription, CertificateError, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::client::TlsStream;

use super::client_tls::LoadedTls;
use super::credentials::PresentedCert;
use super::endpoint::Endpoint;
use super::error::{DialError, DialFailure, DialStep};

/// The length of an HTTP/2 frame header (RFC 9113 section 4.1).
const FRAME_HEAD: usize = 9;
const SETTINGS: u8 = 4;

/// The progress of the newest connection of a channel.
#[derive(Debug, Clone)]
pub(super) enum Http2Progress {
    Waiting,
    /// The server sent its HTTP/2 settings, so it accepts TLS and the client certificate.
    Ready,
    Failed(DialError),
}

/// The context of a connection, for its errors.
#[derive(Clone)]
pub(super) struct DialContext {
    pub(super) endpoint: Endpoint,
    /// `None`: in clear.
    pub(super) tls: Option<TlsContext>,
}

#[derive(Clone)]
pub(super) struct TlsContext {
    pub(super) loaded: LoadedTls,
    pub(super) name: ServerName<'static>,
    /// `tls.sni` is set and gives the name.
    pub(super) by_sni: bool,
    pub(super) client_cert: Arc<ClientCert>,
}

impl DialContext {
    /// Maps an I/O error of `step` to its cause.
    pub(super) fn problem(&self, step: DialStep, error: &io::Error) -> DialFailure {
        let typed = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        match (typed, &self.tls) {
            (Some(typed), Some(tls)) => tls.problem(step, typed),
            _ if error.kind() == io::ErrorKind::UnexpectedEof => {
                DialFailure::Closed { step, cause: "it ended without an alert".to_owned() }
            }
            _ => DialFailure::Closed { step, cause: error.to_string() },
        }
    }
}

impl TlsContext {
    fn problem(&self, step: DialStep, error: &rustls::Error) -> DialFailure {
        match error {
            rustls::Error::AlertReceived(alert) if rejects_client_cert(*alert) => {
                DialFailure::ClientCertRejected { alert: *alert, presented: self.client_cert.presented() }
            }
            rustls::Error::AlertReceived(alert) if step == DialStep::Established => {
                DialFailure::Closed { step, cause: error.to_string() + &format!(" ({alert:?})") }
            }
            rustls::Error::AlertReceived(alert) => DialFailure::Alert(*alert),
            rustls::Error::InvalidCertificate(CertificateError::Other(other)) => {
                match other.0.downcast_ref::<VerifyError>() {
                    Some(cause @ VerifyError::NotValidForName { .. }) => DialFailure::NameMismatch {
                        expected: self.name.to_str().into_owned(),
                        by_sni: self.by_sni,
                        cause: cause.clone(),
                    },
                    _ => self.untrusted(other.to_string()),
                }
            }
            rustls::Error::InvalidCertificate(other) => self.untrusted(other.to_string()),
            rustls::Error::InvalidMessage(_) if step == DialStep::Tls => DialFailure::NotTls { http2: false },
            other => DialFailure::Handshake(other.to_string()),
        }
    }

    fn untrusted(&self, why: String) -> DialFailure {
        DialFailure::Untrusted { why, trusted: self.loaded.trusted.clone() }
    }
}

/// The alerts for a rejected or missing client certificate.
fn rejects_client_cert(alert: AlertDescription) -> bool {
    matches!(
        alert,
        AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::CertificateRequired
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
    )
}

/// The client certificate of one connection; records the server's CertificateRequest.
#[derive(Debug)]
pub(super) struct ClientCert {
    identity: Option<Arc<CertifiedKey>>,
    presented: Mutex<PresentedCert>,
}

impl ClientCert {
    pub(super) fn new(loaded: &LoadedTls) -> Self {
        let presented = Mutex::new(loaded.certificate.clone().unwrap_or_default());
        Self { identity: loaded.identity.clone(), presented }
    }

    fn presented(&self) -> PresentedCert {
        self.presented.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl ResolvesClientCert for ClientCert {
    fn resolve(&self, hints: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let mut presented = self.presented.lock().unwrap_or_else(PoisonError::into_inner);
        *presented = presented.with_requested_issuers(hints);
        self.identity.clone()
    }

    fn has_certs(&self) -> bool {
        self.identity.is_some()
    }
}

/// A TCP or TLS stream.
pub(in crate::store::etcd) trait ByteStream:
    AsyncRead + AsyncWrite + Send + Unpin
{
}

impl ByteStream for TcpStream {}
impl ByteStream for TlsStream<TcpStream> {}

/// A stream that records its first frame and its first error.
pub(super) struct ObservedStream {
    inner: Box<dyn ByteStream>,
    context: DialContext,
    progress: watch::Sender<Http2Progress>,
    /// The first bytes, until they are long enough to be classified.
    head: Vec<u8>,
    step: DialStep,
}

impl ObservedStream {
    pub(super) fn new(
        inner: Box<dyn ByteStream>,
        context: DialContext,
        progress: watch::Sender<Http2Progress>,
    ) -> Self {
        progress.send_replace(Http2Progress::Waiting);
        Self { inner, context, progress, head: Vec::new(), step: DialStep::Http2 }
    }

    fn record_failure(&self, problem: DialFailure) {
        // Later errors are consequences of the first one.
        if matches!(&*self.progress.borrow(), Http2Progress::Failed(_)) {
            return;
        }
        let failure = self.context.endpoint.error(problem);
        self.context.endpoint.set_last_failure(Some(failure.clone()));
        self.progress.send_replace(Http2Progress::Failed(failure));
    }

    /// Classifies the first bytes; does nothing afterwards.
    fn inspect(&mut self, bytes: &[u8]) {
        if self.step == DialStep::Established {
            return;
        }
        self.head.extend(bytes.iter().take(FRAME_HEAD - self.head.len().min(FRAME_HEAD)));
        match *self.head {
            [_, _, _, SETTINGS, _, 0, 0, 0, 0] => {
                self.step = DialStep::Established;
                self.context.endpoint.set_last_failure(None);
                self.progress.send_replace(Http2Progress::Ready);
            }
            // A TLS alert or handshake record.
            [0x15 | 0x16, 3, ..] if self.context.tls.is_none() => {
                self.record_failure(DialFailure::UnexpectedTls)
            }
            [_, _, _, _, _, _, _, _, _] | [b'H', b'T', b'T', b'P', ..] => {
                let found = String::from_utf8_lossy(&self.head).into_owned();
                self.record_failure(DialFailure::NotHttp2 { found });
            }
            _ => {}
        }
    }

    fn record_err<T>(&self, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if let Poll::Ready(Err(error)) = &polled {
            self.record_failure(self.context.problem(self.step, error));
        }
        polled
    }
}

impl AsyncRead for ObservedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let (before, room) = (buffer.filled().len(), buffer.remaining());
        let polled = Pin::new(&mut *self.inner).poll_read(context, buffer);
        if let Poll::Ready(Ok(())) = polled {
            match buffer.filled().get(before..) {
                None | Some([]) if room > 0 => {
                    let cause = "the other side ended it".to_owned();
                    self.record_failure(DialFailure::Closed { step: self.step, cause });
                }
                new => self.inspect(new.unwrap_or_default()),
            }
        }
        self.record_err(polled)
    }
}

impl AsyncWrite for ObservedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut *self.inner).poll_write(context, bytes);
        self.record_err(polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut *self.inner).poll_write_vectored(context, slices);
        self.record_err(polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut *self.inner).poll_flush(context);
        self.record_err(polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.inner).poll_shutdown(context)
    }
}

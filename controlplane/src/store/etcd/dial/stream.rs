//! The bytes of one connection, watched: does the other side speak HTTP/2, and if it ends, why?
//!
//! The HTTP/2 library keeps only the text of an error, and in TLS 1.3 a refused client certificate shows on the first read. So the first
//! frame and the first error are read here, where they still have their type. Invariant: a byte is passed on as it came.

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

use super::endpoint::Endpoint;
use super::error::{DialError, Problem, Step};
use super::security::{Loaded, Shown};

/// Length of an HTTP/2 frame's head (RFC 9113 4.1).
const FRAME_HEAD: usize = 9;
const SETTINGS: u8 = 4;

/// How far the newest connection of a channel is.
#[derive(Debug, Clone)]
pub(super) enum Progress {
    /// Nothing was received yet.
    Waiting,
    /// The server sent its HTTP/2 settings: TLS and client certificate are accepted.
    Speaks,
    /// It ended.
    Failed(DialError),
}

/// What a connection is about, to put its errors into words.
#[derive(Clone)]
pub(super) struct About {
    pub(super) endpoint: Endpoint,
    /// `None`: in clear.
    pub(super) tls: Option<AboutTls>,
}

#[derive(Clone)]
pub(super) struct AboutTls {
    pub(super) loaded: Loaded,
    /// The name the server must have.
    pub(super) name: ServerName<'static>,
    /// Whether `tls.sni` gives it.
    pub(super) by_sni: bool,
    pub(super) ours: Arc<Ours>,
}

impl About {
    /// An error of `step` in words.
    pub(super) fn problem(&self, step: Step, error: &io::Error) -> Problem {
        let typed = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        match (typed, &self.tls) {
            (Some(typed), Some(tls)) => tls.problem(step, typed),
            _ if error.kind() == io::ErrorKind::UnexpectedEof => {
                Problem::Closed { step, cause: "it ended without a word".to_owned() }
            }
            _ => Problem::Closed { step, cause: error.to_string() },
        }
    }
}

impl AboutTls {
    fn problem(&self, step: Step, error: &rustls::Error) -> Problem {
        match error {
            rustls::Error::AlertReceived(alert) if about_our_certificate(*alert) => {
                Problem::Refused { alert: *alert, shown: self.ours.shown() }
            }
            rustls::Error::AlertReceived(alert) if step == Step::Established => {
                Problem::Closed { step, cause: error.to_string() + &format!(" ({alert:?})") }
            }
            rustls::Error::AlertReceived(alert) => Problem::Alert(*alert),
            rustls::Error::InvalidCertificate(CertificateError::Other(other)) => {
                match other.0.downcast_ref::<VerifyError>() {
                    Some(cause @ VerifyError::NotValidForName { .. }) => Problem::WrongName {
                        expected: self.name.to_str().into_owned(),
                        by_sni: self.by_sni,
                        cause: cause.clone(),
                    },
                    _ => self.untrusted(other.to_string()),
                }
            }
            rustls::Error::InvalidCertificate(other) => self.untrusted(other.to_string()),
            rustls::Error::InvalidMessage(_) if step == Step::Tls => Problem::NotTls { http2: false },
            other => Problem::Tls(other.to_string()),
        }
    }

    fn untrusted(&self, why: String) -> Problem {
        Problem::Untrusted { why, trusted: self.loaded.trusted.clone() }
    }
}

/// What a server answers when it does not like the client's certificate, or misses it.
fn about_our_certificate(alert: AlertDescription) -> bool {
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

/// Our certificate on one connection, and what the server said when it asked for it.
#[derive(Debug)]
pub(super) struct Ours {
    identity: Option<Arc<CertifiedKey>>,
    shown: Mutex<Shown>,
}

impl Ours {
    pub(super) fn new(loaded: &Loaded) -> Self {
        let shown = loaded.certificate.clone().unwrap_or_default();
        Self { identity: loaded.identity.clone(), shown: Mutex::new(shown) }
    }

    fn shown(&self) -> Shown {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl ResolvesClientCert for Ours {
    fn resolve(&self, hints: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        *shown = shown.asked_with(hints);
        self.identity.clone()
    }

    fn has_certs(&self) -> bool {
        self.identity.is_some()
    }
}

/// In clear or within TLS.
pub(in crate::store::etcd) trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}

impl Wire for TcpStream {}
impl Wire for TlsStream<TcpStream> {}

/// A connection whose first frame and first error are noted.
pub(super) struct Watched {
    wire: Box<dyn Wire>,
    about: About,
    progress: watch::Sender<Progress>,
    /// The beginning of what was received, until it is long enough to be judged.
    head: Vec<u8>,
    step: Step,
}

impl Watched {
    pub(super) fn new(wire: Box<dyn Wire>, about: About, progress: watch::Sender<Progress>) -> Self {
        progress.send_replace(Progress::Waiting);
        Self { wire, about, progress, head: Vec::new(), step: Step::Http2 }
    }

    fn failed(&self, problem: Problem) {
        // What follows the first error only says that there was one.
        if matches!(&*self.progress.borrow(), Progress::Failed(_)) {
            return;
        }
        let failure = self.about.endpoint.wrong(problem);
        self.about.endpoint.remember(Some(failure.clone()));
        self.progress.send_replace(Progress::Failed(failure));
    }

    /// Judges the first bytes; afterwards there is nothing to do.
    fn received(&mut self, bytes: &[u8]) {
        if self.step == Step::Established {
            return;
        }
        self.head.extend(bytes.iter().take(FRAME_HEAD - self.head.len().min(FRAME_HEAD)));
        match *self.head {
            [_, _, _, SETTINGS, _, 0, 0, 0, 0] => {
                self.step = Step::Established;
                self.about.endpoint.remember(None);
                self.progress.send_replace(Progress::Speaks);
            }
            // A TLS alert or handshake record.
            [0x15 | 0x16, 3, ..] if self.about.tls.is_none() => self.failed(Problem::SpeaksTls),
            [_, _, _, _, _, _, _, _, _] | [b'H', b'T', b'T', b'P', ..] => {
                let found = String::from_utf8_lossy(&self.head).into_owned();
                self.failed(Problem::NotHttp2 { found });
            }
            _ => {}
        }
    }

    fn noted<T>(&self, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if let Poll::Ready(Err(error)) = &polled {
            self.failed(self.about.problem(self.step, error));
        }
        polled
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let (before, room) = (buffer.filled().len(), buffer.remaining());
        let polled = Pin::new(&mut *self.wire).poll_read(context, buffer);
        if let Poll::Ready(Ok(())) = polled {
            match buffer.filled().get(before..) {
                None | Some([]) if room > 0 => {
                    let cause = "the other side ended it".to_owned();
                    self.failed(Problem::Closed { step: self.step, cause });
                }
                new => self.received(new.unwrap_or_default()),
            }
        }
        self.noted(polled)
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut *self.wire).poll_write(context, bytes);
        self.noted(polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut *self.wire).poll_write_vectored(context, slices);
        self.noted(polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.wire.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut *self.wire).poll_flush(context);
        self.noted(polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.wire).poll_shutdown(context)
    }
}

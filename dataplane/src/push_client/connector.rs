//! TCP and mutual TLS 1.3 towards a control plane, whose certificate is verified again while the
//! connection lives.
//!
//! tonic's own TLS does not expose the certificate of the peer, so a stream would outlive it.
//! Invariant: no byte of HTTP/2 is sent before the control plane's certificate was verified under
//! `countersign.node.server_name`, and no session lasts more than [`REVERIFY_INTERVAL`] beyond it.
//!
//! Each connection is made with the current files. While a control plane rejects a renewed
//! certificate of this node, the last certificate that it accepted is tried in turn with it.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use http::Uri;
use hyper_util::rt::TokioIo;
use mtls::Reloader;
use pki::VerifyError;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::codegen::Service;

use super::PushClientError;
use super::files::NodeTls;

const REVERIFY_INTERVAL: Duration = Duration::from_secs(10);

type Loaded = mtls::LoadedCredentials<NodeTls>;
type FileChanges = watch::Receiver<Option<Arc<Loaded>>>;

/// Connects to one control plane. Clones share its state.
#[derive(Clone)]
pub(super) struct Connector {
    /// `host:port`
    address: Arc<str>,
    server_name: ServerName<'static>,
    files: Reloader<NodeTls>,
    presented: Arc<Mutex<PresentedChain>>,
    certificates: Arc<Mutex<NodeCertificates>>,
}

/// The control plane's Certificate message, leaf first.
#[derive(Default)]
struct PresentedChain {
    chain: Vec<CertificateDer<'static>>,
    /// Of the leaf. Unix seconds.
    not_after: u64,
}

/// The certificates of this node that the control plane accepted or rejected.
#[derive(Default)]
struct NodeCertificates {
    /// Of the newest connection whose handshake this side completed. In TLS 1.3 the control plane
    /// may still reject the certificate then.
    last_used: Option<Arc<Loaded>>,
    accepted: Option<Arc<Loaded>>,
    rejected: Option<Arc<Loaded>>,
    /// The newest connection uses the accepted certificate, since the one in the files was
    /// rejected.
    uses_previous: bool,
}

impl NodeCertificates {
    /// Selects the certificate of the next connection, where the files hold `newest`.
    fn select(&mut self, newest: Arc<Loaded>, now: UnixTime) -> Arc<Loaded> {
        let rejected = self.rejected.take().is_some_and(|rejected| Arc::ptr_eq(&rejected, &newest));
        let previous = self.accepted.as_ref().filter(|accepted| {
            let leaf = accepted.credentials.leaf();
            leaf.is_some_and(|leaf| leaf.not_after() >= now)
                && !accepted.credentials.has_same_chain_as(&newest.credentials)
        });
        let previous = previous.filter(|_| rejected).map(Arc::clone);
        self.uses_previous = previous.is_some();
        previous.unwrap_or(newest)
    }

    fn record_session(&mut self, welcomed: bool) {
        match self.last_used.take() {
            Some(used) if welcomed => self.accepted = Some(used),
            Some(used) => self.rejected = Some(used),
            None => {}
        }
    }
}

impl Connector {
    /// # Errors
    /// [`PushClientError`] when the name cannot be used.
    pub(crate) fn new(
        address: &str,
        settings: &conf::NodeSettings,
        files: &Reloader<NodeTls>,
    ) -> Result<Self, PushClientError> {
        let server_name = ServerName::try_from(settings.server_name.clone()).map_err(|error| {
            let problem = format!("{:?}: {error}", settings.server_name);
            PushClientError::Setting { field: "countersign.node.server_name", problem }
        })?;
        Ok(Self {
            address: address.into(),
            server_name,
            files: files.clone(),
            presented: Arc::default(),
            certificates: Arc::default(),
        })
    }

    async fn connect(self) -> io::Result<TlsStream<TcpStream>> {
        let newest = self.files.refresh().await.map_err(io::Error::other)?;
        let files = lock(&self.certificates).select(newest, UnixTime::now());
        let tcp = TcpStream::connect(&*self.address).await?;
        tcp.set_nodelay(true)?;
        let tls = TlsConnector::from(Arc::clone(&files.tls.config));
        let stream = tls.connect(self.server_name.clone(), tcp).await?;
        let presented = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let chain: Vec<_> = presented.iter().map(|one| one.clone().into_owned()).collect();
        let leaf = chain.first().and_then(|leaf| pki::Certificate::from_der(leaf).ok());
        let not_after = leaf.map_or(0, |leaf| leaf.not_after().as_secs());
        *lock(&self.presented) = PresentedChain { chain, not_after };
        // The same verdict ends the session later, so no session begins that it would end at once.
        self.verify().map_err(io::Error::other)?;
        lock(&self.certificates).last_used = Some(files);
        Ok(stream)
    }

    /// Called when the session of the newest connection has ended, or none began; `welcomed`: the
    /// control plane sent Welcome.
    pub(crate) fn record_session(&self, welcomed: bool) {
        lock(&self.certificates).record_session(welcomed);
    }

    /// A warning while the newest connection uses the previous certificate, which will expire.
    pub(crate) fn previous_certificate_warning(&self) -> Option<String> {
        let certificates = lock(&self.certificates);
        let leaf =
            certificates.last_used.as_ref().filter(|_| certificates.uses_previous)?.credentials.leaf()?;
        let file = self.files.files().certificate();
        let (setting, path) =
            file.map_or_else(Default::default, |file| (file.setting, file.path.display().to_string()));
        Some(format!(
            "the control plane {} rejects the certificate in {path} ({setting}); the previous one, until {}, is in use",
            self.address,
            pki::format_utc(leaf.not_after())
        ))
    }

    /// For [`wait_for_renewal`](Self::wait_for_renewal); to be taken before the connection is made.
    pub(crate) fn file_changes(&self) -> FileChanges {
        self.files.subscribe()
    }

    /// Ends when the files hold another certificate than the newest connection uses.
    pub(crate) async fn wait_for_renewal(&self, mut changes: FileChanges) {
        while changes.changed().await.is_ok() {
            let newest = changes.borrow_and_update().clone();
            let certificates = lock(&self.certificates);
            if let (Some(newest), Some(used)) = (newest, &certificates.last_used)
                && !newest.credentials.has_same_chain_as(&used.credentials)
            {
                return;
            }
        }
    }

    /// Ends when the control plane's certificate is no longer valid under the current CAs, with the
    /// reason.
    pub(crate) async fn wait_until_peer_invalid(&self) -> VerifyError {
        let mut changes = self.files.subscribe();
        loop {
            let left = lock(&self.presented).not_after.saturating_sub(UnixTime::now().as_secs());
            let pause = Duration::from_secs(left + 1).min(REVERIFY_INTERVAL);
            // Never closed: `files` has the sender.
            let _changed = tokio::time::timeout(pause, changes.changed()).await;
            if let Err(error) = self.verify() {
                return error;
            }
        }
    }

    fn verify(&self) -> Result<(), VerifyError> {
        let malformed = |cause: &str| VerifyError::Malformed { cause: cause.to_owned() };
        let files = self.files.in_use().ok_or_else(|| malformed("no CA is loaded"))?;
        let presented = lock(&self.presented);
        let (leaf, intermediates) =
            presented.chain.split_first().ok_or_else(|| malformed("no certificate was sent"))?;
        pki::verify_server(&files.tls.anchors, &self.server_name, leaf, intermediates, UnixTime::now())
    }
}

/// Each value is written in one step, so a panic under the lock leaves it consistent.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Service<Uri> for Connector {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<Self::Response>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(async move { connector.connect().await.map(TokioIo::new) })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use pki::ca::{Authority, AuthoritySpec, LeafSpec};

    use super::super::files;
    use super::*;

    #[test]
    fn a_previous_certificate_in_use_is_a_warning() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        let text = "countersign: {node: {name: n.test, cert: n.crt, key: n.key, ca: ca.crt}}";
        let settings =
            conf::load_text(&folder.path().join("c.yaml"), text, Path::new("/"), &|_| None).unwrap();
        let node = settings.countersign.node;
        let issue = |ca: &Authority| {
            let pair = ca.issue(&LeafSpec::client("n.test").dns("n.test")).unwrap();
            write("n.crt", &pair.chain_pem);
            write("n.key", &pair.key_pem);
        };
        let [ca, other] = ["CA", "Other"].map(|name| Authority::root(&AuthoritySpec::new(name)).unwrap());
        write("ca.crt", &ca.certificate_pem());
        issue(&ca);
        let tls_files = files::load(&node).unwrap();
        let connector = Connector::new("cp.test:9280", &node, &tls_files.files).unwrap();
        let connect = |welcomed: bool| {
            let newest = connector.files.refresh_blocking().unwrap();
            let used = lock(&connector.certificates).select(newest, UnixTime::now());
            lock(&connector.certificates).last_used = Some(used);
            let warning = connector.previous_certificate_warning();
            connector.record_session(welcomed);
            warning
        };
        assert_eq!(connect(true), None);
        issue(&other);
        assert_eq!(connect(false), None, "the log has the failure itself");
        let warning = connect(true).expect("the previous certificate is in use");
        for part in ["cp.test:9280 rejects", "n.crt (countersign.node.cert)", "the previous one, until 20"] {
            assert!(warning.contains(part), "{part} is not in {warning}");
        }
        issue(&ca);
        assert_eq!(connect(true), None, "the next certificate ends the warning");
    }
}

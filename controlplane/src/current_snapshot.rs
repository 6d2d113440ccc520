//! The current snapshot and the settings of the listeners, for explain and lint.
//!
//! Invariant: a caller whose write was answered sees a snapshot that contains the write.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use model::{HostName, PathOptions, Snapshot, TlsVersion, VerifyPolicy};
use mtls::CertificateMonitor;
use tokio::sync::watch;

use crate::publish::StoredFindings;

/// The longest wait for the snapshot of an answered write.
const WAIT_MAX: Duration = Duration::from_secs(5);

/// The settings of the data planes' listeners. Each data plane has its own file; these are from the
/// control plane's.
#[derive(Clone, Debug, Default)]
pub struct ListenerSettings {
    /// `apisix.ssl.fallback_sni`
    pub fallback_sni: Option<HostName>,
    /// `apisix.ssl.ssl_protocols`
    pub versions: Vec<TlsVersion>,
    /// How paths are normalized.
    pub paths: PathOptions,
    /// `apisix.node_listen` and `proxy_protocol.listen_http_port`: the plain-HTTP listeners.
    pub plain_http: Vec<std::net::SocketAddr>,
    /// `proxy_ssl_verify on`, or `apisix.ssl.upstream_verify_default`: the servers of upstreams
    /// without `tls.verify` are verified.
    pub upstream_verify: VerifyPolicy,
    /// New private keys are encrypted with APISIX's public default key, or not at all.
    pub keyring_is_public: bool,
    /// The certificates of this control plane.
    pub certificates: CertificateMonitor,
}

impl ListenerSettings {
    pub fn from_settings(settings: &conf::Settings) -> Self {
        let apisix = &settings.apisix;
        Self {
            fallback_sni: apisix.ssl.fallback_sni.as_deref().and_then(HostName::from_sni),
            versions: apisix.ssl.protocols.clone(),
            paths: PathOptions {
                match_uri_encoded_slash: apisix.paths.match_uri_encoded_slash,
                normalize_uri_like_servlet: apisix.paths.normalize_uri_like_servlet,
                delete_uri_tail_slash: apisix.paths.delete_uri_tail_slash,
            },
            plain_http: [&apisix.node_listen[..], &apisix.proxy_protocol.http].concat(),
            upstream_verify: VerifyPolicy::of_settings(
                settings.http.proxy_ssl_verify,
                apisix.ssl.upstream_verify_default,
            ),
            keyring_is_public: settings.uses_public_keyring(),
            certificates: CertificateMonitor::default(),
        }
    }
}

/// The newest published snapshot.
pub struct CurrentSnapshot {
    latest: watch::Receiver<Arc<Snapshot>>,
    /// The newest answered write.
    last_write: Arc<Mutex<LastWrite>>,
    /// The findings about stored documents, at least up to that snapshot.
    pub findings: Arc<StoredFindings>,
    pub listeners: ListenerSettings,
}

/// A revision and the rollback epoch it belongs to: in a later epoch no caller waits for it.
#[derive(Clone, Copy, Default)]
struct LastWrite {
    rollback_epoch: u64,
    revision: u64,
}

impl CurrentSnapshot {
    /// Follows the snapshots that `publish` makes.
    pub fn new(
        latest: watch::Receiver<Arc<Snapshot>>,
        findings: Arc<StoredFindings>,
        listeners: ListenerSettings,
    ) -> Self {
        Self { latest, last_write: Arc::default(), findings, listeners }
    }

    /// The same snapshot and writes, with other settings of the listeners.
    #[must_use]
    pub fn with_listeners(&self, listeners: ListenerSettings) -> Self {
        Self {
            latest: self.latest.clone(),
            last_write: Arc::clone(&self.last_write),
            findings: Arc::clone(&self.findings),
            listeners,
        }
    }

    /// Records a revision whose write is answered.
    pub fn note_write(&self, revision: u64) {
        let rollback_epoch = self.latest.borrow().rollback_epoch();
        let mut written = self.lock_last_write();
        let before = if written.rollback_epoch == rollback_epoch { written.revision } else { 0 };
        *written = LastWrite { rollback_epoch, revision: revision.max(before) };
    }

    /// The newest snapshot; it contains every write that was answered before the call.
    pub async fn snapshot(&self) -> Arc<Snapshot> {
        let LastWrite { rollback_epoch, revision } = *self.lock_last_write();
        let mut latest = self.latest.clone();
        let reached = latest.wait_for(|snapshot| {
            snapshot.revision() >= revision || snapshot.rollback_epoch() != rollback_epoch
        });
        // A store that cannot be watched must not block questions about the current snapshot.
        drop(tokio::time::timeout(WAIT_MAX, reached).await);
        Arc::clone(&self.latest.borrow())
    }

    /// The two numbers are written together, so a poisoned lock is still consistent.
    fn lock_last_write(&self) -> MutexGuard<'_, LastWrite> {
        self.last_write.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use model::Delta;

    use super::*;

    #[tokio::test]
    async fn a_write_is_awaited_until_a_rollback() {
        let at = |revision| Arc::new(Snapshot::from_resources(revision, []));
        let (sender, latest) = watch::channel(at(5));
        let served = CurrentSnapshot::new(latest, Arc::default(), ListenerSettings::default());
        let now =
            |served: &CurrentSnapshot| served.snapshot().now_or_never().map(|snapshot| snapshot.revision());
        served.note_write(7);
        assert_eq!(now(&served), None);
        sender.send_replace(at(7));
        assert_eq!(now(&served), Some(7));
        served.note_write(9);
        let set_back = Arc::new(at(7).apply(&Delta { from: 7, to: 3, ..Delta::default() }));
        sender.send_replace(Arc::clone(&set_back));
        assert_eq!(now(&served), Some(3), "revision 9 may never come");
        served.note_write(4);
        assert_eq!(now(&served), None);
        sender.send_replace(Arc::new(set_back.apply(&Delta { from: 3, to: 4, ..Delta::default() })));
        assert_eq!(now(&served), Some(4));
    }
}

//! What the data planes are served: the newest snapshot, and what the settings file adds to it. For explanations and lint.
//!
//! Invariant: whoever was answered a write and asks afterwards is told about a snapshot that has that write.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use model::{Name, Snapshot, TlsVersion};
use tokio::sync::watch;

/// How long a question waits for the snapshot of a write that was just answered.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the settings file says about listeners. Each data plane has a file of its own; this is the control plane's.
#[derive(Clone, Debug, Default)]
pub struct Listeners {
    /// `apisix.ssl.fallback_sni`
    pub fallback_sni: Option<Name>,
    /// `apisix.ssl.ssl_protocols`
    pub versions: Vec<TlsVersion>,
    /// `apisix.node_listen`: where plain HTTP is spoken.
    pub plain: Vec<std::net::SocketAddr>,
    /// New private keys are sealed with a key that everybody knows, or not at all.
    pub keyring_is_public: bool,
}

impl Listeners {
    /// Takes them from the settings.
    pub fn of(settings: &conf::Settings) -> Self {
        let apisix = &settings.apisix;
        let versions = apisix.ssl.protocols.iter().map(|version| match version {
            conf::TlsVersion::V11 => TlsVersion::V11,
            conf::TlsVersion::V12 => TlsVersion::V12,
            conf::TlsVersion::V13 => TlsVersion::V13,
        });
        Self {
            fallback_sni: apisix.ssl.fallback_sni.as_deref().and_then(Name::from_sni),
            versions: versions.collect(),
            plain: apisix.node_listen.clone(),
            keyring_is_public: apisix.keyring_is_public(),
        }
    }
}

/// What the data planes are served.
pub struct Served {
    latest: watch::Receiver<Arc<Snapshot>>,
    /// The newest revision that a caller was told.
    written: AtomicU64,
    /// What the settings file says.
    pub listeners: Listeners,
}

impl Served {
    /// Follows the snapshots that `publish` makes.
    pub fn new(latest: watch::Receiver<Arc<Snapshot>>, listeners: Listeners) -> Self {
        Self { latest, written: AtomicU64::new(0), listeners }
    }

    /// A caller was told that this revision is written.
    pub fn wrote(&self, revision: u64) {
        self.written.fetch_max(revision, Ordering::AcqRel);
    }

    /// The newest snapshot, which has every write that was answered before.
    pub async fn snapshot(&self) -> Arc<Snapshot> {
        let written = self.written.load(Ordering::Acquire);
        let mut latest = self.latest.clone();
        let reached = latest.wait_for(|snapshot| snapshot.revision() >= written);
        // A store that cannot be watched must not keep anybody from asking about what is served all the same.
        drop(tokio::time::timeout(PATIENCE, reached).await);
        Arc::clone(&self.latest.borrow())
    }
}

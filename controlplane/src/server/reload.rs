//! Reads the settings and every file they name again, in the running process.
//!
//! Everything is read, checked, bound and resolved before anything changes. Invariant: after a
//! failed reload the control plane is what it was before; after a successful one the new settings
//! decide about every request and every session of a data plane, however old its connection is.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use conf::{ConfError, Settings};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use super::admin::{AdminParts, admin_limits, updated_listeners};
use super::{RunningServer, StartupError, all_certificates, keyring, ticket_lifetime};
use crate::admin::tls::ListenerTls;
use crate::publish::{LiveSettings, Publisher};

static APPLIED: AtomicU64 = AtomicU64::new(0);
static FAILED: AtomicU64 = AtomicU64::new(0);
static LAST_FAILED: AtomicBool = AtomicBool::new(false);

/// Why a reload changed nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReloadError {
    #[error("{0}")]
    Settings(#[from] ConfError),
    #[error("{0}")]
    Unusable(#[from] StartupError),
}

impl RunningServer {
    /// Reloads and logs the result; returns it in words. Dropping the future before it is ready
    /// changes nothing.
    pub(super) async fn reload(&mut self) -> Result<String, String> {
        match self.try_reload().await {
            Ok(summary) => {
                APPLIED.fetch_add(1, Ordering::Relaxed);
                LAST_FAILED.store(false, Ordering::Relaxed);
                tracing::info!("{summary}");
                Ok(summary)
            }
            Err(error) => {
                FAILED.fetch_add(1, Ordering::Relaxed);
                LAST_FAILED.store(true, Ordering::Relaxed);
                let problem =
                    format!("the settings were not reloaded, the former ones stay in force: {error}");
                tracing::error!("{problem}");
                Err(problem)
            }
        }
    }

    async fn try_reload(&mut self) -> Result<String, ReloadError> {
        let path = self.settings.path.clone();
        let loading = tokio::task::spawn_blocking(move || conf::load(&path));
        let found = loading.await.map_err(|error| StartupError::System(std::io::Error::other(error)))??;
        for warning in &found.warnings {
            tracing::warn!("{warning}");
        }
        let fixed = changed_fixed_keys(&self.settings, &found);
        let settings = with_fixed_parts_of(&self.settings, found);
        self.apply(settings).await?;
        let mut summary = "the settings were reloaded".to_owned();
        if !fixed.is_empty() {
            let keys = fixed.join(", ");
            summary.push_str(&format!("; not applied without `controlplane upgrade`: {keys}"));
        }
        Ok(summary)
    }

    async fn apply(&mut self, settings: Settings) -> Result<(), StartupError> {
        settings.check_control_plane_files()?;
        let tls = ListenerTls::from_settings(&settings)?;
        let keyring = self.changed_keyring(&settings).await?;
        let certificates = all_certificates(&tls, &self.store_certificates, &self.publish);
        let parts = AdminParts::of(&self.api);
        let mut api = parts.api(&settings, &self.certificates, Arc::clone(&keyring)).await?;
        api.access = api.access.with_counts_of(&self.api.access);
        let api = Arc::new(api);
        let listeners = updated_listeners(&self.settings, &settings, &tls)?;
        let limits = admin_limits(&settings, self.admin_connections);
        // From here on it is done.
        self.admin.update(listeners, &api, limits)?;
        self.api = api;
        self.certificates.replace(&certificates);
        let live = LiveSettings {
            keyring,
            allowed_names: settings.countersign.push.allowed_names.clone().into(),
            ticket_lifetime: ticket_lifetime(&settings),
        };
        self.settings = settings;
        self.publish.update(live).await;
        Ok(())
    }

    /// The keyring of the settings: the one in use where it is equal, else one that opens what is
    /// stored.
    async fn changed_keyring(&self, settings: &Settings) -> Result<Arc<pki::Keyring>, StartupError> {
        let new = keyring(settings)?;
        if new == *self.api.keyring {
            return Ok(Arc::clone(&self.api.keyring));
        }
        let (new, accept) = (Arc::new(new), self.options.accept_unreadable_keys);
        Publisher::check_keyring(&self.api.store, &new, settings.keyring_setting(), accept).await?;
        Ok(new)
    }
}

/// The keys that a reload does not apply, where they differ.
fn changed_fixed_keys(running: &Settings, found: &Settings) -> Vec<&'static str> {
    let (deployment, countersign) = (&running.deployment, &running.countersign);
    let (new_deployment, new) = (&found.deployment, &found.countersign);
    let push_files = |push: &conf::PushSettings| [push.cert.clone(), push.key.clone(), push.ca.clone()];
    let changes = [
        ("deployment.role", deployment.role != new_deployment.role),
        ("config_provider", deployment.provider != new_deployment.provider),
        ("deployment.etcd", deployment.etcd != new_deployment.etcd),
        ("countersign.push.listen", countersign.push.listen != new.push.listen),
        ("countersign.push.cert, key or ca", push_files(&countersign.push) != push_files(&new.push)),
        ("countersign.store.path", countersign.store != new.store),
        ("countersign.control_plane.status", countersign.control_plane != new.control_plane),
        ("countersign.node.server_name", countersign.node.server_name != new.node.server_name),
    ];
    changes.into_iter().filter(|(_, has_changed)| *has_changed).map(|(key, _)| key).collect()
}

/// The settings found in the file, with those that need an upgrade as they are.
fn with_fixed_parts_of(running: &Settings, mut found: Settings) -> Settings {
    let (now, new) = (&running.deployment, &mut found.deployment);
    (new.role, new.provider, new.etcd) = (now.role, now.provider, now.etcd.clone());
    let (now, new) = (&running.countersign, &mut found.countersign);
    let allowed_names = std::mem::take(&mut new.push.allowed_names);
    new.push = conf::PushSettings { allowed_names, ..now.push.clone() };
    new.store = now.store.clone();
    new.control_plane = now.control_plane.clone();
    new.node = now.node.clone();
    found
}

/// `countersign_reloads_total` and `countersign_reload_success`.
#[derive(Debug)]
pub(super) struct ReloadMetrics;

impl Collector for ReloadMetrics {
    fn encode(&self, mut out: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let help = "Reloads of the settings";
        let mut reloads = out.encode_descriptor("reloads", help, None, MetricType::Counter)?;
        for (result, count) in [("applied", &APPLIED), ("failed", &FAILED)] {
            let count = ConstCounter::new(count.load(Ordering::Relaxed));
            count.encode(reloads.encode_family(&[("result", result)])?)?;
        }
        let help = "Whether the last reload of the settings was applied";
        let success = i64::from(!LAST_FAILED.load(Ordering::Relaxed));
        ConstGauge::new(success).encode(out.encode_descriptor(
            "reload_success",
            help,
            None,
            MetricType::Gauge,
        )?)
    }
}

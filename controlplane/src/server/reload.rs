//! Reads the settings and every file they name again, in the running process.
//!
//! Everything is read, checked, bound and resolved before anything changes. Invariant: after a
//! failed reload the control plane is what it was before; after a successful one the new settings
//! decide about every request and every session of a data plane, however old its connection is.

use std::sync::Arc;

use conf::{ConfError, Plane, Reloaded, Settings};

use super::admin::{AdminParts, admin_limits, updated_listeners};
use super::succession::blocking;
use super::{RunningServer, StartupError, all_certificates, keyring, status, ticket_lifetime};
use crate::admin::tls::ListenerTls;
use crate::publish::{LiveSettings, Publisher};

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
        self.reload_certificates.send_modify(|count| *count = count.wrapping_add(1));
        match self.try_reload().await {
            Ok(summary) => {
                telemetry::reloads::record(true);
                tracing::info!("reload: {summary}");
                Ok(summary)
            }
            Err(error) => {
                telemetry::reloads::record(false);
                let problem = error.to_string();
                let line = problem.lines().map(str::trim).collect::<Vec<_>>().join("; ");
                tracing::error!("the settings were not reloaded, nothing has changed: {line}");
                Err(problem)
            }
        }
    }

    async fn try_reload(&mut self) -> Result<String, ReloadError> {
        let running = self.settings.clone();
        let Reloaded { settings, changed } =
            blocking(move || conf::reload(&running, Plane::Control)).await.map_err(StartupError::from)??;
        for warning in settings.warnings.iter().filter(|warning| !self.settings.warnings.contains(warning)) {
            tracing::warn!("{warning}");
        }
        self.apply(settings).await?;
        Ok(changed.describe(Plane::Control))
    }

    async fn apply(&mut self, settings: Settings) -> Result<(), StartupError> {
        settings.check_control_plane_files()?;
        let tls = ListenerTls::from_settings(&settings)?;
        let keyring = self.changed_keyring(&settings).await?;
        let status_rules = status::access_rules(&settings)?;
        let certificates = all_certificates(&tls, &self.store_certificates, &self.publish, &status_rules);
        let parts = AdminParts::of(&self.api);
        let mut api = parts.api(&settings, &self.certificates, Arc::clone(&keyring)).await?;
        api.access = api.access.with_counts_of(&self.api.access);
        let api = Arc::new(api);
        let listeners = updated_listeners((&self.settings, &self.admin.addresses()), &settings, &tls)?;
        let limits = admin_limits(&settings, self.admin_connections);
        let log = settings.log.clone();
        blocking(move || telemetry::log::configure(log.file.as_deref(), log.level)).await??;
        // From here on it is done.
        self.admin.update(listeners, &api, limits)?;
        self.api = api;
        self.certificates.replace(&certificates);
        self.status_access.replace(status_rules.access);
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

//! A reload: the settings file and the files it names are read again, while the process serves.
//!
//! Invariant: whatever can fail happens before anything changes; after an error the process serves
//! as before.

use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use conf::{Plane, Reloaded};
use process::descriptors::raise_limit;
use process::signals::Signals;
use telemetry::ServiceManager;

use super::listeners::{self, ListenerChange};
use super::shared::{connection_limits, worker_config};
use super::{RunningServer, other_files};
use crate::config;
use crate::proxy::listener::BindRetry;
use crate::proxy::worker::WorkerCommand;
use crate::status::ports;
use crate::trace_export::ExportSettings;

/// How long workers may take to apply settings: some turns of their loops.
const APPLY_MAX: Duration = Duration::from_secs(5);

impl RunningServer {
    /// Reads the settings again and applies them. Returns what has changed, when every worker has
    /// it; or why nothing has.
    pub(super) fn reload(&mut self, signals: &Signals, service: &ServiceManager) -> Result<String, String> {
        service.reloading();
        let result = self.try_reload(signals).map_err(|error| format!("{error:#}"));
        service.reloaded();
        telemetry::reloads::record(result.is_ok());
        match &result {
            Ok(changes) => tracing::info!("reload: {changes}"),
            Err(error) => {
                let error = error.lines().map(str::trim).collect::<Vec<_>>().join("; ");
                tracing::error!("the settings were not reloaded, nothing has changed: {error}");
            }
        }
        result
    }

    fn try_reload(&mut self, signals: &Signals) -> anyhow::Result<String> {
        let Reloaded { settings, changed } = conf::reload(&self.settings, Plane::Data)?;
        settings.check_data_plane_files()?;
        let limit = raise_limit().context("cannot read the limit on open descriptors")?;
        let plans = listeners::plan(&settings);
        let limits = connection_limits(&settings, limit, self.workers.len(), plans.len())?;
        let mut config = worker_config(&settings, limits)?;
        config::check_access_logs(&settings)?;
        let trust = config::upstream_trust(&settings)?;
        let traces = ExportSettings::load(&settings)?;
        let access = (settings.countersign.status != self.settings.countersign.status)
            .then(|| ports::access_rules(&settings))
            .transpose()?;
        // No predecessor is waited for: it would have kept this process from its start.
        let retry = BindRetry { predecessor: Duration::ZERO, stop: signals.stop() };
        let change = self.listeners.prepare_change(&plans, self.workers.len(), &retry)?;
        telemetry::log::configure(settings.log.file.as_deref(), settings.log.level)
            .context("nginx_config.error_log")?;
        config::open_access_logs(&settings, &mut config.access_logs)?;
        // From here on nothing fails.
        for warning in new_warnings(&self.settings.warnings, &settings.warnings) {
            tracing::warn!("{warning}");
        }
        self.shared.config.store(Arc::new(config));
        self.shared.series.configure(settings.countersign.metrics);
        self.shared.upstream_tls.set_defaults(trust, || Arc::clone(&self.shared.snapshot.load()));
        if let Some(access) = access {
            self.ports.set_access(&access);
            self.access = access;
        }
        self.push_client.set_other_files(&other_files(traces.as_deref(), &self.access));
        self.traces.send_replace(traces);
        self.read_files.send_modify(|count| *count = count.wrapping_add(1));
        self.settings = settings;
        let all_applied = self.command_workers(change);
        let mut text = changed.describe(Plane::Data);
        if !all_applied {
            text.push_str("; a worker is busy and will apply it later");
        }
        Ok(text)
    }

    /// Gives the workers their settings and listeners, and waits until they have them. `false`: a
    /// worker is busy, and will have them later.
    fn command_workers(&mut self, change: ListenerChange) -> bool {
        let commands = self.listeners.apply_change(change, self.workers.len());
        let (report, reports) = sync_channel(self.workers.len());
        for (worker, listening) in self.workers.iter().zip(commands) {
            worker.command(WorkerCommand::Configure);
            listening.into_iter().for_each(|command| worker.command(command));
            worker.command(WorkerCommand::Report(report.clone()));
        }
        let until = Instant::now() + APPLY_MAX;
        self.workers
            .iter()
            .all(|_| reports.recv_timeout(until.saturating_duration_since(Instant::now())).is_ok())
    }
}

/// The warnings that are not there yet, perhaps on another line.
fn new_warnings<'a>(before: &[String], now: &'a [String]) -> impl Iterator<Item = &'a String> {
    let text = |warning: &str| warning.split_once(": ").map_or(String::new(), |(_, text)| text.to_owned());
    let known: Vec<_> = before.iter().map(|warning| text(warning)).collect();
    now.iter().filter(move |warning| !known.contains(&text(warning)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warning_that_moved_is_not_repeated() {
        let warnings = |lines: [&str; 2]| lines.map(str::to_owned);
        let before = warnings(["c.yaml:1: a.b: text", "c.yaml:2: c: text"]);
        let now = warnings(["c.yaml:7: a.b: text", "c.yaml:8: d: text"]);
        assert_eq!(new_warnings(&before, &now).collect::<Vec<_>>(), ["c.yaml:8: d: text"]);
    }
}

//! The commands that reach a running data plane through its control socket.

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use clap::Subcommand;
use conf::Settings;
use process::control_socket::{self, ControlRequest};
use telemetry::stdout::CommandOutput;

use super::events::socket_path;
use crate::config;

/// The longest upgrade: each step is bounded (`upgrade`), and a failed successor is waited for.
const UPGRADE_MAX: Duration = Duration::from_secs(180);
/// A reload behind an upgrade that fails, at the most.
const RELOAD_MAX: Duration = Duration::from_secs(240);
/// The request that nothing delays.
const PID_MAX: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy, Subcommand)]
pub(super) enum Command {
    /// Start the program on disk as the successor of the running data plane, with the settings
    /// that the configuration file has now.
    ///
    /// The successor takes over the listening sockets, so no connection is refused; the old process
    /// serves its open connections to their end. If the successor fails, the old process serves on,
    /// and this command exits with 1 and the reason. The same as SIGUSR2, with the result.
    Upgrade,
    /// Let the running data plane read its configuration file, and the files it names, again.
    ///
    /// A file with an error changes nothing: this command prints the error and exits with 1. The
    /// same as SIGHUP, with the result.
    Reload,
    /// Let the running data plane open its log file again, after a rotation. The same as SIGUSR1.
    Reopen,
    /// Print the process id of the running data plane: after an upgrade, that of the successor.
    Pid,
    /// Check the configuration and the files that a data plane needs, without starting; exits with
    /// 1 if something is wrong.
    Check,
}

impl Command {
    /// Sends the request to the data plane that runs with this configuration file.
    ///
    /// # Errors
    /// Why it was not done.
    pub(super) fn run(self, config: &Path) -> anyhow::Result<()> {
        let settings = conf::load(config)?;
        let (request, limit) = match self {
            Self::Upgrade => (ControlRequest::Upgrade, UPGRADE_MAX),
            Self::Reload => (ControlRequest::Reload, RELOAD_MAX),
            Self::Reopen => (ControlRequest::ReopenLogs, RELOAD_MAX),
            Self::Pid => (ControlRequest::Pid, PID_MAX),
            Self::Check => return check(config, &settings),
        };
        let path = socket_path(&settings.countersign.node.last_good);
        let response = control_socket::request(&path, "the data plane", request, limit)?;
        anyhow::ensure!(response.ok, "process {}: {}", response.pid, response.message);
        let mut out = CommandOutput::stdout();
        let _reported_by_finish = writeln!(out, "{}", response.message);
        out.finish().context("standard output")
    }
}

/// What a start checks before it binds anything.
fn check(file: &Path, settings: &Settings) -> anyhow::Result<()> {
    settings.check_data_plane_files()?;
    config::worker_config(settings)?;
    config::tls_versions(settings)?;
    config::upstream_trust(settings)?;
    let mut out = CommandOutput::stdout();
    for warning in &settings.warnings {
        let _reported_by_finish = writeln!(out, "warning: {warning}");
    }
    let _reported_by_finish = writeln!(out, "{} is fine: the data plane can start", file.display());
    out.finish().context("standard output")
}

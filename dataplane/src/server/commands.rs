//! The commands that reach a running data plane through its control socket.

use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use conf::{ControlTarget, Settings};
use process::control_socket::ControlRequest;
use telemetry::stdout::CommandOutput;

use super::events::socket_path;
use super::listeners;
use crate::config;
use crate::proxy::listener;
use crate::status::ports;

/// The longest upgrade: each step is bounded (`upgrade`), and a failed successor is waited for.
const UPGRADE_MAX: Duration = Duration::from_secs(180);
/// A reload behind an upgrade that fails, at the most.
const RELOAD_MAX: Duration = Duration::from_secs(240);
/// The request that nothing delays.
const PID_MAX: Duration = Duration::from_secs(10);

/// The running data plane.
const TARGET: ControlTarget =
    ControlTarget { program: "the data plane", key: "countersign.node.last_good", socket_path };

#[derive(Debug, Args)]
pub(super) struct SocketArgs {
    /// The control socket of the running data plane, in place of the one beside
    /// `countersign.node.last_good` of the configuration file.
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Start the program on disk as the successor of the running data plane, with the settings
    /// that the configuration file has now.
    ///
    /// The successor takes over the listening sockets, so no connection is refused; the old process
    /// serves its open connections to their end. If the successor fails, the old process serves on,
    /// and this command exits with 1 and the reason. The same as SIGUSR2, with the result.
    Upgrade(SocketArgs),
    /// Let the running data plane read its configuration file, and the files it names, again.
    ///
    /// A file with an error changes nothing: this command prints the error and exits with 1. The
    /// same as SIGHUP, with the result.
    Reload(SocketArgs),
    /// Let the running data plane open its log file again, after a rotation. The same as SIGUSR1.
    Reopen(SocketArgs),
    /// Set the level of the running data plane's log until its next reload or restart; without a
    /// level, print the one in force.
    LogLevel {
        /// off, error, warn, info, debug or trace, or a list such as
        /// `info,dataplane::push_client=debug`.
        level: Option<String>,
        #[command(flatten)]
        socket: SocketArgs,
    },
    /// Print the process id of the running data plane: after an upgrade, that of the successor.
    ///
    /// Exits with 3 if no data plane runs with this configuration file.
    Pid(SocketArgs),
    /// Check the configuration, the files and folders that a data plane needs, and its addresses,
    /// without starting; exits with 1 if something is wrong. Addresses in use are fine while the
    /// data plane with this configuration file runs.
    Check,
}

impl Command {
    /// Sends the request to the data plane that runs with this configuration file.
    ///
    /// # Errors
    /// Why it was not done.
    pub(super) fn run(self, config: &Path) -> anyhow::Result<()> {
        let (request, limit, args) = match self {
            Self::Upgrade(args) => (ControlRequest::Upgrade, UPGRADE_MAX, args),
            Self::Reload(args) => (ControlRequest::Reload, RELOAD_MAX, args),
            Self::Reopen(args) => (ControlRequest::ReopenLogs, RELOAD_MAX, args),
            Self::LogLevel { level, socket } => (ControlRequest::LogLevel { filter: level }, PID_MAX, socket),
            Self::Pid(args) => (ControlRequest::Pid, PID_MAX, args),
            Self::Check => return check(config, &conf::load(config)?),
        };
        let message = TARGET.ask(config, args.socket.as_deref(), request, limit)?;
        let mut out = CommandOutput::stdout();
        let _reported_by_finish = writeln!(out, "{message}");
        out.finish().context("standard output")
    }
}

/// What would keep a data plane from starting, or its successor in an upgrade.
fn check(file: &Path, settings: &Settings) -> anyhow::Result<()> {
    let is_running = TARGET.ask(file, None, ControlRequest::Pid, PID_MAX).is_ok();
    // Whether files can be used depends on the user.
    super::leave_root(settings)?;
    super::check_last_good(settings)?;
    if let Some(log) = &settings.log.file {
        telemetry::log::check_file(log).context("nginx_config.error_log")?;
    }
    config::check_access_logs(settings)?;
    settings.check_data_plane_files()?;
    config::worker_config(settings)?;
    config::tls_versions(settings)?;
    config::upstream_trust(settings)?;
    ports::access_rules(settings)?;
    let listeners = listeners::plan(settings).into_iter().map(|plan| (plan.key, plan.configured));
    let operators = ports::configured(settings).into_iter().filter(|(_, listener)| listener.is_named);
    let operators = operators.map(|(port, listener)| (port.key(), listener.address));
    for (key, addr) in listeners.chain(operators) {
        match listener::check_free(key, addr) {
            // A successor gets the sockets of the running one.
            Err(error) if is_running && error.error.kind() == ErrorKind::AddrInUse => {}
            result => result?,
        }
    }
    let mut out = CommandOutput::stdout();
    for warning in &settings.warnings {
        let _reported_by_finish = writeln!(out, "warning: {warning}");
    }
    let _reported_by_finish = writeln!(out, "{} is fine: the data plane can start", file.display());
    out.finish().context("standard output")
}

//! The command line of the control plane.
//!
//! Exit codes: 0 success, 1 failure (with a message on stderr), 2 an invalid command line, 3 of
//! `pid`: no control plane runs; `admin_cli` has more. A reader of standard output that leaves
//! early (`| head`) changes neither the work nor the exit code.

mod admin_cli;
mod backup;
pub(crate) mod check_report;
pub(crate) mod copy;
pub(crate) mod doctor;
mod hash_key;
pub(crate) mod listeners;
pub(crate) mod pki_cli;
pub(crate) mod preflight;
mod progress;
mod rules_file;

use std::fmt::Display;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::str::FromStr as _;
use std::time::Duration;

use clap::{Args, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use process::control_socket::ControlRequest;
use process::handover::{self, OfferedSuccession, Program};
use process::signals::{self, Signals};
use rustls_pki_types::UnixTime;
use telemetry::log::LogFormat;
use telemetry::stdout::CommandOutput;

use crate::cli::admin_cli::AdminArgs;
use crate::cli::backup::{BackupArgs, RestoreArgs};
use crate::cli::check_report::{CheckReport, CheckResult, CheckStatus};
use crate::cli::copy::CopyArgs;
use crate::cli::doctor::DoctorArgs;
use crate::cli::pki_cli::PkiArgs;
use crate::server;

const EXIT_SUCCESS: u8 = 0;
const EXIT_FAILURE: u8 = 1;

const EXAMPLES: &str = "Examples:
  controlplane pki init                     make the certificates that conf/config.yaml names
  controlplane -c conf/config.yaml          run with this configuration
  controlplane check -c conf/config.yaml    say what would keep it from starting, and exit
  controlplane doctor                       look at everything around it, too: certificates, etcd, listeners
  controlplane backup --to backup.redb      copy the embedded store, also while it is in use (restore: back again)
  controlplane admin put ssls/1 -f site.json  change the configuration of a running one (controlplane admin --help)
  controlplane copy --from embedded --to etcd --dry-run
                                            what moving to an etcd cluster would write (controlplane copy --help)
  RUST_LOG=debug controlplane               run with conf/config.yaml and a detailed log on stderr";

const CHECK_EXAMPLES: &str = "Examples:
  controlplane check                                with conf/config.yaml
  controlplane check -c /etc/countersign/config.yaml && systemctl start controlplane

Nothing is changed. Ports are tried, so a control plane that runs with this configuration is a problem: doctor knows it.";

const PID_EXAMPLES: &str = "Examples:
  kill -QUIT \"$(controlplane pid -c /etc/countersign/config.yaml)\"";

const REOPEN_EXAMPLES: &str = "Examples:
  mv error.log error.log.1 && controlplane reopen -c /etc/countersign/config.yaml";

const LOG_LEVEL_EXAMPLES: &str = "Examples:
  controlplane log-level                            the level in force
  controlplane log-level debug -c /etc/countersign/config.yaml
  controlplane log-level info,controlplane::publish=trace";

const RELOAD_EXAMPLES: &str = "Examples:
  controlplane reload                               the one that runs with conf/config.yaml
  controlplane reload -c /etc/countersign/config.yaml
  kill -HUP PID                                     the same; the result is in the log

Keys that a reload does not apply are named in the answer: controlplane upgrade applies them.";

const UPGRADE_EXAMPLES: &str = "Examples:
  controlplane upgrade                              the one that runs with conf/config.yaml
  controlplane upgrade -c /etc/countersign/config.yaml
  kill -USR2 PID                                    the same; the result is in the log

The new process is a child of the old one, with its arguments, environment and working directory.";

/// The longest reload: the store is read for a changed keyring.
const RELOAD_MAX: Duration = Duration::from_secs(60);
/// The longest upgrade: each of its steps is bounded.
const UPGRADE_MAX: Duration = Duration::from_secs(240);

/// The control plane of Countersign, a mutual-TLS gateway: Admin API, store and push.
#[derive(Debug, Parser)]
#[command(name = "controlplane", version = process::VERSION, after_help = EXAMPLES)]
struct Cli {
    /// The configuration file.
    #[arg(short, long, global = true, value_name = "FILE", default_value = "conf/config.yaml")]
    config: PathBuf,
    /// The form of the log's lines: text, or json for one JSON object a line.
    #[arg(long, global = true, default_value = "text", value_name = "FORMAT", value_parser = LogFormat::from_str)]
    log_format: LogFormat,
    #[command(flatten)]
    start_as: server::StartOptions,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Read and write the configuration through the Admin API.
    Admin(Box<AdminArgs>),
    /// Copy the embedded store to a file, also while the control plane runs.
    Backup(BackupArgs),
    /// Check the configuration and everything it names, without starting; exits with 1 if something
    /// is wrong.
    #[command(after_help = CHECK_EXAMPLES)]
    Check,
    /// Print a script that completes this program's command lines.
    Completions(CompletionArgs),
    /// Copy all documents from one store to another: embedded, etcd, or an APISIX's rules in a
    /// file.
    Copy(CopyArgs),
    /// Examine everything: configuration, certificates, etcd, listeners, and the data plane's half;
    /// exits with 1 if something is wrong. May be run beside a control plane and a data plane.
    Doctor(DoctorArgs),
    /// Print the hash of an admin key, which is read from standard input, for admin_key in the
    /// configuration.
    #[command(after_help = hash_key::EXAMPLES)]
    HashKey,
    /// Set the level of the running control plane's log until its next reload or restart; without a
    /// level, print the one in force.
    #[command(after_help = LOG_LEVEL_EXAMPLES)]
    LogLevel(LogLevelArgs),
    /// Make certificates and look at them.
    Pki(PkiArgs),
    /// Print the process id of the running control plane: after an upgrade, that of the successor.
    /// Exits with 3 if no control plane runs with this configuration file.
    #[command(after_help = PID_EXAMPLES)]
    Pid(SocketArgs),
    /// Have the running control plane read its configuration file, and every file it names, again.
    /// If something is wrong, nothing changes, and this command exits with 1 and the reason.
    #[command(after_help = RELOAD_EXAMPLES)]
    Reload(SocketArgs),
    /// Have the running control plane open its log file again, after a rotation. The same as
    /// SIGUSR1.
    #[command(after_help = REOPEN_EXAMPLES)]
    Reopen(SocketArgs),
    /// Restore a backup as the embedded store. The control plane must be stopped.
    Restore(RestoreArgs),
    /// Start the program on disk as the successor of the running control plane, with the
    /// configuration file as it is now. The successor takes over the listeners and the store, so no
    /// connection is refused. If it fails, the old process serves on, and this command exits with 1
    /// and the reason.
    #[command(after_help = UPGRADE_EXAMPLES)]
    Upgrade(SocketArgs),
}

/// How a command finds the running control plane.
#[derive(Debug, Args)]
struct SocketArgs {
    /// The control socket of the running control plane, in place of the one beside
    /// countersign.store.path of the configuration file.
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct LogLevelArgs {
    /// off, error, warn, info, debug or trace, or a list such as
    /// `info,controlplane::publish=debug`.
    level: Option<String>,
    #[command(flatten)]
    socket: SocketArgs,
}

/// Print a script that completes command lines.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  controlplane completions bash > /etc/bash_completion.d/controlplane
  controlplane completions zsh > \"${fpath[1]}/_controlplane\"
  controlplane completions fish > ~/.config/fish/completions/controlplane.fish")]
struct CompletionArgs {
    shell: Shell,
}

/// The command line, for man pages.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Runs the command and exits.
pub fn main() -> ! {
    let cli = Cli::parse();
    telemetry::log::init(cli.log_format);
    if let Err(error) = process::core_dumps::disable() {
        telemetry::exit(print_error(&error));
    }
    let Some(command) = cli.command else { telemetry::exit(run_server(&cli.config, cli.start_as)) };
    let mut out = CommandOutput::stdout();
    let code = match command {
        Command::Admin(args) => admin(&cli.config, &args, &mut out),
        Command::Backup(args) => exit_code(backup::backup(&cli.config, &args, &mut out)),
        Command::Check => check(&cli.config, &mut out),
        Command::Completions(args) => {
            clap_complete::generate(args.shell, &mut Cli::command(), "controlplane", &mut out);
            EXIT_SUCCESS
        }
        Command::Copy(args) => copy(&cli.config, &args, &mut out),
        Command::Doctor(args) => doctor(&cli.config, &args, &mut out),
        Command::HashKey => exit_code(hash_key::run_on_stdin(&mut out)),
        Command::LogLevel(LogLevelArgs { level, socket }) => {
            let request = ControlRequest::LogLevel { filter: level };
            control(&cli.config, &socket, request, RELOAD_MAX, &mut out)
        }
        Command::Pki(args) => exit_code(pki_cli::run(&cli.config, &args, UnixTime::now(), &mut out)),
        Command::Pid(args) => control(&cli.config, &args, ControlRequest::Pid, RELOAD_MAX, &mut out),
        Command::Reload(args) => control(&cli.config, &args, ControlRequest::Reload, RELOAD_MAX, &mut out),
        Command::Reopen(args) => {
            control(&cli.config, &args, ControlRequest::ReopenLogs, RELOAD_MAX, &mut out)
        }
        Command::Restore(args) => restore(&cli.config, &args, &mut out),
        Command::Upgrade(args) => control(&cli.config, &args, ControlRequest::Upgrade, UPGRADE_MAX, &mut out),
    };
    let output_result = out.finish().map_err(|error| format!("cannot write to standard output: {error}"));
    telemetry::exit(code.max(exit_code(output_result)))
}

fn run_server(config: &Path, options: server::StartOptions) -> u8 {
    let signals = match signals::install_handlers() {
        Ok(signals) => signals,
        Err(error) => return print_error(&error),
    };
    let offer = match handover::take_over(&|| signals.is_stopping()) {
        Ok(offer) => offer,
        Err(error) => return print_error(&error),
    };
    let reporter = offer.as_ref().map(OfferedSuccession::failure_reporter);
    let result = load_and_run(config, options, &signals, offer);
    if let (Err(error), Some(reporter)) = (&result, reporter) {
        reporter.report(error);
    }
    exit_code(result)
}

fn load_and_run(
    config: &Path,
    options: server::StartOptions,
    signals: &Signals,
    offer: Option<OfferedSuccession>,
) -> Result<(), String> {
    // Its file may be replaced from now on.
    let program = Program::current().map_err(|error| format!("cannot find this program's file: {error}"))?;
    let settings = conf::load(config).map_err(|error| error.to_string())?;
    let user = settings.user.as_ref().map(conf::ProcessUser::names);
    process::user::leave_root(user, config).map_err(|error| format!("nginx_config.user: {error}"))?;
    telemetry::log::configure(settings.log.file.as_deref(), settings.log.level)
        .map_err(|error| format!("nginx_config.error_log: {error}"))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    let running = server::run(settings, options, signals, (program, offer));
    runtime.block_on(running).map_err(|error| error.to_string())
}

/// Sends a request to the running control plane.
fn control(
    config: &Path,
    args: &SocketArgs,
    request: ControlRequest,
    limit: Duration,
    out: &mut CommandOutput,
) -> u8 {
    match server::TARGET.ask(config, args.socket.as_deref(), request, limit) {
        Ok(message) => exit_code(writeln!(out, "{message}")),
        Err(error) => {
            print_error(&error);
            error.exit_code()
        }
    }
}

fn admin(config: &Path, args: &AdminArgs, out: &mut CommandOutput) -> u8 {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return print_error(&error),
    };
    runtime.block_on(admin_cli::run(config, args, out)).unwrap_or_else(|(code, error)| {
        print_error(&error);
        code
    })
}

fn copy(config: &Path, args: &CopyArgs, out: &mut CommandOutput) -> u8 {
    match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => exit_code(runtime.block_on(copy::run(config, args, out))),
        Err(error) => print_error(&error),
    }
}

fn restore(config: &Path, args: &RestoreArgs, out: &mut CommandOutput) -> u8 {
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => exit_code(runtime.block_on(backup::restore(config, args, out))),
        Err(error) => print_error(&error),
    }
}

fn check(config: &Path, out: &mut CommandOutput) -> u8 {
    let settings = match conf::load(config) {
        Ok(settings) => settings,
        Err(error) => return print_error(&error),
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return print_error(&error),
    };
    let report = runtime.block_on(preflight::run(&settings));
    match print_report(config, &settings.warnings, &report, out) {
        Ok(true) => EXIT_SUCCESS,
        Ok(false) => EXIT_FAILURE,
        Err(error) => print_error(&error),
    }
}

/// Prints the report of `check`. Returns whether no check failed.
fn print_report(
    config: &Path,
    warnings: &[String],
    report: &CheckReport,
    out: &mut dyn Write,
) -> std::io::Result<bool> {
    for warning in
        warnings.iter().cloned().chain(report.with_status(CheckStatus::Warn).map(CheckResult::to_line))
    {
        writeln!(out, "warning: {warning}")?;
    }
    let failures: Vec<_> = report.with_status(CheckStatus::Fail).map(CheckResult::to_line).collect();
    for failure in &failures {
        writeln!(out, "problem: {failure}")?;
    }
    let (file, count) = (config.display(), failures.len());
    match count {
        0 => writeln!(out, "{file} is fine: the control plane can start")?,
        _ => writeln!(out, "{file} has {count} problem(s): the control plane would not start")?,
    }
    Ok(count == 0)
}

fn doctor(config: &Path, args: &DoctorArgs, out: &mut CommandOutput) -> u8 {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return print_error(&error),
    };
    match runtime.block_on(doctor::run(config, args, out)) {
        Ok(true) => EXIT_SUCCESS,
        Ok(false) => EXIT_FAILURE,
        Err(error) => print_error(&error),
    }
}

fn exit_code<E: Display>(result: Result<(), E>) -> u8 {
    result.map_or_else(|error| print_error(&error), |()| EXIT_SUCCESS)
}

fn print_error(error: &dyn Display) -> u8 {
    telemetry::log::write_fatal(&format_args!("controlplane: {error}"));
    EXIT_FAILURE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_examples() {
        fn check(command: &clap::Command) {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("Examples:\n  "), "{}", command.get_name());
            command.get_subcommands().for_each(check);
        }
        check(&Cli::command());
    }

    #[test]
    fn the_command_line_parses() {
        Cli::command().debug_assert();
        let cli = Cli::parse_from(["controlplane", "check", "-c", "x.yaml"]);
        assert_eq!(cli.config, Path::new("x.yaml"));
        assert!(matches!(cli.command, Some(Command::Check)));
        let cli = Cli::parse_from(["controlplane", "doctor", "--json", "-c", "x.yaml"]);
        assert!(matches!(cli.command, Some(Command::Doctor(_))));
        assert_eq!(Cli::parse_from(["controlplane"]).config, Path::new("conf/config.yaml"));
    }
}

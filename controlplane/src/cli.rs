//! The command line: read the configuration, then run, or check and say what is wrong.
//!
//! Exit codes: 0 done or stopped when asked to, 1 something is wrong (said on stderr), 2 a bad command line.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use rustls_pki_types::UnixTime;
use tracing_subscriber::EnvFilter;

use crate::backup::{self, BackupArgs, RestoreArgs};
use crate::copy::{self, CopyArgs};
use crate::doctor::{self, DoctorArgs};
use crate::examination::{Row, State};
use crate::pki_cli::{self, PkiArgs};
use crate::{boot, preflight};

const EXAMPLES: &str = "Examples:
  controlplane pki init                     make the certificates that conf/config.yaml names
  controlplane -c conf/config.yaml          run with this configuration
  controlplane check -c conf/config.yaml    say what would keep it from starting, and exit
  controlplane doctor                       look at everything around it, too: certificates, etcd, listeners
  controlplane backup --to backup.redb      copy the embedded store, also while it is in use (restore: back again)
  controlplane copy --from embedded --to etcd --dry-run
                                            what moving to an etcd cluster would write (controlplane copy --help)
  RUST_LOG=debug controlplane               run with conf/config.yaml and a detailed log on stderr";

/// The control plane of Countersign, a mutual-TLS gateway: Admin API, store and push.
#[derive(Debug, Parser)]
#[command(name = "controlplane", version, about, after_help = EXAMPLES)]
struct Cli {
    /// The configuration file.
    #[arg(short, long, global = true, value_name = "FILE", default_value = "conf/config.yaml")]
    config: PathBuf,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Copy the embedded store to a file, also while the control plane runs.
    Backup(BackupArgs),
    /// Check the configuration and everything it names, without starting; exits with 1 if something is wrong.
    Check,
    /// Copy all documents from one store to another: embedded, etcd, or an APISIX's rules in a file.
    Copy(CopyArgs),
    /// Examine everything: configuration, certificates, etcd, listeners; exits with 1 if something is wrong. May be run
    /// beside a control plane.
    Doctor(DoctorArgs),
    /// Make certificates and look at them.
    Pki(PkiArgs),
    /// Put a backup in the place of the embedded store. The control plane must be stopped.
    Restore(RestoreArgs),
}

/// Does what the command line says.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    log();
    match cli.command {
        Some(Command::Backup(args)) => done(backup::backup(&cli.config, &args, &mut std::io::stdout())),
        Some(Command::Check) => check(&cli.config),
        Some(Command::Copy(args)) => copy(&cli.config, &args),
        Some(Command::Doctor(args)) => examine(&cli.config, &args),
        Some(Command::Pki(args)) => match pki_cli::run(&args, UnixTime::now(), &mut std::io::stdout()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => failed(&error),
        },
        Some(Command::Restore(args)) => restore(&cli.config, &args),
        None => serve(&cli.config),
    }
}

fn log() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
}

fn serve(config: &Path) -> ExitCode {
    let settings = match conf::load(config) {
        Ok(settings) => settings,
        Err(error) => return failed(&error),
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error),
    };
    match runtime.block_on(boot::run(settings)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

fn copy(config: &Path, args: &CopyArgs) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error),
    };
    match runtime.block_on(copy::run(config, args, &mut std::io::stdout())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

fn restore(config: &Path, args: &RestoreArgs) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error),
    };
    done(runtime.block_on(backup::restore(config, args, &mut std::io::stdout())))
}

fn done(result: Result<(), backup::BackupError>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

fn check(config: &Path) -> ExitCode {
    let settings = match conf::load(config) {
        Ok(settings) => settings,
        Err(error) => return failed(&error),
    };
    let examined = preflight::run(&settings);
    let warnings = examined.of(State::Warn).map(Row::sentence);
    for warning in settings.warnings.iter().cloned().chain(warnings) {
        println!("warning: {warning}");
    }
    let problems: Vec<_> = examined.of(State::Wrong).map(Row::sentence).collect();
    for problem in &problems {
        println!("problem: {problem}");
    }
    if problems.is_empty() {
        println!("{} is fine: the control plane can start", config.display());
        return ExitCode::SUCCESS;
    }
    println!("{} has {} problem(s): the control plane would not start", config.display(), problems.len());
    ExitCode::FAILURE
}

fn examine(config: &Path, args: &DoctorArgs) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error),
    };
    match runtime.block_on(doctor::run(config, args, &mut std::io::stdout())) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => failed(&error),
    }
}

fn failed(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("controlplane: {error}");
    ExitCode::FAILURE
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
        let cli = Cli::parse_from(["controlplane", "check", "-c", "x.yaml"]);
        assert_eq!(cli.config, Path::new("x.yaml"));
        assert!(matches!(cli.command, Some(Command::Check)));
        let cli = Cli::parse_from(["controlplane", "doctor", "--json", "-c", "x.yaml"]);
        assert!(matches!(cli.command, Some(Command::Doctor(_))));
        assert_eq!(Cli::parse_from(["controlplane"]).config, Path::new("conf/config.yaml"));
    }
}

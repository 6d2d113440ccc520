//! `controlplane doctor`: checks everything around a control plane from its machine, in one table.
//!
//! First the checks of `preflight`, then `certificates` (chains and usages), `cluster` (each etcd
//! endpoint), `listeners` (free, or their owner) and `node` (the data plane's half). Invariant:
//! nothing is changed, and a running control plane or data plane is not a problem.

mod certificates;
mod cluster;
mod listeners;
mod node;

use std::io::{self, Write};
use std::path::Path;

use clap::Args;
use conf::ConfigProvider;
use rustls_pki_types::UnixTime;
use serde_json::json;

use crate::cli::check_report::{CheckReport, CheckStatus};
use crate::cli::preflight;
use crate::inventory;

/// Examine everything that a control plane and a data plane with this configuration need.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  controlplane doctor                                       with conf/config.yaml
  controlplane doctor -c /etc/countersign/config.yaml
  controlplane doctor --json | jq '.rows[] | select(.state == \"wrong\")'

Each row is what was looked at and how it is: ok, unknown (it cannot be told from here), warn (it works, but probably not as
intended, or not for long) or wrong. Nothing is changed; a control plane may run.")]
pub(crate) struct DoctorArgs {
    /// One JSON object instead of a table
    #[arg(long)]
    json: bool,
}

/// Runs all checks and prints the report. Returns whether no check failed.
///
/// # Errors
/// When the report cannot be printed.
pub(crate) async fn run(config: &Path, args: &DoctorArgs, out: &mut dyn Write) -> io::Result<bool> {
    let found = run_checks(config).await;
    let count = |state| found.with_status(state).count();
    let (wrong, warned) = (count(CheckStatus::Fail), count(CheckStatus::Warn));
    if args.json {
        let answer = json!({
            "config": config.display().to_string(), "wrong": wrong, "warn": warned, "rows": found.to_json(),
        });
        writeln!(out, "{answer:#}")?;
    } else {
        print_table(&found, out)?;
        writeln!(out, "{}: {wrong} wrong, {warned} to be warned about", config.display())?;
    }
    Ok(wrong == 0)
}

/// One line per check; its fix is indented below.
fn print_table(found: &CheckReport, out: &mut dyn Write) -> io::Result<()> {
    let width = found.checks().iter().map(|row| row.subject.chars().count()).max().unwrap_or_default();
    for row in found.checks() {
        writeln!(out, "{:<8}{:<width$}  {}", row.status.as_str(), row.subject, row.observed)?;
        if let Some(mend) = &row.fix {
            writeln!(out, "{:<8}{:<width$}  -> {mend}", "", "")?;
        }
    }
    Ok(())
}

async fn run_checks(config: &Path) -> CheckReport {
    let mut found = CheckReport::default();
    let settings = match conf::load(config) {
        Ok(settings) => settings,
        Err(error) => {
            found.fail("configuration", error, "");
            return found;
        }
    };
    found.ok("configuration", format!("{} can be read", config.display()));
    for warning in &settings.warnings {
        found.warn("configuration", warning, "");
    }
    preflight::check_settings(&settings, &mut found);
    certificates::check(&settings, UnixTime::now(), &mut found);
    let ours = listeners::check(&settings, &mut found).await;
    if settings.deployment.provider == ConfigProvider::Etcd {
        cluster::check(&settings, &mut found).await;
    }
    inventory::check(&settings, ours, &mut found).await;
    node::check(&settings, UnixTime::now(), &mut found).await;
    found
}

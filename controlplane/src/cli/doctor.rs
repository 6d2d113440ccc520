//! `controlplane doctor`: checks everything around a control plane from its machine, in one table.
//!
//! First the checks of `preflight`, then `certificates` (chains and usages), `cluster` (each etcd
//! endpoint), `listeners` (free, or their owner) and `node` (the data plane's half). Invariant:
//! nothing is changed, and a running control plane or data plane is not a problem.

mod certificates;
mod cluster;
mod node;

use std::io::{self, Write};
use std::path::Path;

use clap::Args;
use conf::ConfigProvider;
use rustls_pki_types::UnixTime;
use serde_json::json;

use crate::cli::check_report::{CheckReport, CheckStatus};
use crate::cli::{listeners, preflight};

/// Examine everything that a control plane and a data plane with this configuration need.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  controlplane doctor                                       with conf/config.yaml
  controlplane doctor -c /etc/countersign/config.yaml
  controlplane doctor --json | jq '.checks[] | select(.status == \"fail\")'

Each check is ok, unknown (it could not run from here), warn (it works, but probably not as intended, or not for long) or fail.
Nothing is changed; a control plane may run.")]
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
    let report = run_checks(config).await;
    let count = |state| report.with_status(state).count();
    let (failed, warnings) = (count(CheckStatus::Fail), count(CheckStatus::Warn));
    if args.json {
        let report_json = json!({
            "config": config.display().to_string(), "failed": failed, "warnings": warnings, "checks": report.to_json(),
        });
        writeln!(out, "{report_json:#}")?;
    } else {
        print_table(&report, out)?;
        writeln!(out, "{}: {failed} failed, {warnings} warnings", config.display())?;
    }
    Ok(failed == 0)
}

/// One line per check; its fix is indented below.
fn print_table(report: &CheckReport, out: &mut dyn Write) -> io::Result<()> {
    let width = report.checks().iter().map(|result| result.subject.chars().count()).max().unwrap_or_default();
    for result in report.checks() {
        writeln!(out, "{:<8}{:<width$}  {}", result.status.as_str(), result.subject, result.observed)?;
        if let Some(fix) = &result.fix {
            writeln!(out, "{:<8}{:<width$}  -> {fix}", "", "")?;
        }
    }
    Ok(())
}

async fn run_checks(config: &Path) -> CheckReport {
    let mut report = CheckReport::default();
    let settings = match conf::load(config) {
        Ok(settings) => settings,
        Err(error) => {
            report.fail("configuration", error, "");
            return report;
        }
    };
    report.ok("configuration", format!("{} can be read", config.display()));
    for warning in &settings.warnings {
        report.warn("configuration", warning, "");
    }
    preflight::check_settings(&settings, &mut report);
    certificates::check(&settings, UnixTime::now(), &mut report);
    let running = listeners::is_running(&settings).await;
    let running = listeners::check(&settings, running, &mut report).await;
    if settings.deployment.provider == ConfigProvider::Etcd {
        cluster::check(&settings, &mut report).await;
    }
    preflight::check_documents(&settings, running, &mut report).await;
    node::check(&settings, UnixTime::now(), &mut report).await;
    report
}

//! `controlplane doctor`: everything around a control plane, looked at from where it runs, in one table.
//!
//! First what `check` judges (`preflight`), then what takes more: `certificates` (chains, usages),
//! `cluster` (each etcd endpoint as the control plane would meet it), `listeners` (free, or who is
//! there), `node` (the data plane's half). Invariant: nothing is changed, and a control plane or
//! data plane that runs is not a problem.

mod certificates;
mod cluster;
mod listeners;
mod node;

use std::io::{self, Write};
use std::path::Path;

use clap::Args;
use conf::Provider;
use rustls_pki_types::UnixTime;
use serde_json::json;

use crate::cli::examination::{Examination, State};
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
pub struct DoctorArgs {
    /// One JSON object instead of a table
    #[arg(long)]
    json: bool,
}

/// Examines and prints; whether nothing is wrong.
///
/// # Errors
/// When nothing can be printed.
pub async fn run(config: &Path, args: &DoctorArgs, out: &mut dyn Write) -> io::Result<bool> {
    let found = examine(config).await;
    let count = |state| found.of(state).count();
    let (wrong, warned) = (count(State::Wrong), count(State::Warn));
    if args.json {
        let answer = json!({
            "config": config.display().to_string(), "wrong": wrong, "warn": warned, "rows": found.json(),
        });
        writeln!(out, "{answer:#}")?;
    } else {
        table(&found, out)?;
        writeln!(out, "{}: {wrong} wrong, {warned} to be warned about", config.display())?;
    }
    Ok(wrong == 0)
}

/// One row a line; what to do stands below, indented.
fn table(found: &Examination, out: &mut dyn Write) -> io::Result<()> {
    let width = found.rows().iter().map(|row| row.what.chars().count()).max().unwrap_or_default();
    for row in found.rows() {
        writeln!(out, "{:<8}{:<width$}  {}", row.state.as_str(), row.what, row.found)?;
        if let Some(mend) = &row.mend {
            writeln!(out, "{:<8}{:<width$}  -> {mend}", "", "")?;
        }
    }
    Ok(())
}

async fn examine(config: &Path) -> Examination {
    let mut found = Examination::default();
    let settings = match conf::load(config) {
        Ok(settings) => settings,
        Err(error) => {
            found.wrong("configuration", error, "");
            return found;
        }
    };
    found.ok("configuration", format!("{} can be read", config.display()));
    for warning in &settings.warnings {
        found.warn("configuration", warning, "");
    }
    preflight::standing(&settings, &mut found);
    certificates::examine(&settings, UnixTime::now(), &mut found);
    let ours = listeners::examine(&settings, &mut found).await;
    if settings.deployment.provider == Provider::Etcd {
        cluster::examine(&settings, &mut found).await;
    }
    inventory::check(&settings, ours, &mut found).await;
    node::examine(&settings, UnixTime::now(), &mut found).await;
    found
}

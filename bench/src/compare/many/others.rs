//! What changes cost the requests of others: their 99th percentile while one certificate after the other is changed.
//!
//! Beside it stands the same load in the quiet time just before, on the same server with the same certificates.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use serde_json::json;

use crate::compare::Options;
use crate::compare::figures::Figures;
use crate::compare::measure::Measure;
use crate::compare::rounds::too_many;
use crate::compare::workbench::Workbench;
use crate::identity::{Group, Version};
use crate::load::{self, Amount, LoadError, Mode, Plan};
use crate::peer::{HOST, Kind, PROXIED};
use crate::report::LoadReport;

/// Calls `change` again and again beside the load; as many rounds as the memory is measured in.
///
/// # Errors
/// When the load cannot run, or a change fails.
pub fn measure(
    options: &Options,
    bench: &Workbench,
    (peer, address): (Kind, SocketAddr),
    figures: &mut Figures,
    mut change: impl FnMut() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    if !options.wants(Measure::ChangeOthers) {
        return Ok(());
    }
    for round in 1..=options.idle_rounds {
        let quiet = load::run(plan(options, bench, address)?)?;
        let (disturbed, changes) = beside(plan(options, bench, address)?, &mut change)?;
        let of = |report: &LoadReport| report.latency_us.map(|latency| latency.p99);
        let p99s = of(&quiet).zip(of(&disturbed)).context("the load has no latencies")?;
        let problem = too_many(&disturbed.failures, disturbed.operations);
        let report = json!({"changes": changes, "quiet": quiet, "disturbed": disturbed});
        match problem {
            Some(problem) => figures.add_failed(Measure::ChangeOthers, peer, round, problem, report),
            None => figures.add(Measure::ChangeOthers, peer, round, p99s.1 / p99s.0, report),
        }
    }
    Ok(())
}

fn beside(plan: Plan, change: &mut impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<(LoadReport, u32)> {
    std::thread::scope(|scope| {
        let loading = scope.spawn(|| load::run(plan));
        let mut changes = 0;
        let mut changed = Ok(());
        while changed.is_ok() && !loading.is_finished() {
            changed = change();
            changes += 1;
        }
        let report: Result<LoadReport, LoadError> =
            loading.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        changed.and(Ok((report?, changes)))
    })
}

fn plan(options: &Options, bench: &Workbench, address: SocketAddr) -> anyhow::Result<Plan> {
    Ok(Plan {
        target: Workbench::target(address, HOST, PROXIED)?,
        identity: bench.credentials.loader()?,
        version: Version::V13,
        group: Group::X25519,
        mode: Mode::KeepAlive,
        // Few: a saturated core would tell of queues, not of changes.
        connections: 1,
        amount: Amount::Time(Duration::try_from_secs_f64(options.seconds)?),
        warmup: Amount::Time(Duration::from_millis(300)),
        timeout: Duration::from_secs(10),
        limit: Duration::try_from_secs_f64(options.seconds + 60.0)?,
        expect_status: 200,
        server: None,
        cpu: Some(options.cores.load),
        progress: None,
    })
}

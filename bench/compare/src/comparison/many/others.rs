//! The effect of certificate changes on other requests: their 99th percentile over that of a quiet
//! phase.
//!
//! Other requests come at a fixed rate, so that a stall counts for all that are due meanwhile, and
//! so few that neither core is busy. Quiet and changing phases of the same length alternate: other
//! work on the machine disturbs both. Changes come at a fixed rate, too, the same for every server
//! that can follow. The control plane shares the load's core at idle priority
//! ([`resources::set_idle_policy`]), as if it ran on another machine.
//!
//! Invariant: a figure covers changes that were made at the reported pace, the last of which was
//! served.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::Context;
use e2e::credentials::Credential;
use rustls_pki_types::CertificateDer;
use serde_json::json;

use super::{PATIENCE, await_leaf};
use crate::comparison::Options;
use crate::comparison::figures::Figures;
use crate::comparison::measure::Measure;
use crate::comparison::rounds::too_many;
use crate::comparison::workbench::Workbench;
use crate::identity::{Group, Version};
use crate::load::{self, Amount, LoadError, Mode, Plan};
use crate::peer::{HOST, Kind, PROXIED};
use crate::report::LoadReport;
use e2e::resources::{self, CpuReading};

/// Connections of the other requests...
const LANES: u32 = 4;
/// ...and the interval on each: a thousand requests a second.
const EVERY: Duration = Duration::from_millis(4);
/// The length of a phase over that of other measurements: by default it has 10,000 requests.
const LONGER: f64 = 5.0;
/// Fewer requests have no 99th percentile.
const ENOUGH: u64 = 1000;
/// The interval of changes, for servers that can follow it.
const PACE: Duration = Duration::from_millis(100);
/// A server that used less than a hundredth of this is quiet: longer than any of them defers
/// writes.
const STILL: Duration = Duration::from_millis(1500);
/// The interval of checks whether a phase is over.
const LOOK: Duration = Duration::from_millis(20);

/// A change that was requested.
pub(super) struct RequestedChange {
    pub name: String,
    /// The certificate to be served.
    pub leaf: CertificateDer<'static>,
}

/// The first certificate of a chain.
pub(super) fn leaf(credential: &Credential) -> CertificateDer<'static> {
    credential.chain().swap_remove(0)
}

/// Calls `change`, which requests one and does not wait for it, beside the load; in as many rounds
/// as memory is measured.
///
/// # Errors
/// When the load cannot run, a change fails, or the duration of a change was not measured before.
pub(super) fn measure(
    options: &Options,
    bench: &Workbench,
    (peer, address, pid): (Kind, SocketAddr, u32),
    figures: &mut Figures,
    mut change: impl FnMut() -> anyhow::Result<RequestedChange>,
) -> anyhow::Result<()> {
    if !options.wants(Measure::ChangeOthers) {
        return Ok(());
    }
    let takes = figures.spread(Measure::Change, peer).context("how long a change takes was not measured")?;
    let pace = pace(Duration::try_from_secs_f64(takes.median / 1000.0)?);
    let length = Duration::try_from_secs_f64(options.seconds * LONGER)?.max(pace * 3);
    let plan = || plan(options, bench, address, length);
    for round in 1..=options.idle_rounds {
        settle(pid)?;
        let quiet = load::run(plan()?)?;
        let (changing, changes) =
            resources::pinned(options.cores.load, || beside(plan()?, pace, &mut change))??;
        if let Some(last) = &changes.last {
            await_leaf(bench, address, &last.name, Some(&last.leaf))?;
        }
        let problem = problem(&quiet, &changing, &changes);
        let p99 = |report: &LoadReport| report.latency_us.map(|latency| latency.p99);
        let (before, meanwhile) = p99(&quiet).zip(p99(&changing)).context("the load has no latencies")?;
        let report = json!({
            "pace_ms": super::millis(pace), "phase_s": length.as_secs_f64(), "changes": changes.made, "missed": changes.missed,
            "quiet": quiet, "changing": changing,
        });
        match problem {
            Some(problem) => figures.add_failed(Measure::ChangeOthers, peer, round, problem, report),
            None => figures.add(Measure::ChangeOthers, peer, round, meanwhile / before, report),
        }
        eprintln!(
            "compare: {}, {}, round {round} of {} done",
            peer.name(),
            Measure::ChangeOthers.name(),
            options.idle_rounds
        );
    }
    Ok(())
}

/// Waits until the server is quiet: deferred work of a change does not belong to a quiet phase.
fn settle(pid: u32) -> anyhow::Result<()> {
    let until = Instant::now() + PATIENCE;
    while Instant::now() < until {
        let pids = resources::family(pid)?;
        let before = CpuReading::take(&pids)?;
        std::thread::sleep(STILL);
        // A process that ended meanwhile was still busy.
        let used = CpuReading::take(&pids).map(|after| Duration::from_nanos(after.since(&before).total_ns));
        if used.is_ok_and(|used| used < STILL / 100) {
            return Ok(());
        }
    }
    anyhow::bail!("the server is busy without load, {PATIENCE:?} after the last change")
}

/// The same for every server that can follow it; else twice the duration of a change, in steps.
fn pace(takes: Duration) -> Duration {
    let steps = (takes * 2).as_millis().div_ceil(PACE.as_millis()).max(1);
    PACE * u32::try_from(steps).unwrap_or(u32::MAX)
}

/// The changes beside the load.
#[derive(Default)]
struct Changes {
    made: u32,
    /// Changes that were due while the one before was being requested.
    missed: u32,
    last: Option<RequestedChange>,
}

/// Why a round has no figure.
fn problem(quiet: &LoadReport, changing: &LoadReport, changes: &Changes) -> Option<String> {
    let failed = |report: &LoadReport| too_many(&report.failures, report.operations);
    if let Some(problem) = failed(quiet).or_else(|| failed(changing)) {
        return Some(problem);
    }
    let fewest = quiet.operations.min(changing.operations);
    if fewest < ENOUGH {
        return Some(format!("{fewest} requests have no 99th percentile: --seconds is too short"));
    }
    let Changes { made, missed, .. } = changes;
    (missed * 10 > *made).then(|| format!("{missed} changes were not made in time beside {made} that were"))
}

/// Runs the load, and makes the changes that are due until it ends.
fn beside(
    plan: Plan,
    pace: Duration,
    change: &mut impl FnMut() -> anyhow::Result<RequestedChange>,
) -> anyhow::Result<(LoadReport, Changes)> {
    std::thread::scope(|scope| {
        let loading = scope.spawn(|| load::run(plan));
        let mut changes = Changes::default();
        let mut failed = None;
        let mut due = Instant::now();
        while failed.is_none() && !loading.is_finished() {
            let left = due.saturating_duration_since(Instant::now());
            if !left.is_zero() {
                std::thread::sleep(left.min(LOOK));
                continue;
            }
            match change() {
                Ok(asked) => changes.last = Some(asked),
                Err(error) => failed = Some(error),
            }
            changes.made += 1;
            due += pace;
            while due <= Instant::now() {
                due += pace;
                changes.missed += 1;
            }
        }
        let report: Result<LoadReport, LoadError> =
            loading.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        failed.map_or(Ok(()), Err).and(Ok((report?, changes)))
    })
}

fn plan(options: &Options, bench: &Workbench, address: SocketAddr, length: Duration) -> anyhow::Result<Plan> {
    Ok(Plan {
        target: Workbench::target(address, HOST, PROXIED)?,
        identity: bench.credentials.loader()?,
        version: Version::V13,
        group: Group::X25519,
        mode: Mode::KeepAlive,
        connections: usize::try_from(LANES)?,
        every: Some(EVERY),
        amount: Amount::Time(length),
        warmup: Amount::Time(Duration::from_millis(300)),
        timeout: Duration::from_secs(10),
        limit: length + Duration::from_secs(60),
        expect_status: 200,
        server: None,
        cpu: Some(options.cores.load),
        progress: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_server_gets_a_pace_of_its_own() {
        let millis = Duration::from_millis;
        for (takes, expected) in [(0, 100), (1, 100), (50, 100), (51, 200), (100, 200), (1430, 2900)] {
            assert_eq!(pace(millis(takes)), millis(expected), "{takes}");
        }
    }

    #[test]
    fn a_sleeping_process_is_quiet() {
        let mut child = std::process::Command::new("sleep").arg("30").spawn().unwrap();
        let settled = settle(child.id());
        child.kill().unwrap();
        child.wait().unwrap();
        settled.unwrap();
        assert!(settle(u32::MAX - 1).is_err());
    }

    #[test]
    fn a_failed_change_ends_the_phase_with_an_error() {
        let nowhere = crate::target::Target::parse("https://127.0.0.1:1/", Some("a.test"), false).unwrap();
        let root = pki::ca::Authority::root(&pki::ca::AuthoritySpec::new("root")).unwrap();
        let identity = crate::identity::ClientIdentity::from_pem(root.certificate_pem().as_bytes(), None);
        let plan = Plan {
            target: nowhere,
            identity: identity.unwrap().into(),
            version: Version::V13,
            group: Group::X25519,
            mode: Mode::KeepAlive,
            connections: 1,
            every: Some(EVERY),
            amount: Amount::Count(1),
            warmup: Amount::Count(1),
            timeout: Duration::from_secs(1),
            limit: Duration::from_secs(1),
            expect_status: 200,
            server: None,
            cpu: None,
            progress: None,
        };
        // The load is rejected or the change fails first; neither gives a figure.
        assert!(beside(plan, PACE, &mut || anyhow::bail!("no")).is_err());
    }
}

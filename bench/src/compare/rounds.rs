//! The interleaved rounds: the same load on each peer in turn, so that pairs of figures stand next to each other.
//!
//! Both peers stay up during the CPU rounds (an idle one takes no CPU); for the memory rounds each is started anew, so
//! that no round inherits the memory of the one before.

use std::time::Duration;

use super::figures::{Figures, Measure};
use super::workbench::Workbench;
use super::{Options, figures};
use crate::failure::Failures;
use crate::identity::{Group, Version};
use crate::load::idle::IdlePlan;
use crate::load::{self, Amount, Mode, Plan};
use crate::peer::{PROXIED, Peer, UNROUTED};

/// Runs with more failures than one in a thousand have no figure.
const FAILED_SHARE: f64 = 0.001;

struct Scenario {
    measure: figures::Measure,
    mode: Mode,
    path: &'static str,
    status: u16,
}

const SCENARIOS: [Scenario; 4] = [
    Scenario { measure: Measure::New, mode: Mode::New, path: PROXIED, status: 200 },
    Scenario { measure: Measure::NewUnrouted, mode: Mode::New, path: UNROUTED, status: 404 },
    Scenario { measure: Measure::Resumed, mode: Mode::Resumed, path: PROXIED, status: 200 },
    Scenario { measure: Measure::KeepAlive, mode: Mode::KeepAlive, path: PROXIED, status: 200 },
];

/// All rounds of all scenarios, then the memory rounds.
///
/// # Errors
/// When a peer is gone; single runs that fail are among the figures.
pub fn run(options: &Options, bench: &mut Workbench, figures: &mut Figures) -> anyhow::Result<()> {
    let loader = bench.credentials.loader()?;
    for round in 1..=options.rounds {
        for scenario in &SCENARIOS {
            for peer in bench.peers() {
                let plan = Plan {
                    target: Workbench::target(peer.address(), scenario.path)?,
                    identity: loader.clone(),
                    version: Version::V13,
                    group: Group::X25519,
                    mode: scenario.mode,
                    connections: usize::try_from(options.connections)?,
                    amount: Amount::Time(Duration::try_from_secs_f64(options.seconds)?),
                    warmup: Amount::Time(Duration::from_millis(300)),
                    timeout: Duration::from_secs(10),
                    limit: Duration::try_from_secs_f64(options.seconds + 20.0)?,
                    expect_status: scenario.status,
                    server: Some(peer.pid()),
                    cpu: Some(options.load_cpu),
                    progress: Some(format!(
                        "round {round}/{} {:?} {}",
                        options.rounds,
                        scenario.measure,
                        peer.name()
                    )),
                };
                one_load(plan, scenario.measure, peer.name(), round, figures);
            }
        }
        eprintln!("compare: round {round} of {} done", options.rounds);
    }
    if options.idle > 0 {
        memory(options, bench, figures)?;
    }
    Ok(())
}

fn one_load(plan: Plan, measure: Measure, peer: &'static str, round: u32, figures: &mut Figures) {
    let report = match load::run(plan) {
        Ok(report) => report,
        Err(error) => return figures.add_failed(measure, peer, round, error.to_string(), ()),
    };
    if let Some(problem) = too_many(&report.failures, report.operations) {
        return figures.add_failed(measure, peer, round, problem, report);
    }
    match &report.server {
        Some(server) => {
            let value = server.cpu_ns_per_operation as f64 / 1000.0;
            figures.add(measure, peer, round, value, report);
        }
        None => figures.add_failed(measure, peer, round, "the server's CPU was not read".to_owned(), report),
    }
}

fn memory(options: &Options, bench: &mut Workbench, figures: &mut Figures) -> anyhow::Result<()> {
    let loader = bench.credentials.loader()?;
    for round in 1..=options.idle_rounds {
        for peer in bench.peers() {
            peer.restart()?;
            let plan = IdlePlan {
                target: Workbench::target(peer.address(), PROXIED)?,
                identity: loader.clone(),
                version: Version::V13,
                group: Group::X25519,
                connections: usize::try_from(options.idle)?,
                request: Some(200),
                hold: Duration::from_secs(1),
                timeout: Duration::from_secs(20),
                limit: Duration::from_secs(120),
                server: peer.pid(),
                cpu: Some(options.load_cpu),
            };
            one_idle(plan, peer, round, figures);
        }
        eprintln!("compare: memory round {round} of {} done", options.idle_rounds);
    }
    Ok(())
}

fn one_idle(plan: IdlePlan, peer: &dyn Peer, round: u32, figures: &mut Figures) {
    let (measure, name) = (Measure::Idle, peer.name());
    match load::idle::run(plan) {
        Err(error) => figures.add_failed(measure, name, round, error.to_string(), ()),
        Ok(report) => match too_many(&report.failures, report.connections) {
            Some(problem) => figures.add_failed(measure, name, round, problem, report),
            None => figures.add(measure, name, round, report.bytes_per_connection as f64 / 1024.0, report),
        },
    }
}

fn too_many(failures: &Failures, done: u64) -> Option<String> {
    let failed = failures.total();
    let (kind, counted) = failures.iter().next()?;
    (failed as f64 > done as f64 * FAILED_SHARE)
        .then(|| format!("{failed} failures beside {done} successes; {kind:?}: {}", counted.first))
}

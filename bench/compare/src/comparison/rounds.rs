//! The interleaved rounds: the same load on each peer in turn, so that compared figures come from
//! neighbouring runs.
//!
//! All peers stay up during the CPU rounds (an idle one uses next to no CPU time), and each round
//! starts with another one. For the memory rounds each is restarted, so that no round inherits
//! memory.

use std::time::Duration;

use super::Options;
use super::figures::Figures;
use super::measure::Measure;
use super::workbench::Workbench;
use crate::failure::Failures;
use crate::identity::{Group, Version};
use crate::load::idle::IdlePlan;
use crate::load::{self, Amount, LoadError, Mode, Plan};
use crate::peer::{CALL, HOST, Kind, PROXIED, PROXIED_MTLS, Peer, RSA_HOST, SOCKET, UNROUTED};

/// Runs with more failures than this have no figure.
const FAILED_SHARE: f64 = 0.001;

struct Scenario {
    measure: Measure,
    mode: Mode,
    host: &'static str,
    path: &'static str,
    status: u16,
}

const fn scenario(measure: Measure, mode: Mode, path: &'static str) -> Scenario {
    Scenario { measure, mode, host: HOST, path, status: 200 }
}

const fn unrouted(measure: Measure, mode: Mode) -> Scenario {
    Scenario { measure, mode, host: HOST, path: UNROUTED, status: 404 }
}

/// One request at a time on each connection, as over HTTP/1.1.
const H2: Mode = Mode::KeepAliveH2 { streams: 1 };

/// Calls at once on each connection, as gRPC clients share theirs.
const GRPC: Mode = Mode::Grpc { streams: 4 };

const SCENARIOS: [Scenario; 12] = [
    scenario(Measure::New, Mode::New, PROXIED),
    Scenario { host: RSA_HOST, ..scenario(Measure::NewRsa, Mode::New, PROXIED) },
    unrouted(Measure::NewUnrouted, Mode::New),
    scenario(Measure::Resumed, Mode::Resumed, PROXIED),
    unrouted(Measure::Static, Mode::KeepAlive),
    unrouted(Measure::StaticH2, H2),
    scenario(Measure::Kept, Mode::KeepAlive, PROXIED),
    scenario(Measure::KeptH2, H2, PROXIED),
    scenario(Measure::KeptMtls, Mode::KeepAlive, PROXIED_MTLS),
    scenario(Measure::KeptMtlsH2, H2, PROXIED_MTLS),
    scenario(Measure::GrpcUnary, GRPC, CALL),
    scenario(Measure::WebSocketEcho, Mode::WebSocket, SOCKET),
];

/// All rounds of all scenarios, then the memory rounds.
///
/// # Errors
/// When a peer is gone; failed runs are among the figures.
pub(super) fn run(options: &Options, bench: &mut Workbench, figures: &mut Figures) -> anyhow::Result<()> {
    let loader = bench.credentials.loader()?;
    // A measure that a peer cannot serve at all is not tried again.
    let mut given_up: Vec<(Measure, Kind)> = Vec::new();
    for round in 1..=options.rounds {
        for scenario in SCENARIOS.iter().filter(|scenario| options.wants(scenario.measure)) {
            for peer in in_turn(&bench.peers, round) {
                let what = (scenario.measure, peer.kind());
                if given_up.contains(&what) || !scenario.measure.includes(peer.kind()) {
                    continue;
                }
                let plan = Plan {
                    target: Workbench::target(peer.address(), scenario.host, scenario.path)?,
                    identity: loader.clone(),
                    version: Version::V13,
                    group: Group::X25519,
                    mode: scenario.mode,
                    connections: usize::try_from(options.connections)?,
                    every: None,
                    amount: Amount::Time(Duration::try_from_secs_f64(options.seconds)?),
                    warmup: Amount::Time(Duration::try_from_secs_f64((options.seconds / 2.0).min(0.3))?),
                    timeout: Duration::from_secs(10),
                    limit: Duration::try_from_secs_f64(options.seconds + 20.0)?,
                    expect_status: scenario.status,
                    server: Some(peer.pid()),
                    cpu: Some(options.cores.load),
                    progress: Some(format!(
                        "round {round}/{} {} {}",
                        options.rounds,
                        scenario.measure.name(),
                        peer.kind().name()
                    )),
                };
                if !one_load(plan, what, round, figures) {
                    given_up.push(what);
                }
            }
        }
        eprintln!("compare: round {round} of {} done", options.rounds);
    }
    if options.idle > 0 && options.wants(Measure::Idle) {
        memory(options, bench, figures)?;
    }
    Ok(())
}

/// Each round starts with another peer, so that the order favours none.
fn in_turn(peers: &[Box<dyn Peer>], round: u32) -> impl Iterator<Item = &dyn Peer> {
    let skip = usize::try_from(round).unwrap_or(0) % peers.len().max(1);
    peers.iter().cycle().skip(skip).take(peers.len()).map(AsRef::as_ref)
}

/// False when the peer cannot serve the measure at all.
fn one_load(plan: Plan, (measure, peer): (Measure, Kind), round: u32, figures: &mut Figures) -> bool {
    let report = match load::run(plan) {
        Ok(report) => report,
        Err(error) => {
            let hopeless = matches!(error, LoadError::Refused { .. } | LoadError::Nothing { .. });
            figures.add_failed(measure, peer, round, error.to_string(), ());
            return !hopeless;
        }
    };
    if let Some(problem) = too_many(&report.failures, report.operations) {
        figures.add_failed(measure, peer, round, problem, report);
        return true;
    }
    match &report.server {
        Some(server) => {
            let value = server.cpu_ns_per_operation as f64 / 1000.0;
            figures.add(measure, peer, round, value, report);
        }
        None => figures.add_failed(measure, peer, round, "the server's CPU was not read".to_owned(), report),
    }
    true
}

fn memory(options: &Options, bench: &mut Workbench, figures: &mut Figures) -> anyhow::Result<()> {
    let loader = bench.credentials.loader()?;
    for round in 1..=options.idle_rounds {
        for peer in &mut bench.peers {
            peer.restart()?;
            let plan = IdlePlan {
                target: Workbench::target(peer.address(), HOST, PROXIED)?,
                identity: loader.clone(),
                version: Version::V13,
                group: Group::X25519,
                connections: usize::try_from(options.idle)?,
                request: Some(200),
                hold: Duration::from_secs(1),
                timeout: Duration::from_secs(20),
                limit: Duration::from_secs(120),
                server: peer.pid(),
                cpu: Some(options.cores.load),
            };
            one_idle(plan, peer.kind(), round, figures);
        }
        eprintln!("compare: memory round {round} of {} done", options.idle_rounds);
    }
    Ok(())
}

fn one_idle(plan: IdlePlan, peer: Kind, round: u32, figures: &mut Figures) {
    match load::idle::run(plan) {
        Err(error) => figures.add_failed(Measure::Idle, peer, round, error.to_string(), ()),
        Ok(report) => match too_many(&report.failures, report.connections) {
            Some(problem) => figures.add_failed(Measure::Idle, peer, round, problem, report),
            None => {
                let each = report.bytes_per_connection as f64 / 1024.0;
                figures.add(Measure::Idle, peer, round, each, report);
            }
        },
    }
}

/// Why a run with these failures has no figure; `None` when it has one.
pub(super) fn too_many(failures: &Failures, done: u64) -> Option<String> {
    let failed = failures.total();
    let (kind, counted) = failures.iter().next()?;
    (failed as f64 > done as f64 * FAILED_SHARE)
        .then(|| format!("{failed} failures beside {done} successes; {kind:?}: {}", counted.first))
}

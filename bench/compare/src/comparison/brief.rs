//! A comparison of half a minute: only measures with a target, and only the peers in it.

use std::path::PathBuf;

use clap::Parser;

use super::figures::Figures;
use super::measure::Measure;
use super::workbench::Workbench;
use super::{Options, find, rounds};
use crate::peer::{Cores, Kind};

/// The peers of each measure. Each step has fewer, because the others are ended.
const STEPS: [(&str, &[Measure], &[Kind]); 3] = [
    ("connections, ours and every peer's", &[Measure::New, Measure::Resumed], &Kind::ALL),
    (
        "kept connections, ours, nginx's and HAProxy's",
        &[Measure::Kept, Measure::KeptMtls],
        &[Kind::Countersign, Kind::Nginx, Kind::Haproxy],
    ),
    ("memory of 1,000 idle connections", &[Measure::Idle], &[Kind::Countersign]),
];

#[derive(Default)]
pub struct Brief {
    pub figures: Figures,
    /// Peers that are missing or did not start.
    pub missing: Vec<String>,
}

/// Measures, and prints the steps.
///
/// # Errors
/// When there is no temporary folder, or a program ends under the load.
pub fn run(bin_dir: Option<PathBuf>, cores: Cores) -> anyhow::Result<Brief> {
    let usual = Options { bin_dir, cores, ..brief() };
    let (installed, mut missing) = find(&usual);
    e2e::resources::allow_descriptors(u64::from(usual.idle) * 2 + 1024)?;
    let mut bench = Workbench::start(&installed, cores)?;
    let runs = |kind: Kind| bench.peers.iter().any(|peer| peer.kind() == kind);
    let dead = installed.iter().map(|program| program.kind()).filter(|kind| !runs(*kind));
    missing.extend(dead.map(|kind| format!("{} did not start", kind.name())));
    let mut figures = Figures::default();
    for (what, measures, kinds) in STEPS {
        println!("summary: {what}");
        bench.peers.retain(|peer| kinds.contains(&peer.kind()));
        let options = Options { measures: measures.to_vec(), ..usual.clone() };
        rounds::run(&options, &mut bench, &mut figures)?;
    }
    Ok(Brief { figures, missing })
}

/// The defaults, but short.
fn brief() -> Options {
    Options { rounds: 3, idle_rounds: 1, seconds: 0.3, idle: 1000, ..Options::parse_from(["compare"]) }
}

//! Measures Countersign and nginx side by side, interleaved, in one run on one machine.
//!
//! The walk: find the peers -> [`workbench`] mints certificates and starts everything -> [`rounds`] (A B A B ...) and
//! [`objects`] measure -> [`figures`] holds every value -> [`output`] writes the raw JSON and the table. A peer that is
//! missing is named with the way to get it, and the others go on. The invariant: what was not measured is not
//! printed, and a run in which operations failed has no figure.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Parser, ValueEnum};

use crate::peer::countersign::{Cores, Programs};
use crate::peer::nginx;

mod environment;
mod figures;
mod objects;
mod output;
mod rounds;
mod workbench;

use figures::Figures;
use workbench::Workbench;

const EXAMPLES: &str = "\
Examples:
  # Build everything, then measure (about five minutes):
  cargo build --release -p controlplane -p dataplane -p bench && target/release/compare

  # nginx alone, two short rounds, nothing about many objects:
  compare --only nginx --rounds 2 --seconds 1 --objects 0

The measured server runs on one core, everything else (load, upstream, control plane) on another. Figures are the
server's CPU time from /proc, not elapsed time, so a busy machine makes them noisy but not meaningless.";

/// Compares Countersign with nginx on this machine.
#[derive(Parser, Debug)]
#[command(name = "compare", version, after_long_help = EXAMPLES, about, long_about = None)]
pub struct Options {
    /// Measure one peer only.
    #[arg(long, value_enum)]
    only: Option<Only>,
    /// Rounds of each measurement; medians of them are told.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Rounds of the memory measurement, each with servers started anew.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    idle_rounds: u32,
    /// Seconds of load in each round.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Connections at a time.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    connections: u32,
    /// Idle connections for the memory measurement; 0 leaves it out.
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(..=15_000))]
    idle: u32,
    /// ssl objects for the start and change measurements; 0 leaves them out.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(..=1_000_000))]
    objects: u32,
    /// Certificates changed among them, one after the other.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    changes: u32,
    /// The measured core.
    #[arg(long, default_value_t = 1)]
    server_cpu: usize,
    /// The core of everything else.
    #[arg(long, default_value_t = 0)]
    load_cpu: usize,
    /// Where controlplane and dataplane are [default: beside this program].
    #[arg(long)]
    bin_dir: Option<PathBuf>,
    /// Results go to a folder named after the date in this one.
    #[arg(long, default_value = "bench/results")]
    out: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Only {
    Nginx,
    Countersign,
}

impl Options {
    fn wants(&self, peer: Only) -> bool {
        self.only.is_none_or(|only| only == peer)
    }
}

/// Runs what the command line says; prints the table to stdout.
pub fn run(options: Options) -> ExitCode {
    crate::cli::told("compare", measure(&options))
}

fn measure(options: &Options) -> anyhow::Result<()> {
    let cores = Cores { server: options.server_cpu, load: options.load_cpu };
    if cores.server == cores.load {
        bail!("--server-cpu and --load-cpu must be two cores: the load would be measured with the server");
    }
    let nginx = wanted(options.wants(Only::Nginx), nginx::find);
    let programs = wanted(options.wants(Only::Countersign), || Programs::find(options.bin_dir.as_deref()));
    if nginx.is_none() && programs.is_none() {
        bail!("there is nobody to measure");
    }
    let environment = environment::Environment::read(nginx.as_deref(), programs.as_ref());
    crate::process::allow_descriptors(u64::from(options.idle) * 2 + 1024)?;
    let mut bench = Workbench::start(nginx, programs, cores)?;
    // Before minutes of work end at a full disk or a missing folder.
    let folder = output::make_folder(&options.out).context("making a folder for the results")?;

    let mut figures = Figures::default();
    let measured = rounds::run(options, &mut bench, &mut figures)
        .and_then(|()| objects::run(options, &mut bench, &mut figures));
    // What was measured before a failure is kept: the table then says what is missing.
    let table = output::write(&folder, options, &environment, &bench, &figures)?;
    print!("{table}");
    println!("\nWritten to {}", folder.display());
    measured
}

/// Finds a peer, or says on stderr why the comparison goes on without it.
fn wanted<T>(wanted: bool, find: impl FnOnce() -> Result<T, crate::peer::PeerError>) -> Option<T> {
    if !wanted {
        return None;
    }
    find().inspect_err(|error| eprintln!("compare: {error}; going on without it")).ok()
}

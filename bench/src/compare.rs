//! Measures Countersign and its peers side by side, interleaved, in one run on one machine.
//!
//! The walk: find the peers -> [`workbench`] mints certificates and starts everything -> [`rounds`] (A B C A B C ...) and
//! [`many`] measure what [`measure`] lists -> [`figures`] holds every value -> [`output`] writes the raw JSON and the tables, [`plot`]
//! the bars. A peer that is missing is named with the way to get it, and the others go on. The invariant: what was not
//! measured is not printed, and a run in which operations failed has no figure.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Parser;

use crate::peer::{Cores, Installed, Kind};

pub(crate) mod brief;
mod environment;
pub(crate) mod figures;
mod many;
pub(crate) mod measure;
mod output;
mod plot;
mod rounds;
mod workbench;

use figures::Figures;
use measure::Measure;
use workbench::Workbench;

const EXAMPLES: &str = "\
Examples:
  # Install and build every peer, then measure everything (about half an hour):
  make compare

  # Against nginx and HAProxy only, full and resumed handshakes, three short rounds:
  compare --peers countersign,nginx,haproxy --measures new,resumed --rounds 3 --seconds 1

  # A look at whether everybody answers, in less than a minute:
  compare --rounds 1 --seconds 0.2 --idle 50 --idle-rounds 1 --objects 0

  # One changed certificate among 10,000:
  compare --measures change,change-served --peers countersign,nginx,haproxy

A peer that is missing is told, with how to install it, and left out. Each measured server runs on one core, everything else
(load, upstreams, control plane) on another. Figures are the server's CPU time from /proc at capacity, not elapsed time, so a
busy machine makes them noisy but not meaningless; a table says how busy each server was. `scripts/setup.sh compare` installs peers; this program installs nothing.";

/// Compares Countersign with other proxies on this machine.
#[derive(Parser, Clone, Debug)]
#[command(name = "compare", version, after_long_help = EXAMPLES, about, long_about = None)]
pub struct Options {
    /// Who takes part, separated by commas [default: all that are installed].
    #[arg(long, value_enum, value_delimiter = ',')]
    peers: Vec<Kind>,
    /// What is measured, separated by commas [default: everything].
    #[arg(long, value_enum, value_delimiter = ',')]
    measures: Vec<Measure>,
    /// Rounds of each measurement; medians of them are told.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Rounds of the memory and start measurements, each with servers started anew.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    idle_rounds: u32,
    /// Seconds of load in each round.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Connections at a time: enough that the server does not sleep between two of them.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    connections: u32,
    /// Idle connections for the memory measurement; 0 leaves it out.
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(..=15_000))]
    idle: u32,
    /// Certificates for the start and change measurements; 0 leaves them out.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(..=1_000_000))]
    objects: u32,
    /// Certificates changed among them, one after the other.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    changes: u32,
    #[command(flatten)]
    cores: Cores,
    /// Where controlplane, dataplane and pingora-peer are [default: beside this program].
    #[arg(long)]
    bin_dir: Option<PathBuf>,
    /// Results go to a folder named after the date in this one.
    #[arg(long, default_value = "bench/results")]
    out: PathBuf,
}

impl Options {
    fn wants(&self, measure: Measure) -> bool {
        self.measures.is_empty() || self.measures.contains(&measure)
    }

    fn peers(&self) -> impl Iterator<Item = Kind> {
        Kind::ALL.into_iter().filter(|kind| self.peers.is_empty() || self.peers.contains(kind))
    }
}

/// Runs what the command line says; prints the tables to stdout.
pub fn run(options: Options) -> ExitCode {
    crate::cli::told("compare", measure(&options))
}

fn measure(options: &Options) -> anyhow::Result<()> {
    let cores = options.cores;
    if cores.server == cores.load {
        bail!("--server-cpu and --load-cpu must be two cores: the load would be measured with the server");
    }
    let (installed, left_out) = find(options);
    if installed.is_empty() {
        bail!("there is nobody to measure");
    }
    let mut environment = environment::Environment::read(&installed, left_out);
    crate::process::allow_descriptors(u64::from(options.idle) * 2 + 1024)?;
    let mut bench = Workbench::start(&installed, cores)?;
    // Before minutes of work end at a full disk or a missing folder.
    let folder = output::make_folder(&options.out).context("making a folder for the results")?;
    environment.note_commands(&bench);
    output::write_settings(&folder, &bench)?;

    let mut figures = Figures::default();
    let measured = rounds::run(options, &mut bench, &mut figures)
        .and_then(|()| many::run(options, &installed, &mut bench, &mut figures));
    // What was measured before a failure is kept: the tables then say what is missing.
    let tables = output::write(&folder, options, &environment, &figures)?;
    print!("{tables}");
    println!("\nWritten to {}", folder.display());
    measured
}

/// Finds the peers; says on stderr why the comparison goes on without one.
fn find(options: &Options) -> (Vec<Box<dyn Installed>>, Vec<String>) {
    let (mut installed, mut left_out) = (Vec::new(), Vec::new());
    for kind in options.peers() {
        match kind.find(options.bin_dir.as_deref()) {
            Ok(program) => installed.push(program),
            Err(error) => {
                eprintln!("compare: {error}; going on without it");
                left_out.push(error.to_string());
            }
        }
    }
    (installed, left_out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Options::command().debug_assert();
    }

    #[test]
    fn peers_and_measures_are_chosen_by_name() {
        let line = ["compare", "--peers", "haproxy,countersign", "--measures", "new,kept-mtls-h2"];
        let options = Options::parse_from(line);
        assert_eq!(options.peers().collect::<Vec<_>>(), [Kind::Countersign, Kind::Haproxy]);
        assert!(options.wants(Measure::KeptMtlsH2) && !options.wants(Measure::Idle));
        assert!(Options::try_parse_from(["compare", "--peers", "apache"]).is_err());
    }
}

//! The command line of `compare`.

use std::path::PathBuf;

use clap::Parser;

use super::measure::Measure;
use crate::peer::{Cores, Kind};

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

A missing peer is reported, with a hint how to install it, and left out. Each measured server runs on one core, everything else
(load, upstreams, control plane) on another. Figures are the server's CPU time from /proc at capacity, not elapsed time, so a
busy machine makes them noisy but not meaningless; a table has the utilisation of each core. `scripts/setup.sh compare` installs peers; this program installs nothing.";

/// Compares Countersign with other proxies on this machine.
#[derive(Parser, Clone, Debug)]
#[command(name = "compare", version, after_long_help = EXAMPLES)]
pub struct Options {
    /// Peers, separated by commas [default: all that are installed].
    #[arg(long, value_enum, value_delimiter = ',')]
    pub peers: Vec<Kind>,
    /// Measures, separated by commas [default: all].
    #[arg(long, value_enum, value_delimiter = ',')]
    pub measures: Vec<Measure>,
    /// Rounds of each measurement; the tables have their medians.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub rounds: u32,
    /// Rounds of the memory and start measurements, each with fresh servers.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub idle_rounds: u32,
    /// Seconds of load in each round.
    #[arg(long, default_value_t = 2.0)]
    pub seconds: f64,
    /// Connections at a time: enough that the server does not sleep between two of them.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub connections: u32,
    /// Idle connections for the memory measurement; 0 leaves it out.
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(..=15_000))]
    pub idle: u32,
    /// Certificates for the start and change measurements; 0 leaves them out.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(..=1_000_000))]
    pub objects: u32,
    /// Certificates changed among them, one after the other.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub changes: u32,
    #[command(flatten)]
    pub cores: Cores,
    /// Folder of controlplane, dataplane and pingora-peer [default: that of this program].
    #[arg(long)]
    pub bin_dir: Option<PathBuf>,
    /// Results go to a folder named after the date in this one.
    #[arg(long, default_value = "bench/results")]
    pub out: PathBuf,
}

impl Options {
    pub fn wants(&self, measure: Measure) -> bool {
        self.measures.is_empty() || self.measures.contains(&measure)
    }

    /// The chosen peers, in the order of the tables.
    pub fn peers(&self) -> impl Iterator<Item = Kind> {
        Kind::ALL.into_iter().filter(|kind| self.peers.is_empty() || self.peers.contains(kind))
    }
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

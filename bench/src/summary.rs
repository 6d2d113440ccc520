//! One line a target, measured within a minute.
//!
//! [`handshakes`] and [`many`] measure in this process; a short comparison of the real programs
//! with the installed peers follows, which `make compare` makes at length.
//!
//! Invariant: a figure was measured in this run, or the line has a `-` and the reason follows.

use std::fmt;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

use compare::comparison::brief::{self, Brief};
use compare::comparison::measure::{Goal, Measure};
use compare::peer::Cores;

mod handshakes;
mod many;

/// Prints one line a target: the measure, its value, the target, and whether it is met.
#[derive(Parser, Debug)]
#[command(name = "summary", version)]
pub struct Options {
    #[command(flatten)]
    cores: Cores,
    /// Folder of controlplane, dataplane and pingora-peer [default: that of this program].
    #[arg(long)]
    bin_dir: Option<PathBuf>,
}

/// A target and its measured value.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    what: String,
    measured: Option<f64>,
    target: f64,
    unit: &'static str,
}

impl Line {
    /// A ratio of at most `target`.
    pub fn ratio(what: impl Into<String>, measured: Option<f64>, target: f64) -> Self {
        Self::at_most(what, measured, target, "")
    }

    /// A figure in `unit` of at most `target`.
    pub fn at_most(what: impl Into<String>, measured: Option<f64>, target: f64, unit: &'static str) -> Self {
        Self { what: what.into(), measured, target, unit }
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, measured, target, unit } = self;
        let digits = if unit.is_empty() { 2 } else { 1 };
        let goal = format!("<= {target:.digits$} {unit}");
        match measured {
            Some(measured) => {
                let word = if measured <= target { "ok" } else { "short" };
                let found = format!("{measured:.digits$} {unit}");
                write!(f, "{what:<87} {:>10}  {:<12} {word}", found.trim_end(), goal.trim_end())
            }
            None => write!(f, "{what:<87} {:>10}  {:<12} -", "-", goal.trim_end()),
        }
    }
}

pub fn run(options: &Options) -> ExitCode {
    compare::exit_code("summary", measure(options))
}

fn measure(options: &Options) -> anyhow::Result<()> {
    let cores = options.cores;
    println!("summary: handshakes in memory");
    let mut lines = handshakes::lines(options.cores.server)?;
    println!("summary: names and changes in memory");
    lines.extend(many::lines()?);
    let brief = match brief::run(options.bin_dir.clone(), cores) {
        Ok(brief) => brief,
        Err(error) => Brief { missing: vec![format!("{error:#}")], ..Brief::default() },
    };
    lines.extend(served(&brief));
    println!();
    lines.iter().for_each(|line| println!("{line}"));
    brief.missing.iter().for_each(|missing| println!("-: {missing}"));
    brief.figures.problems().for_each(|problem| println!("-: {problem}"));
    println!(
        "-: other requests while certificates change: takes longer than this, `make compare` measures it"
    );
    println!("short runs, good for ok or short alone: `make compare` and `make bench` measure at length");
    Ok(())
}

/// The goals of the comparison that can be checked quickly, and one that cannot.
fn served(brief: &Brief) -> Vec<Line> {
    let measures = [Measure::New, Measure::Resumed, Measure::Kept, Measure::KeptMtls, Measure::Idle];
    let goals =
        measures.into_iter().flat_map(|measure| measure.goals().iter().map(move |goal| (measure, *goal)));
    let mut lines: Vec<Line> = goals.map(|(measure, goal)| line(brief, measure, goal)).collect();
    let others = Measure::ChangeOthers;
    lines.extend(others.goals().iter().map(|goal| Line::ratio(others.label(), None, goal.limit())));
    lines
}

fn line(brief: &Brief, measure: Measure, goal: Goal) -> Line {
    let measured = brief.figures.verdict(measure, goal).map(|verdict| verdict.measured);
    let label = measure.label();
    let what = match goal {
        Goal::AtMost(limit) => return Line::at_most(label, measured, limit, measure.unit()),
        Goal::Of(peer, _) => format!("{label} / {}", peer.name()),
        Goal::OfOwn(other, _) => format!("{label} / our own {}", other.name()),
        Goal::OfBest(_) => match brief.figures.best(measure) {
            Some(best) => format!("{label} / best peer, {}", best.name()),
            None => format!("{label} / best peer"),
        },
    };
    Line::ratio(what, measured, goal.limit())
}

#[cfg(test)]
mod tests {
    use super::*;
    use compare::peer::Kind;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Options::command().debug_assert();
    }

    #[test]
    fn a_line_ends_with_ok_short_or_a_dash() {
        let line = |measured| Line::ratio("x", measured, 0.45).to_string();
        assert!(line(Some(0.45)).ends_with(" ok"));
        assert!(line(Some(0.46)).ends_with(" short"));
        assert!(line(None).ends_with(" -") && !line(None).contains("0.00"), "{}", line(None));
    }

    #[test]
    fn lines_without_figures_have_no_value() {
        let lines = served(&Brief::default());
        assert_eq!(lines.len(), 10);
        assert!(lines.iter().all(|line| line.measured.is_none()));
    }

    #[test]
    fn a_line_names_the_peer_it_is_about() {
        let mut brief = Brief::default();
        for (kind, value) in [(Kind::Countersign, 100.0), (Kind::Nginx, 1000.0), (Kind::Pingora, 400.0)] {
            brief.figures.add(Measure::New, kind, 1, value, ());
        }
        let lines: Vec<String> = served(&brief).iter().map(ToString::to_string).collect();
        assert!(lines[0].contains("best peer, pingora") && lines[0].contains("0.25"), "{}", lines[0]);
        assert!(lines[1].contains("/ nginx") && lines[1].contains("0.10"), "{}", lines[1]);
        assert!(lines[0].ends_with("ok") && lines[1].ends_with("ok") && lines[2].ends_with('-'));
    }
}

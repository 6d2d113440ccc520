//! The values of a comparison, and their medians, paired ratios and verdicts.
//!
//! A ratio is taken in each round, between runs next to each other, and the median of the ratios is
//! compared: a machine that is slow for a minute is slow for all peers.

use std::collections::BTreeMap;

use serde::Serialize;

use super::measure::{Goal, Measure};
use crate::peer::Kind;

/// One run, for the raw results.
#[derive(Debug, Serialize)]
pub struct Run {
    measure: Measure,
    peer: Kind,
    round: u32,
    value: Option<f64>,
    /// Why there is no value.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
    report: serde_json::Value,
}

#[derive(Default)]
pub struct Figures {
    /// In the order of the measurements.
    pub runs: Vec<Run>,
}

/// Median and extremes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
    pub runs: usize,
}

/// Utilisation of a server's core: medians of the runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Busy {
    /// CPU time over elapsed time.
    pub share: f64,
    /// How often a thread was scheduled, an operation; absent when threads ended meanwhile.
    pub timeslices: Option<f64>,
}

/// A goal and the measured value.
#[derive(Debug, Serialize)]
pub struct Verdict {
    pub measure: Measure,
    /// The value that is compared.
    pub measured: f64,
    pub goal: String,
    pub ok: bool,
}

impl Figures {
    pub fn add(&mut self, measure: Measure, peer: Kind, round: u32, value: f64, report: impl Serialize) {
        let report = serde_json::to_value(report).unwrap_or_default();
        self.runs.push(Run { measure, peer, round, value: Some(value), problem: None, report });
    }

    /// Adds a run without a value, with the reason.
    pub fn add_failed(
        &mut self,
        measure: Measure,
        peer: Kind,
        round: u32,
        problem: String,
        report: impl Serialize,
    ) {
        eprintln!("compare: {}, {}, round {round}: no figure: {problem}", peer.name(), measure.name());
        let report = serde_json::to_value(report).unwrap_or_default();
        self.runs.push(Run { measure, peer, round, value: None, problem: Some(problem), report });
    }

    /// Runs without a value, as text.
    pub fn problems(&self) -> impl Iterator<Item = String> {
        self.runs.iter().filter_map(|run| {
            let problem = run.problem.as_ref()?;
            Some(format!("{}, {}, round {}: {problem}", run.peer.name(), run.measure.name(), run.round))
        })
    }

    /// Peers with a value or a failure: the columns of the table.
    pub fn peers(&self) -> Vec<Kind> {
        Kind::ALL.into_iter().filter(|kind| self.runs.iter().any(|run| run.peer == *kind)).collect()
    }

    /// The values of a peer; `None` without any.
    pub fn spread(&self, measure: Measure, peer: Kind) -> Option<Spread> {
        spread(self.values(measure, peer).into_values().collect())
    }

    /// Utilisation of a peer's core during the measurement; `None` for measures other than CPU
    /// time.
    pub fn busy(&self, measure: Measure, peer: Kind) -> Option<Busy> {
        let share = self.reported(measure, peer, "/server/busy")?;
        Some(Busy { share, timeslices: self.reported(measure, peer, "/server/timeslices_per_operation") })
    }

    /// The median of a figure in the reports of the runs that have a value.
    pub fn reported(&self, measure: Measure, peer: Kind, pointer: &str) -> Option<f64> {
        let of = |run: &&Run| run.measure == measure && run.peer == peer && run.value.is_some();
        let values = self.runs.iter().filter(of).filter_map(|run| run.report.pointer(pointer)?.as_f64());
        spread(values.collect()).map(|spread| spread.median)
    }

    /// Countersign's value over a peer's, round by round.
    pub fn ratio(&self, measure: Measure, peer: Kind) -> Option<Spread> {
        if !measure.paired() {
            return None;
        }
        let (ours, theirs) = (self.values(measure, Kind::Countersign), self.values(measure, peer));
        paired(&ours, &theirs)
    }

    /// The peer with the smallest median, Countersign excepted.
    pub fn best(&self, measure: Measure) -> Option<Kind> {
        let others = Kind::ALL.into_iter().filter(|kind| *kind != Kind::Countersign);
        let measured = others.filter_map(|kind| Some((kind, self.spread(measure, kind)?.median)));
        measured.min_by(|one, other| one.1.total_cmp(&other.1)).map(|(kind, _)| kind)
    }

    /// The goals of a measure that can be compared.
    pub fn verdicts(&self, measure: Measure) -> Vec<Verdict> {
        measure.goals().iter().filter_map(|goal| self.verdict(measure, *goal)).collect()
    }

    /// A goal, when it can be compared.
    pub fn verdict(&self, measure: Measure, goal: Goal) -> Option<Verdict> {
        let (measured, limit, goal) = match goal {
            Goal::Of(peer, limit) => {
                (self.ratio(measure, peer)?.median, limit, format!("<= {limit} x {}", peer.name()))
            }
            Goal::OfBest(limit) => {
                let best = self.best(measure)?;
                let ratio = self.ratio(measure, best)?.median;
                (ratio, limit, format!("<= {limit} x best peer ({})", best.name()))
            }
            Goal::OfOwn(other, limit) => {
                let ours = |measure| self.values(measure, Kind::Countersign);
                let ratio = paired(&ours(measure), &ours(other))?.median;
                (ratio, limit, format!("<= {limit} x own {}", other.name()))
            }
            Goal::AtMost(limit) => {
                let median = self.spread(measure, Kind::Countersign)?.median;
                (median, limit, format!("<= {limit} {}", measure.unit()))
            }
        };
        Some(Verdict { measure, measured, goal, ok: measured <= limit })
    }

    fn values(&self, measure: Measure, peer: Kind) -> BTreeMap<u32, f64> {
        let of = |run: &&Run| run.measure == measure && run.peer == peer;
        self.runs.iter().filter(of).filter_map(|run| Some((run.round, run.value?))).collect()
    }
}

fn paired(ours: &BTreeMap<u32, f64>, theirs: &BTreeMap<u32, f64>) -> Option<Spread> {
    spread(ours.iter().filter_map(|(round, value)| Some(value / theirs.get(round)?)).collect())
}

fn spread(mut values: Vec<f64>) -> Option<Spread> {
    values.sort_by(f64::total_cmp);
    let runs = values.len();
    let (low, high) = (values.get(runs.checked_sub(1)? / 2)?, values.get(runs / 2)?);
    Some(Spread { median: (low + high) / 2.0, min: *values.first()?, max: *values.last()?, runs })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Figures of one measure.
    pub(crate) fn figures(of: &[(Kind, &[f64])]) -> Figures {
        let mut figures = Figures::default();
        for (kind, values) in of {
            for (round, value) in (0..).zip(*values) {
                figures.add(Measure::New, *kind, round, *value, ());
            }
        }
        figures
    }

    #[test]
    fn ratios_are_paired_by_round() {
        // The second round was slow for both.
        let ours: &[f64] = &[80.0, 200.0, 120.0];
        let figures = figures(&[(Kind::Countersign, ours), (Kind::Nginx, &[400.0, 1000.0, 800.0])]);
        let ratio = figures.ratio(Measure::New, Kind::Nginx).unwrap();
        assert_eq!((ratio.median, ratio.min, ratio.max, ratio.runs), (0.2, 0.15, 0.2, 3));
        let verdicts = figures.verdicts(Measure::New);
        assert_eq!(verdicts.len(), 2);
        assert!(verdicts.iter().all(|verdict| verdict.ok), "{verdicts:?}");
    }

    #[test]
    fn countersign_is_never_the_best_peer() {
        let figures =
            figures(&[(Kind::Countersign, &[100.0]), (Kind::Nginx, &[400.0]), (Kind::Pingora, &[200.0])]);
        assert_eq!(figures.best(Measure::New), Some(Kind::Pingora));
        let [best, nginx] = &figures.verdicts(Measure::New)[..] else { panic!("two goals") };
        assert_eq!((best.measured, best.ok), (0.5, false));
        assert_eq!((nginx.measured, nginx.ok), (0.25, false));
    }

    #[test]
    fn a_goal_compares_two_measures_of_countersign() {
        let mut figures = figures(&[(Kind::Countersign, &[100.0])]);
        figures.add(Measure::Resumed, Kind::Countersign, 0, 40.0, ());
        let verdicts = figures.verdicts(Measure::Resumed);
        assert_eq!(verdicts.len(), 1, "there is no peer to be the best");
        assert_eq!((verdicts[0].measured, verdicts[0].ok), (0.4, true));
    }

    #[test]
    fn a_missing_value_has_no_ratio_and_no_verdict() {
        let mut figures = figures(&[(Kind::Countersign, &[100.0])]);
        figures.add_failed(Measure::New, Kind::Nginx, 0, "3 x timeout".to_owned(), ());
        assert!(figures.spread(Measure::New, Kind::Nginx).is_none());
        assert!(figures.ratio(Measure::New, Kind::Nginx).is_none());
        assert!(figures.verdicts(Measure::New).is_empty());
        assert_eq!(figures.problems().count(), 1);
        assert_eq!(figures.peers(), [Kind::Countersign, Kind::Nginx], "its column says that there is none");
    }

    #[test]
    fn utilisation_is_the_median_of_runs_with_a_value() {
        let mut figures = Figures::default();
        let report = |busy, timeslices: Option<f64>| serde_json::json!({"server": {"busy": busy, "timeslices_per_operation": timeslices}});
        for (round, busy) in (0..).zip([0.9, 0.5, 0.98]) {
            figures.add(Measure::New, Kind::Nginx, round, 1.0, report(busy, Some(busy * 2.0)));
        }
        figures.add_failed(Measure::New, Kind::Nginx, 4, "broken".to_owned(), report(0.1, Some(9.0)));
        figures.add(Measure::New, Kind::Caddy, 0, 1.0, report(0.7, None));
        figures.add(Measure::Idle, Kind::Nginx, 0, 1.0, ());
        assert_eq!(figures.busy(Measure::New, Kind::Nginx), Some(Busy { share: 0.9, timeslices: Some(1.8) }));
        assert_eq!(figures.busy(Measure::New, Kind::Caddy), Some(Busy { share: 0.7, timeslices: None }));
        assert_eq!(figures.busy(Measure::Idle, Kind::Nginx), None);
    }

    #[test]
    fn the_median_of_an_even_number_is_the_mean_of_two() {
        assert_eq!(spread(vec![4.0, 1.0, 2.0, 3.0]).unwrap().median, 2.5);
        assert_eq!(spread(vec![]), None);
    }
}

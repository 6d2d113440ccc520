//! Every value of a comparison, and what it means: medians, paired ratios, and the targets they are held to.
//!
//! Ratios are taken round by round, between runs that stood next to each other, and the median of those is judged:
//! a machine that is slow for a minute is slow for both.

use std::collections::BTreeMap;

use serde::Serialize;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// Full mTLS handshake and one small proxied request on a new connection.
    New,
    /// The same with an answer of the gateway's own (404).
    NewUnrouted,
    /// Resumed handshake and one small proxied request on a new connection.
    Resumed,
    /// Proxied request on an open mTLS connection.
    KeepAlive,
    /// Memory of an idle mTLS connection.
    Idle,
    /// A data plane without any snapshot starts: until it serves the last of many ssl objects.
    ObjectsPushed,
    /// The same with its last good snapshot on disk; for nginx, its start.
    ObjectsStart,
    /// Memory of one ssl object in the data plane.
    ObjectMemory,
    /// One changed certificate among many: until it is served.
    Change,
}

/// What a measure is held to.
#[derive(Clone, Copy, Debug)]
pub enum Goal {
    /// At most this share of nginx's figure.
    OfNginx(f64),
    /// The median is at most this.
    AtMost(f64),
    /// Every single value is at most this.
    EveryAtMost(f64),
}

impl Measure {
    /// In the order of the table.
    pub const ALL: [Self; 9] = [
        Self::New,
        Self::NewUnrouted,
        Self::Resumed,
        Self::KeepAlive,
        Self::Idle,
        Self::ObjectsPushed,
        Self::ObjectsStart,
        Self::ObjectMemory,
        Self::Change,
    ];

    /// For people.
    pub fn label(self) -> &'static str {
        match self {
            Self::New => "full mTLS handshake + one small proxied request, new connection: server CPU",
            Self::NewUnrouted => {
                "full mTLS handshake + one 404 of the gateway's own, new connection: server CPU"
            }
            Self::Resumed => "resumed handshake + one small proxied request, new connection: server CPU",
            Self::KeepAlive => "keep-alive h1 request over mTLS, proxied to a plain upstream: server CPU",
            Self::Idle => "idle mTLS connection (one request was made): resident memory",
            Self::ObjectsPushed => "start without a snapshot until the last of all ssl objects is served",
            Self::ObjectsStart => "start from what is on disk until the last of all ssl objects is served",
            Self::ObjectMemory => "one ssl object (leaf + intermediate + client CA): resident memory",
            Self::Change => {
                "one changed certificate among all: from the answer (nginx: the signal) until served"
            }
        }
    }

    /// What values are in.
    pub fn unit(self) -> &'static str {
        match self {
            Self::New | Self::NewUnrouted | Self::Resumed | Self::KeepAlive => "us",
            Self::Idle | Self::ObjectMemory => "KiB",
            Self::ObjectsPushed | Self::ObjectsStart | Self::Change => "ms",
        }
    }

    /// What Countersign is held to.
    pub fn goal(self) -> Option<Goal> {
        match self {
            Self::New => Some(Goal::OfNginx(0.4)),
            Self::KeepAlive => Some(Goal::OfNginx(1.0)),
            Self::Idle => Some(Goal::AtMost(40.0)),
            Self::ObjectsPushed => Some(Goal::AtMost(5000.0)),
            Self::Change => Some(Goal::EveryAtMost(50.0)),
            Self::NewUnrouted | Self::Resumed | Self::ObjectsStart | Self::ObjectMemory => None,
        }
    }
}

/// One run as it came out, for the raw results.
#[derive(Debug, Serialize)]
pub struct Run {
    measure: Measure,
    peer: &'static str,
    round: u32,
    value: Option<f64>,
    /// Why there is no value.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
    report: serde_json::Value,
}

/// All runs.
#[derive(Default)]
pub struct Figures {
    /// In the order in which they were made.
    pub runs: Vec<Run>,
}

/// Median and extremes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// Half of the values are at most this.
    pub median: f64,
    /// Smallest.
    pub min: f64,
    /// Largest.
    pub max: f64,
    /// How many.
    pub runs: usize,
}

/// A goal, held against what was measured.
#[derive(Debug, Serialize)]
pub struct Verdict {
    /// What it is about.
    pub measure: Measure,
    /// The measured figure that is judged.
    pub measured: f64,
    /// The goal in words.
    pub goal: String,
    /// Whether it is met.
    pub ok: bool,
}

impl Figures {
    /// Keeps a value and the report it is from.
    pub fn add(
        &mut self,
        measure: Measure,
        peer: &'static str,
        round: u32,
        value: f64,
        report: impl Serialize,
    ) {
        let report = serde_json::to_value(report).unwrap_or_default();
        self.runs.push(Run { measure, peer, round, value: Some(value), problem: None, report });
    }

    /// Keeps a run that has no value, and why.
    pub fn add_failed(
        &mut self,
        measure: Measure,
        peer: &'static str,
        round: u32,
        problem: String,
        report: impl Serialize,
    ) {
        eprintln!("compare: {peer}, {measure:?}, round {round}: no figure: {problem}");
        let report = serde_json::to_value(report).unwrap_or_default();
        self.runs.push(Run { measure, peer, round, value: None, problem: Some(problem), report });
    }

    /// Runs that have no value, in words.
    pub fn problems(&self) -> impl Iterator<Item = String> {
        self.runs.iter().filter_map(|run| {
            let problem = run.problem.as_ref()?;
            Some(format!("{}, {:?}, round {}: {problem}", run.peer, run.measure, run.round))
        })
    }

    /// What a peer measured, or `None` when it has no value.
    pub fn spread(&self, measure: Measure, peer: &str) -> Option<Spread> {
        spread(self.values(measure, peer).into_values().collect())
    }

    /// Countersign's figure over nginx's, round by round.
    pub fn ratio(&self, measure: Measure) -> Option<Spread> {
        let ours = self.values(measure, "countersign");
        let theirs = self.values(measure, "nginx");
        if matches!(measure, Measure::Change | Measure::ObjectsStart | Measure::ObjectsPushed) {
            // Different things in the same row: no pairs.
            return None;
        }
        spread(ours.iter().filter_map(|(round, value)| Some(value / theirs.get(round)?)).collect())
    }

    /// Whether a goal is met; `None` when there is no goal or nothing to hold against it.
    pub fn verdict(&self, measure: Measure) -> Option<Verdict> {
        let unit = measure.unit();
        let (measured, limit, goal) = match measure.goal()? {
            Goal::OfNginx(limit) => (self.ratio(measure)?.median, limit, format!("<= {limit} x nginx")),
            Goal::AtMost(limit) => {
                (self.spread(measure, "countersign")?.median, limit, format!("<= {limit} {unit}"))
            }
            Goal::EveryAtMost(limit) => {
                (self.spread(measure, "countersign")?.max, limit, format!("each <= {limit} {unit}"))
            }
        };
        Some(Verdict { measure, measured, goal, ok: measured <= limit })
    }

    fn values(&self, measure: Measure, peer: &str) -> BTreeMap<u32, f64> {
        let of = |run: &&Run| run.measure == measure && run.peer == peer;
        self.runs.iter().filter(of).filter_map(|run| Some((run.round, run.value?))).collect()
    }
}

fn spread(mut values: Vec<f64>) -> Option<Spread> {
    values.sort_by(f64::total_cmp);
    let runs = values.len();
    let (low, high) = (values.get(runs.checked_sub(1)? / 2)?, values.get(runs / 2)?);
    Some(Spread { median: (low + high) / 2.0, min: *values.first()?, max: *values.last()?, runs })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(ours: &[f64], theirs: &[f64]) -> Figures {
        let mut figures = Figures::default();
        for (round, value) in (0..).zip(ours) {
            figures.add(Measure::New, "countersign", round, *value, ());
        }
        for (round, value) in (0..).zip(theirs) {
            figures.add(Measure::New, "nginx", round, *value, ());
        }
        figures
    }

    #[test]
    fn ratios_are_paired_by_round() {
        // The second round was slow for both.
        let figures = figures(&[100.0, 400.0, 120.0], &[400.0, 1000.0, 400.0]);
        let ratio = figures.ratio(Measure::New).unwrap();
        assert_eq!((ratio.median, ratio.min, ratio.max, ratio.runs), (0.3, 0.25, 0.4, 3));
        assert!(figures.verdict(Measure::New).unwrap().ok);
    }

    #[test]
    fn what_was_not_measured_has_no_figure_and_no_verdict() {
        let mut figures = figures(&[100.0], &[]);
        figures.add_failed(Measure::New, "nginx", 0, "3 x timeout".to_owned(), ());
        assert!(figures.spread(Measure::New, "nginx").is_none());
        assert!(figures.ratio(Measure::New).is_none());
        assert!(figures.verdict(Measure::New).is_none());
        assert_eq!(figures.problems().count(), 1);
    }

    #[test]
    fn an_even_number_of_values_has_the_median_between() {
        assert_eq!(spread(vec![4.0, 1.0, 2.0, 3.0]).unwrap().median, 2.5);
        assert_eq!(spread(vec![]), None);
    }
}

//! `bench/budget.toml`: the budget of each measure, its machine, and its reason.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::callgrind::Instructions;
use super::cases::Case;
use super::machine::Machine;

/// A change that adds more than this share needs a reason.
const ALLOWED: f64 = 0.03;
/// Counts repeat within this share.
const NOISE: f64 = 0.005;

const HEADER: &str = "\
# Budgets of a handshake and a proxied request, in instructions of the data plane's side, outside of the crypto library
# (docs/decisions/0020-instructions-are-counted.md). `make check` fails when a change adds more than 3 % to one of them. Then
# make it cheaper, or write the new figure with `make budget WHY='what the instructions are for'`.
# `crypto`: the crypto library's instructions, which have no budget.

";

/// Why there is no budget.
#[derive(Debug, thiserror::Error)]
pub enum BudgetError {
    /// The file cannot be read.
    #[error("{}: {source}; `make budget WHY=...` writes it", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    /// Not TOML, or with unknown keys.
    #[error("{}: {source}", path.display())]
    Parse { path: PathBuf, source: Box<toml::de::Error> },
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Budget {
    /// The kind of machine that the figures hold for.
    pub machine: Machine,
    measures: BTreeMap<String, Entry>,
}

/// The budget of one measure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Outside of the crypto library; these have the budget.
    pub instructions: u64,
    /// In the crypto library.
    pub crypto: u64,
    /// The reason of the figure.
    pub why: String,
}

impl Entry {
    pub fn new(counted: Instructions, why: &str) -> Self {
        Self { instructions: counted.ours, crypto: counted.crypto, why: why.to_owned() }
    }

    /// Whether a count differs by noise only.
    pub fn is_about(&self, counted: Instructions) -> bool {
        (ratio(counted.ours, self.instructions) - 1.0).abs() <= NOISE
    }
}

/// The verdict on a count.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verdict {
    /// At most 3 % more or less.
    Within {
        /// Count over budget.
        ratio: f64,
        budget: u64,
    },
    /// More than 3 % more: the check fails.
    Over {
        /// Count over budget.
        ratio: f64,
        budget: u64,
    },
    /// More than 3 % less: the budget should follow.
    Under {
        /// Count over budget.
        ratio: f64,
        budget: u64,
    },
    /// Without a budget: the check fails.
    Unknown,
}

impl Budget {
    /// A budget without figures.
    pub fn empty(machine: Machine) -> Self {
        Self { machine, measures: BTreeMap::new() }
    }

    pub fn read(path: &Path) -> Result<Self, BudgetError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| BudgetError::Read { path: path.to_owned(), source })?;
        toml::from_str(&text)
            .map_err(|source| BudgetError::Parse { path: path.to_owned(), source: Box::new(source) })
    }

    /// The file's text.
    ///
    /// # Errors
    /// Never: every value has a form in TOML.
    pub fn to_text(&self) -> Result<String, toml::ser::Error> {
        Ok(format!("{HEADER}{}", toml::to_string(self)?))
    }

    pub fn entry(&self, case: Case) -> Option<&Entry> {
        self.measures.get(case.name())
    }

    /// Sets the budget of a case.
    pub fn set(&mut self, case: Case, entry: Entry) {
        self.measures.insert(case.name().to_owned(), entry);
    }

    /// Compares a count with the budget.
    pub fn judge(&self, case: Case, counted: Instructions) -> Verdict {
        let Some(budget) = self.entry(case).map(|entry| entry.instructions) else { return Verdict::Unknown };
        let ratio = ratio(counted.ours, budget);
        if ratio > 1.0 + ALLOWED {
            Verdict::Over { ratio, budget }
        } else if ratio < 1.0 - ALLOWED {
            Verdict::Under { ratio, budget }
        } else {
            Verdict::Within { ratio, budget }
        }
    }
}

fn ratio(found: u64, budget: u64) -> f64 {
    found as f64 / budget.max(1) as f64
}

/// One line a measure, with advice when it failed.
pub fn line(case: Case, verdict: &Verdict, counted: Instructions, file: &Path) -> String {
    let (name, file) = (case.name(), file.display());
    let Instructions { ours, crypto } = counted;
    let line = |what: &str, ratio: f64, budget: u64| {
        format!(
            "budget: {name:<18} {what:<5} found {ours} budget {budget} ratio {ratio:.3} (crypto {crypto})"
        )
    };
    match *verdict {
        Verdict::Within { ratio, budget } => line("ok", ratio, budget),
        Verdict::Under { ratio, budget } => {
            format!("{}\n  cheaper: `make budget WHY=...` keeps it so", line("ok", ratio, budget))
        }
        Verdict::Over { ratio, budget } => format!(
            "{}\n  {:.1} % more instructions than {file} allows for. Make it cheaper, or write the new figure and\n  \
             the reason into {file}: make budget WHY='what the instructions are for'",
            line("OVER", ratio, budget),
            (ratio - 1.0) * 100.0
        ),
        Verdict::Unknown => format!(
            "budget: {name:<18} NONE  found {ours} (crypto {crypto})\n  {file} has no figure for it: make budget WHY='...'"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(instructions: u64) -> Budget {
        let text = |text: &str| text.to_owned();
        let machine = Machine {
            architecture: text("x86_64"),
            features: text("aes"),
            valgrind: text("valgrind-3.19.0"),
            libc: text("glibc 2.36"),
            rustc: text("rustc 1.95.0"),
        };
        let mut budget = Budget::empty(machine);
        budget.set(Case::HandshakeWarm, Entry::new(ours(instructions), "first"));
        budget
    }

    fn ours(ours: u64) -> Instructions {
        Instructions { ours, crypto: 7 }
    }

    #[test]
    fn three_percent_are_allowed() {
        let verdict = |found| budget(100_000).judge(Case::HandshakeWarm, ours(found));
        assert!(matches!(verdict(103_000), Verdict::Within { .. }));
        assert!(matches!(verdict(103_001), Verdict::Over { budget: 100_000, .. }));
        assert!(matches!(verdict(97_000), Verdict::Within { .. }));
        assert!(matches!(verdict(96_999), Verdict::Under { .. }));
    }

    #[test]
    fn a_measure_without_a_figure_fails() {
        assert_eq!(budget(1).judge(Case::ProxiedRequest, ours(1)), Verdict::Unknown);
    }

    #[test]
    fn a_failure_has_figures_and_advice() {
        let verdict = budget(100_000).judge(Case::HandshakeWarm, ours(110_000));
        let text = line(Case::HandshakeWarm, &verdict, ours(110_000), Path::new("bench/budget.toml"));
        for part in ["handshake-warm", "OVER", "110000", "100000", "1.100", "10.0 % more", "make budget WHY="]
        {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn the_file_is_read_as_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("budget.toml");
        std::fs::write(&path, budget(5).to_text().unwrap()).unwrap();
        assert_eq!(Budget::read(&path).unwrap(), budget(5));
    }

    #[test]
    fn a_misspelt_key_and_a_missing_file_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("budget.toml");
        assert!(Budget::read(&path).unwrap_err().to_string().contains("make budget"));
        std::fs::write(&path, budget(5).to_text().unwrap().replace("crypto =", "cripto =")).unwrap();
        assert!(Budget::read(&path).unwrap_err().to_string().contains("cripto"));
    }

    #[test]
    fn noise_does_not_move_a_figure() {
        let entry = Entry::new(ours(100_000), "first");
        assert!(entry.is_about(ours(100_400)) && !entry.is_about(ours(100_600)));
    }
}

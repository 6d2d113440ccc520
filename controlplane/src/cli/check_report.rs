//! The report of `check` and `doctor`: one result per check.

use serde_json::{Value, json};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum CheckStatus {
    Ok,
    /// The check could not run; `observed` says why.
    Unknown,
    /// It works, but probably not as intended, or not for long.
    Warn,
    Fail,
}

impl CheckStatus {
    /// The spelling in tables and JSON.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Unknown => "unknown",
            Self::Warn => "warn",
            Self::Fail => "wrong",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CheckResult {
    /// A setting, an endpoint or a listener.
    pub subject: String,
    pub status: CheckStatus,
    pub observed: String,
    /// The fix, unless `observed` contains it.
    pub fix: Option<String>,
}

/// Results in the order of the checks.
#[derive(Debug, Default)]
pub(crate) struct CheckReport(Vec<CheckResult>);

impl CheckReport {
    pub(crate) fn ok(&mut self, what: impl Into<String>, found: impl ToString) {
        self.push(what, CheckStatus::Ok, found, None);
    }

    /// The check could not run.
    pub(crate) fn unknown(&mut self, what: impl Into<String>, why: impl ToString) {
        self.push(what, CheckStatus::Unknown, why, None);
    }

    /// `fix` is empty when `observed` contains it.
    pub(crate) fn warn(&mut self, what: impl Into<String>, found: impl ToString, mend: &str) {
        self.push(what, CheckStatus::Warn, found, Some(mend));
    }

    /// `fix` as in [`Self::warn`].
    pub(crate) fn fail(&mut self, what: impl Into<String>, found: impl ToString, mend: &str) {
        self.push(what, CheckStatus::Fail, found, Some(mend));
    }

    fn push(
        &mut self,
        what: impl Into<String>,
        state: CheckStatus,
        found: impl ToString,
        mend: Option<&str>,
    ) {
        let mend = mend.filter(|mend| !mend.is_empty()).map(str::to_owned);
        self.0.push(CheckResult {
            subject: what.into(),
            status: state,
            observed: found.to_string(),
            fix: mend,
        });
    }

    pub(crate) fn append(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// All results, grouped by subject.
    pub(crate) fn checks(&self) -> Vec<&CheckResult> {
        let mut rows: Vec<_> = self.0.iter().collect();
        rows.sort_by_key(|row| self.0.iter().position(|first| first.subject == row.subject));
        rows
    }

    pub(crate) fn with_status(&self, state: CheckStatus) -> impl Iterator<Item = &CheckResult> {
        self.0.iter().filter(move |row| row.status == state)
    }

    pub(crate) fn to_json(&self) -> Value {
        let row = |row: &CheckResult| {
            json!({
                "what": row.subject, "state": row.status.as_str(), "found": row.observed, "mend": row.fix,
            })
        };
        Value::Array(self.checks().into_iter().map(row).collect())
    }
}

impl CheckResult {
    /// All parts in one line.
    pub(crate) fn to_line(&self) -> String {
        let Self { subject: what, observed: found, fix: mend, .. } = self;
        match mend {
            Some(mend) => format!("{what}: {found}: {mend}"),
            None => format!("{what}: {found}"),
        }
    }
}

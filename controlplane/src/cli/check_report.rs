//! What an examination found: one row for each thing that was looked at, for `check`, which stops
//! at what stops a start, and for `doctor`.

use serde_json::{Value, json};

/// How a thing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum CheckStatus {
    /// As it should be.
    Ok,
    /// It cannot be told from here; the row says why.
    Unknown,
    /// It works, but probably not as intended, or not for long.
    Warn,
    /// It does not work.
    Fail,
}

impl CheckStatus {
    /// The word in tables and JSON.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Unknown => "unknown",
            Self::Warn => "warn",
            Self::Fail => "wrong",
        }
    }
}

/// One row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CheckResult {
    /// What was looked at: a setting, an endpoint, a listener.
    pub subject: String,
    /// How it is.
    pub status: CheckStatus,
    /// What was found.
    pub observed: String,
    /// What to do, where `found` does not say so already.
    pub fix: Option<String>,
}

/// Rows, in the order in which things were looked at.
#[derive(Debug, Default)]
pub(crate) struct CheckReport(Vec<CheckResult>);

impl CheckReport {
    /// It is as it should be.
    pub(crate) fn ok(&mut self, what: impl Into<String>, found: impl ToString) {
        self.push(what, CheckStatus::Ok, found, None);
    }

    /// It could not be looked at.
    pub(crate) fn unknown(&mut self, what: impl Into<String>, why: impl ToString) {
        self.push(what, CheckStatus::Unknown, why, None);
    }

    /// It works; `mend` may be empty when `found` says what to do.
    pub(crate) fn warn(&mut self, what: impl Into<String>, found: impl ToString, mend: &str) {
        self.push(what, CheckStatus::Warn, found, Some(mend));
    }

    /// It does not work; `mend` as with [`Self::warn`].
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

    /// Takes over another's rows.
    pub(crate) fn append(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// All of them, those about one thing together.
    pub(crate) fn checks(&self) -> Vec<&CheckResult> {
        let mut rows: Vec<_> = self.0.iter().collect();
        rows.sort_by_key(|row| self.0.iter().position(|first| first.subject == row.subject));
        rows
    }

    /// Those in a state.
    pub(crate) fn with_status(&self, state: CheckStatus) -> impl Iterator<Item = &CheckResult> {
        self.0.iter().filter(move |row| row.status == state)
    }

    /// For programs.
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
    /// In one line.
    pub(crate) fn to_line(&self) -> String {
        let Self { subject: what, observed: found, fix: mend, .. } = self;
        match mend {
            Some(mend) => format!("{what}: {found}: {mend}"),
            None => format!("{what}: {found}"),
        }
    }
}

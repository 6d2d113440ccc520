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
            Self::Fail => "fail",
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
    pub(crate) fn ok(&mut self, subject: impl Into<String>, observed: impl ToString) {
        self.push(subject, CheckStatus::Ok, observed, None);
    }

    /// The check could not run.
    pub(crate) fn unknown(&mut self, subject: impl Into<String>, observed: impl ToString) {
        self.push(subject, CheckStatus::Unknown, observed, None);
    }

    /// `fix` is empty when `observed` contains it.
    pub(crate) fn warn(&mut self, subject: impl Into<String>, observed: impl ToString, fix: &str) {
        self.push(subject, CheckStatus::Warn, observed, Some(fix));
    }

    /// `fix` as in [`Self::warn`].
    pub(crate) fn fail(&mut self, subject: impl Into<String>, observed: impl ToString, fix: &str) {
        self.push(subject, CheckStatus::Fail, observed, Some(fix));
    }

    fn push(
        &mut self,
        subject: impl Into<String>,
        status: CheckStatus,
        observed: impl ToString,
        fix: Option<&str>,
    ) {
        let fix = fix.filter(|fix| !fix.is_empty()).map(str::to_owned);
        let (subject, mut observed) = (subject.into(), observed.to_string());
        // An error may begin with the setting that is the subject.
        if let Some(rest) = observed.strip_prefix(&subject).and_then(|rest| rest.strip_prefix(": ")) {
            observed = rest.to_owned();
        }
        self.0.push(CheckResult { subject, status, observed, fix });
    }

    pub(crate) fn append(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// All results, grouped by subject.
    pub(crate) fn checks(&self) -> Vec<&CheckResult> {
        let mut results: Vec<_> = self.0.iter().collect();
        results.sort_by_key(|result| self.0.iter().position(|other| other.subject == result.subject));
        results
    }

    pub(crate) fn with_status(&self, status: CheckStatus) -> impl Iterator<Item = &CheckResult> {
        self.0.iter().filter(move |result| result.status == status)
    }

    pub(crate) fn to_json(&self) -> Value {
        let result = |result: &CheckResult| {
            json!({
                "subject": result.subject,
                "status": result.status.as_str(),
                "observed": result.observed,
                "fix": result.fix,
            })
        };
        Value::Array(self.checks().into_iter().map(result).collect())
    }
}

impl CheckResult {
    /// All parts in one line.
    pub(crate) fn to_line(&self) -> String {
        let Self { subject, observed, fix, .. } = self;
        match fix {
            Some(fix) => format!("{subject}: {observed}: {fix}"),
            None => format!("{subject}: {observed}"),
        }
    }
}

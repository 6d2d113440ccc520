//! What an examination found: one row for each thing that was looked at, for `check`, which stops at what stops a start, and for `doctor`.

use serde_json::{Value, json};

/// How a thing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// As it should be.
    Ok,
    /// It cannot be told from here; the row says why.
    Unknown,
    /// It works, but probably not as intended, or not for long.
    Warn,
    /// It does not work.
    Wrong,
}

impl State {
    /// The word in tables and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Unknown => "unknown",
            Self::Warn => "warn",
            Self::Wrong => "wrong",
        }
    }
}

/// One row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// What was looked at: a setting, an endpoint, a listener.
    pub what: String,
    /// How it is.
    pub state: State,
    /// What was found.
    pub found: String,
    /// What to do, where `found` does not say so already.
    pub mend: Option<String>,
}

/// Rows, in the order in which things were looked at.
#[derive(Debug, Default)]
pub struct Examination(Vec<Row>);

impl Examination {
    /// It is as it should be.
    pub fn ok(&mut self, what: impl Into<String>, found: impl ToString) {
        self.push(what, State::Ok, found, None);
    }

    /// It could not be looked at.
    pub fn unknown(&mut self, what: impl Into<String>, why: impl ToString) {
        self.push(what, State::Unknown, why, None);
    }

    /// It works; `mend` may be empty when `found` says what to do.
    pub fn warn(&mut self, what: impl Into<String>, found: impl ToString, mend: &str) {
        self.push(what, State::Warn, found, Some(mend));
    }

    /// It does not work; `mend` as with [`Self::warn`].
    pub fn wrong(&mut self, what: impl Into<String>, found: impl ToString, mend: &str) {
        self.push(what, State::Wrong, found, Some(mend));
    }

    fn push(&mut self, what: impl Into<String>, state: State, found: impl ToString, mend: Option<&str>) {
        let mend = mend.filter(|mend| !mend.is_empty()).map(str::to_owned);
        self.0.push(Row { what: what.into(), state, found: found.to_string(), mend });
    }

    /// Takes over another's rows.
    pub fn append(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// All of them, those about one thing together.
    pub fn rows(&self) -> Vec<&Row> {
        let mut rows: Vec<_> = self.0.iter().collect();
        rows.sort_by_key(|row| self.0.iter().position(|first| first.what == row.what));
        rows
    }

    /// Those in a state.
    pub fn of(&self, state: State) -> impl Iterator<Item = &Row> {
        self.0.iter().filter(move |row| row.state == state)
    }

    /// For programs.
    pub fn json(&self) -> Value {
        let row = |row: &Row| {
            json!({
                "what": row.what, "state": row.state.as_str(), "found": row.found, "mend": row.mend,
            })
        };
        Value::Array(self.rows().into_iter().map(row).collect())
    }
}

impl Row {
    /// In one line.
    pub fn sentence(&self) -> String {
        let Self { what, found, mend, .. } = self;
        match mend {
            Some(mend) => format!("{what}: {found}: {mend}"),
            None => format!("{what}: {found}"),
        }
    }
}

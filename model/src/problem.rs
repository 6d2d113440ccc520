//! Problems of documents and resources: field, message and hint.
//!
//! The Admin API's 400, a data plane's NACK and log lines all show this type. Invariant: a problem
//! quotes no private key and no field that may contain one; other quoted values are redacted when
//! they are displayed.

use std::borrow::Cow;
use std::fmt;

use crate::redact::redact;

/// Why a document or resource is invalid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Problem {
    /// The path of the field (`client.ca`, `snis[1]`); empty for the whole resource.
    pub field: String,
    /// The message, in APISIX's words where it has any (with `invalid configuration: `).
    pub message: String,
    /// What to do, or what was probably meant.
    pub hint: Option<String>,
    /// Decides what happens to a stored document.
    pub kind: ProblemKind,
}

/// The kind of a problem. The Admin API treats all alike and changes nothing. A stored document has
/// replaced its predecessor already, and the kind decides which of the two counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ProblemKind {
    /// The document is invalid and its intention unknown, so its predecessor stays (contract 9.3).
    #[default]
    Invalid,
    /// The document asks for a feature that the gateway lacks. Its predecessor is outdated.
    Unsupported,
    /// The document secures a connection with unusable data, which APISIX detects at each
    /// connection (contract 4.3) or request (contract 6.1: 503). Its predecessor, which may be
    /// unsecured, is outdated.
    Unusable,
}

impl Problem {
    /// Creates a problem of a field.
    pub fn new(field: impl Into<String>, message: impl Into<String>) -> Problem {
        Problem { field: field.into(), message: message.into(), hint: None, kind: ProblemKind::default() }
    }

    /// Sets the kind.
    #[must_use]
    pub(crate) fn with_kind(self, fault: ProblemKind) -> Problem {
        Problem { kind: fault, ..self }
    }

    /// Sets the hint.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Problem {
        self.hint = Some(hint.into());
        self
    }

    /// Field, message and hint for display.
    pub fn redacted(&self) -> (Cow<'_, str>, Cow<'_, str>, Option<Cow<'_, str>>) {
        (redact(&self.field), redact(&self.message), self.hint.as_deref().map(redact))
    }

    /// Prefixes the field with that of the containing object: `upstream` and `tls` give
    /// `upstream.tls`.
    #[must_use]
    pub fn within(mut self, outer: &str) -> Problem {
        self.field = match (outer, self.field.as_str()) {
            ("", _) => return self,
            (_, "") => outer.to_owned(),
            (_, inner) if inner.starts_with('[') => format!("{outer}{inner}"),
            (_, inner) => format!("{outer}.{inner}"),
        };
        self
    }
}

/// Displays the message with the hint in brackets. Messages name the field themselves.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (_, message, hint) = self.redacted();
        f.write_str(&message)?;
        match hint {
            Some(hint) => write!(f, " ({hint})"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_nest_and_hints_are_displayed() {
        let problem = Problem::new("tls", "no").within("upstream").with_hint("say yes");
        assert_eq!(problem.field, "upstream.tls");
        assert_eq!(problem.to_string(), "no (say yes)");
        assert_eq!(Problem::new("", "no").within("upstream").field, "upstream");
        assert_eq!(Problem::new("a", "no").within("").field, "a");
    }

    #[test]
    fn possible_keys_are_redacted() {
        let key = "-----BEGIN PRIVATE KEY-----\nMC4CAQAw\n-----END PRIVATE KEY-----";
        let problem = Problem::new(key, format!("found \"{key}\"")).with_hint(format!("did you mean {key}?"));
        let (field, message, hint) = problem.redacted();
        for text in [&field, &message, &hint.unwrap(), problem.to_string().as_str()] {
            assert!(!text.contains("MC4C"), "{text}");
        }
        assert!(message.starts_with("found "), "{message}");
    }
}

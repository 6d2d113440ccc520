//! What is wrong with a document or a resource: where, what, and what to do about it.
//!
//! One type for the Admin API's 400, for a data plane's NACK and for logs. A problem never quotes a
//! private key, nor anything else of a field that may hold one; what it quotes of other fields is
//! redacted where it is shown.

use std::borrow::Cow;
use std::fmt;

use crate::redact::redact;

/// Why a document is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Problem {
    /// The field, as a path (`client.ca`, `snis[1]`); empty when it is about the whole resource.
    pub field: String,
    /// What is wrong. Where APISIX has a text for it, exactly that text (with `invalid
    /// configuration: `).
    pub message: String,
    /// What to do, or what was probably meant.
    pub hint: Option<String>,
    /// Whether the document is none, or asks for more than there is.
    pub kind: ProblemKind,
}

/// What sort of problem it is. To the Admin API all are alike: the document is refused, nothing is
/// changed. A document that another program stored has taken the place of the one before, and then
/// it matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ProblemKind {
    /// The document is not valid: it cannot be told what it asks for, so what it was before goes on
    /// (contract 9.3).
    #[default]
    Invalid,
    /// The document asks for something that this gateway does not have: what it was before is not
    /// what is wanted any more.
    Unsupported,
    /// A connection shall be secured with something that cannot be used, which an APISIX finds out
    /// with each connection (contract 4.3) or request (contract 6.1: 503): what it was before,
    /// perhaps secured with nothing, is not what is wanted any more.
    Unusable,
}

impl Problem {
    /// A problem of that field.
    pub fn new(field: impl Into<String>, message: impl Into<String>) -> Problem {
        Problem { field: field.into(), message: message.into(), hint: None, kind: ProblemKind::default() }
    }

    /// The same problem, of that sort.
    #[must_use]
    pub fn with_kind(self, fault: ProblemKind) -> Problem {
        Problem { kind: fault, ..self }
    }

    /// The same problem with advice.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Problem {
        self.hint = Some(hint.into());
        self
    }

    /// Field, message and hint as they may be shown.
    pub fn redacted(&self) -> (Cow<'_, str>, Cow<'_, str>, Option<Cow<'_, str>>) {
        (redact(&self.field), redact(&self.message), self.hint.as_deref().map(redact))
    }

    /// The same problem seen from the resource that contains the field's owner: `upstream` + `tls`
    /// is `upstream.tls`.
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

/// The message, then the hint in brackets. The field is not repeated: texts of ours name it
/// already.
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
    fn fields_nest_and_hints_show() {
        let problem = Problem::new("tls", "no").within("upstream").with_hint("say yes");
        assert_eq!(problem.field, "upstream.tls");
        assert_eq!(problem.to_string(), "no (say yes)");
        assert_eq!(Problem::new("", "no").within("upstream").field, "upstream");
        assert_eq!(Problem::new("a", "no").within("").field, "a");
    }

    #[test]
    fn what_may_be_a_key_is_not_shown() {
        let key = "-----BEGIN PRIVATE KEY-----\nMC4CAQAw\n-----END PRIVATE KEY-----";
        let problem = Problem::new(key, format!("found \"{key}\"")).with_hint(format!("did you mean {key}?"));
        let (field, message, hint) = problem.redacted();
        for text in [&field, &message, &hint.unwrap(), problem.to_string().as_str()] {
            assert!(!text.contains("MC4C"), "{text}");
        }
        assert!(message.starts_with("found "), "{message}");
    }
}

//! What is wrong with a document or a resource: where, what, and what to do about it.
//!
//! One type for the Admin API's 400, for a data plane's NACK and for logs. A problem never quotes a private
//! key, nor anything else of a field that may hold one.

use std::fmt;

/// Why a document is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Problem {
    /// The field, as a path (`client.ca`, `snis[1]`); empty when it is about the whole resource.
    pub field: String,
    /// What is wrong. Where APISIX has a text for it, exactly that text (with `invalid configuration: `).
    pub message: String,
    /// What to do, or what was probably meant.
    pub hint: Option<String>,
}

impl Problem {
    /// A problem of that field.
    pub fn new(field: impl Into<String>, message: impl Into<String>) -> Problem {
        Problem { field: field.into(), message: message.into(), hint: None }
    }

    /// The same problem with advice.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Problem {
        self.hint = Some(hint.into());
        self
    }

    /// The same problem seen from the resource that contains the field's owner: `upstream` + `tls` is
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

/// The message, then the hint in brackets. The field is not repeated: texts of ours name it already.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.hint {
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
}

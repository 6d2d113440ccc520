//! Name patterns: an exact name, a wildcard prefix, or `*`. One type serves the `sni`/`snis` of an
//! ssl and the hosts of routes and services; the caller decides how many labels a wildcard covers
//! (one for an ssl, any number for a route: contract 4.2 and 7.1).

use std::fmt;

use crate::host_name::HostName;
use crate::problem::Problem;

/// A configured name pattern.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NamePattern {
    /// One name.
    Exact(HostName),
    /// All names with this suffix: `.test.com` of `*.test.com`, or `test.com` of `*test.com`.
    Suffix(HostName),
    /// All names: `*`.
    Any,
}

/// A name of an ssl.
pub type SniPattern = NamePattern;
/// A host of a route or service.
pub type HostPattern = NamePattern;

impl NamePattern {
    /// Parses a pattern: lower-cases it and removes one trailing dot.
    ///
    /// # Errors
    ///
    /// A text that matches no name (empty labels, a `*` elsewhere than in front, too long), with an
    /// empty `field`.
    pub fn parse(text: &str) -> Result<NamePattern, Problem> {
        if text == "*" {
            return Ok(NamePattern::Any);
        }
        let invalid = |hint: &str| {
            Problem::new("", format!("\"{text}\" is not a name or a wildcard that could match one"))
                .with_hint(hint)
        };
        let Some(suffix) = text.strip_prefix('*') else {
            return HostName::from_sni(text).map(NamePattern::Exact).ok_or_else(|| {
                invalid("expected a name like www.example.com, a wildcard like *.example.com, or *")
            });
        };
        // The suffix without its leading dot must be a name.
        let trimmed = suffix.strip_suffix('.').unwrap_or(suffix);
        match HostName::from_sni(trimmed.strip_prefix('.').unwrap_or(trimmed)) {
            Some(_) if !trimmed.ends_with('.') => {
                Ok(NamePattern::Suffix(HostName::from_bytes(trimmed.as_bytes())))
            }
            _ => Err(invalid("after the * comes the rest of a name, like *.example.com")),
        }
    }

    /// Whether the name matches, at any depth of labels.
    pub fn matches(&self, name: &HostName) -> bool {
        match self {
            NamePattern::Exact(own) => own == name,
            NamePattern::Suffix(suffix) => name.as_bytes().ends_with(suffix.as_bytes()),
            NamePattern::Any => true,
        }
    }

    /// Whether some name matches both patterns.
    pub fn overlaps(&self, other: &NamePattern) -> bool {
        match (self, other) {
            (NamePattern::Any, _) | (_, NamePattern::Any) => true,
            (NamePattern::Exact(name), pattern) | (pattern, NamePattern::Exact(name)) => {
                pattern.matches(name)
            }
            (NamePattern::Suffix(one), NamePattern::Suffix(other)) => {
                one.as_bytes().ends_with(other.as_bytes()) || other.as_bytes().ends_with(one.as_bytes())
            }
        }
    }

    /// The end of all names that match, reversed: of two patterns that overlap, one stem starts
    /// with the other.
    pub(crate) fn stem(&self) -> Vec<u8> {
        match self {
            NamePattern::Exact(name) | NamePattern::Suffix(name) => {
                name.as_bytes().iter().rev().copied().collect()
            }
            NamePattern::Any => Vec::new(),
        }
    }
}

/// Formats the pattern as in a document.
impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NamePattern::Exact(name) => write!(f, "{name}"),
            NamePattern::Suffix(suffix) => write!(f, "*{suffix}"),
            NamePattern::Any => f.write_str("*"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn displayed(text: &str) -> String {
        NamePattern::parse(text).unwrap().to_string()
    }

    #[test]
    fn patterns_are_normalized_and_displayed_as_written() {
        assert_eq!(displayed("WWW.test.com."), "www.test.com");
        assert_eq!(displayed("*.TesT2.com."), "*.test2.com");
        assert_eq!(displayed("*x.com"), "*x.com");
        assert_eq!(displayed("*"), "*");
        for bad in ["", ".", "*.", "*..", "*..a", "a.*", "**", "*.a..", "a*.com"] {
            assert!(NamePattern::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn wildcards_need_their_dot() {
        let fits = |pattern: &str, name: &str| {
            NamePattern::parse(pattern).unwrap().matches(&HostName::from_sni(name).unwrap())
        };
        assert!(fits("*.test.com", "a.test.com"));
        assert!(!fits("*.test.com", "test.com"));
        assert!(fits("*x.com", "foox.com"));
        assert!(fits("*x.com", "x.com"));
        assert!(fits("*", "anything"));
    }
}

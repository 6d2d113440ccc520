//! Path patterns of routes in the syntax of APISIX's radixtree router (contract 7.1): an exact
//! path, a prefix with a `*` at the end, or a pattern with a `*` in the middle.
//!
//! Patterns match the normalized path and have no other special characters. Matching is linear in
//! the path, without backtracking.

use std::fmt;
use std::sync::Arc;

use crate::problem::Problem;

/// A path pattern. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UriPattern {
    text: Arc<str>,
    shape: Shape,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Shape {
    Exact,
    Prefix,
    /// The literal parts around the wildcards; the first and last are anchored.
    Glob(Arc<[Box<str>]>),
}

impl UriPattern {
    /// Parses a pattern.
    ///
    /// # Errors
    ///
    /// A `*` inside a segment (`/a*b/c`): APISIX turns it into a part of a regular expression with
    /// a surprising meaning. The `field` is empty.
    pub fn parse(text: &str) -> Result<UriPattern, Problem> {
        let Some(star) = text.find('*') else {
            return Ok(UriPattern { text: text.into(), shape: Shape::Exact });
        };
        if star + 1 == text.len() {
            return Ok(UriPattern { text: text.into(), shape: Shape::Prefix });
        }
        Ok(UriPattern { text: text.into(), shape: Shape::Glob(pieces(text)?) })
    }

    /// Parses a pattern, and an invalid one as the prefix before its `*`: a blocked route must
    /// match every path that APISIX would match. The text stays, because it orders patterns.
    pub(crate) fn parse_widened(text: &str) -> UriPattern {
        UriPattern::parse(text).unwrap_or_else(|_| UriPattern { text: text.into(), shape: Shape::Prefix })
    }

    /// The pattern as configured.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether the pattern matches one path only.
    pub(crate) fn is_exact(&self) -> bool {
        self.shape == Shape::Exact
    }

    /// The prefix of all matching paths: the text before the first `*`.
    pub fn prefix(&self) -> &str {
        self.text.split('*').next().unwrap_or_default()
    }

    /// Whether some path may match both patterns; certain unless both have a `*`.
    pub fn overlaps(&self, other: &UriPattern) -> bool {
        match (&self.shape, &other.shape) {
            (Shape::Exact, _) => other.matches(&self.text),
            (_, Shape::Exact) => self.matches(&other.text),
            _ => {
                let (one, two) = (self.prefix(), other.prefix());
                let (end, its_end) = (self.ending(), other.ending());
                (one.starts_with(two) || two.starts_with(one))
                    && (end.ends_with(its_end) || its_end.ends_with(end))
            }
        }
    }

    /// Whether the pattern certainly matches every path that `other` matches.
    pub(crate) fn covers(&self, other: &UriPattern) -> bool {
        match (&self.shape, &other.shape) {
            (_, Shape::Exact) => self.matches(&other.text),
            (Shape::Prefix, _) => other.prefix().starts_with(self.prefix()),
            _ => self == other,
        }
    }

    /// The ending of all matching paths: the text after the last `*`.
    fn ending(&self) -> &str {
        match &self.shape {
            Shape::Exact => &self.text,
            Shape::Prefix => "",
            Shape::Glob(pieces) => pieces.last().map_or("", |last| last),
        }
    }

    /// Whether the pattern matches a normalized path.
    pub fn matches(&self, path: &str) -> bool {
        match &self.shape {
            Shape::Exact => path == &*self.text,
            Shape::Prefix => path.starts_with(self.prefix()),
            Shape::Glob(pieces) => fits(pieces, path),
        }
    }
}

/// Splits a pattern at its wildcards. A segment that starts with `*` matches anything, including
/// slashes, and the rest of the segment is only a name (`/static/*path`).
fn pieces(text: &str) -> Result<Arc<[Box<str>]>, Problem> {
    let mut pieces = vec![String::new()];
    let mut segments = text.split('/').peekable();
    let mut first = true;
    while let Some(segment) = segments.next() {
        let separator = if first { "" } else { "/" };
        first = false;
        let last = segments.peek().is_none();
        let (literal, wild) = match segment.find('*') {
            None => (segment, false),
            Some(0) => ("", true),
            Some(at) if last && at + 1 == segment.len() => (segment.get(..at).unwrap_or_default(), true),
            Some(_) => {
                return Err(Problem::new("", format!("\"{text}\" has a * inside a path segment"))
                    .with_hint("a * may start a segment or end the uri: /a/*/b, /a/*, /a*"));
            }
        };
        if let Some(piece) = pieces.last_mut() {
            piece.push_str(separator);
            piece.push_str(literal);
        }
        if wild {
            pieces.push(String::new());
        }
    }
    Ok(pieces.into_iter().map(String::into_boxed_str).collect())
}

/// Matches the first part at the start, the last at the end, and the others in order at their first
/// occurrence: for patterns whose only special character is `*`, greedy search finds every match.
fn fits(pieces: &[Box<str>], path: &str) -> bool {
    let [first, middle @ .., last] = pieces else { return false };
    let Some(mut rest) = path.strip_prefix(&**first).and_then(|rest| rest.strip_suffix(&**last)) else {
        return false;
    };
    for piece in middle {
        match rest.split_once(&**piece) {
            Some((_, after)) => rest = after,
            None => return false,
        }
    }
    true
}

impl fmt::Display for UriPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for UriPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.text, f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fits(pattern: &str, path: &str) -> bool {
        UriPattern::parse(pattern).unwrap().matches(path)
    }

    #[test]
    fn a_star_at_the_end_is_a_prefix() {
        assert!(fits("/foo/*", "/foo/"));
        assert!(fits("/foo/*", "/foo/a/b"));
        assert!(!fits("/foo/*", "/foo"));
        assert!(fits("/foo*", "/foobar"));
        assert!(fits("/*", "/"));
        assert!(fits("*", "/x"));
        assert!(fits("/foo", "/foo"));
        assert!(!fits("/foo", "/foo/"));
    }

    #[test]
    fn a_star_in_the_middle_needs_the_whole_pattern() {
        assert!(fits("/a/*/b", "/a/x/b"));
        assert!(fits("/a/*/b", "/a/x/y/b"));
        assert!(fits("/a/*/b", "/a/b/b/b"));
        assert!(!fits("/a/*/b", "/a/x/c"));
        assert!(!fits("/a/*/b", "/a/b"));
        assert!(!fits("/a/*/b", "/a/x/b/c"));
        assert!(fits("/a/*rest", "/a/x/y"));
        assert!(fits("/a/*/b*", "/a/x/bcd/e"));
        assert!(fits("/a/*/b/*/c", "/a/1/b/2/b/3/c"));
        assert!(!fits("/a/*/b/*/c", "/a/1/b/c"));
        assert!(UriPattern::parse("/a*b/c").is_err());
        assert_eq!(UriPattern::parse("/a/*/b").unwrap().prefix(), "/a/");
    }

    proptest! {
        /// Compares with the definition as a regular expression.
        #[test]
        fn agrees_with_the_regular_expression(
            pattern in "(/(a|b|ab|\\*)){1,5}(\\*|/)?", path in "(/(a|b|ab|aab)){1,6}/?"
        ) {
            let ours = UriPattern::parse(&pattern);
            prop_assume!(ours.is_ok());
            let text: Vec<String> = pattern.split('/').map(|segment| match segment.find('*') {
                Some(at) => format!("{}.*", &segment[..at]),
                None => segment.to_owned(),
            }).collect();
            let regex = regex::Regex::new(&format!("^(?s:{})$", text.join("/"))).unwrap();
            prop_assert_eq!(ours.unwrap().matches(&path), regex.is_match(&path), "{} {}", pattern, path);
        }

        #[test]
        fn overlaps_and_covers_agree_with_matches(
            one in "(/(a|b|\\*)){1,3}(\\*|/)?", other in "(/(a|b|\\*)){1,3}(\\*|/)?", path in "(/(a|b)){1,4}/?"
        ) {
            let (one, other) = (UriPattern::parse(&one), UriPattern::parse(&other));
            prop_assume!(one.is_ok() && other.is_ok());
            let (one, other) = (one.unwrap(), other.unwrap());
            let (matches, its) = (one.matches(&path), other.matches(&path));
            prop_assert!(one.overlaps(&other) || !(matches && its));
            prop_assert!(!one.covers(&other) || matches || !its);
            prop_assert!(one.covers(&one) && one.overlaps(&one));
        }
    }
}

//! Kinds, ids and keys of resources.
//!
//! Ids come from URLs, documents, the store and the wire, always through [`Id::parse`], so an
//! [`Id`] is one path segment of at most 64 safe characters. Keys sort like in the store (kind,
//! then bytes of the id). When two resources claim the same name, the lower key wins.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use crate::problem::Problem;

/// The kinds of resources, in the order of dependency: a resource refers only to kinds before its
/// own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Certificates for names with the client policy, or (`type: client`) a client certificate for
    /// upstreams.
    Ssl,
    /// Nodes that requests are forwarded to, and how.
    Upstream,
    /// Settings that several routes share.
    Service,
    /// Plugins that several routes share.
    PluginConfig,
    /// Matches requests and selects an upstream.
    Route,
    /// Matches TCP connections and selects an upstream.
    StreamRoute,
    /// Plugins of all requests.
    GlobalRule,
}

impl Kind {
    /// Every kind, in the order of dependency.
    pub const ALL: [Kind; 7] = [
        Kind::Ssl,
        Kind::Upstream,
        Kind::Service,
        Kind::PluginConfig,
        Kind::Route,
        Kind::StreamRoute,
        Kind::GlobalRule,
    ];

    /// The segment in Admin URLs and store keys, like `ssls`.
    pub fn plural(self) -> &'static str {
        match self {
            Kind::Ssl => "ssls",
            Kind::Upstream => "upstreams",
            Kind::Service => "services",
            Kind::PluginConfig => "plugin_configs",
            Kind::Route => "routes",
            Kind::StreamRoute => "stream_routes",
            Kind::GlobalRule => "global_rules",
        }
    }

    /// The name of the schema, like `ssl`.
    pub fn singular(self) -> &'static str {
        match self {
            Kind::Ssl => "ssl",
            Kind::Upstream => "upstream",
            Kind::Service => "service",
            Kind::PluginConfig => "plugin_config",
            Kind::Route => "route",
            Kind::StreamRoute => "stream_route",
            Kind::GlobalRule => "global_rule",
        }
    }

    /// The word in Admin messages ("missing ssl id").
    pub fn noun(self) -> &'static str {
        match self {
            Kind::PluginConfig => "plugin config",
            Kind::StreamRoute => "stream route",
            Kind::GlobalRule => "global rule",
            other => other.singular(),
        }
    }

    /// The inverse of [`plural`](Kind::plural).
    pub fn from_plural(text: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.plural() == text)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.singular())
    }
}

/// A valid id of 1 to 64 letters, digits, `-`, `_` and `.` (contract section 3). Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(Arc<str>);

impl Id {
    /// The longest id, in characters.
    pub const MAX: usize = 64;

    /// Parses an id.
    ///
    /// # Errors
    ///
    /// The Admin API's message for an invalid id.
    pub fn parse(text: &str) -> Result<Id, Problem> {
        let fits = (1..=Self::MAX).contains(&text.len());
        let harmless = text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
        if fits && harmless {
            return Ok(Id(text.into()));
        }
        Err(Problem::new(
            "id",
            "invalid configuration: property \"id\" validation failed: object matches none of the required",
        )
        .with_hint("an id has 1 to 64 of letters, digits, '-', '_' and '.'"))
    }

    /// The id of an inline resource; no text parses to it.
    pub(crate) fn nameless() -> Id {
        Id("".into())
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl Borrow<str> for Id {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for Id {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

/// The kind and id of a resource. Displays like in Admin URLs and store keys: `ssls/1`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// The kind of the resource.
    pub kind: Kind,
    /// The id within the kind.
    pub id: Id,
}

impl Key {
    /// Combines a kind and an id.
    pub fn new(kind: Kind, id: Id) -> Key {
        Key { kind, id }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind.plural(), self.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_one_safe_path_segment() {
        for good in ["1", "a-b-c-ABC_0123", "00000000000000000123", "x.y", &"a".repeat(64)] {
            assert_eq!(Id::parse(good).unwrap().as_str(), good);
        }
        for bad in ["", "*invalid", "a/b", "..%2f", "é", "a b", &"a".repeat(65)] {
            let problem = Id::parse(bad).unwrap_err();
            assert_eq!(problem.field, "id");
            assert!(problem.message.contains("object matches none of the required"));
        }
    }

    #[test]
    fn keys_sort_by_kind_then_bytes() {
        let key = |kind, id: &str| Key::new(kind, Id::parse(id).unwrap());
        assert!(key(Kind::Ssl, "9") < key(Kind::Upstream, "1"));
        assert!(key(Kind::Route, "10") < key(Kind::Route, "2"));
        assert_eq!(key(Kind::Ssl, "1").to_string(), "ssls/1");
        assert_eq!(Kind::from_plural("routes"), Some(Kind::Route));
        assert_eq!(Kind::from_plural("route"), None);
    }
}

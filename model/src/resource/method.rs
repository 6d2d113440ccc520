//! The methods of a route, as a bit set.

use std::fmt;

/// A method of the route schema (contract 3.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)] // their names say it all
pub enum RouteMethod {
    Get,
    Post,
    Put,
    Delete,
    Patch,
    Head,
    Options,
    Connect,
    Trace,
    Purge,
}

impl RouteMethod {
    /// Every method.
    pub const ALL: [RouteMethod; 10] = [
        RouteMethod::Get,
        RouteMethod::Post,
        RouteMethod::Put,
        RouteMethod::Delete,
        RouteMethod::Patch,
        RouteMethod::Head,
        RouteMethod::Options,
        RouteMethod::Connect,
        RouteMethod::Trace,
        RouteMethod::Purge,
    ];

    /// The method as on the request line.
    pub fn as_str(self) -> &'static str {
        match self {
            RouteMethod::Get => "GET",
            RouteMethod::Post => "POST",
            RouteMethod::Put => "PUT",
            RouteMethod::Delete => "DELETE",
            RouteMethod::Patch => "PATCH",
            RouteMethod::Head => "HEAD",
            RouteMethod::Options => "OPTIONS",
            RouteMethod::Connect => "CONNECT",
            RouteMethod::Trace => "TRACE",
            RouteMethod::Purge => "PURGE",
        }
    }

    /// Parses a method, which is case-sensitive [RFC 9110, 9.1].
    pub fn parse(text: &str) -> Option<RouteMethod> {
        RouteMethod::ALL.into_iter().find(|method| method.as_str() == text)
    }
}

/// A set of methods. An empty set of a route allows all methods ([`MethodSet::allows`]).
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct MethodSet(u16);

impl MethodSet {
    /// Whether the set is empty.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether the set lists the method.
    pub fn contains(self, method: RouteMethod) -> bool {
        self.0 & (1 << method as u16) != 0
    }

    /// Whether a route with this set matches a request with the method. GET does not imply HEAD.
    pub fn allows(self, method: &str) -> bool {
        self.is_empty() || RouteMethod::parse(method).is_some_and(|method| self.contains(method))
    }

    /// Whether a route with this set matches each request that one with `other` matches.
    pub(crate) fn is_superset(self, other: MethodSet) -> bool {
        self.is_empty() || (!other.is_empty() && other.0 & !self.0 == 0)
    }

    /// Whether routes with these sets match a common request.
    pub(crate) fn overlaps(self, other: MethodSet) -> bool {
        self.is_empty() || other.is_empty() || self.0 & other.0 != 0
    }

    /// The listed methods.
    pub fn iter(self) -> impl Iterator<Item = RouteMethod> {
        RouteMethod::ALL.into_iter().filter(move |method| self.contains(*method))
    }
}

impl FromIterator<RouteMethod> for MethodSet {
    fn from_iter<I: IntoIterator<Item = RouteMethod>>(methods: I) -> MethodSet {
        MethodSet(methods.into_iter().fold(0, |set, method| set | 1 << method as u16))
    }
}

impl fmt::Debug for MethodSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter().map(RouteMethod::as_str)).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_set_allows_every_method() {
        assert!(MethodSet::default().allows("GET"));
        assert!(MethodSet::default().allows("BREW"));
    }

    #[test]
    fn listed_methods_match_exactly() {
        let set: MethodSet = [RouteMethod::Get, RouteMethod::Purge].into_iter().collect();
        assert!(set.allows("GET") && set.allows("PURGE"));
        for other in ["HEAD", "get", "BREW", ""] {
            assert!(!set.allows(other), "{other}");
        }
        for method in RouteMethod::ALL {
            assert_eq!(RouteMethod::parse(method.as_str()), Some(method));
        }
    }
}

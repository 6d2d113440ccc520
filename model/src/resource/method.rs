//! The methods a route may name, as a set that is one comparison to ask.

use std::fmt;

/// A method the route schema knows (contract 3.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)] // their names say it all
pub enum Method {
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

impl Method {
    /// All of them.
    pub const ALL: [Method; 10] = [
        Method::Get,
        Method::Post,
        Method::Put,
        Method::Delete,
        Method::Patch,
        Method::Head,
        Method::Options,
        Method::Connect,
        Method::Trace,
        Method::Purge,
    ];

    /// As on the request line.
    pub fn as_str(self) -> &'static str {
        match self {
            Method::Get => "GET",
            Method::Post => "POST",
            Method::Put => "PUT",
            Method::Delete => "DELETE",
            Method::Patch => "PATCH",
            Method::Head => "HEAD",
            Method::Options => "OPTIONS",
            Method::Connect => "CONNECT",
            Method::Trace => "TRACE",
            Method::Purge => "PURGE",
        }
    }

    /// The method written like this. Methods are case-sensitive [RFC 9110, 9.1].
    pub fn parse(text: &str) -> Option<Method> {
        Method::ALL.into_iter().find(|method| method.as_str() == text)
    }
}

/// A set of methods. The empty set of a route means "all": ask [`Methods::allow`].
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Methods(u16);

impl Methods {
    /// Whether no method was named.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether that one was named.
    pub fn contains(self, method: Method) -> bool {
        self.0 & (1 << method as u16) != 0
    }

    /// Whether a route with this set takes a request with that method. HEAD is not implied by GET.
    pub fn allow(self, method: &str) -> bool {
        self.is_empty() || Method::parse(method).is_some_and(|method| self.contains(method))
    }

    /// Whether a route with this set takes every request that one with the other set takes.
    pub fn contain(self, other: Methods) -> bool {
        self.is_empty() || (!other.is_empty() && other.0 & !self.0 == 0)
    }

    /// The methods that were named.
    pub fn iter(self) -> impl Iterator<Item = Method> {
        Method::ALL.into_iter().filter(move |method| self.contains(*method))
    }
}

impl FromIterator<Method> for Methods {
    fn from_iter<I: IntoIterator<Item = Method>>(methods: I) -> Methods {
        Methods(methods.into_iter().fold(0, |set, method| set | 1 << method as u16))
    }
}

impl fmt::Debug for Methods {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter().map(Method::as_str)).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_method_named_means_all() {
        assert!(Methods::default().allow("GET"));
        assert!(Methods::default().allow("BREW"));
    }

    #[test]
    fn named_methods_are_exact() {
        let set: Methods = [Method::Get, Method::Purge].into_iter().collect();
        assert!(set.allow("GET") && set.allow("PURGE"));
        for other in ["HEAD", "get", "BREW", ""] {
            assert!(!set.allow(other), "{other}");
        }
        for method in Method::ALL {
            assert_eq!(Method::parse(method.as_str()), Some(method));
        }
    }
}

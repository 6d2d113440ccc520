//! Paths of the Admin API: which row of the operation table a request matches (contract 2.2).
//!
//! A path is decoded before it is matched, so that `%2F` separates segments, as in APISIX. A fixed
//! segment matches before a parameter does. This file knows no operations; `operation` has them.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use http::Method;
use matchit::Router;
use percent_encoding::percent_decode_str;

use super::operation::{Operation, operations};

/// A path, percent-decoded.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum AdminPath {
    /// Not below `/apisix/admin`.
    Elsewhere,
    /// `/apisix/admin` itself.
    Root,
    /// The rest of the path, without the slashes around it.
    Below(String),
}

impl AdminPath {
    pub(super) fn parse(path: &str) -> Self {
        let path = percent_decode_str(path).decode_utf8_lossy();
        match path.strip_prefix("/apisix/admin") {
            Some("" | "/") => Self::Root,
            Some(rest) => rest
                .strip_prefix('/')
                .map_or(Self::Elsewhere, |rest| Self::Below(rest.trim_end_matches('/').to_owned())),
            None => Self::Elsewhere,
        }
    }
}

/// The first segment of a path below `/apisix/admin`.
pub(super) fn name(below: &str) -> &str {
    below.split('/').next().unwrap_or_default()
}

/// The first segment of the operations below it, if there are any.
pub(super) fn known_name(path: &str) -> Option<&'static str> {
    match AdminPath::parse(path) {
        AdminPath::Below(below) => PATHS.names.get(name(&below)).copied(),
        AdminPath::Elsewhere | AdminPath::Root => None,
    }
}

/// A matched row.
#[derive(Debug)]
pub(super) struct Match {
    pub operation: &'static Operation,
    /// The value of the template's first parameter.
    pub id: Option<String>,
    /// The value of its second parameter.
    pub sub_path: Option<String>,
}

/// Why no row matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoOperation {
    /// No row starts with the first segment.
    UnknownName,
    /// No row has the rest of the path, or has it with this method.
    NotFound,
}

/// The rows by path. Those of one path differ in their method.
struct PathTable {
    router: Router<Vec<&'static Operation>>,
    names: BTreeSet<&'static str>,
}

static PATHS: LazyLock<PathTable> = LazyLock::new(PathTable::new);

/// Finds the row for a path below `/apisix/admin`. `HEAD` matches where `GET` does.
///
/// # Errors
/// When there is none.
pub(super) fn find(method: &Method, below: &str) -> Result<Match, NoOperation> {
    if !PATHS.names.contains(name(below)) {
        return Err(NoOperation::UnknownName);
    }
    let method = if *method == Method::HEAD { &Method::GET } else { method };
    let path = format!("/{below}");
    let matched = PATHS.router.at(&path).map_err(|_| NoOperation::NotFound)?;
    let operation = matched.value.iter().copied().find(|operation| operation.method == *method);
    let mut parameters = matched.params.iter().map(|(_, value)| value.to_owned());
    Ok(Match {
        operation: operation.ok_or(NoOperation::NotFound)?,
        id: parameters.next(),
        sub_path: parameters.next(),
    })
}

impl PathTable {
    fn new() -> Self {
        let mut table = Self { router: Router::new(), names: BTreeSet::new() };
        for operation in operations() {
            table.names.insert(name(operation.path.trim_start_matches('/')));
        }
        let paths: BTreeSet<&str> = operations().iter().map(|operation| &*operation.path).collect();
        for path in paths {
            let rows = operations().iter().filter(|operation| operation.path == path).collect();
            // Two templates that conflict would be a fault of the table, which a test finds.
            if let Err(error) = table.router.insert(path, rows) {
                tracing::error!(path, %error, "the operations of a path cannot be reached");
            }
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use model::Kind;

    use super::*;

    fn found(method: &str, path: &str) -> Result<(String, Option<String>, Option<String>), NoOperation> {
        let AdminPath::Below(below) = AdminPath::parse(path) else { panic!("{path}") };
        let found = find(&method.parse().unwrap(), &below)?;
        Ok((format!("{} {}", found.operation.method, found.operation.path), found.id, found.sub_path))
    }

    #[test]
    fn paths_are_decoded() {
        let below = |text: &str| AdminPath::Below(text.to_owned());
        assert_eq!(AdminPath::parse("/apisix/admin"), AdminPath::Root);
        assert_eq!(AdminPath::parse("/apisix/admin/"), AdminPath::Root);
        assert_eq!(AdminPath::parse("/apisix/admin/ssls"), below("ssls"));
        assert_eq!(AdminPath::parse("/apisix/admin/ssls/"), below("ssls"));
        assert_eq!(AdminPath::parse("/apisix/admin/ssls/1/a/b%20c"), below("ssls/1/a/b c"));
        for elsewhere in ["/", "/apisix", "/apisix/adminx", "/apisix/administrator/ssls", "*", ""] {
            assert_eq!(AdminPath::parse(elsewhere), AdminPath::Elsewhere, "{elsewhere}");
        }
    }

    #[test]
    fn a_path_and_method_match_one_row() {
        let text = |text: &str| Some(text.to_owned());
        let row = |row: &str, id, sub| Ok((row.to_owned(), id, sub));
        assert_eq!(found("GET", "/apisix/admin/ssls"), row("GET /ssls", None, None));
        assert_eq!(found("HEAD", "/apisix/admin/ssls/1"), row("GET /ssls/{id}", text("1"), None));
        assert_eq!(
            found("PATCH", "/apisix/admin/ssls/1/a/b%20c"),
            row("PATCH /ssls/{id}/{*sub_path}", text("1"), text("a/b c"))
        );
        assert_eq!(
            found("GET", "/apisix/admin/secrets/vault/1"),
            row("GET /secrets/{manager}/{id}", text("vault"), text("1"))
        );
        assert_eq!(found("GET", "/apisix/admin/nothing/1"), Err(NoOperation::UnknownName));
        assert_eq!(found("GET", "/apisix/admin//ssls"), Err(NoOperation::UnknownName));
        for (method, path) in
            [("GET", "ssls/1/a"), ("DELETE", "ssls/1/a"), ("PURGE", "ssls/1"), ("GET", "ssls//1")]
        {
            assert_eq!(found(method, &format!("/apisix/admin/{path}")), Err(NoOperation::NotFound), "{path}");
        }
    }

    #[test]
    fn every_operation_is_reached() {
        for operation in operations() {
            let path = operation.path.replace('*', "");
            let found = find(&operation.method, path.trim_start_matches('/')).unwrap();
            assert_eq!(found.operation.path, operation.path);
        }
        for kind in Kind::ALL {
            assert!(find(&Method::GET, kind.plural()).is_ok());
        }
    }
}

//! The table of the Admin API: what stands behind each path, one row a thing (contract 2.2).
//!
//! A path is `/apisix/admin/{name}[/{id}[/{sub/path}]]`. Rows that are resources share one handler;
//! nothing here knows verbs.

use model::Kind;
use percent_encoding::percent_decode_str;

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ApiResource {
    /// Documents of one kind.
    Resource(Kind),
    /// JSON Schemas, and checking against them.
    Schema,
    /// The data planes and what they hold.
    DataPlanes,
    /// The data planes that may not connect.
    DeniedNodes,
    /// Why was I refused?
    Explain,
    /// What is served, but probably not as intended.
    Lint,
}

/// Every name there is.
pub(super) const API_RESOURCES: [(&str, ApiResource); 10] = [
    ("ssls", ApiResource::Resource(Kind::Ssl)),
    ("upstreams", ApiResource::Resource(Kind::Upstream)),
    ("services", ApiResource::Resource(Kind::Service)),
    ("routes", ApiResource::Resource(Kind::Route)),
    ("stream_routes", ApiResource::Resource(Kind::StreamRoute)),
    ("schema", ApiResource::Schema),
    ("dataplanes", ApiResource::DataPlanes),
    ("denied_nodes", ApiResource::DeniedNodes),
    ("explain", ApiResource::Explain),
    ("lint", ApiResource::Lint),
];

/// A path, taken apart.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum AdminPath {
    /// Not ours at all.
    Elsewhere,
    /// `/apisix/admin` itself.
    Root,
    /// A name that is not in the table.
    Unknown(String),
    /// A row, and what of it.
    Resource(ApiResource, Option<String>, Option<String>),
}

impl AdminPath {
    /// Takes a path apart, percent-decoded. Empty segments at the end count as absent.
    pub(super) fn parse(path: &str) -> Self {
        let path = percent_decode_str(path).decode_utf8_lossy();
        let rest = match path.strip_prefix("/apisix/admin") {
            Some("" | "/") => return Self::Root,
            Some(rest) => rest.strip_prefix('/'),
            None => None,
        };
        let Some(rest) = rest else { return Self::Elsewhere };
        let mut segments = rest.splitn(3, '/');
        let mut next = || segments.next().filter(|segment| !segment.is_empty()).map(str::to_owned);
        let (name, id, sub_path) = (next().unwrap_or_default(), next(), next());
        match API_RESOURCES.iter().find(|(known, _)| *known == name) {
            Some((_, row)) => Self::Resource(*row, id, sub_path),
            None => Self::Unknown(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_taken_apart() {
        let row = |kind, id: Option<&str>, sub: Option<&str>| {
            AdminPath::Resource(ApiResource::Resource(kind), id.map(str::to_owned), sub.map(str::to_owned))
        };
        assert_eq!(AdminPath::parse("/apisix/admin"), AdminPath::Root);
        assert_eq!(AdminPath::parse("/apisix/admin/"), AdminPath::Root);
        assert_eq!(AdminPath::parse("/apisix/admin/ssls"), row(Kind::Ssl, None, None));
        assert_eq!(AdminPath::parse("/apisix/admin/ssls/"), row(Kind::Ssl, None, None));
        assert_eq!(AdminPath::parse("/apisix/admin/routes/1"), row(Kind::Route, Some("1"), None));
        assert_eq!(
            AdminPath::parse("/apisix/admin/ssls/1/a/b%20c"),
            row(Kind::Ssl, Some("1"), Some("a/b c"))
        );
        assert_eq!(AdminPath::parse("/apisix/admin/nothing/1"), AdminPath::Unknown("nothing".to_owned()));
        for elsewhere in ["/", "/apisix", "/apisix/adminx", "/apisix/administrator/ssls", "*", ""] {
            assert_eq!(AdminPath::parse(elsewhere), AdminPath::Elsewhere, "{elsewhere}");
        }
    }

    #[test]
    fn every_kind_has_a_row() {
        for kind in Kind::ADMIN {
            assert!(API_RESOURCES.contains(&(kind.plural(), ApiResource::Resource(kind))));
        }
        assert_eq!(
            AdminPath::parse("/apisix/admin/global_rules/1"),
            AdminPath::Unknown("global_rules".to_owned())
        );
    }
}

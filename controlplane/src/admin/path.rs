//! The paths of the Admin API: one row for each name below `/apisix/admin` (contract 2.2).
//!
//! A path is `/apisix/admin/{name}[/{id}[/{sub/path}]]`. Rows that are resources share one handler.
//! This file knows no methods.

use model::Kind;
use percent_encoding::percent_decode_str;

/// What a name addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ApiResource {
    Documents(Kind),
    /// JSON Schemas, and validation against them.
    Schema,
    /// The data planes and the revisions they serve.
    DataPlanes,
    /// The deny-list of data planes.
    DeniedNodes,
    /// Explains what happens to a connection and request.
    Explain,
    /// Reports likely misconfigurations.
    Lint,
}

/// Every name and its resource.
pub(super) const API_RESOURCES: [(&str, ApiResource); 10] = [
    ("ssls", ApiResource::Documents(Kind::Ssl)),
    ("upstreams", ApiResource::Documents(Kind::Upstream)),
    ("services", ApiResource::Documents(Kind::Service)),
    ("routes", ApiResource::Documents(Kind::Route)),
    ("stream_routes", ApiResource::Documents(Kind::StreamRoute)),
    ("schema", ApiResource::Schema),
    ("dataplanes", ApiResource::DataPlanes),
    ("denied_nodes", ApiResource::DeniedNodes),
    ("explain", ApiResource::Explain),
    ("lint", ApiResource::Lint),
];

/// A parsed path.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum AdminPath {
    /// Not below `/apisix/admin`.
    NotAdmin,
    /// `/apisix/admin` itself.
    Root,
    /// A name without a row.
    Unknown(String),
    /// A row, the id and the sub-path.
    Resource(ApiResource, Option<String>, Option<String>),
}

impl AdminPath {
    /// Parses a path, percent-decoded. Empty trailing segments count as absent.
    pub(super) fn parse(path: &str) -> Self {
        let path = percent_decode_str(path).decode_utf8_lossy();
        let rest = match path.strip_prefix("/apisix/admin") {
            Some("" | "/") => return Self::Root,
            Some(rest) => rest.strip_prefix('/'),
            None => None,
        };
        let Some(rest) = rest else { return Self::NotAdmin };
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
    fn paths_are_parsed() {
        let row = |kind, id: Option<&str>, sub: Option<&str>| {
            AdminPath::Resource(ApiResource::Documents(kind), id.map(str::to_owned), sub.map(str::to_owned))
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
            assert_eq!(AdminPath::parse(elsewhere), AdminPath::NotAdmin, "{elsewhere}");
        }
    }

    #[test]
    fn every_kind_has_a_row() {
        for kind in Kind::ADMIN {
            assert!(API_RESOURCES.contains(&(kind.plural(), ApiResource::Documents(kind))));
        }
        assert_eq!(
            AdminPath::parse("/apisix/admin/global_rules/1"),
            AdminPath::Unknown("global_rules".to_owned())
        );
    }
}

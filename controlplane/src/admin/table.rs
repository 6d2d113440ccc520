//! The table of the Admin API: what stands behind each path, one row a thing (contract 2.2).
//!
//! A path is `/apisix/admin/{name}[/{id}[/{sub/path}]]`. Rows that are resources share one handler; nothing here knows verbs.

use model::Kind;
use percent_encoding::percent_decode_str;

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Row {
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
pub const TABLE: [(&str, Row); 10] = [
    ("ssls", Row::Resource(Kind::Ssl)),
    ("upstreams", Row::Resource(Kind::Upstream)),
    ("services", Row::Resource(Kind::Service)),
    ("routes", Row::Resource(Kind::Route)),
    ("stream_routes", Row::Resource(Kind::StreamRoute)),
    ("schema", Row::Schema),
    ("dataplanes", Row::DataPlanes),
    ("denied_nodes", Row::DeniedNodes),
    ("explain", Row::Explain),
    ("lint", Row::Lint),
];

/// A path, taken apart.
#[derive(Debug, PartialEq, Eq)]
pub enum Target {
    /// Not ours at all.
    Elsewhere,
    /// `/apisix/admin` itself.
    Root,
    /// A name that is not in the table.
    Unknown(String),
    /// A row, and what of it.
    Row(Row, Option<String>, Option<String>),
}

impl Target {
    /// Takes a path apart, percent-decoded. Empty segments at the end count as absent.
    pub fn of(path: &str) -> Self {
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
        match TABLE.iter().find(|(known, _)| *known == name) {
            Some((_, row)) => Self::Row(*row, id, sub_path),
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
            Target::Row(Row::Resource(kind), id.map(str::to_owned), sub.map(str::to_owned))
        };
        assert_eq!(Target::of("/apisix/admin"), Target::Root);
        assert_eq!(Target::of("/apisix/admin/"), Target::Root);
        assert_eq!(Target::of("/apisix/admin/ssls"), row(Kind::Ssl, None, None));
        assert_eq!(Target::of("/apisix/admin/ssls/"), row(Kind::Ssl, None, None));
        assert_eq!(Target::of("/apisix/admin/routes/1"), row(Kind::Route, Some("1"), None));
        assert_eq!(Target::of("/apisix/admin/ssls/1/a/b%20c"), row(Kind::Ssl, Some("1"), Some("a/b c")));
        assert_eq!(Target::of("/apisix/admin/nothing/1"), Target::Unknown("nothing".to_owned()));
        for elsewhere in ["/", "/apisix", "/apisix/adminx", "/apisix/administrator/ssls", "*", ""] {
            assert_eq!(Target::of(elsewhere), Target::Elsewhere, "{elsewhere}");
        }
    }

    #[test]
    fn every_kind_has_a_row() {
        for kind in Kind::ADMIN {
            assert!(TABLE.contains(&(kind.plural(), Row::Resource(kind))));
        }
        assert_eq!(Target::of("/apisix/admin/global_rules/1"), Target::Unknown("global_rules".to_owned()));
    }
}

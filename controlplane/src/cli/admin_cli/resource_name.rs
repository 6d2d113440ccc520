//! The name of what a command works on: `routes`, `routes 1`, `routes/1`, `ssls/1/client/ca`.
//!
//! A kind may be written as in Admin URLs (`routes`) or alone (`route`). Other names of the Admin
//! API (`dataplanes`) pass as they are; the server knows which there are. A query may follow
//! (`plugins?all=true`).

use model::Kind;
use percent_encoding::{AsciiSet, CONTROLS, NON_ALPHANUMERIC, utf8_percent_encode};

/// All but the unreserved characters of RFC 3986.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// A query is encoded already, but for what a shell makes easy to write.
const QUERY: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'#').add(b'<').add(b'>');

/// A name below `/apisix/admin`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ResourceName {
    /// `routes`
    pub collection: String,
    pub kind: Option<Kind>,
    pub id: Option<String>,
    /// Behind the id.
    pub sub_path: Option<String>,
    /// Behind `?`.
    pub query: Option<String>,
}

/// A name that leads nowhere.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ResourceNameError {
    #[error("{0:?}: expected KIND ID or KIND/ID, such as routes/1")]
    NoId(String),
    #[error("{0:?}: expected a kind, such as routes")]
    Empty(String),
    #[error("{0:?}: the path goes on behind the id; only patch changes a part of a resource")]
    SubPath(String),
}

impl ResourceName {
    /// Joins the words of a command line and splits them at slashes.
    ///
    /// # Errors
    /// When a segment is empty or `.` or `..`, which would lead to another resource.
    pub(super) fn parse(words: &[String]) -> Result<Self, ResourceNameError> {
        let text = words.join("/");
        let (path, query) =
            text.split_once('?').map_or((text.as_str(), None), |(path, query)| (path, Some(query)));
        let segments: Vec<&str> = path.split('/').collect();
        let is_dots = |segment: &&str| matches!(*segment, "" | "." | "..");
        let Some((first, rest)) = segments.split_first() else {
            return Err(ResourceNameError::Empty(text));
        };
        if first.is_empty() || rest.iter().any(is_dots) {
            return Err(ResourceNameError::Empty(text));
        }
        let kind = Kind::ALL.into_iter().find(|kind| [kind.plural(), kind.singular()].contains(first));
        let collection = kind.map_or((*first).to_owned(), |kind| kind.plural().to_owned());
        let (id, behind) = rest.split_first().map_or((None, &[][..]), |(id, behind)| (Some(*id), behind));
        let sub_path = (!behind.is_empty()).then(|| behind.join("/"));
        let query = query.map(|query| utf8_percent_encode(query, QUERY).to_string());
        Ok(Self { collection, kind, id: id.map(str::to_owned), sub_path, query })
    }

    /// One with an id and nothing behind it.
    ///
    /// # Errors
    /// When there is no id, or a sub-path.
    pub(super) fn parse_one(words: &[String]) -> Result<Self, ResourceNameError> {
        let name = Self::parse(words)?;
        match (&name.id, &name.sub_path) {
            (None, _) => Err(ResourceNameError::NoId(words.join("/"))),
            (_, Some(_)) => Err(ResourceNameError::SubPath(words.join("/"))),
            _ => Ok(name),
        }
    }

    /// The path below `/apisix/admin/` and its query with these arguments, encoded.
    pub(super) fn path_with(&self, arguments: &str) -> String {
        let own = self.query.as_deref().filter(|query| !query.is_empty());
        let arguments: Vec<&str> =
            own.into_iter().chain(Some(arguments).filter(|all| !all.is_empty())).collect();
        match arguments.as_slice() {
            [] => self.path(),
            all => format!("{}?{}", self.path(), all.join("&")),
        }
    }

    fn path(&self) -> String {
        let below = self.sub_path.as_deref().into_iter().flat_map(|path| path.split('/'));
        let segments = [Some(self.collection.as_str()), self.id.as_deref()].into_iter().flatten();
        let encoded = segments.chain(below).map(|segment| utf8_percent_encode(segment, SEGMENT).to_string());
        encoded.collect::<Vec<_>>().join("/")
    }

    /// `routes/1`, for messages.
    pub(super) fn shown(&self) -> String {
        self.id.as_ref().map_or_else(|| self.collection.clone(), |id| format!("{}/{id}", self.collection))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(words: &[&str]) -> Result<ResourceName, ResourceNameError> {
        ResourceName::parse(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn a_name_is_one_word_or_several() {
        for words in [&["routes", "1"][..], &["routes/1"], &["route", "1"], &["route/1"]] {
            let name = name(words).unwrap();
            assert_eq!((name.path().as_str(), name.kind), ("routes/1", Some(Kind::Route)), "{words:?}");
        }
        let deep = name(&["ssl", "1", "client/ca"]).unwrap();
        assert_eq!((deep.path().as_str(), deep.sub_path.as_deref()), ("ssls/1/client/ca", Some("client/ca")));
        let other = name(&["dataplanes"]).unwrap();
        assert_eq!((other.path().as_str(), other.kind, other.id), ("dataplanes", None, None));
        assert_eq!(name(&["ssls", "a b#%2F"]).unwrap().path(), "ssls/a%20b%23%252F");
        let asked = name(&["plugins?all=true&x=a b"]).unwrap();
        assert_eq!(asked.path_with(""), "plugins?all=true&x=a%20b");
        assert_eq!(asked.path_with("wait=1"), "plugins?all=true&x=a%20b&wait=1");
        assert_eq!(name(&["ssls/1"]).unwrap().path_with("wait=1"), "ssls/1?wait=1");
    }

    #[test]
    fn dots_and_empty_segments_are_errors() {
        for words in [&[""][..], &["routes", ""], &["routes", ".."], &["routes/1/../2"], &["routes//1"]] {
            assert!(matches!(name(words), Err(ResourceNameError::Empty(_))), "{words:?}");
        }
        let one = |word: &str| ResourceName::parse_one(&[word.to_owned()]);
        assert!(matches!(one("routes"), Err(ResourceNameError::NoId(_))));
        assert!(matches!(one("routes/1/uri"), Err(ResourceNameError::SubPath(_))));
    }
}

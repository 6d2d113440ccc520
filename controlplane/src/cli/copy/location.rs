//! The source and the target of a copy: how the command line names them, and what they contain.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Instant;

use model::{Key, Kind};
use serde_json::Value;

use crate::store::StoredDocument;

/// A source or target on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Location {
    /// An embedded store: the configured one, or the one in this file.
    Embedded(Option<PathBuf>),
    /// A cluster: the configured one, or the one of another configuration file.
    Etcd(Option<PathBuf>),
    /// The rules of an APISIX in a file.
    Yaml(PathBuf),
}

impl FromStr for Location {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, path) = match text.split_once(':') {
            Some((kind, path)) => (kind, Some(PathBuf::from(path))),
            None => (text, None),
        };
        if path.as_ref().is_some_and(|path| path.as_os_str().is_empty()) {
            return Err("a path must follow the colon".to_owned());
        }
        match (kind, path) {
            ("embedded", path) => Ok(Self::Embedded(path)),
            ("etcd", path) => Ok(Self::Etcd(path)),
            ("yaml", Some(path)) => Ok(Self::Yaml(path)),
            ("yaml", None) => Err("which file? write yaml:PATH".to_owned()),
            _ => Err("expected embedded, embedded:PATH, etcd, etcd:FILE or yaml:PATH".to_owned()),
        }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embedded(None) => f.write_str("embedded"),
            Self::Embedded(Some(path)) => write!(f, "embedded:{}", path.display()),
            Self::Etcd(None) => f.write_str("etcd"),
            Self::Etcd(Some(path)) => write!(f, "etcd:{}", path.display()),
            Self::Yaml(path) => write!(f, "yaml:{}", path.display()),
        }
    }
}

/// The documents of a location.
pub(super) struct LocationContent {
    /// Ordered by the text of their keys.
    pub items: Vec<StoredDocument>,
    /// `None` for a file.
    pub revision: Option<u64>,
    /// The documents that a store removes by itself, and when.
    pub expiries: BTreeMap<Key, Instant>,
    /// Messages about entries that cannot be copied.
    pub skipped: Vec<String>,
}

impl LocationContent {
    pub(super) fn empty() -> Self {
        Self { items: Vec::new(), revision: None, expiries: BTreeMap::new(), skipped: Vec::new() }
    }
}

/// A document to write.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Document {
    pub key: Key,
    pub value: Value,
    /// When the store removes it. `None`: it stays.
    pub expires: Option<Instant>,
}

/// The message about entries of unknown kinds.
pub(super) fn skipped_note(name: &str, count: usize) -> String {
    format!(
        "{name} ({count} of them) cannot be copied: countersign knows {}",
        Kind::ALL.map(Kind::plural).join(", ")
    )
}

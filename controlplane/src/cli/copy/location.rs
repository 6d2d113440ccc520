//! The locations of a copy: parsed from the command line, opened and read.
//!
//! Invariants: a source is never created, a dry run creates no file, and nothing is read before
//! source and target are known to differ.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use conf::Settings;

use super::{CopyError, yaml};
use crate::store::{
    EmbeddedStore, EtcdStore, ORPHANED_EXTENSIONS, Store, StoreError, StoredDocument, UnknownKeys,
};

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
    /// Messages about entries that cannot be copied.
    pub skipped: Vec<String>,
}

/// An opened location.
pub(super) enum OpenLocation {
    Store {
        place: Location,
        store: Arc<dyn Store>,
    },
    File {
        place: Location,
        path: PathBuf,
    },
    /// The target of a dry run that does not exist.
    Absent {
        place: Location,
    },
}

/// Opens locations with the settings of the configuration.
pub(super) struct LocationOpener<'a> {
    pub settings: &'a Settings,
}

impl LocationOpener<'_> {
    /// Checks that the locations differ.
    ///
    /// # Errors
    /// When both are the same file.
    pub(super) fn check_distinct(&self, from: &Location, to: &Location) -> Result<(), CopyError> {
        let real = |path: PathBuf| path.canonicalize().unwrap_or(path);
        match (self.file(from).map(real), self.file(to).map(real)) {
            (Some(one), Some(other)) if one == other => {
                Err(CopyError::SameLocation(from.clone(), to.clone()))
            }
            _ => Ok(()),
        }
    }

    /// Opens the source.
    ///
    /// # Errors
    /// When it does not exist or cannot be opened.
    pub(super) async fn source(&self, place: &Location) -> Result<OpenLocation, CopyError> {
        if let Some(path) = self.file(place).filter(|path| !path.exists()) {
            return Err(CopyError::SourceMissing { place: place.clone(), path });
        }
        self.open(place).await
    }

    /// Opens the target.
    ///
    /// # Errors
    /// When it cannot be opened or created.
    pub(super) async fn target(&self, place: &Location, dry_run: bool) -> Result<OpenLocation, CopyError> {
        if dry_run && self.file(place).is_some_and(|path| !path.exists()) {
            return Ok(OpenLocation::Absent { place: place.clone() });
        }
        self.open(place).await
    }

    /// The file of a location; `None` for a cluster.
    fn file(&self, place: &Location) -> Option<PathBuf> {
        match place {
            Location::Embedded(path) => {
                Some(path.clone().unwrap_or_else(|| self.settings.countersign.store.path.clone()))
            }
            Location::Yaml(path) => Some(path.clone()),
            Location::Etcd(_) => None,
        }
    }

    async fn open(&self, place: &Location) -> Result<OpenLocation, CopyError> {
        let failed = |source| CopyError::Store { place: place.clone(), source };
        let store: Arc<dyn Store> = match place {
            Location::Yaml(path) => {
                return Ok(OpenLocation::File { place: place.clone(), path: path.clone() });
            }
            Location::Embedded(_) => {
                let path = self.file(place).unwrap_or_default();
                Arc::new(open_embedded(path).await.map_err(failed)?)
            }
            Location::Etcd(None) => Arc::new(EtcdStore::open(self.settings).await.map_err(failed)?),
            Location::Etcd(Some(file)) => {
                Arc::new(EtcdStore::open(&conf::load(file)?).await.map_err(failed)?)
            }
        };
        Ok(OpenLocation::Store { place: place.clone(), store })
    }
}

async fn open_embedded(path: PathBuf) -> Result<EmbeddedStore, StoreError> {
    let opened = tokio::task::spawn_blocking(move || EmbeddedStore::open(&path)).await;
    opened.map_err(|error| StoreError::Unavailable { what: error.to_string() })?
}

impl OpenLocation {
    pub(super) fn place(&self) -> &Location {
        match self {
            Self::Store { place, .. } | Self::File { place, .. } | Self::Absent { place } => place,
        }
    }

    /// Whether both are the same cluster and prefix.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Store { store: one, .. }, Self::Store { store: other, .. }) => {
                one.identity() == other.identity() && one.prefix() == other.prefix()
            }
            _ => false,
        }
    }

    /// Reads all documents.
    ///
    /// # Errors
    /// When the location cannot be read.
    pub(super) async fn read(&self) -> Result<LocationContent, CopyError> {
        let (place, store) = match self {
            Self::Absent { .. } => return Ok(LocationContent::empty()),
            Self::File { path, .. } => return read_file(path),
            Self::Store { place, store } => (place, store),
        };
        let failed = |source| CopyError::Store { place: place.clone(), source };
        let loaded = store.load().await.map_err(failed)?;
        let strangers = store.unknown_keys().await.map_err(failed)?;
        let left_out = strangers
            .iter()
            .filter(|stranger| stranger.name != ORPHANED_EXTENSIONS)
            .map(|UnknownKeys { name, count }| skipped_note(name, *count))
            .collect();
        Ok(LocationContent { items: loaded.items, revision: Some(loaded.revision), skipped: left_out })
    }
}

impl LocationContent {
    fn empty() -> Self {
        Self { items: Vec::new(), revision: None, skipped: Vec::new() }
    }
}

/// A missing target is empty; a missing source was rejected before.
fn read_file(path: &Path) -> Result<LocationContent, CopyError> {
    if path.exists() { yaml::read(path) } else { Ok(LocationContent::empty()) }
}

/// The message about entries of unknown kinds.
pub(super) fn skipped_note(name: &str, count: usize) -> String {
    format!(
        "{name} ({count} of them) cannot be copied: countersign knows ssls, upstreams, services, routes and stream_routes"
    )
}

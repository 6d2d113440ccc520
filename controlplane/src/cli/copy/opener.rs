//! Opens and reads the locations of a copy.
//!
//! Invariants: a source is never created, a dry run creates no file, and nothing is read before
//! source and target are known to differ.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use conf::Settings;

use super::error::CopyError;
use super::location::{Location, LocationContent, skipped_note};
use super::yaml;
use crate::store::{EmbeddedStore, EtcdStore, ORPHANED_EXTENSIONS, Store, StoreError, UnknownKeys};

/// An opened location.
pub(super) enum OpenLocation {
    Store {
        location: Location,
        store: Arc<dyn Store>,
    },
    File {
        location: Location,
        path: PathBuf,
    },
    /// The target of a dry run that does not exist.
    Absent {
        location: Location,
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
            (Some(ours), Some(other)) if ours == other => {
                Err(CopyError::SameLocation(from.clone(), to.clone()))
            }
            _ => Ok(()),
        }
    }

    /// Opens the source.
    ///
    /// # Errors
    /// When it does not exist or cannot be opened.
    pub(super) async fn source(&self, location: &Location) -> Result<OpenLocation, CopyError> {
        if let Some(path) = self.file(location).filter(|path| !path.exists()) {
            return Err(CopyError::SourceMissing { location: location.clone(), path });
        }
        self.open(location).await
    }

    /// Opens the target.
    ///
    /// # Errors
    /// When it cannot be opened or created.
    pub(super) async fn target(&self, location: &Location, dry_run: bool) -> Result<OpenLocation, CopyError> {
        if dry_run && self.file(location).is_some_and(|path| !path.exists()) {
            return Ok(OpenLocation::Absent { location: location.clone() });
        }
        self.open(location).await
    }

    /// The file of a location; `None` for a cluster.
    fn file(&self, location: &Location) -> Option<PathBuf> {
        match location {
            Location::Embedded(path) => {
                Some(path.clone().unwrap_or_else(|| self.settings.countersign.store.path.clone()))
            }
            Location::Yaml(path) => Some(path.clone()),
            Location::Etcd(_) => None,
        }
    }

    async fn open(&self, location: &Location) -> Result<OpenLocation, CopyError> {
        let failed = |source| CopyError::Store { location: location.clone(), source };
        let store: Arc<dyn Store> = match location {
            Location::Yaml(path) => {
                return Ok(OpenLocation::File { location: location.clone(), path: path.clone() });
            }
            Location::Embedded(_) => {
                let path = self.file(location).unwrap_or_default();
                Arc::new(open_embedded(path).await.map_err(failed)?)
            }
            Location::Etcd(None) => Arc::new(EtcdStore::open(self.settings).await.map_err(failed)?),
            Location::Etcd(Some(file)) => {
                Arc::new(EtcdStore::open(&conf::load(file)?).await.map_err(failed)?)
            }
        };
        Ok(OpenLocation::Store { location: location.clone(), store })
    }
}

async fn open_embedded(path: PathBuf) -> Result<EmbeddedStore, StoreError> {
    let opened = tokio::task::spawn_blocking(move || EmbeddedStore::open(&path)).await;
    opened.map_err(|error| StoreError::Unavailable { what: error.to_string() })?
}

impl OpenLocation {
    pub(super) fn location(&self) -> &Location {
        match self {
            Self::Store { location, .. } | Self::File { location, .. } | Self::Absent { location } => {
                location
            }
        }
    }

    /// Whether both are the same cluster and prefix.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Store { store: ours, .. }, Self::Store { store: other, .. }) => {
                ours.identity() == other.identity() && ours.prefix() == other.prefix()
            }
            _ => false,
        }
    }

    /// Reads all documents.
    ///
    /// # Errors
    /// When the location cannot be read.
    pub(super) async fn read(&self) -> Result<LocationContent, CopyError> {
        let (location, store) = match self {
            Self::Absent { .. } => return Ok(LocationContent::empty()),
            Self::File { path, .. } => return read_file(path),
            Self::Store { location, store } => (location, store),
        };
        let failed = |source| CopyError::Store { location: location.clone(), source };
        let loaded = store.load().await.map_err(failed)?;
        let unknown = store.unknown_keys().await.map_err(failed)?;
        let skipped = unknown
            .iter()
            .filter(|keys| keys.name != ORPHANED_EXTENSIONS)
            .map(|UnknownKeys { name, count }| skipped_note(name, *count))
            .collect();
        let expiries = store.expiries().await.map_err(failed)?;
        Ok(LocationContent { items: loaded.items, revision: Some(loaded.revision), expiries, skipped })
    }
}

/// A missing target is empty; a missing source was rejected before.
fn read_file(path: &Path) -> Result<LocationContent, CopyError> {
    if path.exists() { yaml::read(path) } else { Ok(LocationContent::empty()) }
}

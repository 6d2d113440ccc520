//! Why a copy failed, and what to do.

use std::io;
use std::path::PathBuf;

use model::Key;

use super::location::Location;
use crate::publish::deny_list::DenyListError;
use crate::store::StoreError;

/// Why the documents were not copied, or only a part of them.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CopyError {
    #[error("{0}")]
    Configuration(#[from] conf::ConfError),
    #[error("apisix.data_encryption.keyring: {0}")]
    Keyring(#[from] pki::KeyringError),
    #[error("{0}")]
    KeyringFile(#[from] conf::KeyringFileError),
    #[error("--from {location}: there is no file {path}", path = path.display())]
    SourceMissing { location: Location, path: PathBuf },
    #[error("--from {0} and --to {1} are the same location")]
    SameLocation(Location, Location),
    #[error("{location}: {source}")]
    Store { location: Location, source: StoreError },
    /// An entry that an APISIX would not read.
    #[error("{path}: {what}; nothing was copied", path = path.display())]
    InvalidRules {
        path: PathBuf,
        /// The entry, the found value and the expected one.
        what: String,
    },
    #[error("cannot write {path}: {source}", path = path.display())]
    WriteFailed { path: PathBuf, source: io::Error },
    /// The source has documents that cannot be read.
    #[error(
        "{count} document(s) in {location} cannot be read and may be served by another program (listed above); nothing was written. \
         Write them again as plain JSON under a valid id, or delete them"
    )]
    Unreadable { location: Location, count: usize },
    /// Documents of the target differ.
    #[error(
        "{count} document(s) in {location} conflict with the source (listed above); nothing was written. --overwrite replaces them"
    )]
    Conflicts { location: Location, count: usize },
    /// Another program wrote the document meanwhile.
    #[error("{key} in {location} was changed by another program meanwhile: run this again")]
    ConcurrentChange { location: Location, key: Key },
    /// The source changed during the copy.
    #[error("{0} was changed while it was copied: run this again, it writes only what is missing")]
    SourceChanged(Location),
    /// The read-back differs.
    #[error(
        "{location} does not hold what was copied: {key} differs. Is another program writing to it? Run this again"
    )]
    VerifyFailed { location: Location, key: Key },
    #[error("{location}: {source}")]
    Denied { location: Location, source: DenyListError },
    #[error("cannot write the report: {0}")]
    Report(#[from] io::Error),
}

//! The rules of an APISIX in a file (`apisix.yaml`): `cli::rules_file` with `#END`.
//!
//! Reading assigns the ids of an APISIX (`arr_` and the position of an entry without an id).
//! Writing is atomic, with mode 0600.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use model::redact;

use super::error::CopyError;
use super::location::{Document, LocationContent, skipped_note};
use crate::cli::rules_file::{self, MissingId};
use crate::store::StoredDocument;

pub(super) fn read(path: &Path) -> Result<LocationContent, CopyError> {
    let rules = conf::read_apisix_yaml(path, &|name| std::env::var(name).ok())?;
    // The offending value may be a misplaced private key.
    let invalid =
        |what: String| CopyError::InvalidRules { path: path.to_owned(), what: redact(&what).into_owned() };
    let file = rules_file::parse(rules, MissingId::Position).map_err(invalid)?;
    let item = |(key, document)| StoredDocument {
        key,
        document,
        create_revision: 0,
        mod_revision: 0,
        stale_extensions: false,
        salvaged: None,
    };
    Ok(LocationContent {
        items: file.documents.into_iter().map(item).collect(),
        revision: None,
        expiries: BTreeMap::new(),
        skipped: file.skipped.iter().map(|(name, count)| skipped_note(name, *count)).collect(),
    })
}

/// Writes a temporary file and renames it.
pub(super) fn write(path: &Path, documents: &[Document]) -> Result<(), CopyError> {
    let written = || {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(".tmp");
        let temporary = folder.join(name);
        // Left by a killed run; removing it avoids following a symbolic link.
        if let Err(error) = fs::remove_file(&temporary)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            return Err(error);
        }
        // The file holds private keys, sealed or not.
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        let documents = documents.iter().map(|document| (&document.key, &document.value));
        file.write_all(rules_file::render(documents).as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        fs::File::open(folder)?.sync_all()
    };
    written().map_err(|source| CopyError::WriteFailed { path: path.to_owned(), source })
}

//! Generated admin keys: created at the first start, printed once, kept in a file (contract 1.2).
//!
//! APISIX writes a generated key back into `config.yaml`. That file belongs to the operator, so the
//! key is kept beside the store instead (`key_file`). Control planes that share a store share the
//! key, and only one of them creates it (`shared_key`). There is no default key: an Admin API
//! without a key needs `admin_key_required: false`.

use std::path::{Path, PathBuf};

use conf::{AdminKey, AdminKeyValue, AdminRole};
use zeroize::Zeroizing;

use super::access::KeyDigest;
use super::key_file::{AdminKeyError, KeyFile, LocalKey, MissingKey};
use super::shared_key;
use crate::store::Store;

/// An admin key with its value, its digest, or both.
pub(crate) struct ResolvedKey {
    pub name: String,
    /// Empty where only the digest is known.
    pub key: Zeroizing<String>,
    pub role: AdminRole,
    /// The file that was created for a new key.
    pub created: Option<PathBuf>,
    /// The digest in `admin_key`, or that of the key that another control plane over the same store
    /// created.
    pub digest: Option<KeyDigest>,
}

/// Resolves keys that are to be generated: an admin entry gets the key from its file, or that of
/// the control planes that share `store`, or a new one. A viewer entry without a key stays
/// unusable. `store`: `None` where no other control plane can open it.
///
/// # Errors
/// When a key can be neither read nor written.
pub(crate) async fn resolve_keys(
    keys: &[AdminKey],
    folder: &Path,
    store: Option<&dyn Store>,
    missing: MissingKey,
) -> Result<Vec<ResolvedKey>, AdminKeyError> {
    let mut resolved = Vec::with_capacity(keys.len());
    for entry in keys {
        resolved.push(resolve_key(entry, folder, store, missing).await?);
    }
    Ok(resolved)
}

/// The errors that [`resolve_keys`] would return for these entries: key files without a key, names
/// that are no file names. Changes nothing.
pub(crate) fn key_file_problems(keys: &[AdminKey], folder: &Path) -> Vec<AdminKeyError> {
    let generated =
        keys.iter().filter(|entry| entry.key == AdminKeyValue::Generated && entry.role != AdminRole::Viewer);
    generated
        .filter_map(|entry| KeyFile::new(&entry.name, folder).and_then(|file| file.read_text()).err())
        .collect()
}

async fn resolve_key(
    entry: &AdminKey,
    folder: &Path,
    store: Option<&dyn Store>,
    missing: MissingKey,
) -> Result<ResolvedKey, AdminKeyError> {
    let AdminKey { name, key, role } = entry;
    let configured = |key: &str, digest| ResolvedKey {
        name: name.clone(),
        key: Zeroizing::new(key.to_owned()),
        role: *role,
        created: None,
        digest,
    };
    match key {
        AdminKeyValue::Clear(key) => return Ok(configured(key.expose(), None)),
        AdminKeyValue::Sha256(digest) => return Ok(configured("", Some(*digest))),
        AdminKeyValue::Generated if *role == AdminRole::Viewer => {
            tracing::warn!(
                name,
                "WARNING: using empty Admin API. The viewer has no key, so it cannot be used: set one in admin_key"
            );
            return Ok(configured("", None));
        }
        AdminKeyValue::Generated => {}
    }
    let file = KeyFile::new(name, folder)?;
    let (local, digest) = match store {
        Some(store) => shared_key::resolve(&file, store, missing).await?,
        None => {
            let local = file.read()?.map_or_else(|| file.missing(missing), Ok)?;
            (Some(local), None)
        }
    };
    let LocalKey { key, is_new } = local.unwrap_or_default();
    let created = is_new.then_some(file.path);
    Ok(ResolvedKey { name: name.clone(), key, role: *role, created, digest })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn entry(name: &str, key: &str, role: AdminRole) -> AdminKey {
        let key = match key {
            "" => AdminKeyValue::Generated,
            clear => AdminKeyValue::Clear(conf::Secret::new(clear.to_owned())),
        };
        AdminKey { name: name.to_owned(), key, role }
    }

    async fn complete(keys: &[AdminKey], folder: &Path) -> Result<Vec<ResolvedKey>, AdminKeyError> {
        resolve_keys(keys, folder, None, MissingKey::Create).await
    }

    #[tokio::test]
    async fn an_empty_key_is_generated_once() {
        let folder = tempfile::tempdir().unwrap();
        let keys = [
            entry("admin", "", AdminRole::Admin),
            entry("eye", "", AdminRole::Viewer),
            entry("own", "mine", AdminRole::Viewer),
        ];
        let first = complete(&keys, folder.path()).await.unwrap();
        let path = folder.path().join("admin.key");
        assert_eq!(first[0].created.as_deref(), Some(path.as_path()));
        assert!(first[0].key.len() == 32 && first[0].key.bytes().all(|byte| byte.is_ascii_alphabetic()));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!((first[1].key.as_str(), first[2].key.as_str()), ("", "mine"));
        let second = complete(&keys, folder.path()).await.unwrap();
        assert_eq!((&second[0].key, &second[0].created), (&first[0].key, &None));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        let other = tempfile::tempdir().unwrap();
        assert_ne!(complete(&keys, other.path()).await.unwrap()[0].key, first[0].key);
    }

    #[tokio::test]
    async fn a_reload_makes_no_key() {
        let folder = tempfile::tempdir().unwrap();
        let keys = [entry("admin", "", AdminRole::Admin)];
        let refused = resolve_keys(&keys, folder.path(), None, MissingKey::Refuse).await;
        assert!(matches!(refused, Err(AdminKeyError::Missing { .. })));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        let made = complete(&keys, folder.path()).await.unwrap();
        let kept = resolve_keys(&keys, folder.path(), None, MissingKey::Refuse).await.unwrap();
        assert_eq!(kept[0].key, made[0].key);
    }

    #[tokio::test]
    async fn a_hashed_key_creates_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let key =
            AdminKey { name: "admin".into(), key: AdminKeyValue::Sha256([7; 32]), role: AdminRole::Admin };
        let resolved = complete(&[key], folder.path()).await.unwrap();
        assert_eq!((resolved[0].key.as_str(), resolved[0].digest), ("", Some([7; 32])));
        assert!(fs::read_dir(folder.path()).unwrap().next().is_none());
    }

    #[tokio::test]
    async fn the_folder_has_mode_0700() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("a/data");
        complete(&[entry("admin", "", AdminRole::Admin)], &folder).await.unwrap();
        assert_eq!(fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn key_file_problems_are_found_without_changes() {
        let folder = tempfile::tempdir().unwrap();
        let keys = [
            entry("admin", "", AdminRole::Admin),
            entry("eye", "", AdminRole::Viewer),
            entry("o", "k", AdminRole::Admin),
        ];
        let problems =
            || key_file_problems(&keys, folder.path()).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert!(
            problems().is_empty() && fs::read_dir(folder.path()).unwrap().next().is_none(),
            "none is made"
        );
        let path = folder.path().join("admin.key");
        for wrong in [&b""[..], b"two words", b"\xff\xfe"] {
            fs::write(&path, wrong).unwrap();
            assert!(problems().len() == 1 && problems()[0].contains("admin.key"), "{wrong:?}");
        }
        fs::write(&path, "key\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(problems().is_empty());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644, "nothing is changed");
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(problems()[0].contains("a directory"));
        fs::remove_dir(&path).unwrap();
        let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
        assert!(made.success() && problems()[0].contains("a FIFO"));
        assert_eq!(key_file_problems(&[entry("../x", "", AdminRole::Admin)], folder.path()).len(), 1);
    }

    #[tokio::test]
    async fn invalid_names_and_files_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        let refused =
            async |keys: &[AdminKey]| complete(keys, folder.path()).await.err().unwrap().to_string();
        assert!(refused(&[entry("../x", "", AdminRole::Admin)]).await.contains("letters"));
        fs::write(folder.path().join("admin.key"), "two words\n").unwrap();
        assert!(refused(&[entry("admin", "", AdminRole::Admin)]).await.contains("admin.key"));
    }

    #[tokio::test]
    async fn a_key_file_that_is_no_regular_file_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.key");
        let keys = [entry("admin", "", AdminRole::Admin)];
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let error = complete(&keys, folder.path()).await.err().unwrap().to_string();
        assert!(error.contains("admin.key: it is a FIFO"), "{error}");
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
        let error = complete(&keys, folder.path()).await.err().unwrap().to_string();
        assert!(error.contains("admin.key: it is a device"), "{error}");
    }
}

//! One generated admin key for all control planes over a store.
//!
//! The store holds the SHA-256 of each generated key (182 random bits: the digest reveals nothing)
//! and the machine and file where it was created. The key itself is only in that file. The first
//! control plane to write its digest wins, by compare-and-swap. Key files that are older than the
//! shared entry stay valid on their own machine.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use data_encoding::{HEXLOWER, HEXLOWER_PERMISSIVE};
use serde::{Deserialize, Serialize};

use super::access::{KeyDigest, key_digest};
use super::key_file::{AdminKeyError, KeyFile, LocalKey, MissingKey};
use crate::publish;
use crate::store::{InternalKey, Store, StoreError};

/// Compare-and-swap attempts against other control planes.
const CAS_ATTEMPTS: usize = 16;

/// The store's record of a generated key.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct SharedKey {
    sha256: String,
    host: String,
    file: String,
    made_at: u64,
}

/// By the name of the entry in `admin_key`.
type Keys = BTreeMap<String, SharedKey>;

/// The key of our own file, and the digest of a shared key that is valid here, too.
pub(super) type LocalAndShared = (Option<LocalKey>, Option<KeyDigest>);

/// Resolves the key that the control planes share; creates it when there is none.
///
/// # Errors
/// [`AdminKeyError`] when neither the store nor the file can be read.
pub(super) async fn resolve(
    file: &KeyFile,
    store: &dyn Store,
    missing: MissingKey,
) -> Result<LocalAndShared, AdminKeyError> {
    let mut local = file.read()?;
    for _ in 0..CAS_ATTEMPTS {
        let (version, mut keys) = read(file, store).await?;
        if let Some(shared) = keys.get(&file.name) {
            return use_shared(file, shared, local);
        }
        let key = match local.take() {
            Some(key) => key,
            None => file.missing(missing)?,
        };
        keys.insert(file.name.clone(), SharedKey::new(&key.key, file));
        local = Some(key);
        let text = serde_json::to_string(&keys).unwrap_or_default();
        match store.swap_internal_entry(InternalKey::AdminKeys, version, text.into()).await {
            Ok(_) => return Ok((local, None)),
            // Another control plane was faster, or the outcome is unknown: the next read decides.
            Err(StoreError::Conflict { .. } | StoreError::OutcomeUnknown { .. }) => {}
            Err(error) => {
                tracing::warn!(%error, name = file.name, "the admin key is not shared: each control plane has its own");
                return Ok((local, None));
            }
        }
    }
    Err(shared_error(file, "the other control planes write it all the time".to_owned()))
}

/// Reconciles our file with the shared key.
fn use_shared(
    file: &KeyFile,
    shared: &SharedKey,
    local: Option<LocalKey>,
) -> Result<LocalAndShared, AdminKeyError> {
    let Some(digest) = shared.digest() else {
        return Err(shared_error(
            file,
            "its digest in the store is damaged: remove admin_keys below countersign/".to_owned(),
        ));
    };
    let SharedKey { host, file: path, .. } = shared;
    if local.is_none() && shared.was_created_in(file) {
        tracing::error!(
            name = file.name,
            "{path}, which holds the one admin key of all control planes over this etcd, is gone, and it was made here: put its copy \
             back or, where there is none, have a new key made: `etcdctl del PREFIX/countersign/admin_keys` with the value of \
             deployment.etcd.prefix as PREFIX, then restart the control planes. Until then the old key alone is taken"
        );
        return Ok((None, Some(digest)));
    }
    match local {
        Some(local) if key_digest(local.key.as_bytes()) == digest => return Ok((Some(local), None)),
        // Another control plane was faster.
        Some(LocalKey { is_new: true, .. }) => file.remove()?,
        Some(local) => {
            tracing::warn!(
                name = file.name,
                "{} holds another admin key than {path} on {host}, which all control planes over this etcd take; both are good \
                 here. Remove the file to have one key only",
                file.path.display()
            );
            return Ok((Some(local), Some(digest)));
        }
        None => {}
    }
    tracing::info!(name = file.name, "the admin key is the one in {path} on {host}, where it was made");
    Ok((None, Some(digest)))
}

async fn read(file: &KeyFile, store: &dyn Store) -> Result<(u64, Keys), AdminKeyError> {
    let entry = store
        .internal_entry(InternalKey::AdminKeys)
        .await
        .map_err(|error| shared_error(file, error.to_string()))?;
    let Some(entry) = entry else { return Ok((0, Keys::new())) };
    let keys = serde_json::from_str(&entry.text).map_err(|_| {
        shared_error(
            file,
            "the entry admin_keys below countersign/ in the store is damaged: remove it".to_owned(),
        )
    })?;
    Ok((entry.version, keys))
}

fn shared_error(file: &KeyFile, problem: String) -> AdminKeyError {
    AdminKeyError::Shared { name: file.name.clone(), problem }
}

impl SharedKey {
    fn new(key: &str, file: &KeyFile) -> Self {
        let sha256 = HEXLOWER.encode(&key_digest(key.as_bytes()));
        let path = std::path::absolute(&file.path).unwrap_or_else(|_| file.path.clone());
        let made_at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        Self { sha256, host: publish::machine_name(), file: path.display().to_string(), made_at }
    }

    /// Whether the key was created on this machine, in this file.
    fn was_created_in(&self, file: &KeyFile) -> bool {
        let path = std::path::absolute(&file.path).unwrap_or_else(|_| file.path.clone());
        self.host == publish::machine_name() && Path::new(&self.file) == path
    }

    fn digest(&self) -> Option<KeyDigest> {
        HEXLOWER_PERMISSIVE.decode(self.sha256.as_bytes()).ok()?.try_into().ok()
    }
}

#[cfg(test)]
mod tests {
    use conf::{AdminKey, AdminKeyValue, AdminRole};

    use super::*;
    use crate::admin::admin_key::{ResolvedKey, resolve_keys};
    use crate::store::EmbeddedStore;

    /// The key that a control plane with this folder resolves.
    async fn start(folder: &Path, store: &dyn Store) -> ResolvedKey {
        let entry = AdminKey { name: "admin".into(), key: AdminKeyValue::Generated, role: AdminRole::Admin };
        resolve_keys(&[entry], folder, Some(store), MissingKey::Create).await.unwrap().remove(0)
    }

    fn store(folder: &Path) -> EmbeddedStore {
        EmbeddedStore::open(&folder.join("store.redb")).unwrap()
    }

    #[tokio::test]
    async fn only_one_control_plane_creates_a_key() {
        let folders: Vec<_> = (0..8).map(|_| tempfile::tempdir().unwrap()).collect();
        let store = store(folders[0].path());
        let started =
            futures_util::future::join_all(folders.iter().map(|folder| start(folder.path(), &store)));
        let started = started.await;
        let made: Vec<_> = started.iter().filter(|ready| ready.created.is_some()).collect();
        assert_eq!(made.len(), 1);
        let digest = key_digest(made[0].key.as_bytes());
        for (ready, folder) in started.iter().zip(&folders) {
            if ready.created.is_none() {
                assert_eq!((ready.key.as_str(), ready.digest), ("", Some(digest)));
                assert!(!folder.path().join("admin.key").exists(), "what was made in vain is gone");
            }
        }
        let stored = store.internal_entry(InternalKey::AdminKeys).await.unwrap().unwrap().text;
        assert!(!stored.contains(made[0].key.as_str()) && stored.contains("admin.key"));
        // After a restart, the creator reads the key from its file.
        let folder = made[0].created.as_deref().unwrap().parent().unwrap();
        let again = start(folder, &store).await;
        assert_eq!((again.key.as_str(), again.created, again.digest), (made[0].key.as_str(), None, None));
    }

    #[tokio::test]
    async fn older_key_files_stay_valid() {
        let folders: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
        let store = store(folders[0].path());
        for (folder, key) in folders.iter().zip(["one", "two"]) {
            std::fs::write(folder.path().join("admin.key"), format!("{key}\n")).unwrap();
        }
        let one = start(folders[0].path(), &store).await;
        assert_eq!((one.key.as_str(), one.created, one.digest), ("one", None, None));
        let two = start(folders[1].path(), &store).await;
        assert_eq!((two.key.as_str(), two.digest), ("two", Some(key_digest(b"one"))), "both are good there");
        let three = start(folders[2].path(), &store).await;
        assert_eq!((three.key.as_str(), three.digest), ("", Some(key_digest(b"one"))));
    }

    /// Captures the log.
    #[derive(Clone, Default)]
    struct Log(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);

    impl std::io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_lost_key_file_is_a_logged_error() {
        let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let store = store(folder.path());
        let made = start(folder.path(), &store).await;
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).finish();
        let _guard = tracing::subscriber::set_default(subscriber);
        let logged = || String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        start(other.path(), &store).await;
        assert!(!logged().contains("ERROR"), "it was not made there: {}", logged());
        std::fs::remove_file(folder.path().join("admin.key")).unwrap();
        let again = start(folder.path(), &store).await;
        assert_eq!(again.digest, Some(key_digest(made.key.as_bytes())));
        assert!(logged().contains("ERROR") && logged().contains("etcdctl del"), "{}", logged());
    }

    #[tokio::test]
    async fn a_damaged_entry_is_an_error_and_creates_no_key() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path());
        for text in ["{", r#"{"admin": {"sha256": "12", "host": "h", "file": "f", "made_at": 1}}"#] {
            let version =
                store.internal_entry(InternalKey::AdminKeys).await.unwrap().map_or(0, |entry| entry.version);
            store.swap_internal_entry(InternalKey::AdminKeys, version, text.to_owned().into()).await.unwrap();
            let entry =
                AdminKey { name: "admin".into(), key: AdminKeyValue::Generated, role: AdminRole::Admin };
            let failed = resolve_keys(&[entry], folder.path(), Some(&store), MissingKey::Create).await;
            assert!(failed.err().unwrap().to_string().contains("damaged"));
            assert!(!folder.path().join("admin.key").exists());
        }
    }
}

//! Generated admin keys: created at the first start, printed once, kept in a file (contract 1.2).
//!
//! APISIX writes a generated key back into `config.yaml`. That file belongs to the operator, so the
//! key is kept beside the store instead: one file for each name, mode 0600. Control planes that
//! share a store share the key, and only one of them creates it (`shared_key`). There is no default
//! key: an Admin API without a key needs `admin_key_required: false`.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use conf::{AdminKey, AdminRole};
use pem_files::bounded_read;
use zeroize::Zeroizing;

use super::access::KeyDigest;
use super::shared_key;
use crate::store::Store;

/// Letters of a generated key: 182 bits.
const LETTERS: usize = 32;

/// Bytes of a key file.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// Why there is no usable admin key.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AdminKeyError {
    /// `admin_key` has no entry.
    #[error(
        "ERROR: missing valid Admin API token. Please modify \"admin_key\" in {path} . Add an entry `{{name: admin, key: \"\", role: admin}}` \
         to have a key made, or set `admin_key_required: false` to do without",
        path = path.display()
    )]
    NoKeys { path: PathBuf },
    /// The name is no valid file name.
    #[error(
        "deployment.admin.admin_key: no key can be generated for the name {name:?}, because it is kept in a file of that name: use letters, \
         digits, '-' and '_' only, or write a key"
    )]
    Name { name: String },
    /// The key file cannot be read or written.
    #[error("the admin key file {path}: {error}", path = path.display())]
    File { path: PathBuf, error: io::Error },
    /// The shared keys in the store cannot be read.
    #[error(
        "the admin key {name:?} has none in admin_key, and the one that the control planes share cannot be looked up: {problem}"
    )]
    Shared {
        name: String,
        /// The problem, and what to do.
        problem: String,
    },
    /// The file holds no key.
    #[error("the admin key file {path} does not hold one line with a key: remove it to have a new key made", path = path.display())]
    Content { path: PathBuf },
}

/// An admin key with its value or its digest.
pub(crate) struct ResolvedKey {
    pub name: String,
    pub key: Zeroizing<String>,
    pub role: AdminRole,
    /// The file that was created for a new key.
    pub created: Option<PathBuf>,
    /// The digest of the key that another control plane over the same store created.
    pub shared_digest: Option<KeyDigest>,
}

/// The file of the generated key of that name.
pub(crate) fn key_path(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.key"))
}

/// Resolves empty keys: an admin entry gets the key from its file, or that of the control planes
/// that share `store`, or a new one. A viewer entry without a key stays unusable. `store`: `None`
/// where no other control plane can open it.
///
/// # Errors
/// When there is no entry, or a key can be neither read nor written.
pub(crate) async fn resolve_keys(
    keys: &[AdminKey],
    config: &Path,
    folder: &Path,
    store: Option<&dyn Store>,
) -> Result<Vec<ResolvedKey>, AdminKeyError> {
    if keys.is_empty() {
        return Err(AdminKeyError::NoKeys { path: config.to_path_buf() });
    }
    let mut complete = Vec::with_capacity(keys.len());
    for entry in keys {
        complete.push(resolve_key(entry, folder, store).await?);
    }
    Ok(complete)
}

/// The errors that [`resolve_keys`] would return for these entries: key files without a key, names
/// that are no file names. Changes nothing.
pub(crate) fn key_file_problems(keys: &[AdminKey], folder: &Path) -> Vec<AdminKeyError> {
    let kept = keys.iter().filter(|entry| entry.key.is_empty() && entry.role != AdminRole::Viewer);
    kept.filter_map(|entry| KeyFile::new(&entry.name, folder).and_then(|file| file.read_text()).err())
        .collect()
}

async fn resolve_key(
    entry: &AdminKey,
    folder: &Path,
    store: Option<&dyn Store>,
) -> Result<ResolvedKey, AdminKeyError> {
    let AdminKey { name, key, role } = entry;
    let chosen = |key: &str| ResolvedKey {
        name: name.clone(),
        key: Zeroizing::new(key.to_owned()),
        role: *role,
        created: None,
        shared_digest: None,
    };
    if !key.is_empty() {
        return Ok(chosen(key.expose()));
    }
    if *role == AdminRole::Viewer {
        tracing::warn!(
            name,
            "WARNING: using empty Admin API. The viewer has no key, so nobody can use it: set one in admin_key"
        );
        return Ok(chosen(""));
    }
    let file = KeyFile::new(name, folder)?;
    let (kept, shared) = match store {
        Some(store) => shared_key::resolve(&file, store).await?,
        None => (Some(file.read_or_create()?), None),
    };
    let (key, made) = kept.unwrap_or_default();
    Ok(ResolvedKey {
        name: name.clone(),
        key,
        role: *role,
        created: made.then_some(file.path),
        shared_digest: shared,
    })
}

/// The file of one generated key.
pub(super) struct KeyFile {
    pub(super) name: String,
    pub(super) path: PathBuf,
    folder: PathBuf,
}

impl KeyFile {
    fn new(name: &str, folder: &Path) -> Result<Self, AdminKeyError> {
        let harmless = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        if name.is_empty() || name.len() > 64 || !name.bytes().all(harmless) {
            return Err(AdminKeyError::Name { name: name.to_owned() });
        }
        Ok(Self { name: name.to_owned(), path: key_path(folder, name), folder: folder.to_owned() })
    }

    fn failed(&self, error: io::Error) -> AdminKeyError {
        AdminKeyError::File { path: self.path.clone(), error }
    }

    /// The key, and whether it is new.
    pub(super) fn read_or_create(&self) -> Result<(Zeroizing<String>, bool), AdminKeyError> {
        match self.read()? {
            Some(key) => Ok((key, false)),
            None => self.create(),
        }
    }

    /// The key; `None` when there is no file.
    pub(super) fn read(&self) -> Result<Option<Zeroizing<String>>, AdminKeyError> {
        let Some(key) = self.read_text()? else { return Ok(None) };
        let mode = fs::metadata(&self.path).map_err(|error| self.failed(error))?.permissions().mode();
        if mode & 0o077 != 0 {
            tracing::warn!(path = %self.path.display(), "the admin key file was open to other users; its mode is 0600 now");
            fs::set_permissions(&self.path, fs::Permissions::from_mode(0o600))
                .map_err(|error| self.failed(error))?;
        }
        Ok(Some(key))
    }

    /// The file's content without any change to the file; `None` when there is no file.
    fn read_text(&self) -> Result<Option<Zeroizing<String>>, AdminKeyError> {
        let text = match bounded_read::read_regular(&self.path, FILE_BYTES_MAX).map_err(io::Error::from) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.failed(error)),
        };
        let key = text.trim();
        if key.is_empty() || key.contains(char::is_whitespace) {
            return Err(AdminKeyError::Content { path: self.path.clone() });
        }
        Ok(Some(Zeroizing::new(key.to_owned())))
    }

    /// Creates a key. When another process creates the file at the same time, that key is used.
    pub(super) fn create(&self) -> Result<(Zeroizing<String>, bool), AdminKeyError> {
        let key = generate();
        // With etcd as the store, no other code creates the folder.
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&self.folder);
        made.and_then(|()| write(&self.path, &key)).map_err(|error| self.failed(error))?;
        let kept = self.read()?.unwrap_or_default();
        let ours = *kept == *key;
        Ok((kept, ours))
    }

    /// Removes a new key that is not used.
    pub(super) fn remove(&self) -> Result<(), AdminKeyError> {
        fs::remove_file(&self.path).map_err(|error| self.failed(error))
    }
}

fn generate() -> Zeroizing<String> {
    use rand::distr::{Distribution, Uniform};
    let letters = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let mut random = rand::rng();
    let mut key = Zeroizing::new(String::with_capacity(LETTERS));
    if let Ok(any) = Uniform::new(0, letters.len()) {
        key.extend(
            any.sample_iter(&mut random)
                .take(LETTERS)
                .filter_map(|at| letters.get(at))
                .map(|byte| char::from(*byte)),
        );
    }
    key
}

/// Writes atomically, with mode 0600 from the first byte: to a temporary name, then by hard link.
/// An existing file is kept.
fn write(path: &Path, key: &str) -> io::Result<()> {
    let new = path.with_extension(format!("key.new-{:016x}", rand::random::<u64>()));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    let written = file.write_all(format!("{key}\n").as_bytes()).and_then(|()| file.sync_all());
    let linked = written.and_then(|()| match fs::hard_link(&new, path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        linked => linked,
    });
    let removed = fs::remove_file(&new);
    linked.and(removed)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, key: &str, role: AdminRole) -> AdminKey {
        AdminKey { name: name.to_owned(), key: conf::Secret::new(key.to_owned()), role }
    }

    fn config() -> PathBuf {
        PathBuf::from("conf/config.yaml")
    }

    async fn complete(keys: &[AdminKey], folder: &Path) -> Result<Vec<ResolvedKey>, AdminKeyError> {
        super::resolve_keys(keys, &config(), folder, None).await
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
        let told =
            || key_file_problems(&keys, folder.path()).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert!(told().is_empty() && fs::read_dir(folder.path()).unwrap().next().is_none(), "none is made");
        let path = folder.path().join("admin.key");
        for wrong in [&b""[..], b"two words", b"\xff\xfe"] {
            fs::write(&path, wrong).unwrap();
            assert!(told().len() == 1 && told()[0].contains("admin.key"), "{wrong:?}");
        }
        fs::write(&path, "key\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(told().is_empty());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644, "nothing is changed");
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(told()[0].contains("a directory"));
        fs::remove_dir(&path).unwrap();
        let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
        assert!(made.success() && told()[0].contains("a FIFO"));
        assert_eq!(key_file_problems(&[entry("../x", "", AdminRole::Admin)], folder.path()).len(), 1);
    }

    #[tokio::test]
    async fn invalid_names_and_files_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        let refused =
            async |keys: &[AdminKey]| complete(keys, folder.path()).await.err().unwrap().to_string();
        assert!(refused(&[]).await.contains("ERROR: missing valid Admin API token."));
        assert!(refused(&[]).await.contains("Please modify \"admin_key\" in conf/config.yaml ."));
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
        let told = complete(&keys, folder.path()).await.err().unwrap().to_string();
        assert!(told.contains("admin.key: it is a FIFO"), "{told}");
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
        let told = complete(&keys, folder.path()).await.err().unwrap().to_string();
        assert!(told.contains("admin.key: it is a device"), "{told}");
    }
}

//! The file of a generated admin key: one file for each name, beside the store, mode 0600.
//!
//! Invariant: a file is written atomically and never overwritten.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use process::bounded_read;
use zeroize::Zeroizing;

/// Letters of a generated key: 182 bits.
const LETTERS: usize = 32;

/// Bytes of a key file.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// Why there is no usable admin key.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AdminKeyError {
    /// The name is no valid file name.
    #[error(
        "deployment.admin.admin_key: no key can be generated for the name {name:?}, because it is kept in a file of that name: use letters, \
         digits, '-' and '_' only, or write a key"
    )]
    Name { name: String },
    /// The key file cannot be read or written.
    #[error("the admin key file {path}: {error}", path = path.display())]
    File { path: PathBuf, error: io::Error },
    /// There is no key file, and this is no start.
    #[error(
        "deployment.admin.admin_key: the key of {name:?} is kept in {path}, which is not there, and a reload makes no key: put its copy \
         back, or write a key in admin_key; `controlplane upgrade` and a start make a new key", path = path.display()
    )]
    Missing { name: String, path: PathBuf },
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

/// What to do where an entry of `admin_key` has no key anywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MissingKey {
    /// A start makes it, and prints it once.
    Create,
    /// A reload: a file that was lost must not replace the key in use silently.
    Refuse,
}

/// The key in a file of this machine.
#[derive(Default)]
pub(super) struct LocalKey {
    pub(super) key: Zeroizing<String>,
    /// Whether this start created the file.
    pub(super) is_new: bool,
}

/// The file of the generated key of that name.
fn key_path(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.key"))
}

/// The file of one generated key.
pub(crate) struct KeyFile {
    pub(super) name: String,
    pub(crate) path: PathBuf,
    folder: PathBuf,
}

impl KeyFile {
    /// For the key of that name.
    pub(crate) fn new(name: &str, folder: &Path) -> Result<Self, AdminKeyError> {
        let harmless = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        if name.is_empty() || name.len() > 64 || !name.bytes().all(harmless) {
            return Err(AdminKeyError::Name { name: name.to_owned() });
        }
        Ok(Self { name: name.to_owned(), path: key_path(folder, name), folder: folder.to_owned() })
    }

    fn error(&self, error: io::Error) -> AdminKeyError {
        AdminKeyError::File { path: self.path.clone(), error }
    }

    /// Makes a key where that is allowed.
    pub(super) fn missing(&self, missing: MissingKey) -> Result<LocalKey, AdminKeyError> {
        match missing {
            MissingKey::Create => self.create(),
            MissingKey::Refuse => {
                Err(AdminKeyError::Missing { name: self.name.clone(), path: self.path.clone() })
            }
        }
    }

    /// The key; `None` when there is no file.
    pub(super) fn read(&self) -> Result<Option<LocalKey>, AdminKeyError> {
        let Some(key) = self.read_text()? else { return Ok(None) };
        let mode = fs::metadata(&self.path).map_err(|error| self.error(error))?.permissions().mode();
        if mode & 0o077 != 0 {
            tracing::warn!(path = %self.path.display(), "the admin key file was open to other users; its mode is 0600 now");
            fs::set_permissions(&self.path, fs::Permissions::from_mode(0o600))
                .map_err(|error| self.error(error))?;
        }
        Ok(Some(LocalKey { key, is_new: false }))
    }

    /// The file's content without any change to the file; `None` when there is no file.
    pub(crate) fn read_text(&self) -> Result<Option<Zeroizing<String>>, AdminKeyError> {
        let text = match bounded_read::read_regular(&self.path, FILE_BYTES_MAX).map_err(io::Error::from) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.error(error)),
        };
        let key = text.trim();
        if key.is_empty() || key.contains(char::is_whitespace) {
            return Err(AdminKeyError::Content { path: self.path.clone() });
        }
        Ok(Some(Zeroizing::new(key.to_owned())))
    }

    /// Creates a key. When another process creates the file at the same time, that key is used.
    fn create(&self) -> Result<LocalKey, AdminKeyError> {
        let key = generate();
        // With etcd as the store, no other code creates the folder.
        let folder = DirBuilder::new().recursive(true).mode(0o700).create(&self.folder);
        folder.and_then(|()| write(&self.path, &key)).map_err(|error| self.error(error))?;
        let stored = self.read()?.unwrap_or_default();
        Ok(LocalKey { is_new: *stored.key == *key, ..stored })
    }

    /// Removes a new key that is not used.
    pub(super) fn remove(&self) -> Result<(), AdminKeyError> {
        fs::remove_file(&self.path).map_err(|error| self.error(error))
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
                .filter_map(|index| letters.get(index))
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

//! Admin keys that nobody chose: made at the first start, shown once, kept in a file (contract 1.2).
//!
//! APISIX writes a generated key back into `config.yaml`; that file is the operator's, so the key is kept beside the store instead, one file
//! a name, mode 0600. There is no default key: an Admin API without a key must be asked for with `admin_key_required: false`.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use conf::{AdminKey, Role};
use zeroize::Zeroizing;

/// Letters of a generated key: 182 bits.
const LETTERS: usize = 32;

/// Why there is no usable admin key.
#[derive(Debug, thiserror::Error)]
pub enum AdminKeyError {
    /// The list is empty.
    #[error(
        "ERROR: missing valid Admin API token. Please modify \"admin_key\" in {path} . Add an entry `{{name: admin, key: \"\", role: admin}}` \
         to have a key made, or set `admin_key_required: false` to do without",
        path = path.display()
    )]
    NoKeys {
        /// The configuration file.
        path: PathBuf,
    },
    /// The name cannot be a file's.
    #[error(
        "deployment.admin.admin_key: no key can be generated for the name {name:?}, because it is kept in a file of that name: use letters, \
         digits, '-' and '_' only, or write a key"
    )]
    Name {
        /// The entry's name.
        name: String,
    },
    /// The key's file cannot be used.
    #[error("the admin key file {path}: {error}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        error: io::Error,
    },
    /// The file is there but holds no key.
    #[error("the admin key file {path} does not hold one line with a key: remove it to have a new key made", path = path.display())]
    Content {
        /// The file.
        path: PathBuf,
    },
}

/// An admin key, ready to be compared.
pub struct Ready {
    /// For the log.
    pub name: String,
    /// In clear.
    pub key: Zeroizing<String>,
    /// What its bearer may do.
    pub role: Role,
    /// Where it was written just now, if it was made just now.
    pub made: Option<PathBuf>,
}

/// Where the generated key of that name is kept: beside the store.
pub fn path(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.key"))
}

/// Fills in what was left empty: admin entries get the key from their file, or a new one. Viewer entries without a key stay unusable.
///
/// # Errors
/// When there is no entry at all, or a key can be neither read nor kept.
pub fn complete(keys: &[AdminKey], config: &Path, folder: &Path) -> Result<Vec<Ready>, AdminKeyError> {
    if keys.is_empty() {
        return Err(AdminKeyError::NoKeys { path: config.to_path_buf() });
    }
    keys.iter()
        .map(|entry| {
            let ready = |key: &str, made| Ready {
                name: entry.name.clone(),
                key: Zeroizing::new(key.to_owned()),
                role: entry.role,
                made,
            };
            if !entry.key.is_empty() {
                return Ok(ready(entry.key.expose(), None));
            }
            if entry.role == Role::Viewer {
                tracing::warn!(
                    name = entry.name,
                    "WARNING: using empty Admin API. The viewer has no key, so nobody can use it: set one in admin_key"
                );
                return Ok(ready("", None));
            }
            let (key, made) = kept(&entry.name, folder)?;
            Ok(ready(&key, made))
        })
        .collect()
}

fn kept(name: &str, folder: &Path) -> Result<(Zeroizing<String>, Option<PathBuf>), AdminKeyError> {
    let harmless = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    if name.is_empty() || name.len() > 64 || !name.bytes().all(harmless) {
        return Err(AdminKeyError::Name { name: name.to_owned() });
    }
    let path = path(folder, name);
    let failed = |error| AdminKeyError::File { path: path.clone(), error };
    match fs::read_to_string(&path).map(Zeroizing::new) {
        Ok(text) => {
            let key = text.trim();
            if key.is_empty() || key.contains(char::is_whitespace) {
                return Err(AdminKeyError::Content { path });
            }
            if fs::metadata(&path).map_err(failed)?.permissions().mode() & 0o077 != 0 {
                tracing::warn!(path = %path.display(), "the admin key file was open to other users; its mode is 0600 now");
                fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).map_err(failed)?;
            }
            Ok((Zeroizing::new(key.to_owned()), None))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let key = generate();
            // With etcd as the store nobody else has made it.
            DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
            write(&path, &key).map_err(failed)?;
            Ok((key, Some(path)))
        }
        Err(error) => Err(failed(error)),
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

/// Whole or not at all, and private from its first byte: written under another name, then moved.
fn write(path: &Path, key: &str) -> io::Result<()> {
    let new = path.with_extension("key.new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(format!("{key}\n").as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, key: &str, role: Role) -> AdminKey {
        AdminKey { name: name.to_owned(), key: conf::Secret::new(key.to_owned()), role }
    }

    fn config() -> PathBuf {
        PathBuf::from("conf/config.yaml")
    }

    #[test]
    fn an_empty_key_is_made_once_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        let keys = [
            entry("admin", "", Role::Admin),
            entry("eye", "", Role::Viewer),
            entry("own", "mine", Role::Viewer),
        ];
        let first = complete(&keys, &config(), folder.path()).unwrap();
        let path = folder.path().join("admin.key");
        assert_eq!(first[0].made.as_deref(), Some(path.as_path()));
        assert!(first[0].key.len() == 32 && first[0].key.bytes().all(|byte| byte.is_ascii_alphabetic()));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!((first[1].key.as_str(), first[2].key.as_str()), ("", "mine"));
        let second = complete(&keys, &config(), folder.path()).unwrap();
        assert_eq!((&second[0].key, &second[0].made), (&first[0].key, &None));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        let other = tempfile::tempdir().unwrap();
        assert_ne!(complete(&keys, &config(), other.path()).unwrap()[0].key, first[0].key);
    }

    #[test]
    fn the_folder_is_made_for_its_owner_alone() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("a/data");
        complete(&[entry("admin", "", Role::Admin)], &config(), &folder).unwrap();
        assert_eq!(fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn what_cannot_be_a_key_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let refused = |keys: &[AdminKey]| complete(keys, &config(), folder.path()).err().unwrap().to_string();
        assert!(refused(&[]).contains("ERROR: missing valid Admin API token."));
        assert!(refused(&[]).contains("Please modify \"admin_key\" in conf/config.yaml ."));
        assert!(refused(&[entry("../x", "", Role::Admin)]).contains("letters"));
        fs::write(folder.path().join("admin.key"), "two words\n").unwrap();
        assert!(refused(&[entry("admin", "", Role::Admin)]).contains("admin.key"));
    }
}

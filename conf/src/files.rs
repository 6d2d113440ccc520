//! Checks of the files that settings name: missing files, and secrets that other users can read.
//!
//! Invariant: only the keyring file is opened; messages show a file's name and mode only.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::{fs, io};

use process::bounded_read;

use crate::environment;
use crate::settings::{ConfigProvider, Settings};
use crate::tree::{YamlNode, YamlValue};
use crate::value;

/// APISIX's default keyring. It is public, so it protects nothing.
pub(crate) const PUBLIC_KEYRING: [&str; 2] = ["qeddd145sfvddff3", "edd1c9f0985e76a2"];

/// The setting of the file that `pki init` creates and never replaces.
const KEYRING: &str = "countersign.keyring_file";

/// The settings of the Admin API's certificate chain, its key, and the CA of its clients.
pub const ADMIN_CERT: &str = "deployment.admin.admin_api_mtls.admin_ssl_cert";
/// See [`ADMIN_CERT`].
pub const ADMIN_CERT_KEY: &str = "deployment.admin.admin_api_mtls.admin_ssl_cert_key";
/// See [`ADMIN_CERT`].
pub const ADMIN_CA: &str = "deployment.admin.admin_api_mtls.admin_ssl_ca_cert";

/// The settings of the certificate chain of the listeners for operators, its key, and the CA of
/// their clients.
pub const STATUS_CERT: &str = "countersign.status.tls.cert";
/// See [`STATUS_CERT`].
pub const STATUS_KEY: &str = "countersign.status.tls.key";
/// See [`STATUS_CERT`].
pub const STATUS_CA: &str = "countersign.status.tls.ca";

/// The prefix of the settings of etcd's files.
const ETCD: &str = "deployment.etcd.";

/// The prefix of the settings of the trace collector's files.
const TRACING: &str = "countersign.tracing.";

/// Far larger than any keyring.
const KEYRING_BYTES_MAX: u64 = 1 << 20;

/// A file that a program reads at startup.
struct StartFile<'a> {
    /// The setting that names it.
    key: &'static str,
    path: &'a Path,
    /// Whether it holds a private key or the keyring.
    secret: bool,
}

impl<'a> StartFile<'a> {
    fn new(key: &'static str, path: &'a Path) -> Self {
        Self { key, path, secret: false }
    }

    fn secret(key: &'static str, path: &'a Path) -> Self {
        Self { key, path, secret: true }
    }

    /// Whether the file does not exist. Other errors are left to the reader of the file.
    fn is_missing(&self) -> bool {
        fs::metadata(self.path).is_err_and(|error| {
            matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
        })
    }
}

/// Files that a program needs at startup do not exist.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} not there: {}. {advice}", if .files.len() == 1 { "a file is" } else { "files are" }, listed(.files))]
pub struct MissingFiles {
    /// The settings and files.
    pub files: Vec<(&'static str, PathBuf)>,
    advice: String,
}

fn listed(files: &[(&'static str, PathBuf)]) -> String {
    let each: Vec<_> = files.iter().map(|(key, path)| format!("{} ({key})", path.display())).collect();
    each.join(", ")
}

impl MissingFiles {
    /// `store`: the store's file, if it exists.
    fn check(files: &[StartFile<'_>], settings: &Settings, store: Option<&Path>) -> Result<(), Self> {
        let missing: Vec<_> = files.iter().filter(|file| file.is_missing()).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let mut advice = Vec::new();
        if let Some(store) = store
            && missing.iter().any(|file| file.key == KEYRING)
        {
            advice.push(format!(
                "There is a store already ({}): if its keyring was lost, put the copy of it back, because no other one opens the \
                 private keys in the store",
                store.display()
            ));
        }
        let of_init = |file: &&&StartFile<'_>| {
            file.key != KEYRING && ![ETCD, TRACING].iter().any(|prefix| file.key.starts_with(prefix))
        };
        if let Some(first) = missing.iter().find(of_init) {
            let folder = first.path.parent().unwrap_or(Path::new("."));
            advice.push(format!(
                "`controlplane pki init{}` makes the files that {} names, `controlplane pki issue --help` says how \
                 to make one more",
                init_options(settings, folder),
                settings.path.display()
            ));
        } else if let Some(keyring) = missing.iter().find(|file| file.key == KEYRING) {
            advice.push(format!(
                "Make a key, on one control plane, and copy it to the others: (umask 077; openssl rand -hex 16 >{})",
                quoted(keyring.path)
            ));
        }
        if missing.iter().any(|file| file.key.starts_with(ETCD)) {
            advice.push("Check the paths of etcd's files, which start at the working directory".to_owned());
        }
        if missing.iter().any(|file| file.key.starts_with(TRACING)) {
            advice.push(
                "Check the paths of the collector's files, which start at the folder of the settings file"
                    .to_owned(),
            );
        }
        Err(Self {
            files: missing.iter().map(|file| (file.key, file.path.to_owned())).collect(),
            advice: advice.join(". "),
        })
    }
}

/// The options with which `pki init` creates these files.
fn init_options(settings: &Settings, folder: &Path) -> String {
    if settings.path == Path::new("conf/config.yaml") {
        return option_dir(folder);
    }
    let config = format!(" -c {}", quoted(&settings.path));
    if settings.countersign.push.cert.parent() == Some(folder) {
        config
    } else {
        format!("{config} --dir {}", quoted(folder))
    }
}

/// ` --dir FOLDER`, unless it is the default of `pki init`.
fn option_dir(folder: &Path) -> String {
    let usual = std::env::current_dir().and_then(|here| here.join("conf").canonicalize());
    if usual.is_ok_and(|conf| conf.join("pki") == folder) {
        String::new()
    } else {
        format!(" --dir {}", quoted(folder))
    }
}

/// Quotes a path for a shell.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@%,".contains(c);
    if text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

impl Settings {
    /// Checks that every file that a control plane reads at startup exists.
    ///
    /// # Errors
    /// The missing files, and the command that creates them.
    pub fn check_control_plane_files(&self) -> Result<(), MissingFiles> {
        let store = &self.countersign.store.path;
        let is_there = self.deployment.provider == ConfigProvider::Embedded && store.exists();
        MissingFiles::check(&self.control_plane_start_files(), self, is_there.then_some(store.as_path()))
    }

    /// Checks that every file that a data plane reads at startup exists.
    ///
    /// # Errors
    /// As [`Self::check_control_plane_files`].
    pub fn check_data_plane_files(&self) -> Result<(), MissingFiles> {
        MissingFiles::check(&self.data_plane_start_files(), self, None)
    }

    fn control_plane_start_files(&self) -> Vec<StartFile<'_>> {
        let (admin, etcd, push) = (&self.deployment.admin, &self.deployment.etcd, &self.countersign.push);
        let mut files = Vec::new();
        for tls in admin.tls_settings() {
            files.push(StartFile::new(ADMIN_CERT, &tls.cert));
            files.push(StartFile::secret(ADMIN_CERT_KEY, &tls.key));
            files.extend(tls.ca.as_ref().map(|ca| StartFile::new(ADMIN_CA, ca)));
        }
        files.push(StartFile::new("countersign.push.cert", &push.cert));
        files.push(StartFile::secret("countersign.push.key", &push.key));
        files.push(StartFile::new("countersign.push.ca", &push.ca));
        if self.deployment.provider == ConfigProvider::Etcd {
            files.extend(etcd.tls.cert.as_ref().map(|cert| StartFile::new("deployment.etcd.tls.cert", cert)));
            files.extend(etcd.tls.key.as_ref().map(|key| StartFile::secret("deployment.etcd.tls.key", key)));
        }
        files.extend(self.countersign.keyring_file.as_ref().map(|path| StartFile::secret(KEYRING, path)));
        files.extend(self.status_files());
        files
    }

    fn data_plane_start_files(&self) -> Vec<StartFile<'_>> {
        let node = &self.countersign.node;
        let mut files = vec![
            StartFile::new("countersign.node.cert", &node.cert),
            StartFile::secret("countersign.node.key", &node.key),
            StartFile::new("countersign.node.ca", &node.ca),
        ];
        let collector = self.countersign.tracing.collector.as_ref();
        if let Some(tls) = collector.and_then(|collector| collector.tls.as_ref()) {
            files.push(StartFile::new("countersign.tracing.tls.ca", &tls.ca));
            if let Some((cert, key)) = &tls.pair {
                files.push(StartFile::new("countersign.tracing.tls.cert", cert));
                files.push(StartFile::secret("countersign.tracing.tls.key", key));
            }
        }
        files.extend(self.status_files());
        files
    }

    fn status_files(&self) -> impl Iterator<Item = StartFile<'_>> {
        self.countersign.status.tls.iter().flat_map(|tls| {
            [
                StartFile::new(STATUS_CERT, &tls.cert),
                StartFile::secret(STATUS_KEY, &tls.key),
                StartFile::new(STATUS_CA, &tls.ca),
            ]
        })
    }

    /// Warnings about existing files with secrets that other users can read or change.
    pub(crate) fn exposed_files(&self) -> Vec<String> {
        let has_user = self.user.is_some() || process_uid().is_some_and(|user| user != 0);
        let settings = StartFile::secret("the settings, with secrets in clear", &self.path);
        let settings = self.has_secrets.then_some(settings);
        let files =
            settings.into_iter().chain(self.control_plane_start_files()).chain(self.data_plane_start_files());
        let mut open: Vec<_> =
            files.filter(|file| file.secret).filter_map(|file| permission_problem(&file, has_user)).collect();
        open.dedup();
        open
    }

    /// The keys of the keyring, the encrypting one first: those of `countersign.keyring_file`, then
    /// those of `apisix.data_encryption.keyring`.
    ///
    /// # Errors
    /// When the file cannot be read or has no key.
    pub fn keyring(&self) -> Result<Vec<String>, KeyringFileError> {
        let mut keys = Vec::new();
        if let Some(path) = &self.countersign.keyring_file {
            let wrong = |problem: String| KeyringFileError { path: path.clone(), problem };
            let text = bounded_read::read_regular(path, KEYRING_BYTES_MAX)
                .map_err(|error| wrong(error.to_string()))?;
            if text.starts_with('\u{feff}') {
                return Err(wrong(
                    "it begins with a byte order mark (BOM), which an editor put there: save it as UTF-8 without one"
                        .to_owned(),
                ));
            }
            for (line, key) in (1..).zip(text.lines().map(str::trim)) {
                match key.len() {
                    0 => {}
                    // Even when it has the length of a key: it must not encrypt anything.
                    bytes
                        if key.starts_with('#')
                            && (key.contains(char::is_whitespace) || ![16, 32].contains(&bytes)) =>
                    {
                        return Err(wrong(format!(
                            "line {line} looks like a comment; each line of the file is a key, so remove it"
                        )));
                    }
                    16 | 32 => keys.push(key.to_owned()),
                    bytes => {
                        return Err(wrong(format!(
                            "line {line} is {bytes} bytes long; a key is a line of 16 or 32 bytes"
                        )));
                    }
                }
            }
            if keys.is_empty() {
                return Err(wrong("there is no key in it; a key is a line of 16 or 32 bytes".to_owned()));
            }
        }
        keys.extend(self.apisix.keyring.iter().map(|key| key.expose().to_owned()));
        Ok(keys)
    }

    /// The setting with the encrypting key of [`Settings::keyring`].
    pub fn keyring_setting(&self) -> &'static str {
        if self.countersign.keyring_file.is_some() { KEYRING } else { "apisix.data_encryption.keyring" }
    }

    /// Whether new private keys are stored in clear or encrypted with a publicly known key.
    pub fn uses_public_keyring(&self) -> bool {
        let first = self.apisix.keyring.first();
        self.countersign.keyring_file.is_none()
            && first.is_none_or(|key| PUBLIC_KEYRING.contains(&key.expose()))
    }
}

/// `countersign.keyring_file` is unusable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("countersign.keyring_file: {path}: {problem}", path = path.display())]
pub struct KeyringFileError {
    /// The file.
    pub path: PathBuf,
    /// The problem.
    pub problem: String,
}

/// A warning when other users can read or change a file with secrets. The group may read a file of
/// root when the program does not run as root (`has_user`): the program has no other way.
fn permission_problem(file: &StartFile<'_>, has_user: bool) -> Option<String> {
    let found = fs::metadata(file.path).ok()?;
    let mode = found.permissions().mode() & 0o777;
    let by_group = found.uid() == 0 && has_user;
    let others = if by_group { 0o026 } else { 0o066 };
    if mode & others == 0 {
        return None;
    }
    let what = if mode & others & 0o022 == 0 { "read" } else { "change" };
    let path = quoted(file.path);
    Some(format!("{path} ({}): other users can {what} it (mode {mode:04o}): chmod go= {path}", file.key))
}

/// The user id of this process.
pub(crate) fn process_uid() -> Option<u32> {
    fs::metadata("/proc/self").map(|process| process.uid()).ok()
}

/// Whether the settings file itself has secrets, outside environment variables.
pub(crate) fn has_secrets(file: &YamlNode) -> bool {
    let keys = match file.get_path("deployment.admin.admin_key").map(|node| &node.value) {
        Some(YamlValue::List(entries)) => entries.iter().filter_map(|entry| entry.get("key")).collect(),
        _ => Vec::new(),
    };
    let keyring = match file.get_path("apisix.data_encryption.keyring") {
        Some(YamlNode { value: YamlValue::List(entries), .. }) => entries.iter().collect(),
        one => one.into_iter().collect::<Vec<_>>(),
    };
    let password = file.get_path("deployment.etcd.password");
    keys.into_iter().chain(keyring).chain(password).any(|node| match &node.value {
        YamlValue::Scalar(scalar) if !node.is_null() => {
            let text = environment::without_variables(&scalar.text);
            let public = value::sha256_digits(&text).is_some() || PUBLIC_KEYRING.contains(&text.as_str());
            !text.is_empty() && !public
        }
        _ => false,
    })
}

//! Finding a peer's program, and what every peer that runs from one file of settings has in common.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use super::child::Server;
use super::{Kind, Peer, PeerError};

/// Where `scripts/setup.sh compare` puts peers that Debian does not have: `peers` beside the folder of our programs.
const PEERS: &str = "peers";

/// The folder this program is in.
///
/// # Errors
/// When the system does not tell.
pub fn own_folder() -> Result<PathBuf, PeerError> {
    let own = std::env::current_exe().map_err(PeerError::system("asking for our own path"))?;
    Ok(own.parent().unwrap_or(Path::new(".")).to_owned())
}

/// A program on the PATH, or where Debian has servers.
pub fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")]);
    folders.map(|folder| folder.join(name)).find(|candidate| candidate.is_file())
}

/// A program that came with a Python wheel (`inside` its environment), or else one on the PATH.
pub fn from_wheel(beside: &Path, inside: &[&str], name: &str) -> Option<PathBuf> {
    let environment = beside.parent().unwrap_or(beside).join(PEERS);
    // lib/python3.11/site-packages: the version is the interpreter's
    let libraries = std::fs::read_dir(environment.join("lib")).into_iter().flatten().flatten();
    let packages = libraries.map(|entry| entry.path().join("site-packages"));
    let mut places =
        packages.chain([environment]).flat_map(|root| inside.iter().map(move |path| root.join(path)));
    places.find(|candidate| candidate.is_file()).or_else(|| on_path(name))
}

/// What a command prints when it succeeds.
pub fn said(program: &Path, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    (output.status.success() && !text.is_empty()).then_some(text)
}

/// `, Debian package 1.22.1-9` when that package is installed.
pub fn debian_package(name: &str) -> String {
    let version = said(Path::new("dpkg-query"), &["-W", "-f=${Version}", name]);
    version.map(|version| format!(", Debian package {version}")).unwrap_or_default()
}

/// A JSON object with one more member.
pub fn with(mut object: Value, name: &str, member: Value) -> Value {
    if let Some(members) = object.as_object_mut() {
        members.insert(name.to_owned(), member);
    }
    object
}

/// Starts a program's one process; called again for each restart.
pub type Launch = Box<dyn Fn() -> Command>;

/// A peer that is one program with one file of settings, listening at a known address.
pub struct Configured {
    kind: Kind,
    launch: Launch,
    cpu: usize,
    log: PathBuf,
    files: Vec<PathBuf>,
    address: SocketAddr,
    server: Server,
}

impl Configured {
    /// Writes `text` to `file`, starts the program on a core and waits until it listens at `address`.
    ///
    /// # Errors
    /// When the file cannot be written or the program does not become ready.
    pub fn start(
        kind: Kind,
        cpu: usize,
        address: SocketAddr,
        (file, text): (PathBuf, &str),
        launch: Launch,
    ) -> Result<Self, PeerError> {
        std::fs::write(&file, text).map_err(PeerError::system(format!("writing {}", file.display())))?;
        let log = file.with_extension("log");
        let server = spawn(&launch, cpu, &log, address)?;
        Ok(Self { kind, launch, cpu, log, files: vec![file], address, server })
    }
}

fn spawn(launch: &Launch, cpu: usize, log: &Path, address: SocketAddr) -> Result<Server, PeerError> {
    let mut command = launch();
    command.stdout(Stdio::null());
    let mut server = Server::spawn(command, cpu, log)?;
    server.wait_listening(address)?;
    Ok(server)
}

impl Peer for Configured {
    fn kind(&self) -> Kind {
        self.kind
    }

    fn address(&self) -> SocketAddr {
        self.address
    }

    fn server(&self) -> &Server {
        &self.server
    }

    fn restart(&mut self) -> Result<(), PeerError> {
        self.server.stop();
        self.server = spawn(&self.launch, self.cpu, &self.log, self.address)?;
        Ok(())
    }

    fn configuration(&self) -> Vec<PathBuf> {
        self.files.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wheel_is_found_by_whatever_python_unpacked_it() {
        let folder = tempfile::tempdir().unwrap();
        let release = folder.path().join("release");
        let inside = "nobodys-proxy/_bin/nobodys-proxy";
        assert_eq!(from_wheel(&release, &[inside], "nobodys-proxy"), None);
        let place = folder.path().join("peers/lib/python3.99/site-packages").join(inside);
        std::fs::create_dir_all(place.parent().unwrap()).unwrap();
        std::fs::write(&place, "").unwrap();
        assert_eq!(from_wheel(&release, &[inside], "nobodys-proxy"), Some(place));
    }
}

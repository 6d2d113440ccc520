//! Finds a peer's program, and runs a peer that is one program with one configuration file.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use e2e::ports::Reservation;
use serde_json::Value;

use super::child::Server;
use super::{Kind, Peer, PeerError, StartContext};

/// The folder of peers that Debian does not have, beside that of the workspace's programs;
/// `scripts/setup.sh compare` fills it.
const PEERS: &str = "peers";

/// The folder of this program.
///
/// # Errors
/// When the system does not know it.
pub fn own_folder() -> Result<PathBuf, PeerError> {
    let own = std::env::current_exe().map_err(PeerError::system("asking for our own path"))?;
    Ok(own.parent().unwrap_or(Path::new(".")).to_owned())
}

/// A program on the PATH, or where Debian installs servers.
pub fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")]);
    folders.map(|folder| folder.join(name)).find(|candidate| candidate.is_file())
}

/// A program of a Python wheel (`inside` its environment), or else one on the PATH.
pub fn from_wheel(beside: &Path, inside: &[&str], name: &str) -> Option<PathBuf> {
    let environment = beside.parent().unwrap_or(beside).join(PEERS);
    // The folder's name has the interpreter's version: lib/python3.11/site-packages.
    let libraries = std::fs::read_dir(environment.join("lib")).into_iter().flatten().flatten();
    let packages = libraries.map(|entry| entry.path().join("site-packages"));
    let mut places =
        packages.chain([environment]).flat_map(|root| inside.iter().map(move |path| root.join(path)));
    places.find(|candidate| candidate.is_file()).or_else(|| on_path(name))
}

/// The standard output of a command that succeeds.
pub fn output_of(program: &Path, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    (output.status.success() && !text.is_empty()).then_some(text)
}

/// `, Debian package 1.22.1-9` when that package is installed.
pub fn debian_package(name: &str) -> String {
    let version = output_of(Path::new("dpkg-query"), &["-W", "-f=${Version}", name]);
    version.map(|version| format!(", Debian package {version}")).unwrap_or_default()
}

/// A port that was free a moment ago, for programs that cannot report which one the kernel gave.
pub fn free_port() -> u16 {
    Reservation::any().address().port()
}

/// A JSON object with one more member.
pub fn with(mut object: Value, name: &str, member: Value) -> Value {
    if let Some(members) = object.as_object_mut() {
        members.insert(name.to_owned(), member);
    }
    object
}

/// Drives processes and their pipes.
pub type Runtime = tokio::runtime::Handle;

/// Makes the command of a program's one process, for each start.
pub type Launch = Box<dyn Fn() -> Command>;

/// A peer that is one program with one configuration file, listening at a known address.
pub struct Configured {
    kind: Kind,
    runtime: Runtime,
    launch: Launch,
    cpu: usize,
    log: PathBuf,
    files: Vec<PathBuf>,
    address: SocketAddr,
    server: Server,
}

impl Configured {
    /// Writes `text` to `file`, starts the program on a core and waits until it listens at
    /// `address`.
    ///
    /// # Errors
    /// When the file cannot be written or the program does not become ready.
    pub fn start(
        kind: Kind,
        context: &StartContext<'_>,
        address: SocketAddr,
        (file, text): (PathBuf, &str),
        launch: Launch,
    ) -> Result<Self, PeerError> {
        std::fs::write(&file, text).map_err(PeerError::system(format!("writing {}", file.display())))?;
        let log = file.with_extension("log");
        let (runtime, cpu) = (context.runtime.handle().clone(), context.cores.server);
        let server = spawn(kind, &launch, cpu, &log, address, &runtime)?;
        Ok(Self { kind, runtime, launch, cpu, log, files: vec![file], address, server })
    }
}

fn spawn(
    kind: Kind,
    launch: &Launch,
    cpu: usize,
    log: &Path,
    address: SocketAddr,
    runtime: &Runtime,
) -> Result<Server, PeerError> {
    let mut server = Server::spawn(kind, launch(), cpu, log, runtime)?;
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

    fn pid(&self) -> u32 {
        self.server.pid()
    }

    fn command(&self) -> String {
        self.server.command().to_owned()
    }

    fn started(&self) -> Instant {
        self.server.started()
    }

    fn restart(&mut self) -> Result<(), PeerError> {
        self.server.stop();
        self.server = spawn(self.kind, &self.launch, self.cpu, &self.log, self.address, &self.runtime)?;
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
    fn a_wheel_is_found_for_any_python_version() {
        let folder = tempfile::tempdir().unwrap();
        let release = folder.path().join("release");
        let inside = "some-proxy/_bin/some-proxy";
        assert_eq!(from_wheel(&release, &[inside], "some-proxy"), None);
        let place = folder.path().join("peers/lib/python3.99/site-packages").join(inside);
        std::fs::create_dir_all(place.parent().unwrap()).unwrap();
        std::fs::write(&place, "").unwrap();
        assert_eq!(from_wheel(&release, &[inside], "some-proxy"), Some(place));
    }
}

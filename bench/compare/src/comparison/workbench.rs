//! Everything that runs during a comparison: certificates, the shared upstreams and the peers, each in its folder.

use std::path::{Path, PathBuf};

use e2e::resources;
use tempfile::TempDir;

use crate::load::Dialler;
use crate::peer::credentials::Credentials;
use crate::peer::{Cores, Installed, Kind, Peer, PeerError, Stage, Upstreams};
use crate::target::Target;
use e2e::upstream::FixedUpstream;

/// The servers and what they need. Dropping it ends and removes all of it.
pub struct Workbench {
    /// Those that run, in the order of the tables.
    pub peers: Vec<Box<dyn Peer>>,
    /// The certificates of the run.
    pub credentials: Credentials,
    /// Which core runs what.
    pub cores: Cores,
    /// The runtime of everything that is not load.
    pub runtime: tokio::runtime::Runtime,
    plain: FixedUpstream,
    mtls: FixedUpstream,
    folder: TempDir,
}

impl Workbench {
    /// Mints, writes and starts everything. A peer that is there and does not come up is named and left out.
    ///
    /// # Errors
    /// When there is nowhere to work, or nobody to measure.
    pub fn start(installed: &[Box<dyn Installed>], cores: Cores) -> Result<Self, PeerError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            // It only drains the pipes of servers; the measured core stays theirs.
            .on_thread_start(move || drop(resources::pin_current_thread(cores.load)))
            .enable_all()
            .build();
        let runtime = runtime.map_err(PeerError::system("starting a runtime"))?;
        let folder = tempfile::Builder::new().prefix("countersign-bench-").tempdir();
        let folder = folder.map_err(PeerError::system("making a temporary folder"))?;
        open_for_workers(folder.path())?;
        let credentials = Credentials::mint();
        let plain = FixedUpstream::start(cores.load, None);
        let mtls = FixedUpstream::start(cores.load, Some(credentials.upstream_tls()));
        let mut bench = Self { peers: Vec::new(), credentials, cores, runtime, plain, mtls, folder };
        for program in installed {
            let folder = bench.folder_for(program.kind(), "")?;
            match program.start(&bench.stage(&folder, &[])) {
                Ok(peer) => bench.peers.push(peer),
                Err(error) => {
                    eprintln!(
                        "compare: {}: {:#}; going on without it",
                        program.kind().name(),
                        anyhow::Error::from(error)
                    );
                }
            }
        }
        Ok(bench)
    }

    /// What a peer is started with, in a folder that [`Self::folder_for`] made.
    pub fn stage<'a>(&'a self, folder: &'a Path, more: &'a [String]) -> Stage<'a> {
        Stage {
            folder,
            cores: self.cores,
            upstreams: Upstreams { plain: self.plain.address(), mtls: self.mtls.address() },
            credentials: &self.credentials,
            runtime: &self.runtime,
            more,
        }
    }

    /// Where the plain upstream listens.
    pub fn plain(&self) -> std::net::SocketAddr {
        self.plain.address()
    }

    /// A folder for a peer inside the run's temporary folder, with the certificates that every peer gets.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn folder_for(&self, kind: Kind, purpose: &str) -> Result<PathBuf, PeerError> {
        let path = self.folder.path().join(format!("{}{purpose}", kind.name()));
        std::fs::create_dir_all(&path).map_err(PeerError::system(format!("making {}", path.display())))?;
        self.credentials.write_site(&path)?;
        Ok(path)
    }

    /// A text without the name of a folder that is gone by the time anybody reads it, and without that of the one we are in, which
    /// is nobody else's.
    pub fn without_folder(&self, text: &str) -> String {
        let text = text.replace(&self.folder.path().display().to_string(), "FOLDER");
        match std::env::current_dir() {
            Ok(here) => text.replace(&format!("{}/", here.display()), ""),
            Err(_) => text,
        }
    }

    /// A path on a peer, as the load generator dials it.
    ///
    /// # Errors
    /// Never for the addresses that peers have.
    pub fn target(
        address: std::net::SocketAddr,
        host: &str,
        path: &str,
    ) -> Result<Target, crate::target::TargetError> {
        Target::parse(&format!("https://{address}{path}"), Some(host), false)
    }

    /// A dialler that asks a peer for a name, with the run's client certificate.
    ///
    /// # Errors
    /// Never for names and certificates of this run.
    pub fn dialler(&self, address: std::net::SocketAddr, name: &str) -> anyhow::Result<Dialler> {
        use crate::identity::{Group, Version};
        let target = Target::parse(&format!("https://{address}/"), Some(name), false)?;
        let config =
            self.credentials.loader()?.client_config(Version::V13, Group::X25519, &[b"http/1.1"], false)?;
        Ok(Dialler::new(target, config))
    }
}

/// nginx's workers run as another user and must reach the folders below; the keys in them stay readable by us only.
fn open_for_workers(folder: &Path) -> Result<(), PeerError> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o711))
        .map_err(PeerError::system("opening the temporary folder to nginx's workers"))
}

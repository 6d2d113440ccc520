//! The environment of a comparison: certificates, the shared upstreams and the peers, each in its
//! folder.

use std::path::{Path, PathBuf};

use e2e::resources;
use tempfile::TempDir;

use crate::load::Dialler;
use crate::peer::credentials::Credentials;
use crate::peer::{Cores, Installed, Kind, Peer, PeerError, StartContext, Upstreams};
use crate::target::Target;
use e2e::upstream::FixedUpstream;

/// Dropping it ends and removes all of it.
pub(crate) struct Workbench {
    /// The running peers, in the order of the tables.
    pub peers: Vec<Box<dyn Peer>>,
    pub credentials: Credentials,
    pub cores: Cores,
    /// Runs everything but the load.
    pub runtime: tokio::runtime::Runtime,
    plain: FixedUpstream,
    mtls: FixedUpstream,
    echo: FixedUpstream,
    folder: TempDir,
}

impl Workbench {
    /// Issues certificates and starts everything. A peer that does not start is reported and left
    /// out.
    ///
    /// # Errors
    /// When there is no temporary folder.
    pub(crate) fn start(installed: &[Box<dyn Installed>], cores: Cores) -> Result<Self, PeerError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            // It only drains the pipes of servers, off the measured core.
            .on_thread_start(move || drop(resources::pin_current_thread(cores.load)))
            .enable_all()
            .build();
        let runtime = runtime.map_err(PeerError::system("starting a runtime"))?;
        let folder = tempfile::Builder::new().prefix("countersign-bench-").tempdir();
        let folder = folder.map_err(PeerError::system("making a temporary folder"))?;
        open_for_workers(folder.path())?;
        let credentials = Credentials::generate();
        let plain = FixedUpstream::start(cores.load, None);
        let mtls = FixedUpstream::start(cores.load, Some(credentials.upstream_tls()));
        let echo = FixedUpstream::echo(cores.load, credentials.upstream_tls());
        let mut bench = Self { peers: Vec::new(), credentials, cores, runtime, plain, mtls, echo, folder };
        for program in installed {
            let folder = bench.folder_for(program.kind(), "")?;
            match program.start(&bench.context(&folder, &[])) {
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

    /// The environment of a peer, with a folder of [`Self::folder_for`].
    pub(crate) fn context<'a>(&'a self, folder: &'a Path, more: &'a [String]) -> StartContext<'a> {
        StartContext {
            folder,
            cores: self.cores,
            upstreams: Upstreams {
                plain: self.plain.address(),
                mtls: self.mtls.address(),
                echo: self.echo.address(),
            },
            credentials: &self.credentials,
            runtime: &self.runtime,
            more,
        }
    }

    /// The address of the plain upstream.
    pub(crate) fn plain(&self) -> std::net::SocketAddr {
        self.plain.address()
    }

    /// A folder for a peer in the temporary folder, with the certificates of every peer.
    ///
    /// # Errors
    /// When it cannot be made.
    pub(super) fn folder_for(&self, kind: Kind, purpose: &str) -> Result<PathBuf, PeerError> {
        let path = self.folder.path().join(format!("{}{purpose}", kind.name()));
        std::fs::create_dir_all(&path).map_err(PeerError::system(format!("making {}", path.display())))?;
        self.credentials.write_site(&path)?;
        Ok(path)
    }

    /// Removes the names of the temporary and the current folder from a text.
    pub(crate) fn without_folder(&self, text: &str) -> String {
        let text = text.replace(&self.folder.path().display().to_string(), "FOLDER");
        match std::env::current_dir() {
            Ok(here) => text.replace(&format!("{}/", here.display()), ""),
            Err(_) => text,
        }
    }

    /// A path on a peer as a target of the load generator.
    ///
    /// # Errors
    /// Never for the addresses of peers.
    pub(crate) fn target(
        address: std::net::SocketAddr,
        host: &str,
        path: &str,
    ) -> Result<Target, crate::target::TargetError> {
        Target::parse(&format!("https://{address}{path}"), Some(host), false)
    }

    /// A dialler for a name on a peer, with the run's client certificate.
    ///
    /// # Errors
    /// Never for names and certificates of this run.
    pub(super) fn dialler(&self, address: std::net::SocketAddr, name: &str) -> anyhow::Result<Dialler> {
        use crate::identity::{Group, Version};
        let target = Target::parse(&format!("https://{address}/"), Some(name), false)?;
        let config =
            self.credentials.loader()?.client_config(Version::V13, Group::X25519, &[b"http/1.1"], false)?;
        Ok(Dialler::new(target, config))
    }
}

/// nginx's workers run as another user and must reach the folders below; keys keep their mode.
fn open_for_workers(folder: &Path) -> Result<(), PeerError> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o711))
        .map_err(PeerError::system("opening the temporary folder to nginx's workers"))
}

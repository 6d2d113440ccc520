//! Everything that runs during a comparison: certificates, the shared upstream and the peers, each in its folder.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::load::Dialler;
use crate::peer::countersign::{Cores, Countersign, Programs};
use crate::peer::credentials::Credentials;
use crate::peer::nginx::Nginx;
use crate::peer::upstream::Upstream;
use crate::peer::{HOST, Peer, PeerError};
use crate::target::Target;

/// The servers and what they need. Dropping it ends and removes all of it.
pub struct Workbench {
    /// Where nginx is, when it takes part.
    pub nginx_program: Option<PathBuf>,
    /// nginx, when it takes part.
    pub nginx: Option<Nginx>,
    /// The pair, when it takes part.
    pub countersign: Option<Countersign>,
    /// Behind all of them.
    pub upstream: Upstream,
    /// The certificates of the run.
    pub credentials: Credentials,
    /// Which core runs what.
    pub cores: Cores,
    /// The runtime of everything that is not load.
    pub runtime: tokio::runtime::Runtime,
    folder: TempDir,
}

impl Workbench {
    /// Mints, writes and starts everything.
    ///
    /// # Errors
    /// When a peer that is there does not come up.
    pub fn start(
        nginx: Option<PathBuf>,
        programs: Option<Programs>,
        cores: Cores,
    ) -> Result<Self, PeerError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(PeerError::system("starting a runtime"))?;
        let folder = tempfile::Builder::new().prefix("countersign-bench-").tempdir();
        let folder = folder.map_err(PeerError::system("making a temporary folder"))?;
        open_for_workers(folder.path())?;
        let credentials = Credentials::mint()?;
        let upstream = Upstream::start(cores.load)?;
        let mut bench = Self {
            nginx_program: nginx,
            nginx: None,
            countersign: None,
            upstream,
            credentials,
            cores,
            runtime,
            folder,
        };
        if let Some(program) = bench.nginx_program.clone() {
            let folder = bench.folder_for("nginx")?;
            bench.credentials.write_site(&folder)?;
            bench.nginx = Some(Nginx::start(&program, &folder, cores.server, bench.upstream.address, &[])?);
        }
        if let Some(programs) = programs {
            let folder = bench.folder_for("countersign")?;
            let pair = Countersign::start(&programs, &folder, cores, &bench.credentials)?;
            bench.runtime.block_on(pair.configure(&bench.credentials, bench.upstream.address))?;
            bench.countersign = Some(pair);
        }
        Ok(bench)
    }

    /// A folder of its own inside the run's temporary folder.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn folder_for(&self, name: &str) -> Result<PathBuf, PeerError> {
        let path = self.folder.path().join(name);
        std::fs::create_dir_all(&path).map_err(PeerError::system(format!("making {}", path.display())))?;
        Ok(path)
    }

    /// Those that take part, in the order in which they are measured.
    pub fn peers(&mut self) -> Vec<&mut dyn Peer> {
        let nginx = self.nginx.as_mut().map(|peer| peer as &mut dyn Peer);
        let countersign = self.countersign.as_mut().map(|peer| peer as &mut dyn Peer);
        nginx.into_iter().chain(countersign).collect()
    }

    /// A path on a peer, as the load generator dials it.
    ///
    /// # Errors
    /// Never for the addresses that peers have.
    pub fn target(address: std::net::SocketAddr, path: &str) -> Result<Target, crate::target::TargetError> {
        Target::parse(&format!("https://{address}{path}"), Some(HOST), false)
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

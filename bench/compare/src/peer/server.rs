//! The interface of all peers: a program that is installed, started in a context, and serves.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Instant;

use e2e::credentials::Credential;

use super::credentials::Credentials;
use super::kind::{Kind, PeerError};

/// The cores of the measured server and of everything else.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Cores {
    /// The measured core.
    #[arg(long = "server-cpu", default_value_t = 1)]
    pub server: usize,
    /// The core of everything else.
    #[arg(long = "load-cpu", default_value_t = 0)]
    pub load: usize,
}

/// The environment that a peer starts in.
pub struct StartContext<'a> {
    /// Its folder, with the files of [`Credentials::write_site`].
    pub folder: &'a Path,
    pub cores: Cores,
    pub upstreams: Upstreams,
    pub credentials: &'a Credentials,
    /// Runs everything but the load.
    pub runtime: &'a tokio::runtime::Runtime,
    /// Further names, each with a certificate of its own in the folder: `<name>.crt` and
    /// `<name>.key`.
    pub more: &'a [String],
}

/// Addresses of the shared upstreams.
#[derive(Clone, Copy)]
pub struct Upstreams {
    pub plain: SocketAddr,
    /// Presents a certificate for [`HOST`](super::HOST) and requires the gateway's.
    pub mtls: SocketAddr,
    /// The same for [`CALL`](super::CALL) and [`SOCKET`](super::SOCKET).
    pub echo: SocketAddr,
}

/// A peer whose program is installed.
pub trait Installed {
    fn kind(&self) -> Kind;

    /// The version that its program reports.
    fn version(&self) -> String;

    /// Starts it and waits until it listens.
    ///
    /// # Errors
    /// When it does not become ready.
    fn start(&self, context: &StartContext<'_>) -> Result<Box<dyn Peer>, PeerError>;

    /// As [`Self::start`], with thousands of names from files ([`StartContext::more`]) whose
    /// certificates can be changed. `None`: it does not take part in that.
    fn start_many(&self, context: &StartContext<'_>) -> Option<Result<Box<dyn ManySites>, PeerError>> {
        let _ = context;
        None
    }
}

pub trait Peer {
    fn kind(&self) -> Kind;

    /// Where it serves HTTPS.
    fn address(&self) -> SocketAddr;

    /// The process that is measured, with its children.
    fn pid(&self) -> u32;

    /// Its command line.
    fn command(&self) -> String;

    /// When its process was started.
    fn started(&self) -> Instant;

    /// Stops it and starts it with fresh memory.
    ///
    /// # Errors
    /// When it does not become ready.
    fn restart(&mut self) -> Result<(), PeerError>;

    /// Its configuration files, for the results: none of them holds a secret.
    fn configuration(&self) -> Vec<PathBuf> {
        Vec::new()
    }
}

/// A running server with many names.
pub trait ManySites {
    /// The server itself.
    fn peer(&mut self) -> &mut dyn Peer;

    /// Changes the certificate of one name as an operator would. Gives the moment when the new
    /// files were written, before the signal or the first command.
    ///
    /// # Errors
    /// When the server rejects it.
    fn change(&mut self, name: &str, certificate: &Credential) -> Result<Instant, PeerError>;
}

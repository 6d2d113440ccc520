//! What all peers share: their kinds, their interface, and their errors.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Instant;

use e2e::credentials::Credential;
use serde::Serialize;

use super::credentials::Credentials;

/// The name that every peer serves, with a P-256 certificate.
pub const HOST: &str = "bench.test";
/// A name with an RSA-2048 certificate.
pub const RSA_HOST: &str = "rsa.bench.test";
/// Proxied to the plain upstream.
pub const PROXIED: &str = "/hello";
/// Proxied to the upstream with mutual TLS.
pub const PROXIED_MTLS: &str = "/hello-mtls";
/// The gateway responds to it with its own 404.
pub const UNROUTED: &str = "/nothing-here";

/// The peers, in the order of the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// This project.
    Countersign,
    /// Debian's nginx.
    Nginx,
    /// Debian's HAProxy.
    Haproxy,
    /// Envoy, from a Python wheel.
    Envoy,
    /// Caddy, from a Python wheel.
    Caddy,
    /// A minimal proxy on Pingora and rustls, from `bench/pingora-peer`.
    Pingora,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Countersign, Self::Nginx, Self::Haproxy, Self::Envoy, Self::Caddy, Self::Pingora];

    /// The name on the command line, in tables and in folder names.
    pub fn name(self) -> &'static str {
        match self {
            Self::Countersign => "countersign",
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
            Self::Envoy => "envoy",
            Self::Caddy => "caddy",
            Self::Pingora => "pingora",
        }
    }
}

/// Why a peer cannot take part.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// Its program is not installed.
    #[error("{} is missing: {hint}", peer.name())]
    Missing {
        peer: Kind,
        /// How to install it.
        hint: String,
    },
    /// A file or a process.
    #[error("{what}")]
    System { what: String, source: io::Error },
    /// It ended, or did not become ready in time.
    #[error("{command} did not become ready: {problem}; the end of its log ({}):\n{tail}", log.display())]
    NotReady {
        command: String,
        problem: String,
        log: PathBuf,
        /// The last lines of its log.
        tail: String,
    },
    /// A rejected request, or an invalid response.
    #[error("the Admin API: {0}")]
    Admin(String),
    /// A peer rejected a change of its certificates.
    #[error("{} did not take the change: {answer}", peer.name())]
    Unchanged { peer: Kind, answer: String },
    /// The TLS client could not be configured.
    #[error("making the client of this run")]
    Identity(#[from] crate::identity::IdentityError),
}

impl PeerError {
    /// Adds to an I/O error what was being done.
    pub fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::System { what, source }
    }
}

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
    /// Presents a certificate for [`HOST`] and requires the gateway's.
    pub mtls: SocketAddr,
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

//! What all peers share: their kinds, what they are started with, what they can do, and their errors.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Instant;

use e2e::credentials::Credential;
use serde::Serialize;

use super::credentials::Credentials;

/// The name every peer serves, with a P-256 certificate.
pub const HOST: &str = "bench.test";
/// The same with an RSA-2048 certificate.
pub const RSA_HOST: &str = "rsa.bench.test";
/// Proxied to the plain upstream.
pub const PROXIED: &str = "/hello";
/// Proxied to the upstream that shows and demands a certificate.
pub const PROXIED_MTLS: &str = "/hello-mtls";
/// Answered by the gateway itself, with 404.
pub const UNROUTED: &str = "/nothing-here";

/// Who can take part, in the order of the tables.
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

    /// As on the command line, in tables and in names of folders.
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
    /// It is not on this machine.
    #[error("{} is missing: {hint}", peer.name())]
    Missing {
        /// Which one.
        peer: Kind,
        /// How to get it.
        hint: String,
    },
    /// A file or a process.
    #[error("{what}")]
    System {
        /// What we were doing.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// It ended, or did not become ready in time.
    #[error("{command} did not become ready: {problem}; the end of its log ({}):\n{tail}", log.display())]
    NotReady {
        command: String,
        /// What happened instead.
        problem: String,
        /// Where it logs.
        log: PathBuf,
        /// Its last lines.
        tail: String,
    },
    /// The Admin API refused something, or was not understood.
    #[error("the Admin API: {0}")]
    Admin(String),
    /// A peer's own way of being changed while it runs.
    #[error("{} did not take the change: {answer}", peer.name())]
    Unchanged {
        /// Which one.
        peer: Kind,
        /// What it said.
        answer: String,
    },
    /// The client side could not be made from them.
    #[error("making the client of this run")]
    Identity(#[from] crate::identity::IdentityError),
}

impl PeerError {
    /// Says what we were doing when the system refused.
    pub fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::System { what, source }
    }
}

/// Whose CPU runs what; the options that say so.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Cores {
    /// The measured core.
    #[arg(long = "server-cpu", default_value_t = 1)]
    pub server: usize,
    /// The core of everything else.
    #[arg(long = "load-cpu", default_value_t = 0)]
    pub load: usize,
}

/// What a peer is started with.
pub struct Stage<'a> {
    /// Its folder, which holds everything that [`Credentials::write_site`] writes.
    pub folder: &'a Path,
    /// Which core runs what.
    pub cores: Cores,
    /// Behind it.
    pub upstreams: Upstreams,
    /// The certificates of the run.
    pub credentials: &'a Credentials,
    /// For what is not load.
    pub runtime: &'a tokio::runtime::Runtime,
    /// Names that it serves besides, each with a certificate of its own in the folder: `<name>.crt` and `<name>.key`.
    pub more: &'a [String],
}

/// Where the shared upstreams listen.
#[derive(Clone, Copy)]
pub struct Upstreams {
    /// Plain HTTP.
    pub plain: SocketAddr,
    /// Shows a certificate for [`HOST`] and demands the gateway's.
    pub mtls: SocketAddr,
}

/// A peer whose program is on this machine.
pub trait Installed {
    /// Which one.
    fn kind(&self) -> Kind;

    /// What its program says it is.
    fn version(&self) -> String;

    /// Starts it and waits until it listens.
    ///
    /// # Errors
    /// When it does not become ready.
    fn start(&self, stage: &Stage<'_>) -> Result<Box<dyn Peer>, PeerError>;

    /// The same as [`Self::start`] for one that serves thousands of names from files ([`Stage::more`]) and can change the
    /// certificate of one. `None`: it is not measured there.
    fn start_many(&self, stage: &Stage<'_>) -> Option<Result<Box<dyn ManySites>, PeerError>> {
        let _ = stage;
        None
    }
}

/// A running server.
pub trait Peer {
    /// Which one.
    fn kind(&self) -> Kind;

    /// Where it serves HTTPS.
    fn address(&self) -> SocketAddr;

    /// The process that is measured, with its children.
    fn pid(&self) -> u32;

    /// Its command line.
    fn command(&self) -> String;

    /// When its process was started.
    fn started(&self) -> Instant;

    /// Stops it and starts it anew, with nothing left of its former memory.
    ///
    /// # Errors
    /// When it does not come back.
    fn restart(&mut self) -> Result<(), PeerError>;

    /// The files it was configured with, for the results: none of them holds a secret.
    fn configuration(&self) -> Vec<PathBuf> {
        Vec::new()
    }
}

/// A running server that was started with many names.
pub trait ManySites: Peer {
    /// Gives one of the names another certificate as an operator would, and gives the moment at which it was asked to: when
    /// the new files were there, before the signal or the first command.
    ///
    /// # Errors
    /// When it refuses.
    fn change(&mut self, name: &str, certificate: &Credential) -> Result<Instant, PeerError>;
}

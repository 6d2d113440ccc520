//! The servers that are compared, each started on a core of its own with the same certificates and the same upstreams.
//!
//! A peer is whatever serves `https://bench.test/hello` from the plain upstream and `/hello-mtls` from the one that demands
//! a certificate, answers 404 itself for other paths, shows an RSA certificate for `rsa.bench.test`, and demands a client
//! certificate everywhere. One file a peer: how it is found, configured and started; [`Kind`] lists them. The
//! invariant: a peer that is dropped is gone, with all its children.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Instant;

use pki::ca::IssuedCertificate;
use serde::Serialize;

pub mod admin;
pub mod caddy;
pub mod child;
pub mod countersign;
pub mod credentials;
pub mod envoy;
mod error;
pub mod haproxy;
pub mod nginx;
pub mod pingora;
pub mod program;
pub mod upstream;

use child::Server;
pub use countersign::Cores;
use credentials::Credentials;
pub use error::PeerError;

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

    /// Looks for its program; `beside` is where our own programs are, by default beside this one.
    ///
    /// # Errors
    /// [`PeerError::Missing`], which says how to get it.
    pub fn find(self, beside: Option<&Path>) -> Result<Box<dyn Installed>, PeerError> {
        let beside = match beside {
            Some(folder) => folder.to_owned(),
            None => program::own_folder()?,
        };
        Ok(match self {
            Self::Countersign => Box::new(countersign::Programs::find(Some(&beside))?),
            Self::Nginx => Box::new(nginx::Installation::find()?),
            Self::Haproxy => Box::new(haproxy::Installation::find()?),
            Self::Envoy => Box::new(envoy::Installation::find(&beside)?),
            Self::Caddy => Box::new(caddy::Installation::find(&beside)?),
            Self::Pingora => Box::new(pingora::Installation::find(&beside)?),
        })
    }
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
    fn server(&self) -> &Server;

    /// Stops it and starts it anew, with nothing left of its former memory.
    ///
    /// # Errors
    /// When it does not come back.
    fn restart(&mut self) -> Result<(), PeerError>;

    /// The files it was configured with, for the results: none of them holds a secret.
    fn configuration(&self) -> Vec<PathBuf> {
        Vec::new()
    }

    /// Its process id.
    fn pid(&self) -> u32 {
        self.server().pid()
    }
}

/// A running server that was started with many names.
pub trait ManySites: Peer {
    /// Gives one of the names another certificate as an operator would, and gives the moment at which it was asked to: when
    /// the new files were there, before the signal or the first command.
    ///
    /// # Errors
    /// When it refuses.
    fn change(&mut self, name: &str, certificate: &IssuedCertificate) -> Result<Instant, PeerError>;
}

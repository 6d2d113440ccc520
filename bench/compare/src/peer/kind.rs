//! The peers by name, the sites that each of them serves, and why one cannot take part.

use std::io;
use std::path::PathBuf;

use serde::Serialize;

/// The name that every peer serves, with a P-256 certificate.
pub const HOST: &str = "bench.test";
/// A name with an RSA-2048 certificate.
pub const RSA_HOST: &str = "rsa.bench.test";
/// Proxied to the plain upstream.
pub const PROXIED: &str = "/hello";
/// Proxied to the upstream with mutual TLS.
pub const PROXIED_MTLS: &str = "/hello-mtls";
/// A gRPC method, proxied to the upstream of calls and sockets, with mutual TLS.
pub const CALL: &str = "/bench.Echo/Unary";
/// A WebSocket, proxied to the same upstream.
pub const SOCKET: &str = "/socket";
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

impl Kind {
    /// Whether it is configured to proxy [`CALL`] and [`SOCKET`].
    pub fn proxies_echo(self) -> bool {
        matches!(self, Self::Countersign | Self::Nginx | Self::Haproxy | Self::Envoy)
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
    /// Adds the action that failed to an I/O error.
    pub fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::System { what, source }
    }
}

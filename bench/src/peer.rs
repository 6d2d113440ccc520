//! The servers that are compared, each started on a core of its own with the same certificates and the same upstream.
//!
//! A peer is whatever serves `https://bench.test/hello` from the shared upstream, answers 404 itself for other
//! paths, and demands a client certificate. The invariant: a peer that is dropped is gone, with all its children.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

pub mod admin;
pub mod child;
pub mod countersign;
pub mod credentials;
pub mod nginx;
pub mod upstream;

/// The name every peer serves.
pub const HOST: &str = "bench.test";
/// Proxied to the upstream.
pub const PROXIED: &str = "/hello";
/// Answered by the gateway itself, with 404.
pub const UNROUTED: &str = "/nothing-here";

/// A running server.
pub trait Peer {
    /// Short name, as in tables.
    fn name(&self) -> &'static str;
    /// Where it serves HTTPS.
    fn address(&self) -> SocketAddr;
    /// The process to be measured, with its children.
    fn pid(&self) -> u32;
    /// Stops it and starts it anew, with nothing left of its former memory.
    ///
    /// # Errors
    /// When it does not come back.
    fn restart(&mut self) -> Result<(), PeerError>;
}

/// Why a peer cannot take part.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// It is not on this machine.
    #[error("{peer} is missing: {hint}")]
    Missing {
        /// Which one.
        peer: &'static str,
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
    #[error("{program} did not become ready: {problem}; the end of its log ({}):\n{tail}", log.display())]
    NotReady {
        /// The program.
        program: String,
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
    /// Certificates for the run could not be made.
    #[error("making the certificates of this run")]
    Mint(#[from] pki::mint::MintError),
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

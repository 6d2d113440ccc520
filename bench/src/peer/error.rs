//! Why a peer cannot take part.

use std::io;
use std::path::PathBuf;

use super::Kind;

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
    /// A peer's own way of being changed while it runs.
    #[error("{} did not take the change: {answer}", peer.name())]
    Unchanged {
        /// Which one.
        peer: Kind,
        /// What it said.
        answer: String,
    },
    /// Certificates for the run could not be made.
    #[error("making the certificates of this run")]
    Mint(#[from] pki::ca::IssueError),
    /// The client side could not be made from them.
    #[error("making the client of this run")]
    Identity(#[from] crate::identity::IdentityError),
    /// The TLS side of the upstream could not be made from them.
    #[error("making the upstream's TLS")]
    Tls(#[from] rustls::Error),
}

impl PeerError {
    /// Says what we were doing when the system refused.
    pub fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::System { what, source }
    }
}

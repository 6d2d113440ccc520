//! The servers that are compared, each started on a core of its own with the same certificates and the same upstreams.
//!
//! A peer is whatever serves `https://bench.test/hello` from the plain upstream and `/hello-mtls` from the one that demands
//! a certificate, answers 404 itself for other paths, shows an RSA certificate for `rsa.bench.test`, and demands a client
//! certificate everywhere. One file a peer: how it is found, configured and started; [`Kind`] lists them. The
//! invariant: a peer that is dropped is gone, with all its children.

use std::path::Path;

pub mod caddy;
pub mod child;
pub mod countersign;
pub mod credentials;
pub mod envoy;
pub mod haproxy;
pub mod nginx;
pub mod pingora;
pub mod program;
mod types;

pub use types::{
    Cores, HOST, Installed, Kind, ManySites, PROXIED, PROXIED_MTLS, Peer, PeerError, RSA_HOST, Stage,
    UNROUTED, Upstreams,
};

/// Looks for its program; `beside` is where our own programs are, by default beside this one.
///
/// # Errors
/// [`PeerError::Missing`], which says how to get it.
pub fn find(kind: Kind, beside: Option<&Path>) -> Result<Box<dyn Installed>, PeerError> {
    let beside = match beside {
        Some(folder) => folder.to_owned(),
        None => program::own_folder()?,
    };
    Ok(match kind {
        Kind::Countersign => Box::new(countersign::Programs::find(Some(&beside))?),
        Kind::Nginx => Box::new(nginx::Installation::find()?),
        Kind::Haproxy => Box::new(haproxy::Installation::find()?),
        Kind::Envoy => Box::new(envoy::Installation::find(&beside)?),
        Kind::Caddy => Box::new(caddy::Installation::find(&beside)?),
        Kind::Pingora => Box::new(pingora::Installation::find(&beside)?),
    })
}

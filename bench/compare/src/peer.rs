//! The servers that are compared, each on a core of its own, with the same certificates and
//! upstreams.
//!
//! A peer serves `https://bench.test/hello` from the plain upstream and `/hello-mtls` from the one
//! that requires a certificate, responds to other paths with its own 404, presents an RSA
//! certificate for `rsa.bench.test`, and requires a client certificate everywhere. Those that serve
//! gRPC and WebSocket ([`Kind::proxies_echo`]) have a path for each. Each peer has a
//! file that finds, configures and starts it; [`Kind`] lists them.
//!
//! Invariant: a dropped peer is gone, with all its children.

use std::path::Path;

pub mod caddy;
pub mod child;
pub mod countersign;
pub mod credentials;
pub mod envoy;
pub mod haproxy;
mod kind;
pub mod nginx;
pub mod pingora;
pub mod program;
mod server;

pub use kind::{CALL, HOST, Kind, PROXIED, PROXIED_MTLS, PeerError, RSA_HOST, SOCKET, UNROUTED};
pub use server::{Cores, Installed, ManySites, Peer, StartContext, Upstreams};

/// Looks for a peer's program; `beside` is the folder of the workspace's programs, by default that
/// of this one.
///
/// # Errors
/// [`PeerError::Missing`], with a hint how to install it.
pub fn find(kind: Kind, beside: Option<&Path>) -> Result<Box<dyn Installed>, PeerError> {
    let beside = match beside {
        Some(folder) => folder.to_owned(),
        None => program::own_folder()?,
    };
    Ok(match kind {
        Kind::Countersign => Box::new(countersign::Programs::find(Some(&beside))?),
        Kind::Nginx => Box::new(nginx::NginxProgram::find()?),
        Kind::Haproxy => Box::new(haproxy::HaproxyProgram::find()?),
        Kind::Envoy => Box::new(envoy::EnvoyProgram::find(&beside)?),
        Kind::Caddy => Box::new(caddy::CaddyProgram::find(&beside)?),
        Kind::Pingora => Box::new(pingora::PingoraProgram::find(&beside)?),
    })
}

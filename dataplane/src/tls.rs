//! TLS, in the order of a connection: the ClientHello selects the site, the site's configuration
//! drives the handshake (in full or from a ticket), `pki` verifies the client, and the transport
//! encrypts what follows.

#[cfg(feature = "engine-boring")]
pub mod boring;
pub mod client_hello;
pub mod client_verifier;
pub(crate) mod failure;
pub mod handshake;
pub mod handshake_state;
mod key_schedule;
pub(crate) mod params;
pub mod record;
pub(crate) mod signature;
pub mod site_config;
pub mod stream;
pub(crate) mod ticket;
pub mod transport;
pub mod types;

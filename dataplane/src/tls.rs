//! TLS on the client's side, in the order of the walk: the ClientHello decides the site, the site's
//! prepared configuration shakes hands (in full or from a ticket), `pki` judges the client, and the
//! stream carries what follows.

#[cfg(feature = "engine-boring")]
pub mod boring;
pub mod client_hello;
pub mod client_verifier;
pub(crate) mod failure;
pub mod handshake;
mod key_schedule;
pub mod params;
pub mod record;
pub mod site_config;
pub mod stream;
pub mod ticket;
pub mod transport;

//! Verification of a peer's certificate chain (RFC 5280 6, with the differences below).
//!
//! The peer's certificates and the trust anchors -> `path_builder` -> a [`VerifiedClient`] or a
//! [`VerifyError`] with the failing certificate and rule. All TLS engines and listeners use this
//! verifier. It replaces webpki's path builder, because the rules are those of the contract:
//!
//! - anchors are exactly the given certificates; a listed intermediate is an anchor, a listed leaf
//!   is accepted as it is (pinned);
//! - `depth` counts the intermediates between leaf and anchor, as in OpenSSL, without self-issued
//!   ones (RFC 5280 4.2.1.9);
//! - an X.509 v1 certificate may be leaf or anchor, never an intermediate;
//! - the peer may send intermediates in any order, with unrelated certificates among them;
//! - all work is bounded in advance, because it happens before the peer is authenticated.
//!
//! The modules, in their order: `types`, `name_constraints`, `error`, then the checks
//! (`intermediates`, `signatures`, `path`, `server_name`), `path_builder`, `verifier`, and what
//! uses it (`reverification`, `diagnostics`).

mod diagnostics;
mod error;
mod intermediates;
mod name_constraints;
mod path;
mod path_builder;
mod reverification;
mod server_name;
mod signatures;
mod types;
mod verifier;

pub use diagnostics::{ChainPosition, failing_certificate, required_depth};
pub use error::{VerifyError, VerifyReason};
pub use reverification::reverify;
pub use types::VerifiedClient;
pub use verifier::{SERVER_DEPTH, verify_client, verify_server, verify_server_at_depth, verify_server_chain};

#[cfg(test)]
mod tests;

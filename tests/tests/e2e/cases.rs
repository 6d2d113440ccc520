//! The reference cases of APISIX's own tests, by their numbers: `docs/CASES.md` says which test carries which.
//!
//! Each module takes the cases of one subject. Their clients are the ones the originals use, curl and `openssl s_client`, and their
//! certificates have the originals' properties, however awkward (see `e2e::fixtures`).

mod stage;

mod client_mtls;
mod environment;
mod keyring;
mod keys_and_protocols;
mod sni;
mod upstream_mtls;

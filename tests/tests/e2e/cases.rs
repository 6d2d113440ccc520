//! The reference cases of APISIX's own tests, by number: `docs/CASES.md` maps cases to tests.
//!
//! Each module has the cases of one subject. Clients are those of the originals, curl and `openssl
//! s_client`, and certificates have the properties of the originals (see `e2e::fixtures`).

mod stage;

mod client_mtls;
mod environment;
mod grpc;
mod keyring;
mod keys_and_protocols;
mod sni;
mod upstream_mtls;
mod upstreams;

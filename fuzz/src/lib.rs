//! The properties that the fuzz targets check for any input, one module per target.
//!
//! `fuzz_targets/` pass the bytes, `bin/seed.rs` creates the first inputs; no certificate or key is
//! checked in. Each property uses the production code, and a violation panics. To reproduce one:
//! `cargo fuzz run --sanitizer none TARGET fuzz/artifacts/TARGET/...`.

pub mod certificate;
pub mod client_hello;
pub mod crl;
pub mod json;
pub mod proxy_protocol;
pub mod records;
pub mod sni;
pub mod uri;

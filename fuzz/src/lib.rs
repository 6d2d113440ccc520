//! What must hold for any bytes: the laws that the fuzz targets check, one module a target.
//!
//! `fuzz_targets/` hands over bytes, `bin/seed.rs` makes the first ones; nothing minted is stored.
//! Each law goes through the very code that serves, and a broken one is a panic. To see one again:
//! `cargo fuzz run --sanitizer none TARGET fuzz/artifacts/TARGET/...`.

pub mod certificate;
pub mod client_hello;
pub mod crl;
pub mod json;
pub mod records;
pub mod uri;

//! The Admin API as its callers see it: the real server on a port of its own, the real store, and a
//! TLS client.
//!
//! Names of tests carry the numbers of the cases of APISIX's own tests that they repeat.

// Tests may assert as they please, and so may their helpers.
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used)]

mod access;
mod adopted;
mod audit;
mod denied;
mod explain;
mod extension;
mod garbage;
mod keyring;
mod limits;
mod lint;
mod references;
mod secrets;
mod shapes;
mod ssl;
mod streams;
mod tls;
mod world;

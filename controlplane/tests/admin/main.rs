//! The Admin API as its clients see it: the real server on an ephemeral port, the real store, and a
//! TLS client.
//!
//! Test names carry the numbers of the test cases of APISIX that they repeat.

// Tests and their helpers may panic.
#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used)]

mod access;
mod adopted;
mod audit;
mod bad_bodies;
mod batch;
mod client_roles;
mod configs;
mod denied;
mod explain;
mod extension;
mod garbage;
mod keyring;
mod limits;
mod lint;
mod operations;
mod plugins;
mod protection;
mod references;
mod safe_writes;
mod secrets;
mod shapes;
mod ssl;
mod streams;
mod tls;
mod world;

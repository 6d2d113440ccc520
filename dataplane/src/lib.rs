//! The data plane: terminates TLS, verifies clients, routes and proxies.
//!
//! One thread a core, each with its own io_uring runtime; one more for the push client, which keeps
//! the snapshot up to date. The folders stand in the order of their imports: each uses only those
//! before it (`tests/tests/tidy.rs` checks that). `docs/WALKS.md` follows a connection through them.

pub mod runtime;

pub mod lifecycle;

pub mod observability;

pub mod io;

pub mod tls;

pub mod http;

pub mod body;

pub mod upstream;

pub mod filters;

pub mod tcp;

pub mod proxy;

pub mod push_client;

pub mod config;
pub mod server;
pub mod status;

/// Why things end badly: the closed list of `model`, which the control plane explains by.
pub use model::reason;

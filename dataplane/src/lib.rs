//! The data plane: terminates TLS, verifies clients, routes and proxies.
//!
//! One thread a core, each with its own io_uring runtime; one more for the agent, which keeps the snapshot up to
//! date. The modules stand in the order of a connection's walk (`docs/WALKS.md`); `connection` is the only one
//! that knows that order.

pub mod boot;
pub mod descriptors;
pub mod settings;

pub mod agent;

pub mod rt;
pub mod stage;
pub mod worker;

pub mod connection;
pub mod http;
pub mod net;
pub mod route;
pub mod stream;
pub mod tls;
pub mod upstream;

pub mod observe;

/// Why things end badly: the closed list of `model`, which the control plane explains by.
pub use model::outcome;

pub mod drain;
pub mod status;

//! The proxy: listeners, workers and client connections.
//!
//! [`connection`] has the order in which a connection passes through the folders before this one,
//! [`worker_thread`] starts what runs besides connections.

mod client_auth;
pub mod connection;
pub(crate) mod connection_counts;
mod connection_limit;
pub mod listener;
mod registry;
mod request_limit;
mod response_body;
pub mod worker;
pub mod worker_thread;

//! The proxy: listeners accept connections, each worker serves those of its core.
//!
//! `connection` knows the order in which a connection passes through the folders before this one;
//! `live` holds established TLS connections and ends those that a changed policy rejects.

pub(crate) mod admission;
pub mod connection;
pub mod listener;
pub(crate) mod live;
pub mod worker;

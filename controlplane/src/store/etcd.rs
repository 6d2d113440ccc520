//! The store in an etcd cluster.
//!
//! `dial` makes connections, each verified and each failure named by its step; `probe` asks every endpoint at start who it is and whether it
//! will do.

pub mod dial;

#[cfg(test)]
pub(crate) mod testing;

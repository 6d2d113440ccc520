//! The Admin API: who may ask, what was asked, what is answered (contract section 2).
//!
//! server -> tls -> auth -> table -> handler -> `change` -> reply, and audit beside every write.
//! One table row a kind of thing, one handler for all kinds of resources. Invariant: a request that
//! does not pass `access` and the client-certificate verdict reaches no handler, and every write
//! leaves one audit line.

pub(crate) mod access;
pub(crate) mod admin_key;
mod audit;
mod body;
pub(crate) mod client;
mod denied_nodes;
pub(crate) mod handler;
mod list;
pub(crate) mod metrics;
pub(crate) mod nodes;
mod path;
mod query;
pub(crate) mod reply;
pub(crate) mod server;
mod shared_key;
pub(crate) mod tls;

pub use handler::AdminApi;
pub use server::{AdminServer, Limits};

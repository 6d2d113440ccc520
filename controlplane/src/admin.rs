//! The Admin API: authentication, routing and responses (contract section 2).
//!
//! server -> tls -> access -> path -> handler -> `change` -> reply, with an audit line for every
//! write. Each path with a method is one row in `operation`; one handler serves all kinds of
//! resources. Invariant: a request that fails `access` or the client certificate verification
//! reaches no handler, and every write leaves one audit line.

mod absent;
pub(crate) mod access;
pub(crate) mod addresses;
pub(crate) mod admin_key;
mod audit;
mod body;
mod denied_nodes;
pub(crate) mod handler;
pub(crate) mod key_file;
mod list;
pub(crate) mod metrics;
mod openapi;
pub(crate) mod operation;
mod path;
mod precondition;
mod query;
pub(crate) mod reply;
pub(crate) mod server;
mod shared_key;
pub(crate) mod tls;
mod wrong_keys;

pub use handler::AdminApi;
pub use server::{AdminServer, BoundListener, Limits};
pub(crate) use server::{ListenerSocket, ListenerUpdate};

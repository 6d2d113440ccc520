//! The control plane: Admin API, store and push.
//!
//! A change walks `admin` (who asks, what) -> `change` (draft, check, commit) -> `store` -> `publish` -> the data planes. Stages
//! hand values back; only `boot` knows all of them. Beside the walk, `explain` and `lint` answer questions about what is `served`.

pub mod admin;
pub mod backup;
pub mod change;
pub mod compile;
pub mod publish;
pub mod store;

pub mod current_snapshot;
pub mod explain;
pub mod lint;

pub mod cli;
pub mod inventory;
pub mod server;

pub mod error_counters;
mod proof;

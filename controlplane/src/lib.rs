//! The control plane: Admin API, store and push.
//!
//! A change walks `admin` (who asks, what) -> `change` (draft, check, commit) -> `store` -> `publish` -> the data planes. Stages
//! hand values back; only `boot` knows all of them.

pub mod pki_cli;
pub mod store;

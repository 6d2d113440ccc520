//! Shared state of the process: the handles on the snapshot and the ticket ring, whether the
//! process is ready, and how it drains.

pub(crate) mod drain;
pub mod handles;
pub mod stage;

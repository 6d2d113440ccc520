//! What both programs report about themselves, and how they do it without ever being stopped by it.
//!
//! `log` (a bounded queue and one thread write standard error), `print` (standard output),
//! `heartbeat` (which thread or loop still runs) and `status` (`/status`, `/status/ready`,
//! `/metrics` on a thread of its own). Invariant: no call in here that a serving thread makes waits
//! for a disk, a terminal or the reader of a pipe, and none panics when they fail.

#![warn(missing_docs)]

pub mod heartbeat;
pub mod log;
pub mod status;
pub mod stdout;

pub use heartbeat::{Heartbeat, Heartbeats, Readiness};
pub use log::exit;
pub use status::StatusPage;

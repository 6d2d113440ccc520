//! Logging, status and metrics of both programs, without ever blocking them.
//!
//! `log` (a bounded queue and a thread that writes standard error), `stdout`, `heartbeat` (which
//! threads and loops still run), `status` (`/status`, `/status/ready`, `/metrics` on a thread of
//! its own) and `service` (notifications of the service manager). Invariant: no call from a serving
//! thread waits for a disk, a terminal or the reader of a pipe, and none panics when they fail.

#![warn(missing_docs)]

pub mod heartbeat;
pub mod log;
mod process_metrics;
pub mod reloads;
pub mod service;
pub mod status;
pub mod stdout;

pub use heartbeat::{Heartbeat, Heartbeats, Readiness};
pub use log::exit;
pub use service::{ServiceManager, ServiceState};
pub use status::StatusPage;

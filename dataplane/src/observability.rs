//! Metrics for Prometheus, and one log line for each connection or request that is rejected, denied or
//! fails.

pub(crate) mod log;
mod log_limiter;
pub mod metrics;
pub(crate) mod reason;

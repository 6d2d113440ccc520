//! What the operator sees: counters for Prometheus, and one log line for each refusal.

pub(crate) mod log;
pub(crate) mod log_limiter;
pub mod metrics;

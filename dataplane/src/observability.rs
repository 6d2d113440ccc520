//! What the operator sees: counters for Prometheus, and one log line for each refusal.

pub mod log;
pub mod log_limiter;
pub mod metrics;

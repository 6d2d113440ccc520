//! Sockets: accepting connections, and moving bytes without knowing what they mean.

pub mod buffered;
pub mod chunk_read;
pub mod coarse_timer;
pub mod flag;
pub mod plain;
pub mod timeouts;

//! Sockets: accepting connections, and moving bytes without knowing what they mean.

pub mod buffered;
pub(crate) mod chunk_read;
pub(crate) mod coarse_timer;
pub(crate) mod flag;
pub(crate) mod plain;
pub(crate) mod timeouts;

//! Sockets: accepting connections, and moving bytes without knowing what they mean.

pub mod buffered;
pub(crate) mod chunk_read;
pub(crate) mod coarse_timer;
pub mod connection_info;
pub(crate) mod flag;
pub(crate) mod linger;
pub(crate) mod plain;
pub(crate) mod timeouts;

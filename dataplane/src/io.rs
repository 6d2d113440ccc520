//! Bytes in and out of a connection, whatever they mean: buffers, reads without a copy, timeouts,
//! and the lingering close.

pub mod buffered;
pub(crate) mod chunk_read;
pub(crate) mod coarse_timer;
pub mod connection_info;
pub(crate) mod flag;
pub(crate) mod linger;
pub(crate) mod plain;
pub mod proxy_protocol;
pub(crate) mod timeouts;

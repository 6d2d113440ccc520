//! Sockets: accepting connections, and moving bytes without knowing what they mean.

pub mod alarm;
pub mod buffered;
pub mod chunk_read;
pub mod flag;
pub mod plain;
pub mod timeouts;

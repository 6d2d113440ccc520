//! Sockets: accepting connections, and moving bytes without knowing what they mean.

pub mod admission;
pub mod alarm;
pub mod flag;
pub mod lend;
pub mod listener;
pub mod plain;
pub mod pump;
pub mod watchdog;

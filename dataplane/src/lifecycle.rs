//! The stages of a process that serves: whether it is ready, and how it drains on its way out.

pub(crate) mod drain;
pub mod shutdown;

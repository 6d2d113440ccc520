//! What both programs need of the operating system as server processes. Knows nothing of settings,
//! documents or connections.

pub mod signals;

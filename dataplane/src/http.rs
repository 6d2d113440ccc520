//! HTTP on the client's side: the session, what a request asks for, and the answers that are our own.

pub(crate) mod frames;
pub mod head;
mod http2;
pub mod keep_alive;
pub mod reply;
pub mod request;
pub mod server;
mod spelling;
mod tracked_io;

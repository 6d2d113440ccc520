//! HTTP on the client's side: the session, what a request asks for, and the answers that are our own.

pub mod activity;
pub(crate) mod frames;
pub mod head;
mod http2;
mod observed;
pub mod reply;
pub mod request;
pub mod session;
mod spelling;

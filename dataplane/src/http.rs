//! HTTP on the client's side: the session, what a request asks for, and the answers that are our
//! own.

pub(crate) mod error_page;
pub(crate) mod head;
mod header_case;
mod http2;
pub(crate) mod http2_frames;
pub(crate) mod keep_alive;
pub mod request;
pub(crate) mod server;
mod tracked_io;

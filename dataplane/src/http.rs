//! HTTP on the client's side: the session, what a request asks for, and the answers that are our own.

pub mod error_page;
pub mod head;
mod header_case;
mod http2;
pub(crate) mod http2_frames;
pub mod keep_alive;
pub mod request;
pub mod server;
mod tracked_io;

//! HTTP/2 towards upstreams, on the `h2` crate itself
//! ([decision 59](../../../docs/decisions/0059-http2-to-upstreams.md)).
//!
//! [`connection`] opens a connection and counts its streams, [`head`] makes the head of a request,
//! [`upload`] sends its body and [`body`] reads that of the response. `pool` decides which
//! connection a request takes.

pub(crate) mod body;
pub(crate) mod connection;
pub(crate) mod head;
mod observed_io;
pub(crate) mod upload;

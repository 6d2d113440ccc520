//! The connection to an upstream: which node, over which connection, and the HTTP exchange on it.
//!
//! In the order of a request: `client` tries the nodes in the order of `balancer` and connects to
//! the addresses of `resolver`; `pool` keeps connections and limits them, `connector` makes new
//! ones with the identity of `client_tls` and the names of `host_header`. `exchange` sends the
//! request (`request_body`), over HTTP/1 or `http2`, checks the response (`framing`) and hands its
//! body on (`response_body`); `upgrade` opens a tunnel instead.

pub(crate) mod attempts;
pub(crate) mod balancer;
pub(crate) mod client;
pub(crate) mod client_tls;
pub(crate) mod connector;
pub(crate) mod exchange;
pub(crate) mod framing;
pub(crate) mod host_header;
pub(crate) mod http2;
pub(crate) mod pool;
pub(crate) mod request_body;
pub(crate) mod resolver;
pub(crate) mod response_body;
pub(crate) mod upgrade;

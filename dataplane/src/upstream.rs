//! The hop to the upstream: which node, over which connection, and the exchange itself.

pub mod balancer;
pub mod client;
pub mod client_tls;
pub(crate) mod connector;
pub mod exchange;
pub(crate) mod framing;
pub mod host_header;
pub(crate) mod places;
pub(crate) mod pool;
pub mod request_body;
pub mod resolver;
pub(crate) mod response_body;
pub(crate) mod status_header;

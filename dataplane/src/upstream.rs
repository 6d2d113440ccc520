//! The hop to the upstream: which node, over which connection, and the exchange itself.

pub mod balancer;
pub mod client;
pub mod client_tls;
pub mod connector;
pub mod exchange;
pub mod framing;
pub mod host_header;
pub mod places;
pub mod pool;
pub mod request_body;
pub mod resolver;
pub mod response_body;
pub mod status_header;

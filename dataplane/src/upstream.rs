//! The hop to the upstream: which node, over which connection, and the exchange itself.

pub mod client;
pub mod connector;
pub mod exchange;
pub mod framing;
pub mod naming;
pub mod pick;
pub mod places;
pub mod pool;
pub mod request_body;
pub mod resolve;
pub mod response_body;
pub mod status_header;
pub mod tls;

//! From a request to what it is to be forwarded as: the route, whether this client may use it, and the headers.

pub mod authorize;
pub mod find;
pub mod headers;

//! From a request to what it is to be forwarded as. Whether its client may ask for it, and which
//! route takes it, are `model`'s decisions (`admission`, `destination`); here are the variables
//! routes ask for, and the headers and uri the upstream gets.

pub mod headers;
pub mod identity;
pub mod path;
pub(crate) mod real_ip;
pub mod rewrite;
mod untrusted_headers;
pub mod variables;

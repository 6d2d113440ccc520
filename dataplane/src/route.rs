//! From a request to what it is to be forwarded as. Whether its client may ask for it, and which route takes it, are
//! `model`'s decisions (`admission`, `destination`); here are the headers.

pub mod headers;

//! Filters of a request: its headers, identity headers and rewrites, and the variables that routes
//! read.
//!
//! `model` decides whether a client may send a request and which route matches; the filters provide
//! the values for these decisions, and change what the upstream gets.

pub mod headers;
pub mod identity;
pub mod path;
pub(crate) mod real_ip;
pub mod rewrite;
mod untrusted_headers;
pub mod variables;

//! Message framing and hop-by-hop fields: one test for each row of `docs/FRAMING.md`.
//!
//! Clients and upstreams are raw sockets, which send what libraries refuse to send.

mod client;
mod client_case;
mod client_limits;
mod client_methods;
mod interim;
mod upstream;
mod upstream_requests;

//! Message framing and hop-by-hop fields, as `docs/FRAMING.md` lists them: one test for each of its rows.
//!
//! Clients and upstreams are raw sockets: what is tested is what no well-behaved library sends.

mod client;
mod client_case;
mod client_limits;
mod client_methods;
mod upstream;
mod upstream_requests;

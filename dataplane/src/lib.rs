//! The data plane: terminates TLS, verifies clients, routes and proxies, on io_uring.

pub mod agent;

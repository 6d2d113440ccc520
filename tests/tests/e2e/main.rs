//! The end-to-end suites, one file a subject.
//!
//! They share one executable, so that they link once and run side by side, each in a world of its own.

mod addresses;
mod admin;
mod adopted;
mod at_rest;
mod bad_input;
mod bodies;
mod boring;
mod cases;
mod certificates;
mod client_bounds;
mod crash;
mod demo;
mod explain;
mod extension;
mod first_steps;
mod framing;
mod graceful;
mod harness;
mod heartbeats;
mod hostile;
mod http2_drips;
mod http2_floods;
mod http2_windows;
mod identity;
mod live_connections;
mod live_update;
mod log;
mod matrix;
mod names;
mod pages;
mod paths;
mod readme;
mod records;
mod release;
mod restart;
mod resumption;
mod routing;
mod scenarios;
mod settings;
mod sites_gone;
mod stream;
mod stream_cases;
mod timeouts;
mod upstream;

//! The end-to-end suites, one file a subject.
//!
//! They share one executable, so that they link once and run side by side, each in a world of its own.

mod harness;

mod addresses;
mod admin;
mod adopted;
mod at_rest;
mod backup;
mod bad_input;
mod bodies;
mod boring;
mod cases;
mod crash;
mod demo;
mod explain;
mod extension;
mod framing;
mod graceful;
mod heartbeats;
mod hostile;
mod http2_floods;
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
mod restart;
mod resumption;
mod routing;
mod scenarios;
mod settings;
mod stream;
mod stream_cases;
mod timeouts;
mod upstream;

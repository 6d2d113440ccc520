//! The suites about etcd as the store: real servers, real certificates, real failures. `make
//! test-etcd` runs them alone.
//!
//! They share one executable, so that they link once and run in parallel, each with an etcd and a
//! world of its own.

mod ledger;
mod metrics;
mod stage;

mod batches;
mod cases;
mod copy;
mod down;
mod extension;
mod fleet;
mod harness;
mod history;
mod interop;
mod pages;
mod partition;
mod protections;
mod several;
mod tls;

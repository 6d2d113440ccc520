//! The suites about etcd as the store: real servers, real certificates, real failures. `make test-etcd` runs them alone.
//!
//! They share one executable, so that they link once and run side by side, each with an etcd and a world of its own.

mod copy;
mod harness;

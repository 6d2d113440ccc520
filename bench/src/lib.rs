//! The data plane's code measured in this process: instruction budgets, floors, memory.
//!
//! [`handshake`] runs handshakes in memory beside the cryptography that no implementation can
//! leave out; [`gateway`] builds a worker without an agent; [`budget`] counts instructions under
//! callgrind; [`memory`] and [`names`] size snapshots; [`summary`] prints one line a target. The
//! benchmarks in `benches/` use the same parts. The `compare` crate has the load generator and
//! measures whole programs.
//!
//! Invariant: a figure is printed only if it was measured in this run.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line program prints its result")]

pub mod budget;
pub mod counted;
pub mod gateway;
pub mod handshake;
pub mod memory;
pub mod names;
pub mod summary;

//! What the benchmarks share: a load generator with client certificates, and the peers it is pointed at.
//!
//! The walk of one measurement, which is also the order of the modules: a [`target`] is dialled with a
//! client [`identity`], [`load`] repeats one kind of operation against it and fills a [`histogram`], while
//! [`process`] reads what that cost the server from `/proc`; the [`report`] holds every figure. [`peer`]
//! starts and stops the servers that are compared, [`compare`] runs them side by side, and [`revocation`] measures what it costs
//! to take one client away from among thousands.
//!
//! The invariant: a figure is printed only if it was measured in this run. What could not be measured is
//! absent from the report, or the run fails and says why.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "what it prints is its result; it serves nobody"
)]

pub mod budget;
pub mod cli;
pub mod compare;
pub mod counted;
pub mod etcd_store;
pub mod failure;
pub mod gateway;
pub mod handshake;
pub mod histogram;
pub mod identity;
pub mod load;
pub mod memory;
pub mod names;
pub mod peer;
pub mod process;
pub mod report;
pub mod revocation;
pub mod summary;
pub mod target;

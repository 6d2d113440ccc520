//! A load generator with client certificates, and the servers it is pointed at.
//!
//! A [`target`] is dialled with a client [`identity`]; [`load`] repeats one kind of operation
//! against it, while
//! [`e2e::resources`] reads from `/proc` what that costs the server; the [`report`]
//! holds every figure. [`peer`] starts and stops servers, [`comparison`] measures them side by
//! side, [`revocation`] measures a revocation among thousands of live connections, [`etcd_store`] a
//! change made in etcd, and [`store`] the writes of both stores.
//!
//! Invariant: a figure is printed only if it was measured in this run. A figure that could not be
//! measured is absent from the report, or the run fails with the reason.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line program prints its result")]

use std::process::ExitCode;

pub mod comparison;
pub mod etcd_store;
pub mod failure;
pub mod identity;
pub mod load;
pub mod loadgen;
pub mod peer;
pub mod report;
pub mod revocation;
pub mod store;
pub mod target;

/// Prints an error as one line on standard error, and gives the exit status.
pub fn exit_code(program: &str, result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{program}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

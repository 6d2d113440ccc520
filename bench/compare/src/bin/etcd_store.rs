//! How soon a change in etcd is served, and how long a start from a full etcd takes; everything is in the library.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    compare::etcd_store::run(&compare::etcd_store::Options::parse())
}

//! How soon a change in etcd is served, and how long a start from a full etcd takes; everything is in the library.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    bench::etcd_store::run(&bench::etcd_store::Options::parse())
}

//! Measures changes and starts with etcd as the store; the library has the code.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    compare::etcd_store::run(&compare::etcd_store::EtcdStoreOptions::parse())
}

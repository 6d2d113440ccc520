//! Measures the stores through the Admin API; the library has the code.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    compare::store::run(&compare::store::StoreOptions::parse())
}

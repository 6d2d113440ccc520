//! The load generator; everything is in the library.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    compare::loadgen::run(compare::loadgen::Cli::parse())
}

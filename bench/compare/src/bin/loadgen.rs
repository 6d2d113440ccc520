//! The load generator; the library has the code.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    compare::loadgen::run(compare::loadgen::Cli::parse())
}

//! The load generator; everything is in the library.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    bench::cli::run(bench::cli::Cli::parse())
}

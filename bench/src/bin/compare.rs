//! Countersign and its peers side by side; everything is in the library.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    bench::compare::run(bench::compare::Options::parse())
}

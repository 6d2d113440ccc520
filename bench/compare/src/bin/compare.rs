//! Countersign and its peers side by side; everything is in the library.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    compare::comparison::run(compare::comparison::Options::parse())
}

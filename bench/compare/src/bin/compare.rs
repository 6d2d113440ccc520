//! Compares Countersign with other proxies; the library has the code.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    compare::comparison::run(compare::comparison::Options::parse())
}

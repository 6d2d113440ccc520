//! What it costs to revoke one client among many that are connected; everything is in the library.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    compare::revocation::run(&compare::revocation::Options::parse())
}

//! What it costs to revoke one client among many that are connected; everything is in the library.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    bench::revocation::run(&bench::revocation::Options::parse())
}

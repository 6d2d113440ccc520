//! Measures a revocation among many connected clients; the library has the code.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    compare::revocation::run(&compare::revocation::RevocationOptions::parse())
}

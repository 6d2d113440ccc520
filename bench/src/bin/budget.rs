//! Checks instruction counts against `bench/budget.toml`: see [`bench::budget`].

use std::process::ExitCode;

use clap::Parser;

/// The data plane's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    bench::budget::run(&bench::budget::Cli::parse())
}

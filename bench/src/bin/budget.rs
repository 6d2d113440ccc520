//! Instruction counts against `bench/budget.toml`: see the library's `budget`.

use std::process::ExitCode;

use clap::Parser;

/// As the data plane has it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    bench::budget::run(&bench::budget::Cli::parse())
}

//! One line a target: see the library's `summary`.

use std::process::ExitCode;

use clap::Parser;

/// As the data plane has it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    bench::summary::run(&bench::summary::Options::parse())
}

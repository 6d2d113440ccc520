//! Prints one line a target: see [`bench::summary`].

use std::process::ExitCode;

use clap::Parser;

/// The data plane's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    bench::summary::run(&bench::summary::Options::parse())
}

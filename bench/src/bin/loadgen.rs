//! The load generator; everything is in the library.

use clap::Parser;

fn main() -> anyhow::Result<()> {
    bench::cli::run(bench::cli::Cli::parse())
}

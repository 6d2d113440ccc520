//! `make demo`: the command line of [`e2e::demo`].

use std::process::ExitCode;

use clap::Parser;
use e2e::demo::{Demo, DemoPorts};

/// Starts a control plane, a data plane and two upstreams, runs the scenarios with curl, and stays
/// until Ctrl-C.
#[derive(Parser)]
struct Arguments {
    /// Folder of certificates, store and logs; emptied at the start.
    #[arg(long, default_value = "demo-run")]
    dir: std::path::PathBuf,
    #[command(flatten)]
    ports: DemoPorts,
    /// Stop after the scenarios; the exit status is 0 only if all passed.
    #[arg(long)]
    check: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match Demo::run(&arguments.dir, arguments.ports, arguments.check).await {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(problem) => {
            eprintln!("demo: {problem:#}");
            ExitCode::FAILURE
        }
    }
}

//! Measures Countersign and its peers side by side, interleaved, in one run on one machine.
//!
//! A run finds the peers; [`workbench`] issues certificates and starts everything; [`rounds`] (A B
//! C A B C ...) and [`many`] take the measures of `measure`; [`figures`] holds every value;
//! [`output`] writes the raw JSON and the tables, [`plot`] the bars. A missing peer is reported
//! with a hint how to install it, and the others go on.
//!
//! Invariant: only measured values are printed, and a run with failed operations has no figure.

use std::process::ExitCode;

use anyhow::{Context, bail};

use crate::peer::{self, Installed};

pub mod brief;
mod environment;
pub mod figures;
pub mod many;
pub mod measure;
mod options;
mod output;
mod plot;
mod rounds;
mod workbench;

use figures::Figures;
pub use options::Options;
use workbench::Workbench;

/// Runs the command line; prints the tables to standard output.
pub fn run(options: Options) -> ExitCode {
    crate::exit_code("compare", measure(&options))
}

fn measure(options: &Options) -> anyhow::Result<()> {
    let cores = options.cores;
    if cores.server == cores.load {
        bail!("--server-cpu and --load-cpu must be two cores: the load would be measured with the server");
    }
    let (installed, left_out) = find(options);
    if installed.is_empty() {
        bail!("none of the chosen peers is installed");
    }
    let mut environment = environment::Environment::read(&installed, left_out);
    e2e::resources::allow_descriptors(u64::from(options.idle) * 2 + 1024)?;
    let mut bench = Workbench::start(&installed, cores)?;
    // Made first, so that minutes of work are not lost to a full disk or a missing folder.
    let folder = output::make_folder(&options.out).context("making a folder for the results")?;
    environment.note_commands(&bench);
    output::write_settings(&folder, &bench)?;

    let mut figures = Figures::default();
    let measured = rounds::run(options, &mut bench, &mut figures)
        .and_then(|()| many::run(options, &installed, &mut bench, &mut figures));
    // Values measured before a failure are kept: the tables show what is missing.
    let tables = output::write(&folder, options, &environment, &figures)?;
    print!("{tables}");
    println!("\nWritten to {}", folder.display());
    measured
}

/// Finds the peers; reports on standard error why one is left out.
fn find(options: &Options) -> (Vec<Box<dyn Installed>>, Vec<String>) {
    let (mut installed, mut left_out) = (Vec::new(), Vec::new());
    for kind in options.peers() {
        match peer::find(kind, options.bin_dir.as_deref()) {
            Ok(program) => installed.push(program),
            Err(error) => {
                eprintln!("compare: {error}; going on without it");
                left_out.push(error.to_string());
            }
        }
    }
    (installed, left_out)
}

//! What an installation consists of: systemd units, Debian packages, the OCI image, manifests and
//! chart for Kubernetes, the `countersign` script, and the rules of logrotate.
//!
//! They share one executable. What this machine cannot run is skipped with a line on standard
//! error.

mod activation;
mod build;
mod debs;
mod image;
mod kubernetes;
mod machine;
mod rotation;
mod unit_file;
mod units;
mod verbs;

use std::path::{Path, PathBuf};
use std::process::Command;

/// The root of the repository.
fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ is in the workspace")
}

fn packaging(path: &str) -> PathBuf {
    workspace().join("packaging").join(path)
}

/// Runs a command that must succeed; returns its standard output.
fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|problem| panic!("cannot run {command:?}: {problem}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{out}{err}", output.status);
    out
}

//! The packages, built once from the programs of this workspace.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use e2e::process::program;
use tempfile::TempDir;

use super::{run, workspace};

/// The first version, and one that replaces it.
pub(crate) const VERSIONS: [&str; 2] = ["0.1.0-1", "0.1.0-2"];
const CONTROL: &str = "countersign-controlplane";
const NODE: &str = "countersign-dataplane";
/// In the order of their dependencies.
pub(crate) const PACKAGES: [&str; 3] = ["countersign-common", CONTROL, NODE];

/// Runs `scripts/packages.sh` into a new folder.
pub(crate) fn build(version: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    run(Command::new(workspace().join("scripts/packages.sh"))
        .arg("--programs")
        .arg(program("dataplane").parent().unwrap())
        .arg("--manuals")
        .arg(program("manuals"))
        .arg("--out")
        .arg(folder.path())
        .args(["--version", version])
        .env("SOURCE_DATE_EPOCH", "1700000000")
        // As in packages that are shipped, but faster.
        .envs([("COMPRESSION", "gzip"), ("LEVEL", "1")]));
    folder
}

/// The packages of the first version.
pub(crate) fn packages() -> &'static Path {
    static BUILT: OnceLock<TempDir> = OnceLock::new();
    BUILT.get_or_init(|| build(VERSIONS[0])).path()
}

/// The files of a folder, by name.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut all: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    all.sort();
    all
}

#[test]
fn the_same_programs_give_the_same_bytes() {
    if e2e::peers::installed("dpkg-deb").is_none() {
        return;
    }
    let again = build(VERSIONS[0]);
    let (one, other) = (files(packages()), files(again.path()));
    assert_eq!(one.len(), PACKAGES.len() + 1, "{one:?}");
    assert_eq!(one.len(), other.len());
    for (one, other) in one.iter().zip(&other) {
        assert_eq!(one.file_name(), other.file_name());
        assert!(fs::read(one).unwrap() == fs::read(other).unwrap(), "{} differs", one.display());
    }
}

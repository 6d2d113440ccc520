//! Where the programs of others are.

use std::io::Write as _;
use std::path::{Path, PathBuf};

fn target() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target")
}

/// Prints why a test does not run. Not by `eprintln`, which the test runner captures.
fn skipped(name: &str) {
    let line = format!("skipped: {name} is not installed: `scripts/setup.sh test` does it\n");
    let _ = std::io::stderr().write_all(line.as_bytes());
}

fn present(path: PathBuf, name: &str) -> Option<PathBuf> {
    if path.exists() {
        return Some(path);
    }
    skipped(name);
    None
}

/// A program on the PATH, or where Debian installs servers.
pub(super) fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin"), PathBuf::from("/sbin")]);
    let found = folders.map(|folder| folder.join(name)).find(|candidate| candidate.is_file());
    if found.is_none() {
        skipped(name);
    }
    found
}

pub(super) fn python() -> Option<PathBuf> {
    present(target().join("python/bin/python"), "target/python")
}

/// Node, when its libraries are there, too.
pub(super) fn node() -> Option<PathBuf> {
    present(node_modules().join("ws"), "target/node")?;
    on_path("node")
}

pub(super) fn node_modules() -> PathBuf {
    target().join("node/node_modules")
}

/// Envoy in its Python wheel.
pub(super) fn envoy() -> Option<PathBuf> {
    // The folder's name has the interpreter's version: lib/python3.11/site-packages.
    let libraries = std::fs::read_dir(target().join("python/lib")).into_iter().flatten().flatten();
    let mut places = libraries.map(|entry| entry.path().join("site-packages/envoy/_bin/envoy"));
    let found = places.find(|candidate| candidate.is_file());
    if found.is_none() {
        skipped("envoy");
    }
    found
}

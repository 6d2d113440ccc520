//! Provides the commit of the build: COUNTERSIGN_COMMIT, or the commit of the git checkout, or
//! nothing.
//!
//! Reruns only when another commit is checked out. Sources inside another repository do not belong
//! to it.

use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=COUNTERSIGN_COMMIT");
    let given = std::env::var("COUNTERSIGN_COMMIT").ok().filter(|commit| !commit.trim().is_empty());
    let commit = given.or_else(of_checkout).unwrap_or_else(|| "unknown".to_owned());
    println!("cargo::rustc-env=COUNTERSIGN_COMMIT={}", commit.trim());
}

fn of_checkout() -> Option<String> {
    // The variable of this run: a target folder that two checkouts share keeps the script of one.
    let crate_folder = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR")?);
    let workspace = crate_folder.parent()?.canonicalize().ok()?;
    let top = PathBuf::from(git(&workspace, &["rev-parse", "--show-toplevel"])?);
    if top.canonicalize().ok()? != workspace {
        return None;
    }
    // HEAD names the branch, the branch the commit; the log of HEAD changes with both, and
    // packed-refs may hold the branch.
    let branch = git(&workspace, &["symbolic-ref", "--quiet", "HEAD"]);
    for name in ["HEAD", "logs/HEAD", "packed-refs"].into_iter().chain(branch.as_deref()) {
        let path = git(&workspace, &["rev-parse", "--git-path", name]).map(|path| workspace.join(path));
        // A missing path would cause a rerun each time.
        if let Some(path) = path.filter(|path| path.exists()) {
            println!("cargo::rerun-if-changed={}", path.display());
        }
    }
    git(&workspace, &["rev-parse", "--short=12", "HEAD"])
}

/// Runs git and returns its output. Reads a checkout of another user, too, and ignores the
/// repository that a calling git hook exports.
fn git(workspace: &Path, arguments: &[&str]) -> Option<String> {
    let output = Command::new("git")
        .args(["-c", "safe.directory=*"])
        .args(arguments)
        .current_dir(workspace)
        .env_remove("GIT_DIR")
        .env_remove("GIT_WORK_TREE")
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !text.is_empty()).then_some(text)
}

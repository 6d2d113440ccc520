//! Gives the crate the commit it is built from: COUNTERSIGN_COMMIT, or what git says of this
//! checkout, or nothing.
//!
//! Runs again when another commit is checked out, and at no other time. Sources in the folder of
//! another repository are not that repository's.

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
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent()?.canonicalize().ok()?;
    let top = PathBuf::from(git(&workspace, &["rev-parse", "--show-toplevel"])?);
    if top.canonicalize().ok()? != workspace {
        return None;
    }
    // HEAD says which branch, the branch which commit; the log of HEAD changes with both, and
    // packed-refs may hold the branch.
    let branch = git(&workspace, &["symbolic-ref", "--quiet", "HEAD"]);
    for name in ["HEAD", "logs/HEAD", "packed-refs"].into_iter().chain(branch.as_deref()) {
        let path = git(&workspace, &["rev-parse", "--git-path", name]).map(|path| workspace.join(path));
        // One that is not there would make it run each time.
        if let Some(path) = path.filter(|path| path.exists()) {
            println!("cargo::rerun-if-changed={}", path.display());
        }
    }
    git(&workspace, &["rev-parse", "--short=12", "HEAD"])
}

/// What git prints, if all is well. A checkout that is another user's is read as well, and what
/// calls cargo (a hook) does not say which repository it is.
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

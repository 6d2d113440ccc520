//! `scripts/release.sh` builds exactly when an input of the programs has changed. A script in place
//! of cargo records its calls.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use e2e::shell::{Shell, ShellOutput};
use tempfile::TempDir;

const CARGO: &str = r#"#!/bin/sh
[ "$1" = --version ] && { echo "cargo 1.0.0 (a test)"; exit 0; }
echo "$COUNTERSIGN_COMMIT $*" >>calls
mkdir -p target/release
for program in controlplane dataplane compare; do date +%N >"target/release/$program"; done
"#;

/// A small workspace with the script, in a repository of its own.
struct Workspace(TempDir);

impl Workspace {
    fn new() -> Self {
        let workspace = Self(tempfile::tempdir().unwrap());
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("scripts/release.sh");
        for (name, text) in [
            ("Cargo.toml", "[workspace]\nmembers = [\"pki\", \"dataplane\", \"tests\"]\n"),
            ("Cargo.lock", "version = 4\n"),
            ("README.md", "read me\n"),
            (".gitignore", "/target\n/bin\n/calls\n"),
            ("pki/src/lib.rs", "pub fn one() {}\n"),
            ("dataplane/src/rules.json", "{}\n"),
            ("tests/src/lib.rs", "// tests\n"),
            ("scripts/release.sh", &fs::read_to_string(script).unwrap()),
            ("bin/cargo", CARGO),
        ] {
            workspace.write(name, text);
        }
        fs::set_permissions(workspace.path("bin/cargo"), fs::Permissions::from_mode(0o755)).unwrap();
        workspace
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        fs::write(self.path(name), text).unwrap();
    }

    async fn run(&self, script: &str) -> ShellOutput {
        let shell = Shell::new(self.0.path()).set("CARGO", self.path("bin/cargo").display());
        let git =
            "git() { command git -c user.name=t -c user.email=t@t.test -c init.defaultBranch=main \"$@\"; }";
        shell.set("PROFILE", "no").run(&format!("{git}\n{script}")).await
    }

    /// Runs these commands, then the script; gives whether it built, and its output.
    async fn release(&self, before: &str) -> (bool, String) {
        let calls = || fs::read_to_string(self.path("calls")).unwrap_or_default().lines().count();
        let already = calls();
        let output = self.run(&format!("{before}\nbash scripts/release.sh")).await;
        assert_eq!(output.exit, 0, "{output:?}");
        (calls() > already, output.out)
    }
}

#[tokio::test]
async fn it_builds_exactly_when_an_input_changed() {
    for git in ["git init -q && git add -A && git commit -qm one", "true"] {
        let workspace = Workspace::new();
        assert_eq!(workspace.run(git).await.exit, 0);
        assert!(workspace.release("").await.0, "nothing is there yet");
        for unchanged in [
            "true",
            "touch pki/src/lib.rs",
            "echo more >>README.md",
            "mkdir -p tests/tests && echo // >>tests/tests/a.rs",
        ] {
            let (built, output) = workspace.release(unchanged).await;
            assert!(!built && output.contains("is up to date"), "{unchanged}: {output}");
        }
        for (changed, named) in [
            ("echo '// more' >>pki/src/lib.rs", "pki/src/lib.rs"),
            ("echo '{\"a\": 1}' >dataplane/src/rules.json", "dataplane/src/rules.json"),
            ("echo // >>tests/src/lib.rs", "tests/src/lib.rs"),
            ("echo '# more' >>Cargo.lock", "Cargo.lock"),
            ("echo >pki/src/new.rs", "pki/src/new.rs"),
            ("rm pki/src/new.rs", "pki/src/new.rs"),
            ("mv pki/src/lib.rs 'pki/src/a b.rs'", "pki/src/a b.rs"),
            ("export RUSTFLAGS=-Ctarget-cpu=native", "RUSTFLAGS=-Ctarget-cpu=native"),
            ("export CARGO_PROFILE_RELEASE_LTO=off", "CARGO_PROFILE_RELEASE_LTO=off"),
        ] {
            let (built, output) = workspace.release(changed).await;
            assert!(
                built && output.contains("changed since") && output.contains(named),
                "{changed}: {output}"
            );
        }
        assert!(workspace.release("").await.0, "the variables are gone again");
        for lost in [
            "rm target/profiled/dataplane",
            "echo >target/profiled/controlplane",
            "rm target/release/compare",
        ] {
            assert!(workspace.release(lost).await.0, "{lost}");
            assert!(!workspace.release("").await.0, "{lost}");
        }
    }
}

#[tokio::test]
async fn a_failed_build_is_not_recorded() {
    let workspace = Workspace::new();
    assert!(workspace.release("").await.0);
    let failing = "echo '// worse' >>pki/src/lib.rs; printf '#!/bin/sh\\n[ \"$1\" = --version ]\\n' >bin/cargo; bash scripts/release.sh";
    assert_ne!(workspace.run(failing).await.exit, 0);
    workspace.write("bin/cargo", CARGO);
    assert!(workspace.release("").await.0);
    assert!(!workspace.release("").await.0);
}

#[tokio::test]
async fn the_programs_name_the_commit_of_their_sources() {
    let workspace = Workspace::new();
    let commits = "git init -q && git add -A && git commit -qm one && git rev-parse --short=12 HEAD";
    let commit = workspace.run(commits).await.out.trim().to_owned();
    let document = "echo more >>README.md && git commit -qam two";
    assert!(workspace.release(document).await.0);
    let calls = || fs::read_to_string(workspace.path("calls")).unwrap();
    assert!(calls().starts_with(&format!("{commit} build ")), "{commit}: {}", calls());
    assert!(workspace.release("echo '// more' >>pki/src/lib.rs").await.0);
    let last = calls().lines().last().unwrap().to_owned();
    assert!(last.starts_with(&format!("{commit}+changes build ")), "{last}");
}

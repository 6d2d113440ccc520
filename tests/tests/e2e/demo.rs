//! `make demo-check` as CI runs it, on ports of its own, and on a machine without etcd.

use std::path::Path;
use std::process::Stdio;

use e2e::ports::Reservation;
use e2e::process::{EVENT_TIMEOUT, program};
use tokio::process::Command;
use tokio::time::timeout;

const OPTIONS: [&str; 8] =
    ["--http", "--https", "--admin", "--push", "--status", "--upstream", "--strict-upstream", "--etcd"];

/// Runs the demo with these programs in its PATH; returns whether it succeeded, and its output.
async fn check(path: Option<&Path>) -> (bool, String) {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("demo");
    // Held while the demo runs, so that no other test gets these ports.
    let kept = OPTIONS.map(|_| Reservation::any());
    let mut command = Command::new(program("demo"));
    command.arg("--check").arg("--dir").arg(&dir).stdin(Stdio::null()).kill_on_drop(true);
    command.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap());
    for (option, kept) in OPTIONS.iter().zip(&kept) {
        command.arg(option).arg(kept.address().port().to_string());
    }
    path.map(|path| command.env("PATH", path));
    let output = timeout(EVENT_TIMEOUT, command.output()).await.expect("the demo ends").unwrap();
    let logs = ["controlplane.log", "dataplane.log"]
        .map(|log| std::fs::read_to_string(dir.join(log)).unwrap_or_default())
        .join("\n----\n");
    eprintln!("{}\n{logs}", String::from_utf8_lossy(&output.stderr));
    (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
}

#[tokio::test]
async fn every_scenario_of_the_demo_passes() {
    let (content, output) = check(None).await;
    assert_eq!(output.lines().last(), Some("5 scenarios passed, 0 failed"), "{output}");
    assert!(content, "{output}");
}

#[tokio::test]
async fn without_etcd_the_demo_continues_and_fails() {
    let programs = tempfile::tempdir().unwrap();
    let path = std::env::var_os("PATH").unwrap();
    for name in ["sh", "curl", "cat", "seq"] {
        let found = std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file());
        std::os::unix::fs::symlink(found.unwrap(), programs.path().join(name)).unwrap();
    }
    let (content, output) = check(Some(programs.path())).await;
    let last = "4 scenarios passed, 0 failed, 1 NOT SHOWN (see above)";
    assert_eq!(output.lines().last(), Some(last), "{output}");
    assert!(output.contains("NOT SHOWN: there is no etcd on this machine") && !content, "{output}");
}

//! The logrotate snippet of the packages, run by logrotate.

use std::cell::Cell;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use e2e::client::bounded;
use e2e::peers;
use e2e::process::program;
use e2e::world::World;
use serde_json::json;

use super::{packaging, run};

/// The snippet for another folder, for the user of the tests and for these programs.
fn snippet(logs: &Path) -> String {
    let id = |option| run(Command::new("id").arg(option)).trim().to_owned();
    let text = fs::read_to_string(packaging("countersign.logrotate")).unwrap();
    let changed = text
        .replace("/var/log/countersign", &logs.display().to_string())
        .replace("su countersign countersign", &format!("su {} {}", id("-un"), id("-gn")))
        .replace("/usr/bin/countersign", &packaging("countersign").display().to_string());
    assert!(!changed.contains("/var/") && !changed.contains("/usr/"), "{changed}");
    changed
}

async fn wait_for(log: &Path, words: &[&str]) {
    let found = async {
        loop {
            let text = fs::read_to_string(log).unwrap_or_default();
            if words.iter().all(|words| text.contains(words)) {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    bounded(&format!("{words:?} in {}", log.display()), found).await;
}

/// All that is in the folder, of which some is compressed.
fn lines(logs: &Path) -> Vec<String> {
    let mut all = Vec::new();
    for entry in fs::read_dir(logs).unwrap() {
        let path = entry.unwrap().path();
        let compressed = path.extension().is_some_and(|extension| extension == "gz");
        let text = match compressed {
            true => run(Command::new("gzip").arg("-dc").arg(&path)),
            false => fs::read_to_string(&path).unwrap(),
        };
        assert!(text.ends_with('\n'), "{}: {text}", path.display());
        all.extend(text.lines().map(str::to_owned));
    }
    all
}

/// Both programs write to one file. Each write of the Admin API is a line of the control plane with
/// its revision, and one of the data plane, which serves it.
#[tokio::test]
async fn logrotate_under_load_loses_and_tears_no_line() {
    const WRITTEN: &str = "admin write";
    const SERVED: &str = "serving a new snapshot";
    if peers::installed("logrotate").is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let logs = folder.path().join("logs");
    fs::create_dir(&logs).unwrap();
    let (log, rules) = (logs.join("error.log"), folder.path().join("rules"));
    fs::write(&rules, snippet(&logs)).unwrap();
    let mut world = World::builder()
        .settings(json!({"nginx_config": {"error_log": log}}))
        .node_environment("RUST_LOG", "info,dataplane::push_client::applier=debug")
        .start()
        .await;
    let config = world.write_config("node-1");
    let path =
        format!("{}:{}", program("dataplane").parent().unwrap().display(), std::env::var("PATH").unwrap());
    let rotated = Cell::new(false);
    let writing = async {
        let mut revisions = Vec::new();
        while !rotated.get() {
            let document = json!({"nodes": {"127.0.0.1:1": revisions.len() + 1}});
            revisions.push(world.apply(&[("upstreams/u", document)]).await);
        }
        revisions
    };
    let rotating = async {
        for _ in 0..6 {
            wait_for(&log, &[WRITTEN, SERVED]).await;
            let mut logrotate = tokio::process::Command::new("logrotate");
            logrotate.args(["--force", "--state"]).arg(folder.path().join("state")).arg(&rules);
            logrotate.current_dir(world.folder()).env("PATH", &path).env("COUNTERSIGN_CONFIG", &config);
            let output = logrotate.output().await.unwrap();
            assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        }
        wait_for(&log, &[WRITTEN, SERVED]).await;
        rotated.set(true);
    };
    let (revisions, ()) = tokio::join!(writing, rotating);
    assert!(world.stop_node().await.success() && world.stop_control().await.success());

    let names: Vec<_> = fs::read_dir(&logs).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(names.len() == 7 && names.iter().any(|name| name == "error.log.6.gz"), "{names:?}");
    let lines = lines(&logs);
    assert!(lines.iter().all(|line| line.starts_with("20")), "{lines:#?}");
    for revision in revisions {
        let field = format!("revision={revision}");
        for words in [WRITTEN, SERVED] {
            let is_it = |line: &&String| line.contains(words) && line.split(' ').any(|word| word == field);
            assert_eq!(lines.iter().filter(is_it).count(), 1, "{words} {field}: {lines:#?}");
        }
    }
}

/// A plane that the `countersign` script started keeps its standard error open.
#[test]
fn standard_error_stays_where_the_plane_writes_it() {
    if peers::installed("logrotate").is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let logs = folder.path().join("logs");
    fs::create_dir(&logs).unwrap();
    let (log, rules) = (logs.join("dataplane.stderr"), folder.path().join("rules"));
    fs::write(&rules, snippet(&logs)).unwrap();
    let mut stderr = fs::File::options().create(true).append(true).open(&log).unwrap();
    writeln!(stderr, "before").unwrap();
    run(Command::new("logrotate").args(["--force", "--state"]).arg(folder.path().join("state")).arg(&rules));
    writeln!(stderr, "after").unwrap();
    assert_eq!(fs::read_to_string(&log).unwrap(), "after\n");
    assert_eq!(fs::read_to_string(logs.join("dataplane.stderr.1")).unwrap(), "before\n");
}

//! The log file: rotated under load by a rename and SIGUSR1, as text and as JSON, with a level that
//! a reload or a command changes.

use std::fs;
use std::path::{Path, PathBuf};

use e2e::client::bounded;
use e2e::process::{Launch, Log, Process, run_to_end};
use e2e::world::World;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

/// The first node again, without RUST_LOG and with this log, in a process of the test.
async fn start(world: &mut World, more: Value) -> (Process, PathBuf) {
    start_with(world, &[], more).await
}

async fn start_with(world: &mut World, arguments: &[&str], more: Value) -> (Process, PathBuf) {
    world.stop_node().await;
    world.change_settings(json!({"nginx_config": {"error_log": "node.log"}}));
    world.change_settings(more);
    let config = world.write_config("node-1");
    let launch = Launch::new("dataplane", &config).through(&["env", "-u", "RUST_LOG"]).arguments(arguments);
    (launch.start(&Log::default()).await, world.folder().join("node.log"))
}

async fn wait_for(path: &Path, words: &str) -> String {
    let found = async {
        loop {
            let text = fs::read_to_string(path).unwrap_or_default();
            if text.contains(words) {
                return text;
            }
            tokio::task::yield_now().await;
        }
    };
    bounded(&format!("{words:?} in {}", path.display()), found).await
}

/// Rotates the log ten times while clients cause lines. The texts of all its files.
async fn rotate(arguments: &[&str]) -> Vec<String> {
    let mut world = World::start().await;
    let (mut node, path) = start_with(&mut world, arguments, json!({})).await;
    let https = node.ready()["https"][0].as_str().unwrap().to_owned();
    wait_for(&path, "serving").await;
    // Each client without TLS is one line, unless it is counted as suppressed.
    let clients = tokio::spawn(async move {
        loop {
            let mut client = TcpStream::connect(&https).await.unwrap();
            let _refused = client.write_all(b"no ClientHello, and so a line in the log").await;
        }
    });
    let rotated: Vec<_> = (0..10).map(|nth| world.folder().join(format!("node.log.{nth}"))).collect();
    for old in &rotated {
        fs::rename(&path, old).unwrap();
        node.signal(Signal::SIGUSR1);
        wait_for(&path, "the log file was opened again").await;
        wait_for(&path, "reason").await;
    }
    clients.abort();
    node.signal(Signal::SIGTERM);
    assert!(node.ended().await.success());
    let texts: Vec<_> = rotated.iter().chain([&path]).map(|file| fs::read_to_string(file).unwrap()).collect();
    assert!(
        texts.iter().all(|text| text.ends_with('\n') && !text.contains("lines were dropped")),
        "{texts:?}"
    );
    texts
}

#[tokio::test]
async fn a_rotation_under_load_loses_and_tears_no_line() {
    let texts = rotate(&[]).await;
    for text in &texts {
        assert!(text.lines().all(|line| line.starts_with("20")), "{text}");
    }
    assert!(texts.last().unwrap().trim_end().ends_with("stopped"));
}

#[tokio::test]
async fn a_json_log_has_one_object_a_line() {
    let texts = rotate(&["--log-format", "json"]).await;
    let lines = texts.iter().flat_map(|text| text.lines());
    let lines: Vec<Value> = lines.map(|line| serde_json::from_str(line).unwrap()).collect();
    for line in &lines {
        let keys = ["time", "level", "target", "message"];
        assert!(keys.iter().all(|key| line[key].is_string()), "{line}");
    }
    let rejected = lines.iter().find(|line| line["reason"].is_string()).unwrap();
    assert!(rejected["target"].as_str().unwrap().starts_with("dataplane::"), "{rejected}");
    assert_eq!(lines.last().unwrap()["message"], "stopped");
}

#[tokio::test]
async fn an_error_that_ends_a_start_is_a_json_line() {
    let folder = tempfile::tempdir().unwrap();
    for program in ["dataplane", "controlplane"] {
        let ended = run_to_end(program, &["--log-format", "json", "-c", "none.yaml"], folder.path()).await;
        let line: Value = serde_json::from_str(ended.stderr.trim_end()).unwrap();
        assert_eq!((ended.status.code(), &line["level"]), (Some(1), &"ERROR".into()), "{line}");
        assert!(line["message"].as_str().unwrap().contains("none.yaml"), "{line}");
        let wrong = run_to_end(program, &["--log-format", "xml"], folder.path()).await;
        assert!(
            wrong.status.code() == Some(2) && wrong.stderr.contains("write text or json"),
            "{}",
            wrong.stderr
        );
    }
}

#[tokio::test]
async fn a_command_changes_the_level_until_the_next_reload() {
    let mut world = World::start().await;
    let (mut node, path) = start(&mut world, json!({})).await;
    wait_for(&path, "serving").await;
    let config = world.write_config("node-1").display().to_string();
    let folder = world.folder().to_owned();
    let log_level = async |arguments: &[&str]| {
        let all = [&["log-level", "-c", &config], arguments].concat();
        let ended = run_to_end("dataplane", &all, &folder).await;
        (ended.status.code(), ended.stdout.trim_end().to_owned(), ended.stderr)
    };
    assert_eq!(log_level(&[]).await.1, "info");
    let (code, out, error) = log_level(&["warn,dataplane=trace"]).await;
    assert!(code == Some(0) && out.contains("until the next reload"), "{out} {error}");
    assert_eq!(log_level(&[]).await.1, "dataplane=trace,warn");
    // The line is written although `info` is off.
    wait_for(&path, "log level warn,dataplane=trace").await;
    let (code, _, error) = log_level(&["loud"]).await;
    assert!(code == Some(1) && error.contains("\"loud\" is no level: write off, error"), "{error}");
    assert_eq!(log_level(&[]).await.1, "dataplane=trace,warn");
    node.signal(Signal::SIGHUP);
    let reset = async { while log_level(&[]).await.1 != "info" {} };
    bounded("the level of the settings", reset).await;
    node.signal(Signal::SIGTERM);
    assert!(node.ended().await.success());
    // The control plane takes the command, too.
    let config = world.write_config("control").display().to_string();
    let level = run_to_end("controlplane", &["log-level", "debug", "-c", &config], &folder).await;
    assert!(level.status.success(), "{}", level.stderr);
    world.control_log().line_with(&["log level debug, until the next reload"]).await;
}

#[tokio::test]
async fn a_reload_changes_the_level_and_the_file() {
    let mut world = World::start().await;
    let (mut node, path) = start(&mut world, json!({"nginx_config": {"error_log_level": "warn"}})).await;
    let reload = |world: &mut World, node: &Process, more: Value| {
        world.change_settings(more);
        world.write_config("node-1");
        node.signal(Signal::SIGHUP);
    };
    reload(&mut world, &node, json!({"nginx_config": {"error_log_level": "info"}}));
    let text = wait_for(&path, "applied").await;
    assert!(text.contains("nginx_config.error_log_level") && !text.contains("serving"), "{text}");
    reload(&mut world, &node, json!({"nginx_config": {"error_log": "other.log"}}));
    let other = world.folder().join("other.log");
    wait_for(&other, "nginx_config.error_log").await;
    let before = fs::read_to_string(&path).unwrap();
    // A folder that is not there: the log goes on where it is.
    reload(&mut world, &node, json!({"nginx_config": {"error_log": "missing/node.log"}}));
    wait_for(&other, "nginx_config.error_log: ").await;
    assert_eq!(fs::read_to_string(&path).unwrap(), before);
    fs::remove_file(&other).unwrap();
    fs::create_dir(&other).unwrap();
    node.signal(Signal::SIGUSR1);
    node.signal(Signal::SIGTERM);
    assert!(node.ended().await.success());
}

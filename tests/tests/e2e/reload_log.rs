//! The log file: rotated under load by a rename and SIGUSR1, with a level that a reload changes.

use std::fs;
use std::path::{Path, PathBuf};

use e2e::client::bounded;
use e2e::process::{Launch, Log, Process};
use e2e::world::World;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

/// The first node again, without RUST_LOG and with this log, in a process of the test.
async fn start(world: &mut World, more: Value) -> (Process, PathBuf) {
    world.stop_node().await;
    world.change_settings(json!({"nginx_config": {"error_log": "node.log"}}));
    world.change_settings(more);
    let config = world.write_config("node-1");
    let launch = Launch::new("dataplane", &config).through(&["env", "-u", "RUST_LOG"]);
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

#[tokio::test]
async fn a_rotation_under_load_loses_and_tears_no_line() {
    let mut world = World::start().await;
    let (mut node, path) = start(&mut world, json!({})).await;
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
        wait_for(&path, "reason=").await;
    }
    clients.abort();
    node.signal(Signal::SIGTERM);
    assert!(node.ended().await.success());
    for file in rotated.iter().chain([&path]) {
        let text = fs::read_to_string(file).unwrap();
        assert!(text.ends_with('\n') && text.lines().all(|line| line.starts_with("20")), "{text}");
    }
    let last = fs::read_to_string(&path).unwrap();
    assert!(last.trim_end().ends_with("stopped") && !last.contains("lines were dropped"), "{last}");
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

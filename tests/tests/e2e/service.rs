//! Both programs under a service manager: a socket in place of systemd's sees what they send, and
//! in which order.

use std::time::Duration;

use e2e::documents::route;
use e2e::process::Log;
use e2e::service::NotifySocket;
use e2e::upstream::Upstream;
use e2e::world::{World, WorldBuilder};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::heartbeats::Stopped;

/// More than three times the interval of the watchdog below.
const SILENCE: Duration = Duration::from_secs(2);
const WATCHDOG_USEC: &str = "1000000";

fn node_under(manager: &NotifySocket) -> WorldBuilder {
    World::builder()
        .node_environment("NOTIFY_SOCKET", manager.variable())
        .node_environment("WATCHDOG_USEC", WATCHDOG_USEC)
}

#[tokio::test]
async fn a_data_plane_notifies_its_service_manager() {
    let manager = NotifySocket::abstract_name("node");
    let mut world = node_under(&manager).start().await;
    assert_eq!(manager.next().await, ["STATUS=starting"]);
    let first = manager.until("READY=1").await;
    assert_eq!(first, "READY=1");
    let upstream = Upstream::plain("plain").await;
    let route = route("app.test", "/*", &[upstream.address()]);
    let revision = world.apply(&[("ssls/app", world.protected_site()), ("routes/app", route)]).await;
    manager.until(&format!("STATUS=revision {revision}, from 127.0.0.1:")).await;
    let client = world.verified_client("app.test");
    let kept = client.connect().await.unwrap();
    manager
        .until(&format!("STATUS=revision {revision}, from {}; open connections: 1", world.push_address()))
        .await;
    drop(kept);
    world.kill_control().await;
    manager.until(&format!("STATUS=revision {revision}, no control plane is connected; ")).await;
    manager.clear();
    assert!(world.stop_node().await.success());
    let mut last = Vec::new();
    while let Some(lines) = manager.next_within(Duration::ZERO).await {
        last.extend(lines);
    }
    let stopping = last.iter().position(|line| line == "STOPPING=1").expect("the stop is announced");
    assert!(last[stopping + 1].starts_with("STATUS=stopping"), "{last:?}");
    assert!(!last.iter().any(|line| line == "READY=1"), "it was ready once: {last:?}");
}

#[tokio::test]
async fn a_control_plane_notifies_its_service_manager() {
    let folder = tempfile::tempdir().unwrap();
    let manager = NotifySocket::at(&folder.path().join("notify"));
    let mut world =
        World::builder().control_environment("NOTIFY_SOCKET", manager.variable()).nodes(&[]).start().await;
    let first = manager.next().await;
    assert_eq!(first[0], "READY=1");
    assert!(first[1].starts_with("STATUS=revision ") && first[1].ends_with("; connected data planes: 0"));
    world.add_node("one").await;
    manager.until("STATUS=revision 0; connected data planes: 1").await;
    manager.clear();
    assert!(world.stop_control().await.success());
    manager.until("STOPPING=1").await;
}

/// Nothing can be served before a control plane was there once.
#[tokio::test]
async fn a_node_is_ready_when_it_has_a_snapshot() {
    let manager = NotifySocket::abstract_name("first");
    let mut world = node_under(&manager).nodes(&[]).start().await;
    world.kill_control().await;
    world.add_node("first").await;
    let mut seen = Vec::new();
    while !seen.iter().any(|line: &String| line.contains("not ready: this data plane has not received")) {
        seen.extend(manager.next().await);
    }
    assert!(!seen.iter().any(|line| line == "READY=1"), "{seen:?}");
    world.start_control().await;
    manager.until("READY=1").await;
}

/// What systemd takes with `NotifyAccess=main`: the messages of the main process, which MAINPID=
/// changes.
struct MainProcess<'a> {
    manager: &'a NotifySocket,
    pid: u32,
}

impl MainProcess<'_> {
    /// The next message with a line that begins so.
    async fn until(&mut self, beginning: &str) -> Vec<String> {
        loop {
            let (sender, lines) = self.manager.next_with_sender().await;
            assert_eq!(sender, self.pid, "systemd discards {lines:?}");
            for line in &lines {
                if let Some(pid) = line.strip_prefix("MAINPID=") {
                    self.pid = pid.parse().unwrap();
                }
            }
            if lines.iter().any(|line| line.starts_with(beginning)) {
                return lines;
            }
        }
    }

    /// A reload that succeeds, and one that fails on a broken settings file.
    async fn is_told_of_reloads(&mut self, config: &std::path::Path, log: &Log) {
        let good = std::fs::read_to_string(config).unwrap();
        for (text, logged) in [(good.as_str(), ["INFO", "reload"]), ("apisix: [", ["ERROR", "not reloaded"])]
        {
            std::fs::write(config, text).unwrap();
            let mark = log.mark();
            kill(Pid::from_raw(self.pid.cast_signed()), Signal::SIGHUP).unwrap();
            let begun = self.until("RELOADING=1").await;
            let clock = begun[1].strip_prefix("MONOTONIC_USEC=").expect("systemd wants it with RELOADING=1");
            assert!(begun.len() == 2 && clock.parse::<u64>().unwrap() > 0, "{begun:?}");
            loop {
                // What a reload changes may be shown between; nothing else is announced.
                let lines = self.until("").await;
                if lines == ["READY=1"] {
                    break;
                }
                assert!(!lines.iter().any(|line| line.starts_with("RELOADING=")), "{lines:?}");
            }
            log.line_after(mark, &logged).await;
        }
        std::fs::write(config, good).unwrap();
    }

    /// The successor is announced by its predecessor, and goes on in its place.
    async fn is_followed_by(&mut self, successor: u32) {
        assert_eq!(self.until("MAINPID=").await, [format!("MAINPID={successor}")]);
        let first = self.until("READY=1").await;
        assert!(first.iter().any(|line| line.starts_with("STATUS=revision ")), "{first:?}");
        self.until("WATCHDOG=1").await;
    }
}

#[tokio::test]
async fn reloads_and_upgrades_of_a_data_plane_are_announced() {
    let manager = NotifySocket::abstract_name("node-upgrade");
    let mut world = node_under(&manager).start().await;
    let mut main = MainProcess { manager: &manager, pid: world.node_id() };
    main.until("READY=1").await;
    let config = world.write_config("node-1");
    main.is_told_of_reloads(&config, world.node_log()).await;
    for _ in 0..2 {
        let successor = world.upgrade_node().await.id();
        main.is_followed_by(successor).await;
    }
    main.is_told_of_reloads(&config, world.node_log()).await;
}

#[tokio::test]
async fn reloads_and_upgrades_of_a_control_plane_are_announced() {
    let manager = NotifySocket::abstract_name("control-upgrade");
    let world = World::builder()
        .control_environment("NOTIFY_SOCKET", manager.variable())
        .control_environment("WATCHDOG_USEC", WATCHDOG_USEC)
        .nodes(&[])
        .start()
        .await;
    let mut main = MainProcess { manager: &manager, pid: world.control_id() };
    main.until("READY=1").await;
    let config = world.write_config("control");
    main.is_told_of_reloads(&config, world.control_log()).await;
    let mut successors = Vec::new();
    for _ in 0..2 {
        let successor = world.upgrade_control_at(0).await;
        main.is_followed_by(successor.id()).await;
        successors.push(successor);
    }
    main.is_told_of_reloads(&config, world.control_log()).await;
}

#[tokio::test]
async fn a_stopped_process_sends_no_watchdog() {
    let manager = NotifySocket::abstract_name("stopped");
    let mut world = node_under(&manager).start().await;
    manager.until("WATCHDOG=1").await;
    let node = world.take_node();
    node.signal(Signal::SIGSTOP);
    expect_silence(&manager).await;
    node.signal(Signal::SIGCONT);
    manager.until("WATCHDOG=1").await;
}

#[tokio::test]
async fn a_node_with_a_hanging_worker_sends_no_watchdog() {
    let manager = NotifySocket::abstract_name("hanging");
    let world = node_under(&manager).start().await;
    manager.until("WATCHDOG=1").await;
    let Some(hanging) = Stopped::threads(world.node_id(), "worker-0").await else { return };
    let line = world.node_log().line_with(&["worker-0 has not run for"]).await;
    assert!(line.contains("ERROR") && line.contains("no WATCHDOG=1 is sent"), "{line}");
    expect_silence(&manager).await;
    drop(hanging);
    manager.until("WATCHDOG=1").await;
}

/// No watchdog message for longer than one is due.
async fn expect_silence(manager: &NotifySocket) {
    manager.clear();
    while let Some(lines) = manager.next_within(SILENCE).await {
        assert!(!lines.iter().any(|line| line == "WATCHDOG=1"), "{lines:?}");
    }
}

#[tokio::test]
async fn a_notify_socket_that_cannot_be_used_is_named() {
    let world = World::builder().node_environment("NOTIFY_SOCKET", "run/notify").start().await;
    named(world.node_log()).await;
}

async fn named(log: &Log) {
    let line = log.line_with(&["NOTIFY_SOCKET cannot be used"]).await;
    assert!(line.contains("run/notify") && line.contains("absolute path"), "{line}");
}

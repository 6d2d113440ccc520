//! A log that cannot be written: a full disk, a reader that has stopped or gone, a failing disk.
//!
//! Shells redirect the output. Clients cause log lines (garbage to every TLS port) until some are
//! dropped, and the programs continue to serve.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;

use e2e::client::HttpConnection;
use e2e::ports::Reservation;
use e2e::process::{EVENT_TIMEOUT, program};
use e2e::settings::merge;
use e2e::world::World;
use http::StatusCode;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::time::timeout;

const DROPPED: &str = r#"countersign_log_lines_dropped_total{log="error"}"#;

/// A world whose programs log everything to a redirected log.
async fn world(script: &str) -> World {
    let world = World::builder().script(script).control_environment("RUST_LOG", "trace");
    let world = world.node_environment("RUST_LOG", "trace").start().await;
    let route = json!({"uri": "/*", "upstream": upstream(1)});
    world.apply(&[("ssls/app", world.open_site()), ("routes/all", route)]).await;
    world
}

/// An upstream document that differs by this weight.
fn upstream(weight: u32) -> Value {
    json!({"nodes": {"127.0.0.1:1": weight}, "type": "roundrobin"})
}

/// Connections without TLS to every TLS port, each of which causes a log line or more.
async fn rejected_clients(world: &World) {
    for address in [world.https(), world.push_address(), world.admin_address()] {
        for _ in 0..20 {
            let mut client = TcpStream::connect(address).await.unwrap();
            let _refused = client.write_all(b"\x16\x03\x01\x00\x05garbage, not a ClientHello").await;
        }
    }
}

/// Connects until both programs drop lines.
async fn until_lines_are_dropped(world: &World) {
    let flood = async {
        while world.metric(DROPPED).await == 0 || world.control_metric(DROPPED).await == 0 {
            rejected_clients(world).await;
            // Each write is pushed to the node, and every frame of the push is logged at `trace`.
            for number in 0..20 {
                world.admin().put("upstreams/flood", &upstream(number)).await;
            }
        }
    };
    timeout(EVENT_TIMEOUT, flood).await.expect("no line was dropped, or a program hangs");
}

/// Both workers of the data plane, and the control plane from a PUT to the node's acknowledgement.
async fn everything_is_served(world: &World) {
    // The kernel spreads connections over the workers.
    for _ in 0..24 {
        let reply = world.client("app.test").get("/").await.unwrap();
        assert_eq!(reply.status, StatusCode::BAD_GATEWAY, "{reply:?}");
    }
    for number in 0..5 {
        world.apply(&[("upstreams/u", upstream(number))]).await;
    }
    for reply in [world.status("/status/ready").await, world.control_status("/status/ready").await] {
        assert_eq!(reply.status, StatusCode::OK, "{}", reply.text());
    }
}

/// Serves under the redirection while lines are dropped, and stops in order.
async fn survives(script: &str) {
    let mut world = world(script).await;
    until_lines_are_dropped(&world).await;
    everything_is_served(&world).await;
    let stopped = (world.stop_node().await, world.stop_control().await);
    assert!(stopped.0.success() && stopped.1.success(), "{script}: {stopped:?}");
}

#[tokio::test]
async fn a_full_disk_for_the_log_stops_nothing() {
    survives(r#"exec "$@" 2>/dev/full"#).await;
}

#[tokio::test]
async fn a_closed_log_pipe_stops_nothing() {
    // `PROGRAM 2>&1 | grep -m1 ready`: standard output ends with it.
    survives(r#"exec "$@" > >(grep -m1 "^ready ") 2>&1"#).await;
}

#[tokio::test]
async fn a_log_that_cannot_be_written_stops_nothing() {
    survives(r#"exec "$@" 2</dev/null"#).await;
}

#[tokio::test]
async fn a_log_at_its_size_limit_stops_nothing() {
    // SIGXFSZ, whose default action ends the process.
    survives(r#"truncate -s 64M "$NAME.log"; ulimit -f 65536; exec "$@" 2>>"$NAME.log""#).await;
}

#[tokio::test]
async fn a_failing_log_disk_stops_nothing() {
    // Unmapped memory of another process: every write is EIO, like on a broken or read-only disk.
    let script = r#"tail --pid=$$ -f /dev/null >/dev/null 2>&1 & exec "$@" 2>/proc/$!/mem"#;
    survives(script).await;
}

#[tokio::test]
async fn a_stopped_log_reader_stops_nothing() {
    // A pipe that is never read, nor closed, because the program itself has both ends.
    let mut world = world(r#"mkfifo "$NAME.pipe"; exec "$@" 2<>"$NAME.pipe""#).await;
    until_lines_are_dropped(&world).await;
    everything_is_served(&world).await;
    // The reader continues, and so does the log.
    let pipe = File::open(world.folder().join("node-1.pipe")).unwrap();
    let mut reading = tokio::task::spawn_blocking(move || {
        BufReader::new(pipe).split(b'\n').map_while(Result::ok).any(|line| contains(&line, "later.test"))
    });
    let client = world.client("later.test");
    let later = async {
        loop {
            tokio::select! {
                read = &mut reading => return read.unwrap(),
                _ = client.handshake() => {}
            }
        }
    };
    assert!(timeout(EVENT_TIMEOUT, later).await.expect("nothing is logged any more"));
    let stopped = (world.stop_node().await, world.stop_control().await);
    assert!(stopped.0.success() && stopped.1.success(), "{stopped:?}");
}

fn contains(line: &[u8], text: &str) -> bool {
    String::from_utf8_lossy(line).contains(text)
}

#[tokio::test]
async fn the_log_continues_when_its_disk_has_room_again() {
    // A file system of 64 KiB in a mount namespace that ends with the process.
    let mount = r#"mkdir "$NAME.disk" && mount -t tmpfs -o size=64k none "$NAME.disk""#;
    let script = format!(
        r#"exec unshare --user --map-root-user --mount bash -c '{mount}; exec "$@" 2>>"$NAME.disk/log"' bash "$@""#
    );
    let folder = tempfile::tempdir().unwrap();
    let mut attempt = std::process::Command::new("bash");
    attempt.args(["-c", &script, "bash", "true"]).env("NAME", "x").current_dir(folder.path());
    if !attempt.status().is_ok_and(|status| status.success()) {
        // Written past the test runner's capture, so that a skipped test does not look like a
        // passed one.
        let skip = b"skipped: a small disk for the log: this machine gives no mount namespace\n";
        std::io::stderr().write_all(skip).unwrap();
        return;
    }
    let world = world(&script).await;
    until_lines_are_dropped(&world).await;
    everything_is_served(&world).await;
    for (name, process) in [("node-1", world.node_id()), ("control", world.control_process(0).id())] {
        let folder = world.folder().display();
        let path = format!("/proc/{process}/root{folder}/{name}.disk/log");
        File::options().write(true).open(&path).unwrap().set_len(0).unwrap();
        let later = async {
            while std::fs::metadata(&path).unwrap().len() == 0 {
                rejected_clients(&world).await;
            }
        };
        timeout(EVENT_TIMEOUT, later).await.expect("nothing is logged any more");
    }
}

/// Standard output is the same full pipe: only the ready line waits for its reader.
#[tokio::test]
async fn an_unread_ready_line_delays_nothing() {
    let world = World::builder().nodes(&[]).start().await;
    world.write_credential("node-1", &world.credentials.node("node-1"));
    for name in ["control", "node-1"] {
        let status = Reservation::any();
        let mut settings: Value =
            serde_json::from_str(&std::fs::read_to_string(world.write_config(name)).unwrap()).unwrap();
        merge(
            &mut settings,
            json!({
                "apisix": {"status": {"port": status.address().port()}},
                "deployment": {"admin": {"admin_listen": {"port": 0}}},
                "countersign": {
                    "push": {"listen": "127.0.0.1:0"},
                    "store": {"path": "second/store.redb"},
                    "control_plane": {"status": status.address().to_string()},
                },
            }),
        );
        // Both would be one port in one file.
        let unused = if name == "control" { "/apisix/status" } else { "/countersign/control_plane/status" };
        *settings.pointer_mut(unused).unwrap() = Value::Null;
        let config = world.write("silent.yaml", &settings.to_string());
        let script =
            r#"mkfifo "$0.pipe"; exec 3<>"$0.pipe"; head -c 65536 /dev/zero >&3; exec "$@" >&3 2>&3"#;
        let program = program(if name == "control" { "controlplane" } else { "dataplane" });
        let mut command = Command::new("bash");
        command.args(["-c", script, name]).arg(program).arg("-c").arg(&config);
        command.current_dir(world.folder()).stdin(Stdio::null()).kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let answers = async {
            loop {
                if let Ok(mut session) = HttpConnection::plain(status.address(), "status").await
                    && session.get("/status").await.is_ok()
                {
                    return;
                }
            }
        };
        timeout(EVENT_TIMEOUT, answers).await.unwrap_or_else(|_| panic!("{name} does not serve"));
        let id = Pid::from_raw(child.id().unwrap().try_into().unwrap());
        kill(id, Signal::SIGTERM).unwrap();
        let ended = timeout(EVENT_TIMEOUT, child.wait()).await;
        assert!(ended.unwrap_or_else(|_| panic!("{name} does not stop")).unwrap().success(), "{name}");
    }
}

#[tokio::test]
async fn a_failed_start_exits_though_its_output_is_unread() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["controlplane", "dataplane"] {
        // The pipe is full before the program starts.
        let script = r#"mkfifo "$0.pipe"; exec 3<>"$0.pipe"; head -c 65536 /dev/zero >&3; exec "$@" 2>&3"#;
        let mut command = Command::new("bash");
        command.args(["-c", script, name]).arg(program(name)).args(["-c", "nowhere.yaml"]);
        command.current_dir(folder.path()).stdin(Stdio::null()).kill_on_drop(true);
        let ended = timeout(EVENT_TIMEOUT, command.status()).await;
        assert_eq!(ended.unwrap_or_else(|_| panic!("{name} hangs")).unwrap().code(), Some(1), "{name}");
    }
}

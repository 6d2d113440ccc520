//! Upgrades of a data plane: a successor takes over the listeners while clients use them.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;

use e2e::client::Http;
use e2e::credentials::Authority;
use e2e::documents::protected;
use e2e::ports::Reservation;
use e2e::process::{program, run_to_end};
use e2e::shell::Shell;
use e2e::steady_load::SteadyLoad;
use e2e::world::World;
use http::StatusCode;
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::steady::{LoadedWorld, loaded_world, loaded_world_of};

/// A loaded world whose data plane's program can be exchanged.
pub(crate) struct Exchangeable {
    pub(crate) loaded: LoadedWorld,
    programs: tempfile::TempDir,
    /// The file of the newest generation.
    program: PathBuf,
    links: usize,
}

pub(crate) async fn exchangeable(settings: Value) -> Exchangeable {
    // Beside the programs, since a hard link is on one disk.
    let programs = tempfile::tempdir_in(program("dataplane").parent().unwrap()).unwrap();
    for name in ["controlplane", "dataplane"] {
        fs::hard_link(program(name), programs.path().join(name)).unwrap();
    }
    let loaded = loaded_world_of(World::builder().programs(programs.path()), settings).await;
    let program = programs.path().join("dataplane");
    Exchangeable { loaded, programs, program, links: 0 }
}

impl Exchangeable {
    /// Replaces the data plane's program by a script; `$PROGRAM` is a link to the right one, which
    /// the next call replaces.
    pub(crate) fn replace_program(&mut self, script: &str) {
        self.links += 1;
        let link = self.programs.path().join(format!("dataplane-{}", self.links));
        fs::hard_link(program("dataplane"), &link).unwrap();
        self.write_program(&format!("#!/bin/sh\nPROGRAM={}\n{script}\n", link.display()));
        self.program = link;
    }

    /// The next successor waits before it begins, until [`open`] is called with the returned path.
    fn gated(&mut self) -> PathBuf {
        let gate = self.programs.path().join("gate");
        mkfifo(&gate, Mode::S_IRWXU).unwrap();
        self.replace_program(&format!("read opened < {}\nexec \"$PROGRAM\" \"$@\"", gate.display()));
        gate
    }

    /// Replaces the data plane's program.
    fn write_program(&self, content: &str) {
        let new = self.programs.path().join("new");
        fs::write(&new, content).unwrap();
        fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(new, &self.program).unwrap();
    }
}

async fn open(gate: PathBuf) {
    tokio::task::spawn_blocking(|| fs::write(gate, "\n")).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upgrades_under_load_fail_no_operation() {
    let mut test = exchangeable(json!({})).await;
    let load = SteadyLoad::start(&test.loaded.targets);
    load.more(50).await;
    // More workers, fewer, and other drivers.
    for (workers, driver) in [(4, "io_uring"), (1, "epoll"), (2, "io_uring")] {
        test.replace_program(&format!("COUNTERSIGN_DRIVER={driver} exec \"$PROGRAM\" \"$@\""));
        let world = &mut test.loaded.world;
        world.change_settings(json!({"countersign": {"workers": workers}}));
        let successor = world.upgrade_node().await;
        assert_eq!(successor.ready()["workers"], workers);
        assert_eq!(successor.ready()["driver"], driver);
        load.more(200).await;
    }
    let status = test.loaded.world.status("/status").await.json();
    assert_eq!(status["generation"], 4, "{status}");
    assert_eq!(test.loaded.world.metric("countersign_upgrades_total{result=\"ok\"}").await, 3);
    load.stop().await.assert_flawless();
}

/// The status of a GET on a new connection.
async fn served(world: &World) -> StatusCode {
    world.verified_client("app.test").get("/").await.unwrap().status
}

/// The sockets of a process, by inode.
fn sockets_of(process: u32) -> HashSet<String> {
    let descriptors = fs::read_dir(format!("/proc/{process}/fd")).unwrap();
    let targets = descriptors.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    let inode =
        |target: PathBuf| Some(target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned());
    targets.filter_map(inode).collect()
}

/// The inodes of the machine's TCP sockets in this state.
fn tcp_sockets(state: &str) -> HashSet<String> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|table| fs::read_to_string(table).unwrap());
    let rows = tables.iter().flat_map(|table| table.lines().skip(1));
    let rows = rows.map(|row| row.split_whitespace().collect::<Vec<_>>());
    rows.filter(|row| row[3] == state).map(|row| row[9].to_owned()).collect()
}

#[tokio::test]
async fn a_successor_inherits_listeners_and_no_connection() {
    const ESTABLISHED: &str = "01";
    const LISTEN: &str = "0A";
    for driver in ["io_uring", "epoll"] {
        let builder = World::builder().node_environment("COUNTERSIGN_DRIVER", driver);
        let mut loaded = loaded_world_of(builder, json!({})).await;
        let world = &mut loaded.world;
        let mut kept = world.verified_client("app.test").connect().await.unwrap();
        assert_eq!(kept.get("/").await.unwrap().status, StatusCode::OK);
        let old = world.node_id();
        let before = sockets_of(old);
        assert!(
            before.intersection(&tcp_sockets(ESTABLISHED)).count() > 1,
            "{driver}: the client and an upstream"
        );
        let listening = before.intersection(&tcp_sockets(LISTEN)).count();
        assert!(listening > 4, "{driver}: {listening}");
        let successor = world.upgrade_node().await.id();
        let inherited: HashSet<_> = sockets_of(successor).intersection(&before).cloned().collect();
        assert_eq!(inherited.intersection(&tcp_sockets(ESTABLISHED)).count(), 0, "{driver}");
        assert_eq!(inherited.intersection(&tcp_sockets(LISTEN)).count(), listening, "{driver}");
    }
}

#[tokio::test]
async fn open_connections_are_served_to_their_end() {
    let mut loaded = loaded_world(json!({})).await;
    let world = &mut loaded.world;
    let client = world.verified_client("app.test");
    let config = Arc::new(client.config());
    let mut kept = client.connect_with(Arc::clone(&config)).await.unwrap();
    let mut revoked = client.connect().await.unwrap();
    let mut http2 = client.clone().http(Http::Two).connect().await.unwrap();
    for connection in [&mut kept, &mut revoked, &mut http2] {
        assert_eq!(connection.get("/").await.unwrap().status, StatusCode::OK);
    }
    world.upgrade_node().await;
    // GOAWAY.
    http2.ended().await;
    let mut resumed = client.connect_with(config).await.unwrap();
    assert!(resumed.resumed(), "by the successor");
    assert_eq!(resumed.get("/").await.unwrap().headers.get("connection"), None);
    let last = kept.get("/").await.unwrap();
    assert_eq!(last.headers["connection"], "close", "by the old process");
    kept.ended().await;
    // The old process is still told what changes.
    let other = protected(world.open_site(), &Authority::root("other"));
    world.apply(&[("ssls/app", other)]).await;
    revoked.ended().await;
    assert!(world.node_process().ended().await.success());
}

#[tokio::test]
async fn a_broken_program_changes_nothing() {
    let test = exchangeable(json!({})).await;
    let world = &test.loaded.world;
    let broken = [
        ("#!/bin/sh\nexit 3\n", "with exit status: 3"),
        ("#!/bin/sh\nkill -9 $$\n", "signal: 9"),
        ("no program", "cannot start"),
        ("#!/bin/sh\nexec true\n", "with exit status: 0"),
    ];
    for (number, (program, words)) in broken.into_iter().enumerate() {
        test.write_program(program);
        let mark = world.node_log().mark();
        let output = world.try_upgrade_node().await;
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(output.stderr.contains(words), "{program}: {output:?}");
        world.node_log().line_after(mark, &["ERROR", "serves on as before", words]).await;
        assert_eq!(served(world).await, StatusCode::OK);
        let failed = world.metric("countersign_upgrades_total{result=\"failed\"}").await;
        assert_eq!(failed, number as u64 + 1);
    }
}

#[tokio::test]
async fn a_broken_configuration_changes_nothing() {
    let mut loaded = loaded_world(json!({})).await;
    let world = &mut loaded.world;
    world.change_settings(json!({"countersign": {"workers": "many"}}));
    let output = world.try_upgrade_node().await;
    assert!(output.status.code() == Some(1) && output.stderr.contains("countersign.workers"), "{output:?}");
    // The successor reports what the command cannot see.
    let mark = world.node_log().mark();
    kill(Pid::from_raw(i32::try_from(world.node_id()).unwrap()), Signal::SIGUSR2).unwrap();
    let words = ["serves on as before", "failed before it had started", "countersign.workers"];
    world.node_log().line_after(mark, &words).await;
    world.change_settings(json!({"countersign": {"workers": 2}}));
    assert!(world.upgrade_node().await.ready()["pid"].is_u64());
}

#[tokio::test]
async fn a_full_disk_refuses_the_upgrade() {
    let mut loaded = loaded_world(json!({})).await;
    let world = &mut loaded.world;
    // The file of every write is a folder that is not empty.
    let blocked = world.folder().join("node-1.snapshot.tmp");
    fs::create_dir_all(blocked.join("full")).unwrap();
    world.apply(&[("ssls/app", world.open_site())]).await;
    let output = world.try_upgrade_node().await;
    let words = "countersign.node.last_good: cannot write";
    assert!(output.status.code() == Some(1) && output.stderr.contains(words), "{output:?}");
    fs::remove_dir_all(blocked).unwrap();
    world.upgrade_node().await;
    assert_eq!(world.client("app.test").get("/").await.unwrap().status, StatusCode::OK);
}

#[tokio::test]
async fn a_successor_without_a_snapshot_is_refused() {
    let mut loaded = loaded_world(json!({})).await;
    let world = &mut loaded.world;
    world.stop_control().await;
    let config = world.write_config("node-1");
    let text = fs::read_to_string(&config).unwrap().replace("node-1.snapshot", "moved/other.snapshot");
    fs::write(&config, text).unwrap();
    world.node_process().signal(Signal::SIGUSR2);
    world.node_log().line_with(&["serves on as before", "the new process would serve revision 0"]).await;
    assert_eq!(served(world).await, StatusCode::OK);
    // With the right file it needs no control plane.
    world.upgrade_node().await;
    assert_eq!(served(world).await, StatusCode::OK);
    assert_eq!(world.status("/status").await.json()["source"], "last_good");
}

#[tokio::test]
async fn listeners_that_vanish_and_appear_in_an_upgrade() {
    let mut loaded = loaded_world(json!({})).await;
    let world = &mut loaded.world;
    let (old, status) = (world.stream(1), world.node_address(0, "status"));
    let mut open = TcpStream::connect(old).await.unwrap();
    open.write_all(b"x").await.unwrap();
    assert_eq!(open.read_u8().await.unwrap(), b'x');
    let (tls, new) = (world.stream(0), Reservation::any());
    let address = new.address();
    drop(new);
    let listeners = json!([{"addr": tls.to_string(), "tls": true}, address.to_string()]);
    world.change_settings(json!({"apisix": {"stream_proxy": {"tcp": listeners}}}));
    let successor = world.upgrade_node().await;
    assert_eq!(successor.ready()["stream"], json!([tls, address]));
    assert_eq!(successor.ready()["status"], json!(status));
    assert!(TcpStream::connect(old).await.is_err(), "it is closed");
    let mut appeared = TcpStream::connect(address).await.unwrap();
    for stream in [&mut open, &mut appeared] {
        stream.write_all(b"y").await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), b'y');
    }
}

#[tokio::test]
async fn a_second_upgrade_waits_for_no_first() {
    let mut test = exchangeable(json!({})).await;
    let gate = test.gated();
    let world = &test.loaded.world;
    let second = async {
        world.node_log().line_with(&["upgrade: the new process starts"]).await;
        let output = world.try_upgrade_node().await;
        assert!(!output.status.success() && output.stderr.contains("under way already"), "{output:?}");
        open(gate).await;
    };
    let (first, ()) = tokio::join!(world.try_upgrade_node(), second);
    assert!(first.status.success(), "{first:?}");
    test.loaded.world.node_succeeded().await;
    assert_eq!(served(&test.loaded.world).await, StatusCode::OK);
}

#[tokio::test]
async fn a_stop_during_an_upgrade_stops_both() {
    let mut test = exchangeable(json!({})).await;
    let _gate = test.gated();
    let world = &mut test.loaded.world;
    world.node_process().signal(Signal::SIGUSR2);
    let started = world.node_log().line_with(&["upgrade: the new process starts"]).await;
    let pid = started.split("pid=").nth(1).and_then(|rest| rest.split(' ').next()).unwrap().to_owned();
    assert!(world.stop_node().await.success());
    assert!(!std::path::Path::new("/proc").join(pid).exists(), "the successor was ended");
}

#[tokio::test]
async fn a_successor_survives_its_predecessor() {
    let mut test = exchangeable(json!({})).await;
    let gate = test.gated();
    let world = &mut test.loaded.world;
    world.node_process().signal(Signal::SIGUSR2);
    world.node_log().line_with(&["upgrade: the new process starts"]).await;
    world.node_process().start_kill();
    world.node_process().ended().await;
    open(gate).await;
    world.node_succeeded().await;
    assert_eq!(served(world).await, StatusCode::OK);
    // It writes the last-good file, and can be upgraded.
    let revision = world.apply(&[("ssls/app", world.protected_site())]).await;
    world.wait_persisted(revision).await;
    world.upgrade_node().await;
    assert_eq!(served(world).await, StatusCode::OK);
}

#[tokio::test]
async fn the_old_process_drains_when_its_successor_is_killed() {
    let mut test = exchangeable(json!({})).await;
    let world = &mut test.loaded.world;
    let mut kept = world.verified_client("app.test").connect().await.unwrap();
    assert_eq!(kept.get("/").await.unwrap().status, StatusCode::OK);
    world.upgrade_node().await;
    let successor = world.node_successors().last().unwrap();
    successor.signal(rustix::process::Signal::KILL);
    successor.ended().await;
    assert_eq!(kept.get("/").await.unwrap().status, StatusCode::OK);
    assert_eq!(world.node_process().ended().await.code(), Some(1), "no process serves new connections");
}

#[tokio::test]
async fn the_old_process_ends_when_its_successor_is_killed() {
    let mut test = exchangeable(json!({})).await;
    let world = &mut test.loaded.world;
    // It would drain for minutes.
    let mut silent = TcpStream::connect(world.stream(1)).await.unwrap();
    silent.write_all(b"x").await.unwrap();
    assert_eq!(silent.read_u8().await.unwrap(), b'x');
    world.change_settings(json!({"countersign": {"drain_idle_timeout": 1}}));
    world.upgrade_node().await;
    world.node_successors().last().unwrap().signal(rustix::process::Signal::KILL);
    world.node_log().line_with(&["ERROR", "no process accepts connections", "SIGKILL"]).await;
    assert_eq!(world.node_process().ended().await.code(), Some(1));
}

#[tokio::test]
async fn a_reload_that_comes_during_an_upgrade_is_not_lost() {
    let mut test = exchangeable(json!({})).await;
    let gate = test.gated();
    let world = &mut test.loaded.world;
    let mark = world.node_log().mark();
    world.node_process().signal(Signal::SIGUSR2);
    world.node_log().line_after(mark, &["the new process starts"]).await;
    world.node_process().signal(Signal::SIGHUP);
    open(gate).await;
    let successor = world.node_succeeded().await.id().to_string();
    world.node_log().line_after(mark, &["passed on to the new process", &successor]).await;
    world.node_log().line_after(mark, &["reload: no setting has changed"]).await;
}

#[tokio::test]
async fn a_successor_that_hangs_is_killed() {
    let mut test = exchangeable(json!({})).await;
    test.replace_program("kill -STOP $$; exec \"$PROGRAM\" \"$@\"");
    let output = test.loaded.world.try_upgrade_node().await;
    let words = "was killed: 30 s passed before it had started";
    assert!(!output.status.success() && output.stderr.contains(words), "{output:?}");
    assert_eq!(served(&test.loaded.world).await, StatusCode::OK);
}

#[tokio::test]
async fn four_generations_may_drain() {
    let mut test = exchangeable(json!({})).await;
    let world = &mut test.loaded.world;
    let mut streams = Vec::new();
    for _ in 0..4 {
        let mut stream = TcpStream::connect(world.stream(1)).await.unwrap();
        stream.write_all(b"x").await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), b'x', "it is open to the upstream");
        streams.push(stream);
        world.upgrade_node().await;
    }
    let output = world.try_upgrade_node().await;
    assert!(
        !output.status.success() && output.stderr.contains("4 earlier generations still drain"),
        "{output:?}"
    );
    let draining = world.status("/status").await.json()["draining_processes"].as_array().unwrap().len();
    assert_eq!(draining, 4);
    drop(streams.remove(1));
    world.node_successors()[0].ended().await;
    world.upgrade_node().await;
    for stream in &mut streams {
        stream.write_all(b"y").await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), b'y');
    }
}

#[tokio::test]
async fn a_process_without_a_predecessor_says_so() {
    let world = World::builder().without_control().nodes(&[]).start().await;
    let config = world.write_config("node-1");
    let command = format!(
        "COUNTERSIGN_HANDOVER=1 {} -c {} < /dev/null",
        program("dataplane").display(),
        config.display()
    );
    let output = Shell::new(world.folder()).run(&command).await;
    let text = format!("{output:?}");
    assert!(output.exit == 1 && text.contains("COUNTERSIGN_HANDOVER is set"), "{text}");
    let arguments = ["upgrade", "-c", config.to_str().unwrap()];
    let output = run_to_end("dataplane", &arguments, world.folder()).await;
    assert!(output.status.code() == Some(1) && output.stderr.contains("nothing listens on"), "{output:?}");
}

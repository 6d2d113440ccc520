//! A program that root starts goes on as the user of `nginx_config.user`, for good, and says what
//! that user cannot use.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt as _, chown};
use std::path::Path;

use e2e::process::run_to_end;
use e2e::upstream::Upstream;
use e2e::world::World;
use http::StatusCode;
use nix::unistd::{Uid, User};
use serde_json::json;

/// CAP_NET_BIND_SERVICE.
const LOW_PORTS: &str = "0000000000000400";

fn nobody() -> User {
    User::from_name("nobody").unwrap().expect("every machine has the user nobody")
}

/// Gives the folder and all in it to a user.
fn give(folder: &Path, user: &User) {
    let (uid, gid) = (Some(user.uid.as_raw()), Some(user.gid.as_raw()));
    chown(folder, uid, gid).unwrap();
    for file in fs::read_dir(folder).unwrap() {
        chown(file.unwrap().path(), uid, gid).unwrap();
    }
}

/// Each thread's line of this name in /proc/PID/task/TID/status.
fn of_threads(process: u32, name: &str) -> Vec<Vec<String>> {
    let threads = fs::read_dir(format!("/proc/{process}/task")).unwrap();
    let line = |status: String| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap();
        line.split_whitespace().map(str::to_owned).collect()
    };
    // A thread may end meanwhile.
    threads
        .filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("status")).ok())
        .map(line)
        .collect()
}

#[tokio::test]
async fn both_programs_leave_root_for_good() {
    if !Uid::effective().is_root() {
        eprintln!("skipped: only root can leave root");
        return;
    }
    let user = nobody();
    let upstream = Upstream::plain("plain").await;
    let mut world = World::start().await;
    let revision = world.serve(world.open_site(), &upstream).await;
    world.wait_persisted(revision).await;
    for log in [world.node_log(), world.control_log()] {
        log.line_with(&["WARN", "this program runs as root"]).await;
    }
    world.stop_node().await;
    world.stop_control().await;
    world.change_settings(json!({"nginx_config": {"user": "nobody", "error_log": "error.log"}}));
    world.write_config("node-1");
    world.write_config("control");
    give(world.folder(), &user);
    world.start_control().await;
    world.start_node().await;
    let processes = [world.node_id(), world.control_process(0).id()];
    for process in processes {
        let (uid, gid) = (user.uid.to_string(), user.gid.to_string());
        assert!(of_threads(process, "Uid").iter().flatten().all(|id| *id == uid));
        assert!(of_threads(process, "Gid").iter().flatten().all(|id| *id == gid));
        assert!(of_threads(process, "Groups").iter().flatten().all(|id| *id == gid));
        let sets = ["CapEff", "CapPrm", "CapInh"].map(|set| of_threads(process, set).concat());
        assert!(sets.iter().flatten().all(|set| set == LOW_PORTS || set == "0000000000000000"), "{sets:?}");
    }
    // It writes what it must, as the user.
    let revision = world.serve(world.open_site(), &upstream).await;
    world.wait_acknowledged(revision).await;
    assert_eq!(world.client("app.test").get("/").await.unwrap().status, StatusCode::OK);
    assert_eq!(fs::metadata(world.folder().join("error.log")).unwrap().uid(), user.uid.as_raw());

    // A listener below 1024 may appear.
    let free = (600..1000).find_map(|port| std::net::TcpListener::bind(("127.0.0.1", port)).ok()).unwrap();
    let low: SocketAddr = free.local_addr().unwrap();
    drop(free);
    world.change_settings(
        json!({"apisix": {"proxy_mode": "http&stream", "stream_proxy": {"tcp": [low.to_string()]}}}),
    );
    let config = world.write_config("node-1");
    chown(&config, Some(user.uid.as_raw()), None).unwrap();
    let process = nix::unistd::Pid::from_raw(world.node_id().try_into().unwrap());
    nix::sys::signal::kill(process, nix::sys::signal::Signal::SIGHUP).unwrap();
    let connected = async { while tokio::net::TcpStream::connect(low).await.is_err() {} };
    e2e::client::bounded("the listener appears", connected).await;
}

#[tokio::test]
async fn what_the_user_cannot_use_ends_the_start() {
    if !Uid::effective().is_root() {
        eprintln!("skipped: only root can leave root");
        return;
    }
    let user = nobody();
    let upstream = Upstream::plain("plain").await;
    let mut world = World::start().await;
    let revision = world.serve(world.open_site(), &upstream).await;
    world.wait_persisted(revision).await;
    world.stop_node().await;
    let root_only = |world: &World, name: &str| chown(world.folder().join(name), Some(0), Some(0)).unwrap();
    for (more, owned, words) in [
        (
            json!({"user": "no-such-user"}),
            "node-1.key",
            "nginx_config.user: there is no user \"no-such-user\"",
        ),
        (json!({"user": "nobody no-such-group"}), "node-1.key", "nginx_config.user: there is no group"),
        (json!({"user": "nobody"}), "node-1.key", "node-1.key"),
        (json!({"user": "nobody", "error_log": "root.log"}), "root.log", "nginx_config.error_log"),
        (json!({"user": "nobody"}), "node-1.snapshot.key", "node-1.snapshot"),
    ] {
        world.change_settings(json!({"nginx_config": {"error_log": null}}));
        world.change_settings(json!({"nginx_config": more}));
        let config = world.write_config("node-1");
        world.write("root.log", "");
        give(world.folder(), &user);
        root_only(&world, owned);
        fs::set_permissions(world.folder().join(owned), std::os::unix::fs::PermissionsExt::from_mode(0o600))
            .unwrap();
        let output = run_to_end("dataplane", &["-c", config.to_str().unwrap()], world.folder()).await;
        assert_eq!(output.status.code(), Some(1), "{owned}: {output:?}");
        assert!(output.stderr.contains(words), "{owned}: {}", output.stderr);
    }
}

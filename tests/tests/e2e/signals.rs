//! Signals as a shell's `kill` sends them: which stop a program, and when.

use std::path::Path;
use std::process::Stdio;

use e2e::documents::route;
use e2e::process::{EVENT_TIMEOUT, Log, program};
use e2e::shell::Shell;
use e2e::upstream::Upstream;
use e2e::world::World;
use http::StatusCode;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio::time::timeout;

async fn kill(folder: &Path, signal: &str, process: u32) {
    let output = Shell::new(folder).run(&format!("kill -{signal} {process}")).await;
    assert_eq!(output.exit, 0, "{output:?}");
}

#[tokio::test]
async fn hangup_and_user_signals_end_no_program() {
    let upstream = Upstream::plain("plain").await;
    let world = World::start().await;
    let route = route("app.test", "/*", &[upstream.address()]);
    world.apply(&[("ssls/app", world.protected_site()), ("routes/app", route.clone())]).await;
    let programs =
        [(world.node_id(), world.node_log()), (world.control_process(0).id(), world.control_log())];
    for (id, log) in programs {
        for (signal, words) in [
            ("PIPE", ""),
            ("HUP", "SIGHUP: the settings"),
            ("USR1", "there is no file to open again"),
            ("HUP", "SIGHUP: the settings"),
        ] {
            let mark = log.mark();
            kill(world.folder(), signal, id).await;
            if !words.is_empty() {
                log.line_after(mark, &[words]).await;
            }
        }
    }
    world.apply(&[("routes/other", route)]).await;
    assert_eq!(world.verified_client("app.test").get("/").await.unwrap().status, StatusCode::OK);
}

#[tokio::test]
async fn quit_terminate_and_interrupt_stop_gracefully() {
    for signal in ["QUIT", "TERM", "INT"] {
        let mut world = World::start().await;
        for mut process in [world.take_node(), world.take_control()] {
            kill(world.folder(), signal, process.id()).await;
            let status = process.ended().await;
            assert!(status.success(), "{signal}: {status}");
        }
        world.node_log().line_with(&[&format!("SIG{signal}: stopping gracefully")]).await;
        world.control_log().line_with(&[&format!("SIG{signal}: stopping gracefully")]).await;
    }
}

#[tokio::test]
async fn a_second_signal_ends_a_stop_at_once() {
    let settings = json!({"countersign": {"drain_delay": 3600}});
    let mut world = World::builder().settings(settings).start().await;
    let (mut node, mut control) = (world.take_node(), world.take_control());
    for (process, log) in [(&mut node, world.node_log()), (&mut control, world.control_log())] {
        kill(world.folder(), "TERM", process.id()).await;
        log.line_with(&["accepting connections until drain_delay has passed"]).await;
        let mark = log.mark();
        kill(world.folder(), "HUP", process.id()).await;
        log.line_after(mark, &["SIGHUP: the settings"]).await;
        kill(world.folder(), "QUIT", process.id()).await;
        assert_eq!(process.ended().await.code(), Some(130));
    }
}

/// A control plane whose etcd accepts connections and never responds, and the event of its first
/// one.
async fn starting(world: &World, command: &[&str]) -> (Child, Log) {
    let etcd = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut settings: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(world.write_config("control")).unwrap()).unwrap();
    let host = format!("http://{}", etcd.local_addr().unwrap());
    e2e::settings::merge(
        &mut settings,
        json!({"deployment": {
            "role_traditional": {"config_provider": "etcd"}, "etcd": {"host": [host], "startup_retry": 100},
        }}),
    );
    let config = world.write("waiting.yaml", &settings.to_string());
    let mut child = Command::new(program("controlplane"))
        .args(command)
        .arg("-c")
        .arg(config)
        .current_dir(world.folder())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let log = Log::default();
    log.follow(child.stderr.take().unwrap());
    let accepted =
        timeout(EVENT_TIMEOUT, etcd.accept()).await.expect("the control plane dials etcd").unwrap();
    // Both live as long as the test's runtime.
    tokio::spawn(async move {
        let _held = (etcd, accepted);
        std::future::pending::<()>().await
    });
    (child, log)
}

#[tokio::test]
async fn a_starting_control_plane_obeys_signals() {
    let world = World::builder().without_control().nodes(&[]).start().await;
    let (mut child, log) = starting(&world, &[]).await;
    let id = child.id().unwrap();
    for (signal, words) in [
        ("HUP", "SIGHUP: the settings"),
        ("USR1", "there is no file to open again"),
        ("TERM", "SIGTERM: stopping"),
    ] {
        kill(world.folder(), signal, id).await;
        log.line_with(&[words]).await;
    }
    let status = timeout(EVENT_TIMEOUT, child.wait()).await.expect("the start ends").unwrap();
    assert!(status.success(), "{status}");
}

#[tokio::test]
async fn a_hangup_ends_a_command() {
    use std::os::unix::process::ExitStatusExt;
    let world = World::builder().without_control().nodes(&[]).start().await;
    let (mut child, _log) = starting(&world, &["doctor"]).await;
    kill(world.folder(), "HUP", child.id().unwrap()).await;
    let status = timeout(EVENT_TIMEOUT, child.wait()).await.expect("the command ends").unwrap();
    assert_eq!(status.signal(), Some(1), "{status}");
}

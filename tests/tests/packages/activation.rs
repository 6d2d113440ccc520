//! Socket activation. systemd's own tool binds the socket, and starts the program when a client
//! connects; a test that keeps the socket, as systemd does, starts it more than once.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Stdio;

use e2e::peers;
use e2e::ports::Reservation;
use e2e::process::{EVENT_TIMEOUT, Log, Successor, program, run_to_end};
use e2e::world::World;
use http::StatusCode;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// A program that starts with the first connection.
fn activate(name: &str, config: &Path, options: &[&str]) -> (Child, Log) {
    let mut command = Command::new("systemd-socket-activate");
    command.args(options).args(["--fdname=web", "-E", "NO_COLOR=1"]).stdin(Stdio::null());
    run(command, name, config)
}

/// A program with a socket that the test keeps, as systemd does.
fn start_with(kept: &TcpListener, name: &str, config: &Path) -> (Child, Log) {
    const SCRIPT: &str = "exec 3<&0 </dev/null
        LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=web NO_COLOR=1 exec \"$@\"";
    let mut command = Command::new("sh");
    command.args(["-c", SCRIPT, "sh"]).stdin(OwnedFd::from(kept.try_clone().unwrap()));
    run(command, name, config)
}

fn run(mut command: Command, name: &str, config: &Path) -> (Child, Log) {
    let mut child = command
        .arg(program(name))
        .arg("-c")
        .arg(config)
        .current_dir(config.parent().unwrap())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let log = Log::default();
    log.follow(child.stderr.take().unwrap());
    (child, log)
}

/// A world whose node was stopped and left its ports; its settings.
async fn stopped_node() -> (World, std::path::PathBuf, SocketAddr, e2e::upstream::Upstream) {
    let (mut world, upstream) = World::open(json!({})).await;
    let (config, http) = (world.write_config("node-1"), world.http());
    assert!(world.take_node().stop().await.success());
    (world, config, http, upstream)
}

#[tokio::test]
async fn the_client_that_starts_it_is_served() {
    if peers::installed("systemd-socket-activate").is_none() {
        return;
    }
    let (_world, config, http, _upstream) = stopped_node().await;
    let (_child, log) = activate("dataplane", &config, &["-l", &http.to_string()]);
    log.line_with(&["Listening on"]).await;
    is_served(request(http).await).await;
}

/// A connection with a request, which waits in the queue until the program runs.
async fn request(http: SocketAddr) -> TcpStream {
    let mut client = TcpStream::connect(http).await.unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nHost: app.test\r\nConnection: close\r\n\r\n").await.unwrap();
    client
}

async fn is_served(mut client: TcpStream) {
    let mut response = Vec::new();
    timeout(EVENT_TIMEOUT, client.read_to_end(&mut response)).await.unwrap().unwrap();
    assert!(response.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&response));
}

/// The successor of a running program, which `upgrade` names.
async fn upgrade(name: &'static str, config: &Path) -> Successor {
    let output =
        run_to_end(name, &["upgrade", "-c", config.to_str().unwrap()], config.parent().unwrap()).await;
    let pid = output.stdout.split_once("process ").and_then(|(_, text)| text.split(' ').next());
    let pid: u32 = pid.and_then(|pid| pid.parse().ok()).unwrap_or_else(|| panic!("{output:?}"));
    Successor::new(json!({"pid": pid}))
}

fn terminate(pid: u32) {
    kill(Pid::from_raw(pid.cast_signed()), Signal::SIGTERM).unwrap();
}

async fn stop(child: &mut Child) {
    terminate(child.id().expect("it runs"));
    let status = timeout(EVENT_TIMEOUT, child.wait()).await.unwrap().unwrap();
    assert!(status.success(), "{status}");
}

#[tokio::test]
async fn clients_wait_while_a_data_plane_is_down() {
    let (_world, config, http, _upstream) = stopped_node().await;
    let kept = TcpListener::bind(http).unwrap();
    let (mut child, _log) = start_with(&kept, "dataplane", &config);
    is_served(request(http).await).await;
    stop(&mut child).await;
    // Between a stop and the next start.
    let waiting = request(http).await;
    let (mut child, _log) = start_with(&kept, "dataplane", &config);
    is_served(waiting).await;
    // The successor knows that the socket is not its own.
    let successor = upgrade("dataplane", &config).await;
    timeout(EVENT_TIMEOUT, child.wait()).await.unwrap().unwrap();
    is_served(request(http).await).await;
    terminate(successor.id());
    successor.ended().await;
    let waiting = request(http).await;
    let (_child, _log) = start_with(&kept, "dataplane", &config);
    is_served(waiting).await;
}

#[tokio::test]
async fn clients_wait_while_a_control_plane_is_down() {
    let mut world = World::builder().nodes(&[]).start().await;
    let (config, address) = (world.write_config("control"), world.admin_address());
    assert!(world.take_control().stop().await.success());
    let kept = TcpListener::bind(address).unwrap();
    let admin = world.admin();
    let (waiting, (mut child, _log)) =
        tokio::join!(admin.get("upstreams"), async { start_with(&kept, "controlplane", &config) });
    assert_eq!(waiting.status, StatusCode::OK);
    let successor = upgrade("controlplane", &config).await;
    timeout(EVENT_TIMEOUT, child.wait()).await.unwrap().unwrap();
    assert_eq!(admin.get("upstreams").await.status, StatusCode::OK);
    terminate(successor.id());
    successor.ended().await;
    let connected = TcpStream::connect(address).await.expect("the test keeps the socket");
    let (waiting, (mut child, log)) =
        tokio::join!(admin.get("upstreams"), async { start_with(&kept, "controlplane", &config) });
    assert_eq!(waiting.status, StatusCode::OK, "{}", log.text());
    drop(connected);
    stop(&mut child).await;
}

#[tokio::test]
async fn a_control_plane_is_started_by_its_client() {
    if peers::installed("systemd-socket-activate").is_none() {
        return;
    }
    let mut world = World::builder().nodes(&[]).start().await;
    let (config, address) = (world.write_config("control"), world.admin_address());
    assert!(world.take_control().stop().await.success());
    let other = Reservation::any().address().to_string();
    let (mut child, log) = activate("controlplane", &config, &["-l", &other]);
    log.line_with(&["Listening on"]).await;
    drop(TcpStream::connect(&other).await.unwrap());
    let line = log.line_with(&["the inherited socket \"web\" is bound to", &other]).await;
    assert!(line.contains("ListenStream=") && line.contains("countersign.push.listen"), "{line}");
    assert_eq!(timeout(EVENT_TIMEOUT, child.wait()).await.unwrap().unwrap().code(), Some(1));
    let (_child, log) = activate("controlplane", &config, &["-l", &address.to_string()]);
    log.line_with(&["Listening on"]).await;
    assert_eq!(world.admin().get("upstreams").await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_socket_that_is_no_listener_of_the_settings_is_named() {
    if peers::installed("systemd-socket-activate").is_none() {
        return;
    }
    let (_world, config, _, _upstream) = stopped_node().await;
    let other = Reservation::any().address().to_string();
    for (options, words) in [
        (vec!["-l", &other], format!("the inherited socket \"web\" is bound to {other}")),
        (vec!["-l", &other, "--datagram"], "is not a listening TCP socket".to_owned()),
    ] {
        let (mut child, log) = activate("dataplane", &config, &options);
        log.line_with(&["Listening on"]).await;
        if options.len() == 2 {
            drop(TcpStream::connect(&other).await.unwrap());
        } else {
            let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
            socket.send_to(b"x", &other).await.unwrap();
        }
        let line = log.line_with(&[&words]).await;
        assert!(line.contains("ListenStream="), "{line}");
        let status = timeout(EVENT_TIMEOUT, child.wait()).await.unwrap().unwrap();
        assert_eq!(status.code(), Some(1));
    }
}

//! Socket activation, by systemd's own tool: it binds the socket, and starts the data plane when a
//! client connects.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;

use e2e::peers;
use e2e::ports::Reservation;
use e2e::process::{EVENT_TIMEOUT, Log, program};
use e2e::world::World;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// A data plane that starts with the first connection.
fn activate(config: &Path, options: &[&str]) -> (Child, Log) {
    let mut child = Command::new("systemd-socket-activate")
        .args(options)
        .args(["--fdname=web", "-E", "NO_COLOR=1"])
        .arg(program("dataplane"))
        .arg("-c")
        .arg(config)
        .current_dir(config.parent().unwrap())
        .stdin(Stdio::null())
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
    let (_child, log) = activate(&config, &["-l", &http.to_string()]);
    log.line_with(&["Listening on"]).await;
    let mut client = TcpStream::connect(http).await.unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nHost: app.test\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut response = Vec::new();
    timeout(EVENT_TIMEOUT, client.read_to_end(&mut response)).await.unwrap().unwrap();
    assert!(response.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&response));
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
        let (mut child, log) = activate(&config, &options);
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

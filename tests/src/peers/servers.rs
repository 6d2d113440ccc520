//! How nginx, HAProxy and Envoy are configured around what a test gives them.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tokio::process::Command;

use super::Peer;
use crate::ports::Reservation;

/// Reserved ports, whose number also names the files of a server.
struct Ports(Vec<Reservation>);

impl Ports {
    fn reserve(count: usize) -> Self {
        Self((0..count).map(|_| Reservation::any()).collect())
    }

    fn addresses(&self) -> Vec<SocketAddr> {
        self.0.iter().map(Reservation::address).collect()
    }
}

/// Writes a configuration file whose name no other server of the folder has.
fn write(folder: &Path, name: &str, addresses: &[SocketAddr], ending: &str, text: &str) -> PathBuf {
    let port = addresses.first().expect("a server has a listener").port();
    let path = folder.join(format!("{name}-{port}.{ending}"));
    std::fs::write(&path, text).expect("a file can be written");
    path
}

pub(super) async fn nginx(
    program: &Path,
    folder: &Path,
    listeners: usize,
    http: impl FnOnce(&[SocketAddr]) -> String,
) -> Peer {
    let ports = Ports::reserve(listeners);
    let addresses = ports.addresses();
    let files = write(folder, "nginx", &addresses, "files", "");
    let files = files.display();
    let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|name| format!("{name}_temp_path {files}-{name};"))
        .join("\n");
    let text = format!(
        "daemon off;\nmaster_process off;\npid {files}.pid;\nerror_log stderr notice;\n\
         events {{ worker_connections 4096; }}\n\
         http {{\naccess_log off;\n{temporary}\n{}\n}}\n",
        http(&addresses)
    );
    let path = write(folder, "nginx", &addresses, "conf", &text);
    let mut command = Command::new(program);
    command.args(["-e", "stderr", "-p"]).arg(folder).arg("-c").arg(path);
    // Its first line: all sockets listen by then.
    Peer::start("nginx", command, addresses, &["event method"]).await
}

pub(super) async fn haproxy(
    program: &Path,
    folder: &Path,
    listeners: usize,
    text: impl FnOnce(&[SocketAddr]) -> String,
) -> Peer {
    let ports = Ports::reserve(listeners);
    let addresses = ports.addresses();
    let path = write(folder, "haproxy", &addresses, "cfg", &format!("{}\n", text(&addresses)));
    let mut command = Command::new(program);
    // The master says when its worker listens; the worker ends with it.
    command.args(["-W", "-db", "-f"]).arg(path);
    Peer::start("haproxy", command, addresses, &["Loading success"]).await
}

pub(super) async fn envoy(
    program: &Path,
    folder: &Path,
    listeners: usize,
    resources: impl FnOnce(&[SocketAddr]) -> Value,
) -> Peer {
    let ports = Ports::reserve(listeners);
    let addresses = ports.addresses();
    let text = format!("{:#}\n", json!({"static_resources": resources(&addresses)}));
    let path = write(folder, "envoy", &addresses, "json", &text);
    let mut command = Command::new(program);
    command.args(["--concurrency", "1", "--disable-hot-restart", "--log-level", "info", "-c"]).arg(path);
    Peer::start("envoy", command, addresses, &["starting main dispatch loop"]).await
}

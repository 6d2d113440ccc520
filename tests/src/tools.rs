//! Independent clients: the system's curl, and `openssl s_client`.
//!
//! A rejected handshake is a value, too: curl's exit code and message.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;

use tokio::process::{Child, Command};

#[derive(Debug)]
pub struct CurlOutput {
    /// 0 with an HTTP response; 35, 56 and 58 mean rejected handshakes.
    pub exit: i32,
    /// 0 without a response.
    pub status: u16,
    /// `1.1` or `2`; `0` without a response.
    pub http: String,
    pub body: String,
    /// Standard error.
    pub message: String,
}

/// Runs `curl -sS` with these arguments, in `folder`.
pub async fn curl(folder: &Path, arguments: &[&str]) -> CurlOutput {
    let output = Command::new("curl")
        .args(["-sS", "--max-time", "60", "-w", "\n%{http_code} %{http_version}"])
        .args(arguments)
        .current_dir(folder)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .unwrap_or_else(|problem| panic!("cannot run curl ({problem}): `make setup` installs it"));
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let (body, last) = stdout.rsplit_once('\n').unwrap_or((&stdout, ""));
    let (status, http) = last.split_once(' ').unwrap_or(("0", "0"));
    CurlOutput {
        exit: output.status.code().unwrap_or(-1),
        status: status.parse().unwrap_or_default(),
        http: http.to_owned(),
        body: body.to_owned(),
        message: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Starts `openssl s_client`, which reports sessions and keys, with piped standard streams. It ends
/// with the value.
pub fn s_client(address: SocketAddr, folder: &Path, arguments: &[&str]) -> Child {
    Command::new("openssl")
        .args(["s_client", "-connect", &address.to_string()])
        .args(arguments)
        .current_dir(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap_or_else(|problem| panic!("cannot run openssl ({problem}): `make setup` installs it"))
}

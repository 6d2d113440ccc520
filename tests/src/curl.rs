//! The system's curl, the client a person would try first.
//!
//! A refused handshake is a value here too: curl's exit code and its own words.

use std::path::Path;
use std::process::Stdio;

use tokio::process::Command;

/// What curl reported.
#[derive(Debug)]
pub struct CurlOutput {
    /// curl's exit code: 0 when there was an HTTP answer; 35, 56 and 58 stand for refused handshakes.
    pub exit: i32,
    /// The HTTP status, 0 without an answer.
    pub status: u16,
    /// `1.1` or `2`; `0` without an answer.
    pub http: String,
    /// The body.
    pub body: String,
    /// curl's own words.
    pub message: String,
}

/// Runs `curl -sS` with these arguments, in `folder`.
///
/// # Panics
/// When there is no curl.
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

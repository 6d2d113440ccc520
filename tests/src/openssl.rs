//! `openssl s_client`: an independent client that takes input and reports sessions and keys.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;

use tokio::process::{Child, Command};

/// Starts it in `folder` with piped standard streams. It ends with the value.
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

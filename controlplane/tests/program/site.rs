//! A folder with everything a control plane needs, and the program running in it.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;

pub(crate) fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_controlplane"));
    command.env_remove("RUST_LOG");
    command
}

/// A folder with certificates and a configuration with ephemeral ports.
pub(crate) struct Site {
    folder: TempDir,
    pub settings: Value,
}

impl Site {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let made = program().args(["pki", "init", "--dir"]).arg(folder.path().join("pki")).output().unwrap();
        assert!(made.status.success(), "{made:?}");
        let settings = json!({
            "apisix": {"data_encryption": {"keyring": ["a-key-of-a-test-"]}},
            "deployment": {"admin": {
                "admin_key": [{"name": "admin", "key": "", "role": "admin"}],
                "admin_listen": {"ip": "127.0.0.1", "port": 0},
                "https_admin": true,
                "admin_api_mtls": {
                    "admin_ssl_cert": "pki/admin-server.crt",
                    "admin_ssl_cert_key": "pki/admin-server.key",
                    "admin_ssl_ca_cert": "pki/admin-ca.crt",
                },
            }},
            "countersign": {
                "push": {"listen": "127.0.0.1:0"},
                "control_plane": {"status": "127.0.0.1:0"},
                "store": {"path": "data/store.redb"},
            },
        });
        Self { folder, settings }
    }

    pub(crate) fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    /// Writes the configuration with one change at a JSON pointer.
    pub(crate) fn with(&self, pointer: &str, value: Value) -> std::path::PathBuf {
        let mut settings = self.settings.clone();
        if !pointer.is_empty() {
            *settings.pointer_mut(pointer).unwrap() = value;
        }
        let path = self.path("config.yaml");
        fs::write(&path, settings.to_string()).unwrap();
        // The file has keys in it.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    }

    pub(crate) fn config(&self) -> std::path::PathBuf {
        self.with("", Value::Null)
    }

    pub(crate) fn start(&self) -> Running {
        let mut child = program()
            .arg("-c")
            .arg(self.config())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let mut running = Running { child, ready: Value::Null };
        match line.strip_prefix("ready ") {
            Some(ready) => running.ready = serde_json::from_str(ready).unwrap(),
            None => panic!("not ready: {line:?} {}", running.stop().1),
        }
        running
    }
}

/// A running program, killed on drop.
pub(crate) struct Running {
    pub child: Child,
    pub ready: Value,
}

impl Running {
    pub(crate) fn signal(&self, signal: Signal) {
        let _ = kill(Pid::from_raw(self.child.id().try_into().unwrap()), signal);
    }

    /// SIGTERM, then the exit code and standard error.
    pub(crate) fn stop(self) -> (Option<i32>, String) {
        self.signal(Signal::SIGTERM);
        self.ended()
    }

    /// The exit code and standard error, once it has exited.
    pub(crate) fn ended(mut self) -> (Option<i32>, String) {
        let mut stderr = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        (self.child.wait().unwrap().code(), stderr)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn run(arguments: &[&str], config: &Path) -> Output {
    program().args(arguments).arg("-c").arg(config).output().unwrap()
}

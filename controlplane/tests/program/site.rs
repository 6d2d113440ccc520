//! A folder with everything a control plane needs, and the program running in it.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::thread::JoinHandle;
use std::time::Duration;

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
        self.start_program(program())
    }

    pub(crate) fn start_program(&self, mut program: Command) -> Running {
        let mut child = program
            .arg("-c")
            .arg(self.config())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        stdout.read_line(&mut line).unwrap();
        // Read at once: the log drops lines while its pipe is full.
        let mut stderr = child.stderr.take().unwrap();
        let log = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            stderr.read_to_end(&mut bytes).unwrap();
            String::from_utf8_lossy(&bytes).into_owned()
        });
        let mut running = Running { child, ready: Value::Null, log: Some(log), _stdout: stdout };
        match line.strip_prefix("ready ") {
            Some(ready) => running.ready = serde_json::from_str(ready).unwrap(),
            None => panic!("not ready: {line:?} {}", running.stop().1),
        }
        running
    }
}

/// A kept connection to a plain-HTTP listener of the Admin API.
pub(crate) struct PlainConnection {
    stream: TcpStream,
    answers: BufReader<TcpStream>,
}

/// A response.
#[derive(Debug)]
pub(crate) struct Answer {
    pub status: u16,
    /// The server closes the connection after it.
    pub closes: bool,
    pub body: String,
}

impl PlainConnection {
    pub(crate) fn open(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        Ok(Self { answers: BufReader::new(stream.try_clone()?), stream })
    }

    /// One call below `/apisix/admin/`.
    pub(crate) fn call(
        &mut self,
        method: &str,
        path: &str,
        key: &str,
        body: Option<&Value>,
    ) -> io::Result<Answer> {
        let body = body.map(Value::to_string).unwrap_or_default();
        let head = format!(
            "{method} /apisix/admin/{path} HTTP/1.1\r\nHost: x\r\nX-API-KEY: {key}\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        self.stream.write_all((head + &body).as_bytes())?;
        let ended = || io::Error::from(io::ErrorKind::UnexpectedEof);
        let (mut status, mut closes, mut length) = (None, false, 0);
        loop {
            let mut line = String::new();
            if self.answers.read_line(&mut line)? == 0 {
                return Err(ended());
            }
            match line.trim_end() {
                "" => break,
                "connection: close" => closes = true,
                text => match (text.strip_prefix("HTTP/1.1 "), text.strip_prefix("content-length: ")) {
                    (Some(code), _) => status = code.get(..3).and_then(|code| code.parse().ok()),
                    (_, Some(bytes)) => length = bytes.parse().map_err(io::Error::other)?,
                    _ => {}
                },
            }
        }
        let mut body = vec![0; length];
        self.answers.read_exact(&mut body)?;
        let body = String::from_utf8_lossy(&body).into_owned();
        Ok(Answer { status: status.ok_or_else(ended)?, closes, body })
    }
}

/// A running program, killed on drop.
pub(crate) struct Running {
    pub child: Child,
    pub ready: Value,
    log: Option<JoinHandle<String>>,
    /// Successors write to it, too.
    _stdout: BufReader<ChildStdout>,
}

impl Running {
    pub(crate) fn signal(&self, signal: Signal) {
        let _ = kill(Pid::from_raw(self.child.id().try_into().unwrap()), signal);
    }

    /// The listeners of the Admin API.
    pub(crate) fn admin(&self) -> Vec<SocketAddr> {
        let listed = self.ready["admin_listeners"].as_array().unwrap();
        listed.iter().map(|address| address.as_str().unwrap().parse().unwrap()).collect()
    }

    /// SIGTERM, then the exit code and standard error.
    pub(crate) fn stop(self) -> (Option<i32>, String) {
        self.signal(Signal::SIGTERM);
        self.ended()
    }

    /// The exit code and standard error, once it has exited.
    pub(crate) fn ended(mut self) -> (Option<i32>, String) {
        let stderr = self.log.take().unwrap().join().unwrap();
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

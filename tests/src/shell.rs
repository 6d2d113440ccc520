//! Runs pasted commands in a shell, with the system's curl.
//!
//! The commands are unchanged: a `.curlrc` holds the options that tests need (no progress bar, the
//! status after the body).

use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::Command;
use tokio::time::timeout;

use crate::process::EVENT_TIMEOUT;

pub struct Shell {
    folder: PathBuf,
    program: &'static str,
    variables: Vec<(String, String)>,
}

#[derive(Debug)]
pub struct ShellOutput {
    /// The exit status of the last command.
    pub exit: i32,
    /// Standard output, with the HTTP status after each response.
    pub out: String,
    pub err: String,
}

impl ShellOutput {
    /// The HTTP status of the last response; 0 without one.
    pub fn status(&self) -> u16 {
        self.out.lines().last().and_then(|line| line.trim().parse().ok()).unwrap_or_default()
    }
}

impl Shell {
    /// bash in this folder.
    pub fn new(folder: &Path) -> Self {
        let settings = "silent\nshow-error\nmax-time = 60\nwrite-out = \"\\n%{http_code}\\n\"\n";
        std::fs::write(folder.join(".curlrc"), settings).expect("a file can be written");
        Self { folder: folder.to_owned(), program: "bash", variables: Vec::new() }
    }

    pub fn program(mut self, program: &'static str) -> Self {
        self.program = program;
        self
    }

    /// Sets an environment variable.
    pub fn set(mut self, name: &str, value: impl ToString) -> Self {
        self.variables.push((name.to_owned(), value.to_string()));
        self
    }

    pub async fn run(&self, script: &str) -> ShellOutput {
        let child = Command::new(self.program)
            .args(["-c", script])
            .current_dir(&self.folder)
            .env("CURL_HOME", &self.folder)
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|problem| panic!("cannot run {}: {problem}", self.program));
        let output = timeout(EVENT_TIMEOUT, child.wait_with_output())
            .await
            .unwrap_or_else(|_| panic!("still running: {script}"))
            .expect("a child can be waited for");
        ShellOutput {
            exit: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

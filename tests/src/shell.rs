//! A shell that runs commands as people paste them, with the system's curl.
//!
//! The commands are not changed: what the test needs of curl (no progress bar, the status behind the body) stands in a `.curlrc`.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::Command;
use tokio::time::timeout;

use crate::process::EVENT_TIMEOUT;

/// A shell in a folder.
pub struct Shell {
    folder: PathBuf,
    program: &'static str,
    variables: Vec<(String, String)>,
}

/// What a command left behind.
#[derive(Debug)]
pub struct Said {
    /// Its exit status; that of its last command.
    pub exit: i32,
    /// Standard output, with the HTTP status behind each answer.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Said {
    /// The HTTP status of the last answer; 0 when there was none.
    pub fn status(&self) -> u16 {
        self.out.lines().last().and_then(|line| line.trim().parse().ok()).unwrap_or_default()
    }
}

impl Shell {
    /// bash in this folder.
    ///
    /// # Panics
    /// When nothing can be written there.
    pub fn new(folder: &Path) -> Self {
        let settings = "silent\nshow-error\nmax-time = 60\nwrite-out = \"\\n%{http_code}\\n\"\n";
        std::fs::write(folder.join(".curlrc"), settings).expect("a file can be written");
        Self { folder: folder.to_owned(), program: "bash", variables: Vec::new() }
    }

    /// Another shell.
    pub fn program(mut self, program: &'static str) -> Self {
        self.program = program;
        self
    }

    /// Sets a variable of the commands.
    pub fn set(mut self, name: &str, value: impl ToString) -> Self {
        self.variables.push((name.to_owned(), value.to_string()));
        self
    }

    /// Runs a script.
    ///
    /// # Panics
    /// When there is no such shell, or it is still running after [`EVENT_TIMEOUT`].
    pub async fn run(&self, script: &str) -> Said {
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
        Said {
            exit: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

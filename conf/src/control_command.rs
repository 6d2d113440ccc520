//! The commands that reach a running program: which socket they use, and what their errors say.
//!
//! Invariant: the program is asked whatever is wrong with the file; its answer reports the errors
//! of the file.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use process::control_socket::{self, ControlRequest, RequestError};

use crate::path_key::path_key;

/// Of `pid`: no program runs that has this file. (LSB: 3, the program is not running.)
const EXIT_NOT_RUNNING: u8 = 3;
const EXIT_FAILURE: u8 = 1;

/// A program with a control socket.
#[derive(Debug, Clone, Copy)]
pub struct ControlTarget {
    /// For messages: "the data plane".
    pub program: &'static str,
    /// The setting whose path decides where the socket is.
    pub key: &'static str,
    /// The socket for a path of `key`.
    pub socket_path: fn(&Path) -> PathBuf,
}

/// Why a request was not done.
#[derive(Debug)]
pub struct AskError {
    target: ControlTarget,
    request: ControlRequest,
    /// Why the path of the socket is a guess.
    guess: Option<String>,
    reason: Box<Reason>,
}

#[derive(Debug)]
enum Reason {
    Request(RequestError),
    Refused { pid: u32, message: String },
}

impl ControlTarget {
    /// Sends a request to the program that runs with the file `config`, or to the one that listens
    /// on `socket`, and waits at most `limit`. The answer is a text for the user.
    ///
    /// # Errors
    /// [`AskError`].
    pub fn ask(
        &self,
        config: &Path,
        socket: Option<&Path>,
        request: ControlRequest,
        limit: Duration,
    ) -> Result<String, AskError> {
        let (path, is_certain) = match socket {
            Some(socket) => (socket.to_owned(), true),
            None => {
                let found = path_key(config, self.key);
                ((self.socket_path)(&found.path), found.is_certain)
            }
        };
        let reason = match control_socket::request(&path, &request, limit) {
            Ok(response) if response.ok => return Ok(response.message),
            Ok(response) => Reason::Refused { pid: response.pid, message: response.message },
            Err(error) => Reason::Request(error),
        };
        let guess = if is_certain { None } else { crate::load(config).err() };
        Err(AskError {
            target: *self,
            request,
            guess: guess.map(|error| error.to_string()),
            reason: reason.into(),
        })
    }
}

impl AskError {
    /// The exit status of the command.
    pub fn exit_code(&self) -> u8 {
        match (&*self.reason, &self.request) {
            (Reason::Request(RequestError::NotRunning(_)), ControlRequest::Pid) if self.guess.is_none() => {
                EXIT_NOT_RUNNING
            }
            _ => EXIT_FAILURE,
        }
    }
}

impl fmt::Display for AskError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let error = match &*self.reason {
            Reason::Refused { pid, message } => return write!(out, "process {pid}: {message}"),
            Reason::Request(error) => error,
        };
        let ControlTarget { program, key, .. } = self.target;
        if let Some(guess) = &self.guess {
            write!(out, "{guess}\n{key} cannot be read, so the socket of the default was tried: ")?;
        }
        write!(out, "{error}")?;
        if !matches!(error, RequestError::NotRunning(_)) {
            return Ok(());
        }
        write!(
            out,
            ": {program} does not run with this configuration file; if it does, and {key} has changed since its start, name its \
             socket with --socket PATH"
        )?;
        match &self.request {
            ControlRequest::Upgrade => write!(out, ", or send SIGUSR2 to the process"),
            ControlRequest::Reload => write!(out, ", or send SIGHUP to the process"),
            ControlRequest::ReopenLogs => write!(out, ", or send SIGUSR1 to the process"),
            ControlRequest::Pid | ControlRequest::LogLevel { .. } => Ok(()),
        }
    }
}

impl std::error::Error for AskError {}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use process::control_socket::ControlListener;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(30);
    const TARGET: ControlTarget = ControlTarget {
        program: "the data plane",
        key: "countersign.node.last_good",
        socket_path: |path| path.with_extension("sock"),
    };

    #[test]
    fn a_broken_file_reaches_the_running_program() {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("config.yaml");
        std::fs::write(&config, "apisix: {no_key: 1}\ncountersign:\n  node:\n    last_good: x.y\nz: [\n")
            .unwrap();
        let listener = ControlListener::bind(&folder.path().join("x.sock"), None).unwrap();
        let serving = listener.serve(Arc::new(|request| match request {
            ControlRequest::Reload => Err("the file is broken".to_owned()),
            _ => Ok("done".to_owned()),
        }));
        let serving = serving.unwrap();
        let reopened = TARGET.ask(&config, None, ControlRequest::ReopenLogs, LIMIT).unwrap();
        assert!(reopened.contains("no file to open again"), "{reopened}");
        let refused = TARGET.ask(&config, None, ControlRequest::Reload, LIMIT).unwrap_err();
        assert_eq!(refused.to_string(), format!("process {}: the file is broken", std::process::id()));
        std::fs::write(&config, "countersign: {node: {last_good: other.y}}").unwrap();
        let moved = TARGET.ask(&config, None, ControlRequest::Upgrade, LIMIT).unwrap_err();
        assert!(moved.to_string().contains("--socket PATH, or send SIGUSR2"), "{moved}");
        let socket = folder.path().join("x.sock");
        assert_eq!(TARGET.ask(&config, Some(&socket), ControlRequest::ReopenLogs, LIMIT).unwrap(), reopened);
        drop(serving);
    }

    #[test]
    fn only_a_known_socket_says_that_nothing_runs() {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("config.yaml");
        let code = |text: &str, request| {
            std::fs::write(&config, text).unwrap();
            TARGET.ask(&config, None, request, LIMIT).unwrap_err().exit_code()
        };
        assert_eq!(code("no_such_key: 1", ControlRequest::Pid), 3);
        assert_eq!(code("no_such_key: 1", ControlRequest::Upgrade), 1);
        assert_eq!(code("countersign: [", ControlRequest::Pid), 1);
        let error = TARGET.ask(&config, None, ControlRequest::Pid, LIMIT).unwrap_err().to_string();
        assert!(error.contains("not valid YAML") && error.contains("nothing listens on"), "{error}");
    }
}

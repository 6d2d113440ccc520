//! What a running control plane is asked to do: by signals, and by commands through its control
//! socket.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use conf::{ControlTarget, Settings};
use process::control_socket::{self, ControlListener, ControlRequest, ControlSocket};
use process::signals::Signals;
use tokio::sync::{mpsc, oneshot, watch};

use super::wait_for_stop;

/// Requests that wait for the one before them.
const QUEUE_MAX: usize = 16;

/// The program's name in the path of its socket.
const PROGRAM: &str = "controlplane";

/// The running control plane, for commands.
pub(crate) const TARGET: ControlTarget =
    ControlTarget { program: "the control plane", key: "countersign.store.path", socket_path };

/// The control socket of a control plane: beside its store's file, also with etcd.
fn socket_path(store: &Path) -> PathBuf {
    control_socket::path_beside(store, PROGRAM)
}

/// A request to the running program.
pub(super) enum ControlEvent {
    Stop,
    Reload(ResultSender),
    Upgrade(ResultSender),
}

/// Takes the result to the command that asked, if one did.
pub(super) struct ResultSender(Option<oneshot::Sender<Result<String, String>>>);

impl ResultSender {
    pub(super) fn send(self, result: Result<String, String>) {
        if let Some(sender) = self.0 {
            // The command may have gone away.
            let _gone = sender.send(result);
        }
    }
}

type ControlCommand = (ControlRequest, ResultSender);

/// The source of events.
pub(super) struct Events {
    stop: watch::Receiver<bool>,
    reload: watch::Receiver<u64>,
    upgrade: watch::Receiver<u64>,
    commands: (mpsc::Sender<ControlCommand>, mpsc::Receiver<ControlCommand>),
    /// An upgrade is under way.
    upgrading: Arc<AtomicBool>,
    socket: Option<ControlSocket>,
}

impl Events {
    /// Follows the signals from now on.
    pub(super) fn new(signals: &Signals) -> Self {
        Self {
            stop: signals.stop(),
            reload: signals.reload(),
            upgrade: signals.upgrade(),
            commands: mpsc::channel(QUEUE_MAX),
            upgrading: Arc::default(),
            socket: None,
        }
    }

    /// Opens the control socket, in place of that of process `predecessor`. Without a socket, which
    /// is logged, signals are followed alone.
    pub(super) fn listen(&mut self, settings: &Settings, predecessor: Option<u32>) {
        let path = socket_path(&settings.countersign.store.path);
        let socket = listen(&path, self.commands.0.clone(), Arc::clone(&self.upgrading), predecessor);
        let socket = socket.inspect_err(|error| {
            tracing::warn!(socket = %path.display(), %error, "no command can reach this control plane: the socket cannot be made");
        });
        self.socket = socket.ok();
    }

    /// The next event.
    pub(super) async fn next(&mut self) -> ControlEvent {
        loop {
            tokio::select! {
                () = wait_for_stop(&mut self.stop) => return ControlEvent::Stop,
                Ok(()) = self.reload.changed() => return ControlEvent::Reload(ResultSender(None)),
                Ok(()) = self.upgrade.changed() => {
                    self.upgrading.store(true, Ordering::Release);
                    return ControlEvent::Upgrade(ResultSender(None));
                }
                Some((request, reply)) = self.commands.1.recv() => match request {
                    ControlRequest::Reload => return ControlEvent::Reload(reply),
                    ControlRequest::Upgrade => return ControlEvent::Upgrade(reply),
                    // Handled where they arrive.
                    ControlRequest::Pid | ControlRequest::ReopenLogs | ControlRequest::LogLevel { .. } => {}
                }
            }
        }
    }

    /// Forgets the signals for a second upgrade that came during the first.
    pub(super) fn upgrade_ended(&mut self) {
        self.upgrade.mark_unchanged();
        self.upgrading.store(false, Ordering::Release);
    }
}

fn listen(
    path: &Path,
    commands: mpsc::Sender<ControlCommand>,
    upgrading: Arc<AtomicBool>,
    predecessor: Option<u32>,
) -> Result<ControlSocket, control_socket::BindSocketError> {
    if let Some(folder) = path.parent() {
        // With etcd as the store, no other code creates the folder.
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    let listener = ControlListener::bind(path, predecessor)?;
    Ok(listener.serve(Arc::new(move |request| handle(request, &commands, &upgrading)))?)
}

/// Runs on a thread of the control socket, and may block.
fn handle(
    request: ControlRequest,
    commands: &mpsc::Sender<ControlCommand>,
    upgrading: &AtomicBool,
) -> Result<String, String> {
    if request == ControlRequest::Upgrade && upgrading.swap(true, Ordering::AcqRel) {
        return Err("an upgrade is under way: wait for its end".to_owned());
    }
    let (reply, result) = oneshot::channel();
    let ended = |_| "the control plane stops".to_owned();
    commands
        .blocking_send((request, ResultSender(Some(reply))))
        .map_err(|_| "the control plane stops".to_owned())?;
    result.blocking_recv().map_err(ended)?
}

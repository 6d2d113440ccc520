//! What the main thread waits for while the process serves: signals, and requests of the control
//! socket.

use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Duration;

use process::control_socket::{self, ControlListener, ControlRequest, ControlSocket, Handler};
use process::signals::Signals;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};

/// The path of the control socket: beside the last-good file, with its name, since several data
/// planes may share a folder.
pub(super) fn socket_path(last_good: &Path) -> PathBuf {
    control_socket::path_beside(last_good, &last_good.file_name().unwrap_or_default().to_string_lossy())
}

/// Sends the result of a request to the command that waits for it. Does nothing for a signal.
#[derive(Debug)]
pub(super) struct Reply(Option<SyncSender<Result<String, String>>>);

impl Reply {
    pub(super) fn send(self, result: Result<String, String>) {
        let _command_waits = self.0.is_some_and(|sender| sender.send(result).is_ok());
    }
}

/// What happened.
#[derive(Debug)]
pub(super) enum Event {
    /// A stop signal.
    Stop,
    /// SIGUSR2, or a request on the control socket.
    Upgrade(Reply),
    /// SIGHUP, or a request on the control socket.
    Reload(Reply),
}

/// How often a draining process looks after its successor.
const SUCCESSOR_INTERVAL: Duration = Duration::from_secs(1);

/// What ends the wait of a process that drains after an upgrade.
#[derive(Debug)]
pub(super) enum DrainEnd {
    Stopped,
    Drained,
    /// The successor did not end in order.
    SuccessorFailed(ExitStatus),
}

/// The events of the process.
#[derive(Debug)]
pub(super) struct Events {
    runtime: Runtime,
    stop: watch::Receiver<bool>,
    reload: watch::Receiver<u64>,
    upgrade: watch::Receiver<u64>,
    requests: mpsc::UnboundedReceiver<Event>,
    sender: mpsc::UnboundedSender<Event>,
    is_upgrading: Arc<AtomicBool>,
}

impl Events {
    /// # Errors
    /// When a runtime without drivers cannot be built.
    pub(super) fn new(signals: &Signals) -> std::io::Result<Self> {
        let (sender, requests) = mpsc::unbounded_channel();
        Ok(Self {
            runtime: tokio::runtime::Builder::new_current_thread().enable_time().build()?,
            stop: signals.stop(),
            reload: signals.reload(),
            upgrade: signals.upgrade(),
            requests,
            sender,
            is_upgrading: Arc::default(),
        })
    }

    /// Serves the control socket beside the last-good file. Without it signals do the same.
    pub(super) fn serve_control_socket(
        &self,
        last_good: &Path,
        predecessor: Option<u32>,
    ) -> Option<ControlSocket> {
        let path = socket_path(last_good);
        // At a first start the folder may be missing: the first save comes later.
        let made = crate::push_client::create_folder_of(&path);
        let bound = made.map_err(Into::into).and_then(|()| ControlListener::bind(&path, predecessor));
        let served = bound.and_then(|listener| listener.serve(self.handler()).map_err(Into::into));
        served
            .inspect_err(|error| {
                tracing::warn!(
                    socket = %path.display(), %error,
                    "the control socket cannot be made: `dataplane upgrade` cannot reach this process, SIGUSR2 can"
                );
            })
            .ok()
    }

    fn handler(&self) -> Handler {
        let (sender, is_upgrading) = (self.sender.clone(), Arc::clone(&self.is_upgrading));
        Arc::new(move |request| {
            let (reply, result) = sync_channel(1);
            let reply = Reply(Some(reply));
            let event = match request {
                ControlRequest::Reload => Event::Reload(reply),
                ControlRequest::Upgrade if is_upgrading.swap(true, Ordering::AcqRel) => {
                    return Err("an upgrade is under way already: wait for its result".to_owned());
                }
                ControlRequest::Upgrade => Event::Upgrade(reply),
                // Handled where they arrive.
                ControlRequest::Pid | ControlRequest::ReopenLogs | ControlRequest::LogLevel { .. } => {
                    return Err("no request of the main thread".to_owned());
                }
            };
            let _main_thread_waits = sender.send(event).is_ok();
            // It has handed over or stops, when it drops the request.
            result.recv().unwrap_or_else(|_| Err("this process stops or has handed over".to_owned()))
        })
    }

    /// Waits for the next event. Not for threads of an asynchronous runtime.
    pub(super) fn next(&mut self) -> Event {
        let Self { runtime, stop, reload, upgrade, requests, .. } = self;
        runtime.block_on(async {
            tokio::select! {
                biased;
                // The sending ends live as long as the process.
                _ = stop.wait_for(|stop| *stop) => Event::Stop,
                _ = upgrade.changed() => Event::Upgrade(Reply(None)),
                _ = reload.changed() => Event::Reload(Reply(None)),
                Some(event) = requests.recv() => event,
            }
        })
    }

    /// Marks that an upgrade begins.
    pub(super) fn upgrade_begins(&self) {
        self.is_upgrading.store(true, Ordering::Release);
    }

    /// Marks that an upgrade has failed, and ignores signals that came meanwhile.
    pub(super) fn upgrade_failed(&mut self) {
        self.is_upgrading.store(false, Ordering::Release);
        if self.upgrade.has_changed().unwrap_or(false) {
            self.upgrade.mark_unchanged();
            tracing::warn!("SIGUSR2 is ignored: it came while an upgrade was under way, which has failed");
        }
    }

    /// Refuses the requests that wait, and later ones.
    pub(super) fn refuse_requests(&mut self) {
        self.requests.close();
        while self.requests.try_recv().is_ok() {}
    }

    /// Whether a SIGHUP has come that no reload has answered.
    pub(super) fn take_reload(&mut self) -> bool {
        let has_changed = self.reload.has_changed().unwrap_or(false);
        self.reload.mark_unchanged();
        has_changed
    }

    /// Waits for a stop signal, until `drained` has no sender, or until the successor has failed.
    pub(super) fn wait_for_drain(
        &mut self,
        drained: &mut mpsc::UnboundedReceiver<()>,
        mut successor_failed: impl FnMut() -> Option<ExitStatus>,
    ) -> DrainEnd {
        let Self { runtime, stop, upgrade, .. } = self;
        // From now on SIGUSR2 is logged as ignored.
        *upgrade = watch::Sender::new(0).subscribe();
        let end = runtime.block_on(async {
            let failed = async {
                loop {
                    if let Some(status) = successor_failed() {
                        return status;
                    }
                    tokio::time::sleep(SUCCESSOR_INTERVAL).await;
                }
            };
            tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => DrainEnd::Stopped,
                () = async { while drained.recv().await.is_some() {} } => DrainEnd::Drained,
                status = failed => DrainEnd::SuccessorFailed(status),
            }
        });
        match end {
            DrainEnd::Drained => successor_failed().map_or(DrainEnd::Drained, DrainEnd::SuccessorFailed),
            end => end,
        }
    }
}

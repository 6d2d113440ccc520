//! A process that a program under test has started as its successor.
//!
//! Invariant: it does not outlive its [`Successor`]. Processes that a failed upgrade leaves behind
//! become children of the test executable, and end with it.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Once;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal, set_child_subreaper};
use serde_json::Value;

use super::EVENT_TIMEOUT;

/// Makes this process the parent of processes whose parent has ended, so that none of them belongs
/// to the machine's first process.
pub(super) fn adopt_orphans() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| set_child_subreaper(Some(Pid::INIT)).expect("a process may adopt orphans"));
}

/// A successor, by a descriptor: another process that gets its id is not mistaken for it.
pub struct Successor {
    ready: Value,
    id: u32,
    process: Option<OwnedFd>,
}

impl Successor {
    /// The process of this ready line.
    pub fn new(ready: Value) -> Self {
        let id = ready["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok());
        let id = id.unwrap_or_else(|| panic!("no process id in {ready}"));
        Self { process: open(id), ready, id }
    }

    pub fn id(&self) -> u32 {
        self.id
    }

    /// The JSON of its ready line.
    pub fn ready(&self) -> &Value {
        &self.ready
    }

    /// Sends a signal; does nothing when it has ended.
    pub fn signal(&self, signal: Signal) {
        if let Some(process) = &self.process {
            let _ended = pidfd_send_signal(process, signal);
        }
    }

    /// Waits for its end.
    pub async fn ended(&self) {
        let Some(process) = &self.process else { return };
        let process = process.try_clone().expect("a descriptor");
        // Readable when it has ended.
        let wait = move || {
            let mut polled = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
            poll(&mut polled, PollTimeout::try_from(EVENT_TIMEOUT).expect("a bound"))
        };
        let ended = tokio::task::spawn_blocking(wait).await.expect("no panic").expect("poll(2)");
        assert_eq!(ended, 1, "process {} was expected to end and still runs", self.id);
    }
}

impl Drop for Successor {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}

/// `None`: it has ended.
fn open(id: u32) -> Option<OwnedFd> {
    let pid = i32::try_from(id).ok().and_then(Pid::from_raw)?;
    pidfd_open(pid, PidfdFlags::empty()).ok()
}

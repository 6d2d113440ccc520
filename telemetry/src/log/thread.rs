//! The log thread: it writes the batches of all sinks to their outputs.
//!
//! Invariant: it waits in `poll(2)` alone, for the outputs that take no bytes and for the
//! descriptor that producers write when it sleeps. Files are opened here between two batches, so a
//! rotation loses and tears no line, and no other thread waits for a disk.

use std::io;
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::output::{Descriptor, LogFileError, Output};
use super::sink::{Batch, Queue, Sink, lock};
use super::syslog::SyslogOutput;
use super::target::AccessTarget;
use super::writer::{Detached, Progress, Writer};

/// How long the opening of a target may take.
const OPEN_MAX: Duration = Duration::from_secs(10);
/// Interval of the look at dropped lines that are not reported yet, in milliseconds.
const REPORT_CHECK_MILLISECONDS: u16 = 1000;
/// Most turns in which the queued lines of a log that is switched off are written.
const LAST_TURNS: usize = 1000;

/// A change of a sink's output.
#[derive(Debug)]
struct Request {
    sink: Arc<Sink>,
    target: AccessTarget,
    /// The socket, for a syslog target.
    syslog: Option<SyslogOutput>,
    /// Gets the result; `None`: the log has it.
    done: Option<SyncSender<Result<(), LogFileError>>>,
}

#[derive(Debug)]
struct Shared {
    /// Written when the thread sleeps and there is work.
    wake: EventFd,
    is_asleep: AtomicBool,
    requests: Mutex<Vec<Request>>,
    has_requests: AtomicBool,
    has_ended: AtomicBool,
    sinks: Mutex<Vec<Arc<Sink>>>,
}

impl Shared {
    fn wake(&self) {
        // With the fence of `sleep`: the thread sees the work, or this sees it asleep.
        fence(Ordering::SeqCst);
        if self.is_asleep.load(Ordering::Relaxed) && self.is_asleep.swap(false, Ordering::AcqRel) {
            // It fails when the counter is at its maximum: the thread wakes up then, too.
            let _awake = self.wake.write(1);
        }
    }

    fn push(&self, request: Request) {
        lock(&self.requests).push(request);
        self.has_requests.store(true, Ordering::Release);
        self.wake();
    }
}

/// The log thread. Dropping it ends it, after it has written what the targets take.
#[derive(Debug)]
pub(super) struct LogThread {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// What producers need of the thread.
#[derive(Debug, Clone)]
pub(super) struct Waker(Arc<Shared>);

impl Waker {
    /// Lets the thread look at the queues.
    pub(super) fn wake(&self) {
        self.0.wake();
    }

    /// Enqueues a batch, or drops it; never waits.
    pub(super) fn enqueue(&self, sink: &Sink, queue: &Queue, batch: Batch) {
        if sink.enqueue(queue, batch) {
            self.0.wake();
        }
    }
}

impl LogThread {
    pub(super) fn start() -> io::Result<Self> {
        let shared = Arc::new(Shared {
            wake: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?,
            is_asleep: AtomicBool::new(false),
            requests: Mutex::default(),
            has_requests: AtomicBool::new(false),
            has_ended: AtomicBool::new(false),
            sinks: Mutex::default(),
        });
        let thread = {
            let shared = Arc::clone(&shared);
            thread::Builder::new().name("log".to_owned()).spawn(move || Worker::new(shared).run())?
        };
        Ok(Self { shared, thread: Some(thread) })
    }

    pub(super) fn waker(&self) -> Waker {
        Waker(Arc::clone(&self.shared))
    }

    /// The sink of a name; a new one goes nowhere.
    pub(super) fn sink(&self, name: &'static str) -> Arc<Sink> {
        let mut sinks = lock(&self.shared.sinks);
        match sinks.iter().find(|sink| sink.name == name) {
            Some(sink) => Arc::clone(sink),
            None => {
                let sink = Arc::new(Sink::new(name));
                sinks.push(Arc::clone(&sink));
                sink
            }
        }
    }

    pub(super) fn sinks(&self) -> Vec<Arc<Sink>> {
        lock(&self.shared.sinks).clone()
    }

    /// Opens a target for a sink, in place of the current one. Returns when it is so.
    pub(super) fn open(&self, sink: &Arc<Sink>, target: AccessTarget) -> Result<(), LogFileError> {
        let name = target.to_string();
        // Here, because the look-up of a name may take a while.
        let syslog = match &target {
            AccessTarget::Syslog(syslog) => Some(
                SyslogOutput::open(syslog)
                    .map_err(|error| LogFileError::Syslog { target: name.clone(), error })?,
            ),
            _ => None,
        };
        let (done, opened): (_, Receiver<_>) = sync_channel(1);
        self.shared.push(Request { sink: Arc::clone(sink), target, syslog, done: Some(done) });
        opened.recv_timeout(OPEN_MAX).unwrap_or(Err(LogFileError::TimedOut { target: name }))
    }

    /// Opens the file of a sink again, without waiting: the log has a line about the result.
    pub(super) fn reopen_in_background(&self, sink: &Arc<Sink>) {
        let target = sink.target();
        if target.file().is_some() {
            self.shared.push(Request { sink: Arc::clone(sink), target, syslog: None, done: None });
        }
    }

    /// Waits until the lines enqueued so far are written or lost; `false` after `patience`.
    pub(super) fn wait_settled(sinks: &[Arc<Sink>], patience: Duration) -> bool {
        let until = Instant::now() + patience;
        let enqueued: Vec<_> = sinks.iter().map(|sink| sink.enqueued()).collect();
        while sinks.iter().zip(&enqueued).any(|(sink, enqueued)| sink.settled() < *enqueued) {
            if Instant::now() >= until {
                return false;
            }
            thread::sleep(Duration::from_millis(1));
        }
        true
    }
}

impl Drop for LogThread {
    fn drop(&mut self) {
        self.shared.has_ended.store(true, Ordering::Release);
        self.shared.wake();
        if let Some(thread) = self.thread.take() {
            let _ended = thread.join();
        }
    }
}

/// The thread's own state.
struct Worker {
    shared: Arc<Shared>,
    writers: Vec<Writer>,
}

impl Worker {
    fn new(shared: Arc<Shared>) -> Self {
        Self { shared, writers: Vec::new() }
    }

    fn run(mut self) {
        loop {
            let has_ended = self.shared.has_ended.load(Ordering::Acquire);
            self.serve_requests();
            // Every output has its turn.
            let more = self.writers.iter_mut().fold(false, |more, writer| {
                let progress = writer.step();
                more || progress == Progress::More
            });
            if more {
                continue;
            }
            if has_ended {
                return;
            }
            self.sleep();
        }
    }

    fn serve_requests(&mut self) {
        if !self.shared.has_requests.swap(false, Ordering::AcqRel) {
            return;
        }
        let requests = std::mem::take(&mut *lock(&self.shared.requests));
        for Request { sink, target, syslog, done } in requests {
            let (log, file) = (sink.name, target.to_string());
            let result = open(&target, syslog).map(|output| self.change_output(&sink, output, target));
            match (done, result) {
                // The caller may have stopped waiting.
                (Some(done), result) => drop(done.try_send(result)),
                (None, Ok(())) => tracing::info!(log, file, "the log file was opened again"),
                (None, Err(error)) => {
                    tracing::error!(
                        log,
                        %error,
                        "the log file cannot be opened again; the log goes on in the old one"
                    );
                }
            }
        }
    }

    fn change_output(&mut self, sink: &Arc<Sink>, output: Output, target: AccessTarget) {
        let is_off = target == AccessTarget::Off;
        sink.set_target(target);
        let mut detached = None;
        for writer in &mut self.writers {
            if is_off && writer.has_sink(sink) {
                let _blocked = (0..LAST_TURNS).find(|_| writer.step() != Progress::More);
            }
            detached = detached.or_else(|| writer.detach(sink));
        }
        self.writers.retain(|writer| !writer.is_unused());
        let detached = detached.unwrap_or_else(|| Detached::new(Arc::clone(sink)));
        let opened = Writer::new(output);
        match self.writers.iter_mut().find(|writer| writer.is_same(&opened)) {
            Some(writer) => writer.attach(detached),
            None => {
                let mut opened = opened;
                opened.attach(detached);
                self.writers.push(opened);
            }
        }
    }

    /// Waits for work, or for a target that takes bytes again.
    fn sleep(&self) {
        self.shared.is_asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let has_work = self.shared.has_requests.load(Ordering::Acquire)
            || self.shared.has_ended.load(Ordering::Acquire)
            || self.writers.iter().any(Writer::has_work);
        if !has_work {
            let wake = PollFd::new(self.shared.wake.as_fd(), PollFlags::POLLIN);
            let blocked = self.writers.iter().filter(|writer| writer.is_blocked());
            let blocked = blocked.filter_map(|writer| writer.output().descriptor());
            let blocked = blocked.map(|descriptor| PollFd::new(descriptor, PollFlags::POLLOUT));
            let mut polled: Vec<_> = std::iter::once(wake).chain(blocked).collect();
            let limit = match self.writers.iter().any(Writer::owes_report) {
                true => PollTimeout::from(REPORT_CHECK_MILLISECONDS),
                false => PollTimeout::NONE,
            };
            // After an error the queues are looked at, as after any wake-up.
            let _woken = poll(&mut polled, limit);
        }
        self.shared.is_asleep.store(false, Ordering::Relaxed);
        // Non-blocking: it fails when nothing was written.
        let _count = self.shared.wake.read();
    }
}

fn open(target: &AccessTarget, syslog: Option<SyslogOutput>) -> Result<Output, LogFileError> {
    match target {
        AccessTarget::Off => Ok(Output::Null),
        AccessTarget::Stdout => Ok(Output::standard(Descriptor::Stdout(io::stdout()))),
        AccessTarget::Stderr => Ok(Output::standard(Descriptor::Stderr(io::stderr()))),
        AccessTarget::File(path) => Output::open(path),
        AccessTarget::Syslog(_) => Ok(syslog.map_or(Output::Null, Output::Syslog)),
    }
}

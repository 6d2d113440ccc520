//! The log on standard error: a bounded queue, and one thread (tracing-appender's) that writes.
//!
//! Invariant: who logs never waits and never fails. When the queue is full because the reader of a
//! pipe has stopped, or a write fails because the disk is full or the reader is gone, the line is
//! dropped and counted ([`dropped`]); the next line is tried again.

mod writer;

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use writer::{FdWriter, LineCounters};

/// Lines that wait to be written. A line of a stranger's is clipped to a few KiB, so the queue
/// holds some MiB at most; what a busy moment logs fits.
const QUEUED_MAX: usize = 4096;
/// How long a flush waits for a reader that is slow, before what is left is dropped.
const FLUSH_MAX: Duration = Duration::from_secs(1);
/// After that: for the thread to notice that it is to drop what is left.
const GIVE_UP_MAX: Duration = Duration::from_millis(200);

static LOG: OnceLock<Logger> = OnceLock::new();

struct Logger {
    queue: LineQueue,
    /// Ends the thread when it is dropped. Taken by `exit`.
    guard: Mutex<Option<WorkerGuard>>,
}

/// The sending end: lines in, counted.
#[derive(Clone)]
struct LineQueue {
    lines: NonBlocking,
    /// Lines given to `lines`, dropped ones included.
    enqueued: Arc<AtomicU64>,
    progress: Arc<LineCounters>,
}

/// Starts the log: standard error, filtered by RUST_LOG (`info` without it), and a panic hook that
/// writes there, too. Called once, before threads are started.
pub fn init() {
    let progress = Arc::<LineCounters>::default();
    let writer = FdWriter::new(io::stderr(), Arc::clone(&progress));
    let builder =
        NonBlockingBuilder::default().buffered_lines_limit(QUEUED_MAX).lossy(true).thread_name("log");
    let (lines, guard) = builder.finish(writer);
    let queue = LineQueue::new(lines, progress);
    if LOG.set(Logger { queue: queue.clone(), guard: Mutex::new(Some(guard)) }).is_err() {
        return;
    }
    let (filter, unusable) = match EnvFilter::try_from_default_env() {
        Ok(filter) => (filter, None),
        Err(error) => (EnvFilter::new("info"), std::env::var_os("RUST_LOG").map(|text| (text, error))),
    };
    tracing_subscriber::fmt()
        .with_writer(queue)
        .with_ansi(io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
        .with_env_filter(filter)
        // It would write to standard error by itself, and panic when it cannot.
        .log_internal_errors(false)
        .init();
    std::panic::set_hook(Box::new(panic_hook));
    if let Some((text, error)) = unusable {
        tracing::warn!(?text, %error, "RUST_LOG cannot be read; logging at info");
    }
}

/// Writes lines to standard error as they are, behind what was logged before: for the person who
/// starts the program, whatever the filter. Before [`start`] it does nothing.
pub fn write_unfiltered(text: &dyn Display) {
    if let Some(log) = LOG.get() {
        let _never_fails = log.queue.make_writer().write_all(format!("{text}\n").as_bytes());
    }
}

/// Lines dropped since the start, because the queue was full or they could not be written.
pub fn dropped() -> u64 {
    LOG.get().map_or(0, |log| log.queue.progress.dropped())
}

/// Waits until everything logged so far is written or dropped, a second at most.
pub fn flush() {
    if let Some(log) = LOG.get() {
        log.queue.wait_drained(FLUSH_MAX);
    }
}

/// Ends the process: writes what the log still holds, if its reader takes it within a second, and
/// exits. The only way out of a program that logs.
pub fn exit(code: u8) -> ! {
    if let Some(log) = LOG.get() {
        let written = log.queue.wait_drained(FLUSH_MAX);
        if !written {
            log.queue.progress.abandon();
        }
        let guard = log.guard.lock().unwrap_or_else(PoisonError::into_inner).take();
        if written || log.queue.wait_drained(GIVE_UP_MAX) {
            drop(guard);
        } else {
            // Its thread hangs in a system call: dropping the guard would wait, and print that it
            // did.
            std::mem::forget(guard);
        }
    }
    #[expect(clippy::disallowed_methods, reason = "the one place that exits, after the log is written")]
    std::process::exit(i32::from(code))
}

/// In place of std's hook, which writes to standard error directly and waits for its reader.
fn panic_hook(panic: &std::panic::PanicHookInfo<'_>) {
    let current = thread::current();
    write_unfiltered(&format_args!("thread '{}' {panic}", current.name().unwrap_or("<unnamed>")));
    let trace = Backtrace::capture();
    if trace.status() == BacktraceStatus::Captured {
        write_unfiltered(&trace);
    }
    flush();
}

impl LineQueue {
    fn new(lines: NonBlocking, progress: Arc<LineCounters>) -> Self {
        progress.count_overflow(lines.error_counter());
        Self { lines, enqueued: Arc::default(), progress }
    }

    /// Whether every line given so far was written or dropped within `patience`.
    fn wait_drained(&self, patience: Duration) -> bool {
        let (until, given) = (Instant::now() + patience, self.enqueued.load(Ordering::Acquire));
        while self.progress.processed() + self.progress.overflowed() < given {
            if Instant::now() >= until {
                return false;
            }
            thread::sleep(Duration::from_millis(1));
        }
        true
    }
}

impl<'a> MakeWriter<'a> for LineQueue {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

impl Write for LineQueue {
    /// Takes one line whole, or drops it.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.enqueued.fetch_add(1, Ordering::AcqRel);
        self.lines.write(line)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;

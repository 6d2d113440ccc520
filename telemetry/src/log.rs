//! The log on standard error: a bounded queue and a writer thread (tracing-appender's).
//!
//! Invariant: logging never blocks and never fails. When the queue is full because the reader of a
//! pipe has stopped, or a write fails because the disk is full or the reader is gone, the line is
//! dropped and counted ([`dropped`]); later lines are tried again.

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

/// Most queued lines. Lines about peers are clipped to a few KiB, so the queue holds some MiB at
/// most.
const QUEUED_MAX: usize = 4096;
/// How long a flush waits for a slow reader before the remaining lines are dropped.
const FLUSH_MAX: Duration = Duration::from_secs(1);
/// How long the writer thread then has to drop them.
const GIVE_UP_MAX: Duration = Duration::from_millis(200);

static LOG: OnceLock<Logger> = OnceLock::new();

struct Logger {
    queue: LineQueue,
    /// Ends the thread when it is dropped. Taken by `exit`.
    guard: Mutex<Option<WorkerGuard>>,
}

/// The sending end of the queue.
#[derive(Clone)]
struct LineQueue {
    lines: NonBlocking,
    /// Lines passed to `lines`, dropped ones included.
    enqueued: Arc<AtomicU64>,
    progress: Arc<LineCounters>,
}

/// Initialises the log: standard error, filtered by RUST_LOG (default `info`), and a panic hook
/// that writes to the log. Called once, before threads are started.
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
        // It would write to standard error directly, and panic when that fails.
        .log_internal_errors(false)
        .init();
    std::panic::set_hook(Box::new(panic_hook));
    if let Some((text, error)) = unusable {
        tracing::warn!(?text, %error, "RUST_LOG cannot be read; logging at info");
    }
}

/// Writes a text to standard error, behind the lines logged before and regardless of the filter.
/// Does nothing before [`init`].
pub fn write_unfiltered(text: &dyn Display) {
    if let Some(log) = LOG.get() {
        let _never_fails = log.queue.make_writer().write_all(format!("{text}\n").as_bytes());
    }
}

/// Lines dropped since startup, because the queue was full or a write failed.
pub fn dropped() -> u64 {
    LOG.get().map_or(0, |log| log.queue.progress.dropped())
}

/// Waits until all lines logged so far are written or dropped, a second at most.
pub fn flush() {
    if let Some(log) = LOG.get() {
        log.queue.wait_drained(FLUSH_MAX);
    }
}

/// Exits the process after writing the queued lines, if the reader takes them within a second. The
/// only exit of a program that logs.
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
            // The writer thread hangs in a system call: dropping the guard would wait for it.
            std::mem::forget(guard);
        }
    }
    #[expect(clippy::disallowed_methods, reason = "the one place that exits, after the log is written")]
    std::process::exit(i32::from(code))
}

/// Replaces std's hook, which writes to standard error directly and waits for its reader.
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

    /// Waits until all lines passed so far are written or dropped; `false` after `timeout`.
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
    /// Enqueues one whole line, or drops it.
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

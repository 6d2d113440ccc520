//! The log, on standard error or in a file: a bounded queue and a writer thread
//! (tracing-appender's).
//!
//! Invariant: logging never blocks and never fails. When the queue is full because the reader of a
//! pipe has stopped, or a write fails because the disk is full or the reader is gone, the line is
//! dropped and counted ([`dropped`]); later lines are tried again. Files are opened on the writer
//! thread between two lines, so a rotation loses and tears none.

mod output;
mod writer;

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tracing::Level;
use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Registry, reload};
use writer::{FdWriter, LineCounters};

pub use self::output::LogFileError;
use self::output::{Output, OutputRequests};

/// Most queued lines. Lines about peers are clipped to a few KiB, so the queue holds some MiB at
/// most.
const QUEUED_MAX: usize = 4096;
/// How long a flush waits for a slow reader before the remaining lines are dropped.
const FLUSH_MAX: Duration = Duration::from_secs(1);
/// How long the writer thread then has to drop them.
const GIVE_UP_MAX: Duration = Duration::from_millis(200);
/// How long the opening of a log file may take.
const OPEN_MAX: Duration = Duration::from_secs(10);
/// The filter without RUST_LOG and without a level in the settings.
const DEFAULT_LEVEL: Level = Level::INFO;

static LOG: OnceLock<Logger> = OnceLock::new();

struct Logger {
    queue: LineQueue,
    outputs: Arc<OutputRequests>,
    /// `None`: RUST_LOG has the filter.
    filter: Option<reload::Handle<EnvFilter, Registry>>,
    set_ansi: Box<dyn Fn(bool) + Send + Sync>,
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
    let (progress, outputs) = (Arc::<LineCounters>::default(), Arc::<OutputRequests>::default());
    let writer = FdWriter::new(Output::stderr(), Arc::clone(&progress)).following(Arc::clone(&outputs));
    let builder =
        NonBlockingBuilder::default().buffered_lines_limit(QUEUED_MAX).lossy(true).thread_name("log");
    let (lines, guard) = builder.finish(writer);
    let queue = LineQueue::new(lines, progress);
    let (filter, unusable) = match EnvFilter::try_from_default_env() {
        Ok(filter) => (Some(filter), None),
        Err(error) => (None, std::env::var_os("RUST_LOG").map(|text| (text, error))),
    };
    let is_from_environment = filter.is_some();
    let filter = filter.unwrap_or_else(|| EnvFilter::new(DEFAULT_LEVEL.as_str()));
    let (filter, filter_handle) = reload::Layer::new(filter);
    let format = tracing_subscriber::fmt::layer()
        .with_writer(queue.clone())
        .with_ansi(shows_colours())
        // It would write to standard error directly, and panic when that fails.
        .log_internal_errors(false);
    let (format, format_handle) = reload::Layer::new(format);
    let logger = Logger {
        queue,
        outputs,
        filter: (!is_from_environment).then_some(filter_handle),
        set_ansi: Box::new(move |ansi| {
            let _never_fails = format_handle.modify(|format| format.set_ansi(ansi));
        }),
        guard: Mutex::new(Some(guard)),
    };
    if LOG.set(logger).is_err() {
        return;
    }
    tracing_subscriber::registry().with(filter).with(format).init();
    std::panic::set_hook(Box::new(panic_hook));
    if let Some((text, error)) = unusable {
        tracing::warn!(?text, %error, "RUST_LOG cannot be read; logging at info");
    }
}

fn shows_colours() -> bool {
    io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none()
}

/// Writes to this file (`None`: standard error) and at this level (`None`: the default; RUST_LOG
/// goes before both) from the next line on. Returns when it is so. Does nothing before [`init`].
///
/// # Errors
/// The file cannot be opened; nothing changes then.
pub fn configure(file: Option<&Path>, level: Option<Level>) -> Result<(), LogFileError> {
    let Some(log) = LOG.get() else { return Ok(()) };
    if log.outputs.file().as_deref() != file {
        log.change_output(file.map(Path::to_owned))?;
        (log.set_ansi)(file.is_none() && shows_colours());
    }
    if let Some(filter) = &log.filter {
        let _never_fails = filter.reload(EnvFilter::new(level.unwrap_or(DEFAULT_LEVEL).as_str()));
    }
    Ok(())
}

/// Checks that [`configure`] could open a file, without making it.
///
/// # Errors
/// Why not.
pub fn check_file(path: &Path) -> Result<(), LogFileError> {
    output::check(path)
}

/// Opens the log file again, after a rotation. Returns its path when it is done; `None`: the log
/// goes to standard error.
///
/// # Errors
/// The file cannot be opened; lines go on to the old one.
pub fn reopen() -> Result<Option<PathBuf>, LogFileError> {
    let Some(log) = LOG.get() else { return Ok(None) };
    let Some(path) = log.outputs.file() else { return Ok(None) };
    log.change_output(Some(path.clone()))?;
    Ok(Some(path))
}

/// As [`reopen`], without waiting: the log has a line about the result.
pub fn reopen_in_background() {
    let Some(log) = LOG.get() else { return };
    match log.outputs.file() {
        Some(path) => {
            log.outputs.request_unattended(path);
            log.queue.wake();
        }
        None => tracing::info!("the log goes to standard error: there is no file to open again"),
    }
}

impl Logger {
    fn change_output(&self, path: Option<PathBuf>) -> Result<(), LogFileError> {
        let changed = self.outputs.request(path.clone());
        self.queue.wake();
        changed
            .recv_timeout(OPEN_MAX)
            .unwrap_or(Err(LogFileError::TimedOut { path: path.unwrap_or_default() }))
    }
}

/// Writes a text to the log, behind the lines logged before and regardless of the filter.
/// Does nothing before [`init`].
pub fn write_unfiltered(text: &dyn Display) {
    if let Some(log) = LOG.get() {
        let _never_fails = log.queue.make_writer().write_all(format!("{text}\n").as_bytes());
    }
}

/// As [`write_unfiltered`], and to standard error where the log is a file: an operator who starts
/// the program looks there. The log stays there; call it before the exit.
pub fn write_fatal(text: &dyn Display) {
    write_unfiltered(text);
    if let Some(log) = LOG.get()
        && log.outputs.file().is_some()
        && log.change_output(None).is_ok()
    {
        write_unfiltered(text);
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

    /// Lets the writer thread look for requests although there is no line.
    fn wake(&self) {
        let _never_fails = self.make_writer().write_all(writer::WAKE);
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

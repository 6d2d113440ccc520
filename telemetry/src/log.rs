//! The logs of a process: the error log of both programs, and access logs.
//!
//! One thread writes all of them ([`thread`]): it takes whole lines from bounded queues ([`sink`])
//! and writes them to standard error, files or syslog ([`output`]).
//!
//! Invariant: logging never blocks and never fails. When a queue is full because the reader of a
//! pipe has stopped, or a write fails because the disk is full or the reader is gone, the line is
//! dropped and counted ([`dropped`]); later lines are tried again. Files are opened on the log
//! thread between two lines, so a rotation loses and tears none.

mod access;
mod output;
mod sink;
mod syslog;
mod target;
mod thread;
mod writer;

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tracing::Level;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Registry, reload};

pub use self::access::{AccessSink, LineBatcher, check_access, open_access};
pub use self::output::LogFileError;
use self::sink::{Batch, Queue, Sink};
pub use self::target::{AccessTarget, SyslogServer, SyslogTarget, TargetError};
use self::thread::{LogThread, Waker};

/// The name of the error log in metrics.
const ERROR_LOG: &str = "error";
/// Most queued lines of the error log. Lines about peers are clipped to a few KiB, so the queue
/// holds some MiB at most.
const QUEUED_MAX: usize = 4096;
/// How long a flush waits for a slow reader before the remaining lines are dropped.
const FLUSH_MAX: Duration = Duration::from_secs(1);
const NO_FILE: &str = "no log goes to a file: there is no file to open again";
/// The filter without RUST_LOG and without a level in the settings.
const DEFAULT_LEVEL: Level = Level::INFO;

static THREAD: OnceLock<LogThread> = OnceLock::new();
static LOG: OnceLock<Logger> = OnceLock::new();

struct Logger {
    queue: LineQueue,
    /// `None`: RUST_LOG has the filter.
    filter: Option<reload::Handle<EnvFilter, Registry>>,
    set_ansi: Box<dyn Fn(bool) + Send + Sync>,
}

/// The error log's queue, which all threads share.
#[derive(Clone)]
struct LineQueue {
    sink: Arc<Sink>,
    queue: Arc<Queue>,
    waker: Waker,
}

/// The log thread of the process, which the first call starts.
fn thread() -> Result<&'static LogThread, LogFileError> {
    if let Some(thread) = THREAD.get() {
        return Ok(thread);
    }
    let started = LogThread::start().map_err(LogFileError::Thread)?;
    Ok(THREAD.get_or_init(|| started))
}

/// Initialises the log: standard error, filtered by RUST_LOG (default `info`), and a panic hook
/// that writes to the log. Called once, before threads are started.
pub fn init() {
    let queue = match thread().and_then(LineQueue::open) {
        Ok(queue) => queue,
        Err(error) => {
            let _unwritable = writeln!(io::stderr(), "{error}");
            #[expect(clippy::disallowed_methods, reason = "there is no log to be written before")]
            std::process::exit(1)
        }
    };
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
        filter: (!is_from_environment).then_some(filter_handle),
        set_ansi: Box::new(move |ansi| {
            let _never_fails = format_handle.modify(|format| format.set_ansi(ansi));
        }),
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
    let target = file.map_or(AccessTarget::Stderr, |file| AccessTarget::File(file.to_owned()));
    if log.queue.sink.target() != target {
        thread()?.open(&log.queue.sink, target)?;
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

/// Opens the files of all logs again, after a rotation. Returns a text about it when it is done.
///
/// # Errors
/// The first file that cannot be opened; its lines go on to the old one.
pub fn reopen() -> Result<String, LogFileError> {
    let (mut reopened, mut failed) = (Vec::new(), None);
    for sink in THREAD.get().map(LogThread::sinks).unwrap_or_default() {
        let target = sink.target();
        let Some(path) = target.file().map(|path| path.display().to_string()) else { continue };
        match thread()?.open(&sink, target) {
            Ok(()) => reopened.push(path),
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    match failed {
        Some(error) => Err(error),
        None if reopened.is_empty() => Ok(NO_FILE.to_owned()),
        None => Ok(format!("opened again: {}", reopened.join(", "))),
    }
}

/// As [`reopen`], without waiting: the log has a line about each file.
pub fn reopen_in_background() {
    let Some(thread) = THREAD.get() else { return };
    let sinks = thread.sinks();
    if sinks.iter().all(|sink| sink.target().file().is_none()) {
        tracing::info!("{NO_FILE}");
    }
    sinks.iter().for_each(|sink| thread.reopen_in_background(sink));
}

/// Writes a text to the log, behind the lines logged before and regardless of the filter.
/// Does nothing before [`init`].
pub fn write_unfiltered(text: &dyn Display) {
    if let Some(log) = LOG.get() {
        log.queue.push(format!("{text}\n").as_bytes());
    }
}

/// As [`write_unfiltered`], and to standard error where the log is a file: an operator who starts
/// the program looks there. The log stays there; call it before the exit.
pub fn write_fatal(text: &dyn Display) {
    write_unfiltered(text);
    if let Some(log) = LOG.get()
        && log.queue.sink.target() != AccessTarget::Stderr
        && thread().and_then(|thread| thread.open(&log.queue.sink, AccessTarget::Stderr)).is_ok()
    {
        write_unfiltered(text);
    }
}

/// The lines of each log that were dropped since startup, because a queue was full or a write
/// failed.
pub fn dropped() -> Vec<(&'static str, u64)> {
    let sinks = THREAD.get().map(LogThread::sinks).unwrap_or_default();
    sinks.iter().map(|sink| (sink.name, sink.dropped())).collect()
}

/// Waits until all lines logged so far are written or dropped, a second at most.
pub fn flush() {
    if let Some(log) = LOG.get() {
        LogThread::wait_settled(std::slice::from_ref(&log.queue.sink), FLUSH_MAX);
    }
}

/// Exits the process after writing the queued lines of all logs, if their readers take them within
/// a second. The only exit of a program that logs.
pub fn exit(code: u8) -> ! {
    if let Some(thread) = THREAD.get() {
        LogThread::wait_settled(&thread.sinks(), FLUSH_MAX);
    }
    #[expect(clippy::disallowed_methods, reason = "the one place that exits, after the log is written")]
    std::process::exit(i32::from(code))
}

/// The line about lines that the error log has lost.
fn dropped_line(missing: u64) -> String {
    format!("{missing} log lines were dropped: the log could not be written, or its reader was too slow\n")
}

/// Replaces std's hook, which writes to standard error directly and waits for its reader.
fn panic_hook(panic: &std::panic::PanicHookInfo<'_>) {
    let current = std::thread::current();
    write_unfiltered(&format_args!("thread '{}' {panic}", current.name().unwrap_or("<unnamed>")));
    let trace = Backtrace::capture();
    if trace.status() == BacktraceStatus::Captured {
        write_unfiltered(&trace);
    }
    flush();
}

impl LineQueue {
    /// Opens standard error.
    fn open(thread: &LogThread) -> Result<Self, LogFileError> {
        Self::open_on(thread, QUEUED_MAX, AccessTarget::Stderr)
    }

    fn open_on(thread: &LogThread, lines_max: usize, target: AccessTarget) -> Result<Self, LogFileError> {
        let sink = thread.sink(ERROR_LOG);
        thread.open(&sink, target)?;
        Ok(Self { queue: sink.add_queue(lines_max), sink, waker: thread.waker() })
    }

    /// Enqueues one whole line, or drops it.
    fn push(&self, line: &[u8]) {
        let mut bytes = self.queue.buffer();
        bytes.extend_from_slice(line);
        self.waker.enqueue(&self.sink, &self.queue, Batch { bytes, lines: 1 });
    }
}

impl<'a> MakeWriter<'a> for LineQueue {
    type Writer = &'a Self;

    fn make_writer(&'a self) -> &'a Self {
        self
    }
}

impl Write for &LineQueue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;

//! The logs of a process: the error log of both programs, and access logs.
//!
//! One thread writes all of them ([`mod@thread`]): it takes whole lines from bounded queues
//! ([`sink`]) and writes them to standard error, files or syslog ([`output`]).
//!
//! Invariant: logging never blocks and never fails. When a queue is full because the reader of a
//! pipe has stopped, or a write fails because the disk is full or the reader is gone, the line is
//! dropped and counted ([`dropped`]); later lines are tried again. Files are opened on the log
//! thread between two lines, so a rotation loses and tears none.

mod access;
mod filter;
mod format;
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
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt as _;

pub use self::access::{AccessSink, LineBatcher, check_access, open_access};
use self::filter::Filter;
pub use self::filter::FilterError;
use self::format::EventFormat;
pub use self::format::{LogFormat, UnknownFormat};
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

static THREAD: OnceLock<LogThread> = OnceLock::new();
static LOG: OnceLock<Logger> = OnceLock::new();

struct Logger {
    queue: LineQueue,
    filter: Filter,
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

/// Initialises the log: standard error, in this format, filtered by RUST_LOG (default `info`), and
/// a panic hook that writes to the log. Called once, before threads are started.
pub fn init(format: LogFormat) {
    format::set(format);
    let queue = match thread().and_then(LineQueue::open) {
        Ok(queue) => queue,
        Err(error) => {
            let _unwritable = writeln!(io::stderr(), "{error}");
            #[expect(clippy::disallowed_methods, reason = "there is no log to be written before")]
            std::process::exit(1)
        }
    };
    let (filter, filter_layer, unusable) = Filter::from_env();
    let has_colours = shows_colours();
    let layer = tracing_subscriber::fmt::layer()
        .event_format(EventFormat::default())
        .with_writer(queue.clone())
        .with_ansi(has_colours)
        // It would write to standard error directly, and panic when that fails.
        .log_internal_errors(false);
    let (layer, layer_handle) = reload::Layer::new(layer);
    let set_ansi = move |ansi| {
        format::set_colours(ansi);
        let _never_fails = layer_handle.modify(|layer| layer.set_ansi(ansi));
    };
    format::set_colours(has_colours);
    if LOG.set(Logger { queue, filter, set_ansi: Box::new(set_ansi) }).is_err() {
        return;
    }
    tracing_subscriber::registry().with(filter_layer).with(layer).init();
    std::panic::set_hook(Box::new(panic_hook));
    if let Some(error) = unusable {
        tracing::warn!("RUST_LOG: {error}; logging at info");
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
    log.filter.apply_settings(level);
    Ok(())
}

/// Sets the filter, a level or a list such as `info,dataplane::push_client=debug`, until
/// [`configure`] is called again. Does nothing before [`init`].
///
/// # Errors
/// The text is no filter; nothing changes then.
pub fn set_filter(text: &str) -> Result<(), FilterError> {
    LOG.get().map_or(Ok(()), |log| log.filter.set(text))
}

/// The filter that is in force. Empty before [`init`].
pub fn filter() -> String {
    LOG.get().map(|log| log.filter.text()).unwrap_or_default()
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
    write_line(Level::INFO, text);
}

fn write_line(level: Level, text: &dyn Display) {
    if let Some(log) = LOG.get() {
        log.queue.push(format::line(level, text).as_bytes());
    }
}

/// As [`write_unfiltered`], and to standard error where the log is a file: an operator who starts
/// the program looks there. The log stays there; call it before the exit.
pub fn write_fatal(text: &dyn Display) {
    write_line(Level::ERROR, text);
    if let Some(log) = LOG.get()
        && log.queue.sink.target() != AccessTarget::Stderr
        && thread().and_then(|thread| thread.open(&log.queue.sink, AccessTarget::Stderr)).is_ok()
    {
        write_line(Level::ERROR, text);
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

/// Replaces std's hook, which writes to standard error directly and waits for its reader.
fn panic_hook(panic: &std::panic::PanicHookInfo<'_>) {
    let current = std::thread::current();
    let name = current.name().unwrap_or("<unnamed>");
    write_line(Level::ERROR, &format_args!("thread '{name}' {panic}"));
    let trace = Backtrace::capture();
    if trace.status() == BacktraceStatus::Captured {
        write_line(Level::ERROR, &trace);
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
    /// Takes a formatted event.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        self.push(format::as_one_line(&String::from_utf8_lossy(event)).as_bytes());
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;

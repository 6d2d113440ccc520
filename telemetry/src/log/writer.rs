//! The writer of the log thread, for a descriptor that may be full, closed, or a pipe without an
//! active reader.
//!
//! Invariant: a write never returns an error to tracing-appender, which would lose count of it; a
//! failed line is counted, and the next one starts on a new line. It waits for a stopped reader in
//! short steps, so that the exit of the process can cancel it.

use std::io::{self, Write};
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tracing_appender::non_blocking::ErrorCounter;

use super::output::{Output, OutputRequests};

/// A message that is no line: the writer only looks for a request.
pub(super) const WAKE: &[u8] = b"\0";
/// Bytes that a pipe takes without blocking when it polls as writable (pipe(7), PIPE_BUF).
const WRITE_BYTES_MAX: usize = 4096;
/// Interval of the check for cancellation, in milliseconds.
const POLL_MILLISECONDS: u16 = 20;

/// Least interval between two reports of dropped lines.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// Counters of written and dropped lines.
#[derive(Debug, Default)]
pub(super) struct LineCounters {
    /// Lines written or failed.
    processed: AtomicU64,
    /// Failed lines.
    failed: AtomicU64,
    abandoning: AtomicBool,
    /// Lines dropped because the queue was full.
    overflowed: OnceLock<ErrorCounter>,
}

impl LineCounters {
    pub(super) fn processed(&self) -> u64 {
        self.processed.load(Ordering::Acquire)
    }

    pub(super) fn failed(&self) -> u64 {
        self.failed.load(Ordering::Acquire)
    }

    /// Adds the counter of lines dropped because the queue was full.
    pub(super) fn count_overflow(&self, overflowed: ErrorCounter) {
        let _set_once = self.overflowed.set(overflowed);
    }

    /// All lines lost so far.
    pub(super) fn dropped(&self) -> u64 {
        self.failed() + self.overflowed()
    }

    /// Lines dropped because the queue was full.
    pub(super) fn overflowed(&self) -> u64 {
        let lines = self.overflowed.get().map_or(0, ErrorCounter::dropped_lines);
        u64::try_from(lines).unwrap_or(u64::MAX)
    }

    /// Drops a line at once from now on, when its reader does not take it.
    pub(super) fn abandon(&self) {
        self.abandoning.store(true, Ordering::Release);
    }
}

/// The receiving end of the queue.
pub(super) struct FdWriter {
    out: Output,
    requests: Arc<OutputRequests>,
    progress: Arc<LineCounters>,
    /// The last line was written only in part.
    partial_line: bool,
    /// The reported number of dropped lines, and when it was reported.
    reported: (u64, Option<Instant>),
}

impl FdWriter {
    pub(super) fn new(out: Output, progress: Arc<LineCounters>) -> Self {
        Self { out, requests: Arc::default(), progress, partial_line: false, reported: (0, None) }
    }

    /// Changes its output on these requests.
    pub(super) fn following(self, requests: Arc<OutputRequests>) -> Self {
        Self { requests, ..self }
    }

    fn change_output(&mut self) {
        if let Some(out) = self.requests.serve() {
            self.out = out;
            self.partial_line = false;
        }
    }

    fn write_line(&mut self, line: &[u8]) -> Result<(), Errno> {
        if self.partial_line {
            self.write_bytes(b"\n")?;
            self.partial_line = false;
        }
        self.write_bytes(line)
    }

    /// Reports, at most once a second, that lines before the current one were dropped.
    fn report_dropped(&mut self) -> Result<(), Errno> {
        let (reported, at) = self.reported;
        let dropped = self.progress.dropped();
        if dropped == reported || at.is_some_and(|at| at.elapsed() < REPORT_INTERVAL) {
            return Ok(());
        }
        let missing = dropped - reported;
        let text = format!(
            "{missing} log lines were dropped: the log could not be written, or its reader was too slow\n"
        );
        self.write_bytes(text.as_bytes())?;
        self.reported = (dropped, Some(Instant::now()));
        Ok(())
    }

    fn write_bytes(&mut self, mut bytes: &[u8]) -> Result<(), Errno> {
        let whole = bytes.len();
        while !bytes.is_empty() {
            let piece = match bytes.get(..WRITE_BYTES_MAX) {
                Some(piece) if !self.out.is_file() => piece,
                _ => bytes,
            };
            let written = self.wait_writable().and_then(|()| nix::unistd::write(&self.out, piece));
            match written {
                Ok(0) => return self.fail(Errno::EIO, bytes.len() < whole),
                Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
                // EAGAIN: another program made the shared terminal or pipe non-blocking.
                Err(Errno::EINTR | Errno::EAGAIN) => {}
                Err(error) => return self.fail(error, bytes.len() < whole),
            }
        }
        Ok(())
    }

    fn fail(&mut self, error: Errno, cut: bool) -> Result<(), Errno> {
        self.partial_line |= cut;
        Err(error)
    }

    /// Waits for the reader. An error or a closed pipe ends the wait, too; the write then returns
    /// the error.
    fn wait_writable(&self) -> Result<(), Errno> {
        loop {
            let mut asked = [PollFd::new(self.out.as_fd(), PollFlags::POLLOUT)];
            match poll(&mut asked, PollTimeout::from(POLL_MILLISECONDS)) {
                Ok(0) if self.progress.abandoning.load(Ordering::Acquire) => return Err(Errno::ETIMEDOUT),
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }
}

impl Write for FdWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.change_output();
        let written = if line == WAKE { Ok(()) } else { self.write_line(line) };
        match written {
            // A failed report is retried later.
            Ok(()) => drop(self.report_dropped().ok()),
            Err(_) => drop(self.progress.failed.fetch_add(1, Ordering::AcqRel)),
        }
        self.progress.processed.fetch_add(1, Ordering::AcqRel);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

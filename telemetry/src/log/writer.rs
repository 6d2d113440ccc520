//! One output of the log thread: the sinks that write to it, and the batch under way.
//!
//! Invariant: while a batch is under way nothing more is taken from the queues, so a target that
//! takes no bytes costs its own lines alone. A failed line is counted, and the next one starts on a
//! new line.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::ERROR_LOG;
use super::format::dropped_line;
use super::output::{Output, first_line};
use super::sink::{Batch, Queue, Sink};

/// Batches written before another output has its turn.
const TURN_BATCHES: usize = 64;
/// Least interval between two reports of dropped lines: in the error log itself, and in the error
/// log about another one.
const REPORT_INTERVAL: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));

/// How far a writer came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// Its queues are empty.
    Idle,
    /// The target takes no bytes at the moment.
    Blocked,
    /// There are more batches.
    More,
}

/// A batch, or a report (0 lines), that is being written.
#[derive(Debug)]
struct Pending {
    sink: Arc<Sink>,
    /// Gets the buffer back; `None`: a report.
    queue: Option<Arc<Queue>>,
    batch: Batch,
    written: usize,
    /// Lines of the batch that are not written yet, and those that are lost.
    left: u64,
    lost: u64,
    /// The dropped lines that it reports.
    reports: u64,
}

impl Pending {
    fn rest(&self) -> &[u8] {
        self.batch.bytes.get(self.written..).unwrap_or_default()
    }

    fn advance(&mut self, bytes: usize) {
        let piece = self.rest().get(..bytes).unwrap_or_default();
        let lines = memchr::memchr_iter(b'\n', piece).count();
        self.left = self.left.saturating_sub(u64::try_from(lines).unwrap_or(u64::MAX));
        self.written += bytes;
    }

    /// Gives up the first line of the rest.
    fn lose_line(&mut self) {
        self.lost = (self.lost + 1).min(self.batch.lines);
        let line = first_line(self.rest()).len();
        self.advance(line);
    }

    /// Gives up the rest.
    fn lose_rest(&mut self) {
        // A line with line breaks in it, such as a backtrace, is lost with its end.
        let lost = self.left.max(u64::from(!self.rest().is_empty()));
        self.lost = (self.lost + lost).min(self.batch.lines);
        self.written = self.batch.bytes.len();
    }

    fn is_cut(&self) -> bool {
        let before = self.written.checked_sub(1).and_then(|last| self.batch.bytes.get(last));
        !self.rest().is_empty() && before.is_some_and(|byte| *byte != b'\n')
    }

    /// Counts its lines, and returns the buffer.
    fn settle(self) {
        self.sink.count_failed(self.lost);
        self.sink.count_written(self.batch.lines.saturating_sub(self.lost));
        if let Some(queue) = self.queue {
            queue.recycle(self.batch.bytes);
        }
    }
}

/// A sink as the log thread sees it.
#[derive(Debug)]
pub(super) struct AttachedSink {
    sink: Arc<Sink>,
    turn: usize,
    /// The reported number of dropped lines, and when it was reported.
    reported: (u64, Option<Instant>),
    last_error: Option<Errno>,
}

impl AttachedSink {
    pub(super) fn new(sink: Arc<Sink>) -> Self {
        Self { sink, turn: 0, reported: (0, None), last_error: None }
    }

    pub(super) fn is(&self, sink: &Arc<Sink>) -> bool {
        Arc::ptr_eq(&self.sink, sink)
    }

    /// The number of dropped lines that a report is due for.
    fn unreported(&self, interval: Duration) -> Option<u64> {
        let (reported, at) = self.reported;
        let missing = self.sink.dropped().saturating_sub(reported);
        (missing > 0 && at.is_none_or(|at| at.elapsed() >= interval)).then_some(missing)
    }

    fn set_reported(&mut self, missing: u64) {
        self.reported = (self.reported.0 + missing, Some(Instant::now()));
    }

    /// A line in the error log about lines of another log.
    fn report_in_error_log(&mut self) {
        let Some(missing) = self.unreported(REPORT_INTERVAL.1) else { return };
        self.set_reported(missing);
        let reason = match self.last_error.take() {
            Some(error) => std::io::Error::from(error).to_string(),
            None => "it takes lines too slowly".to_owned(),
        };
        let (log, to) = (self.sink.name, self.sink.target());
        tracing::warn!(log, %to, %reason, "{missing} lines of this log were dropped");
    }
}

/// An output, its sinks and the batches under way.
#[derive(Debug)]
pub(super) struct Writer {
    output: Output,
    identity: Option<(u64, u64)>,
    sinks: Vec<AttachedSink>,
    pending: VecDeque<Pending>,
    /// The last line was written only in part.
    partial_line: bool,
    is_blocked: bool,
    /// The sink that has the next turn.
    turn: usize,
}

impl Writer {
    pub(super) fn new(output: Output) -> Self {
        Self {
            identity: output.identity(),
            output,
            sinks: Vec::new(),
            pending: VecDeque::new(),
            partial_line: false,
            is_blocked: false,
            turn: 0,
        }
    }

    pub(super) fn output(&self) -> &Output {
        &self.output
    }

    /// Whether it writes to the same file, pipe or terminal.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.identity.is_some() && self.identity == other.identity
    }

    pub(super) fn has_sink(&self, sink: &Arc<Sink>) -> bool {
        self.sinks.iter().any(|attached| attached.is(sink))
    }

    pub(super) fn is_unused(&self) -> bool {
        self.sinks.is_empty()
    }

    /// Whether the target takes no bytes at the moment.
    pub(super) fn is_blocked(&self) -> bool {
        self.is_blocked
    }

    /// Whether a step would write something.
    pub(super) fn has_work(&self) -> bool {
        !self.is_blocked && self.sinks.iter().any(|attached| !attached.sink.is_empty())
    }

    /// Whether dropped lines are not reported yet.
    pub(super) fn owes_report(&self) -> bool {
        self.sinks.iter().any(|attached| attached.unreported(Duration::ZERO).is_some())
    }

    /// Takes a sink off, with its batches under way. The line that is written in part stays torn.
    pub(super) fn detach(&mut self, sink: &Arc<Sink>) -> Option<Detached> {
        let position = self.sinks.iter().position(|attached| attached.is(sink))?;
        let mut attached = self.sinks.swap_remove(position);
        let (own, others) = self.pending.drain(..).partition(|pending| Arc::ptr_eq(&pending.sink, sink));
        self.pending = others;
        let mut moved: VecDeque<Pending> = own;
        if let Some(first) = moved.front_mut()
            && first.is_cut()
        {
            first.lose_line();
            self.partial_line = true;
        }
        moved.retain(|pending| {
            attached.reported.0 = attached.reported.0.saturating_sub(pending.reports);
            pending.queue.is_some()
        });
        self.is_blocked = false;
        Some(Detached { attached, pending: moved })
    }

    /// Adds a sink.
    pub(super) fn attach(&mut self, detached: Detached) {
        let Detached { attached, mut pending } = detached;
        // A torn line of this output is not the start of a batch that comes from another one.
        for moved in &mut pending {
            moved.batch.bytes.drain(..moved.written);
            moved.written = 0;
        }
        self.sinks.push(attached);
        self.pending.append(&mut pending);
    }

    /// Writes what its target takes, within a turn.
    pub(super) fn step(&mut self) -> Progress {
        for _ in 0..TURN_BATCHES {
            self.report_dropped();
            if self.pending.is_empty() {
                let Some(next) = self.take_next() else {
                    self.is_blocked = false;
                    return Progress::Idle;
                };
                self.pending.push_back(next);
            }
            self.is_blocked = !self.write_front();
            if self.is_blocked {
                return Progress::Blocked;
            }
        }
        Progress::More
    }

    fn take_next(&mut self) -> Option<Pending> {
        let count = self.sinks.len();
        for nth in 0..count {
            let position = self.turn.wrapping_add(nth) % count;
            let Some(attached) = self.sinks.get_mut(position) else { continue };
            if let Some((queue, batch)) = attached.sink.dequeue(&mut attached.turn) {
                self.turn = position + 1;
                let (sink, left) = (Arc::clone(&attached.sink), batch.lines);
                return Some(Pending {
                    sink,
                    queue: Some(queue),
                    batch,
                    written: 0,
                    left,
                    lost: 0,
                    reports: 0,
                });
            }
        }
        None
    }

    /// Reports lines that were dropped: the error log's in the log itself, when nothing else is
    /// under way there.
    fn report_dropped(&mut self) {
        let mut report = None;
        for attached in &mut self.sinks {
            if attached.sink.name != ERROR_LOG {
                attached.report_in_error_log();
            } else if self.pending.is_empty()
                && let Some(missing) = attached.unreported(REPORT_INTERVAL.0)
            {
                attached.set_reported(missing);
                let bytes = dropped_line(missing).into_bytes();
                report = Some(Pending {
                    sink: Arc::clone(&attached.sink),
                    queue: None,
                    batch: Batch { bytes, lines: 0 },
                    written: 0,
                    left: 0,
                    lost: 0,
                    reports: missing,
                });
            }
        }
        self.pending.extend(report);
    }

    /// Writes the first batch. `false`: the target takes no more bytes at the moment.
    fn write_front(&mut self) -> bool {
        let Some(mut pending) = self.pending.pop_front() else { return true };
        loop {
            let starts_behind_torn_line = self.partial_line && pending.written == 0;
            let bytes: &[u8] = if starts_behind_torn_line { b"\n" } else { pending.rest() };
            if bytes.is_empty() {
                pending.settle();
                return true;
            }
            match self.output.write(bytes) {
                Ok(0) => {
                    self.pending.push_front(pending);
                    return false;
                }
                Ok(_) if starts_behind_torn_line => self.partial_line = false,
                Ok(written) => pending.advance(written),
                Err(error) => self.fail(&mut pending, error),
            }
        }
    }

    fn fail(&mut self, pending: &mut Pending, error: Errno) {
        let attached = self.sinks.iter_mut().find(|attached| attached.is(&pending.sink));
        if let Some(attached) = attached {
            attached.last_error = Some(error);
            // It is tried again later.
            attached.reported.0 = attached.reported.0.saturating_sub(pending.reports);
        }
        if self.output.fails_by_line() {
            pending.lose_line();
        } else {
            self.partial_line |= pending.is_cut();
            pending.lose_rest();
        }
    }
}

/// A sink on its way to another output.
#[derive(Debug)]
pub(super) struct Detached {
    attached: AttachedSink,
    pending: VecDeque<Pending>,
}

impl Detached {
    pub(super) fn new(sink: Arc<Sink>) -> Self {
        Self { attached: AttachedSink::new(sink), pending: VecDeque::new() }
    }
}

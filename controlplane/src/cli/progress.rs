//! A line on standard error while a command takes long.

use std::time::{Duration, Instant};

const INTERVAL: Duration = Duration::from_secs(1);

/// Counts what is written and prints it, at most once per interval.
pub(crate) struct ProgressLog {
    total: usize,
    /// What is counted, in the plural.
    noun: &'static str,
    done: usize,
    last_printed: Instant,
}

impl ProgressLog {
    pub(crate) fn new(total: usize, noun: &'static str) -> Self {
        Self { total, noun, done: 0, last_printed: Instant::now() }
    }

    pub(crate) fn advance(&mut self, count: usize) {
        self.done += count;
        if self.last_printed.elapsed() >= INTERVAL {
            self.last_printed = Instant::now();
            let Self { total, noun, done, .. } = self;
            telemetry::log::write_unfiltered(&format_args!("{done} of {total} {noun} are written"));
        }
    }
}

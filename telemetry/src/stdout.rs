//! Standard output: the result of a command, and the `ready` line of a server.
//!
//! Invariant: a reader that goes away (`| head -1`) neither interrupts a command nor counts as an
//! error; a full disk is an error, reported after the work is done. std's macros panic in both
//! cases, and a lint forbids them.

use std::fmt::Display;
use std::io::{self, Write};
use std::thread;

/// Standard output of a command. Writes never fail; [`finish`](Self::finish) returns the first
/// error.
#[derive(Debug)]
pub struct CommandOutput<W = io::Stdout> {
    out: W,
    failed: Option<io::Error>,
}

impl CommandOutput {
    /// The standard output of the process.
    pub fn stdout() -> Self {
        Self::new(io::stdout())
    }
}

impl<W: Write> CommandOutput<W> {
    fn new(out: W) -> Self {
        Self { out, failed: None }
    }

    /// Returns the first error. A closed pipe counts as success: its reader has read enough.
    ///
    /// # Errors
    /// The first failed write, for example because the disk is full.
    pub fn finish(mut self) -> io::Result<()> {
        self.attempt(Write::flush);
        match self.failed {
            Some(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
            _ => Ok(()),
        }
    }

    /// Whether a write failed, so that a command without an end should stop.
    pub fn has_failed(&self) -> bool {
        self.failed.is_some()
    }

    /// Stops writing after the first failure.
    fn attempt(&mut self, write: impl FnOnce(&mut W) -> io::Result<()>) {
        if self.failed.is_none() {
            self.failed = write(&mut self.out).err();
        }
    }
}

impl<W: Write> Write for CommandOutput<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.attempt(|out| out.write_all(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.attempt(Write::flush);
        Ok(())
    }
}

/// Writes the line `ready {...}` to standard output from a thread of its own, because the reader of
/// a pipe may have gone or stopped reading. Logs a failure.
pub fn write_ready_line(addresses: &dyn Display) {
    let line = format!("ready {addresses}\n");
    let write = move || {
        let mut out = io::stdout().lock();
        if let Err(error) = out.write_all(line.as_bytes()).and_then(|()| out.flush()) {
            tracing::warn!(%error, "the ready line cannot be written to standard output");
        }
    };
    if let Err(error) = thread::Builder::new().name("ready".to_owned()).spawn(write) {
        tracing::warn!(%error, "no thread to write the ready line to standard output");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fails after some bytes, like a full disk or a pipe whose reader leaves.
    struct Ending(usize, io::ErrorKind);

    impl Write for Ending {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.0 == 0 {
                return Err(self.1.into());
            }
            let taken = bytes.len().min(self.0);
            self.0 -= taken;
            Ok(taken)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_full_disk_is_an_error_and_a_closed_pipe_is_not() {
        for (kind, fails) in [(io::ErrorKind::BrokenPipe, false), (io::ErrorKind::StorageFull, true)] {
            let mut output = CommandOutput::new(Ending(10, kind));
            for line in 0..100 {
                writeln!(output, "line {line}").unwrap();
            }
            assert!(output.has_failed());
            assert_eq!(output.finish().err().map(|error| error.kind()), fails.then_some(kind));
        }
        let mut output = CommandOutput::new(Vec::new());
        writeln!(output, "all").unwrap();
        assert!(!output.has_failed());
        assert!(output.finish().is_ok());
    }
}

//! Access logs: whole lines from the workers, in batches.
//!
//! Each worker has a [`LineBatcher`], whose lines go to its own queue of the sink, so workers share
//! no cache line per request. Invariant: no call waits, and a batch that finds its queue full is
//! dropped and counted by line.

use std::fmt;
use std::sync::Arc;

use super::output::{self, LogFileError};
use super::sink::{Batch, Queue, Sink};
use super::syslog::SyslogOutput;
use super::target::AccessTarget;
use super::thread::{LogThread, Waker};

/// Bytes of a batch that make it due at once.
const BATCH_BYTES: usize = 32 << 10;
/// Most batches of a producer that wait for the log thread.
const QUEUED_BATCHES_MAX: usize = 64;

/// A log of one line per event, such as a request.
#[derive(Clone)]
pub struct AccessSink {
    sink: Arc<Sink>,
    waker: Waker,
}

impl fmt::Debug for AccessSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("AccessSink").field(&self.sink.name).finish()
    }
}

/// Opens the access log of a name, which is `access` or `stream` in metrics. Where it is open
/// already, its lines go to the new target from the next batch on. Waits until it is so.
///
/// # Errors
/// The target cannot be opened; nothing changes then.
pub fn open_access(name: &'static str, target: &AccessTarget) -> Result<AccessSink, LogFileError> {
    open_on(super::thread()?, name, target)
}

pub(super) fn open_on(
    thread: &LogThread,
    name: &'static str,
    target: &AccessTarget,
) -> Result<AccessSink, LogFileError> {
    let sink = thread.sink(name);
    // A syslog server may have got another address.
    if sink.target() != *target || matches!(target, AccessTarget::Syslog(_)) {
        thread.open(&sink, target.clone())?;
    }
    Ok(AccessSink { sink, waker: thread.waker() })
}

/// Checks that [`open_access`] could open a target, without making a file.
///
/// # Errors
/// Why not.
pub fn check_access(target: &AccessTarget) -> Result<(), LogFileError> {
    match target {
        AccessTarget::File(path) => output::check(path),
        AccessTarget::Syslog(syslog) => match SyslogOutput::open(syslog) {
            Ok(_) => Ok(()),
            Err(error) => Err(LogFileError::Syslog { target: target.to_string(), error }),
        },
        AccessTarget::Off | AccessTarget::Stdout | AccessTarget::Stderr => Ok(()),
    }
}

impl AccessSink {
    /// A producer, one for each worker.
    pub fn producer(&self) -> LineBatcher {
        LineBatcher {
            queue: self.sink.add_queue(QUEUED_BATCHES_MAX),
            sink: Arc::clone(&self.sink),
            waker: self.waker.clone(),
            batch: Batch::default(),
        }
    }

    /// Whether lines go anywhere: the target is not `off`.
    pub fn is_on(&self) -> bool {
        self.sink.is_on()
    }
}

/// The lines of one worker that are not with the log thread yet. Dropping it flushes it.
pub struct LineBatcher {
    sink: Arc<Sink>,
    queue: Arc<Queue>,
    waker: Waker,
    batch: Batch,
}

impl fmt::Debug for LineBatcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LineBatcher").field("log", &self.sink.name).field("lines", &self.batch.lines).finish()
    }
}

impl LineBatcher {
    /// Whether lines go anywhere. Where they do not, [`append`](Self::append) does nothing.
    pub fn is_on(&self) -> bool {
        self.sink.is_on()
    }

    /// Appends the line that `write` appends to the buffer, with or without its line break. Flushes
    /// a large batch. Returns whether the batch has got its first line: [`flush`](Self::flush) is
    /// then due within 100 ms.
    pub fn append(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> bool {
        if !self.is_on() {
            return false;
        }
        let Batch { bytes, lines } = &mut self.batch;
        if *lines == 0 {
            *bytes = self.queue.buffer();
        }
        write(bytes);
        if bytes.last() != Some(&b'\n') {
            bytes.push(b'\n');
        }
        *lines += 1;
        let is_first = *lines == 1;
        if bytes.len() >= BATCH_BYTES {
            self.flush();
            return false;
        }
        is_first
    }

    /// Whether there is nothing to flush.
    pub fn is_empty(&self) -> bool {
        self.batch.lines == 0
    }

    /// Passes the lines to the log thread, or drops and counts them when it is 64 batches behind.
    pub fn flush(&mut self) {
        if !self.is_empty() {
            self.waker.enqueue(&self.sink, &self.queue, std::mem::take(&mut self.batch));
        }
    }
}

impl Drop for LineBatcher {
    fn drop(&mut self) {
        self.flush();
        self.queue.close();
        // The log thread forgets the queue.
        self.waker.wake();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::io::Read;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixDatagram;
    use std::path::Path;
    use std::time::Duration;
    use std::{fs, io, thread};

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn open(thread: &LogThread, name: &'static str, target: &str) -> AccessSink {
        open_on(thread, name, &target.parse().unwrap()).unwrap()
    }

    fn open_file(thread: &LogThread, name: &'static str, path: &Path) -> AccessSink {
        open(thread, name, path.to_str().unwrap())
    }

    fn line(producer: &mut LineBatcher, text: &str) -> bool {
        producer.append(|buffer| buffer.extend_from_slice(text.as_bytes()))
    }

    fn is_written(access: &AccessSink, patience: Duration) -> bool {
        LogThread::wait_settled(std::slice::from_ref(&access.sink), patience)
    }

    /// Writes until the target takes no more and the queue is full.
    fn fill(access: &AccessSink, producer: &mut LineBatcher, text: &str) {
        let mut next = || {
            line(producer, text);
            producer.flush();
        };
        next();
        while is_written(access, Duration::from_millis(200)) {
            next();
        }
        while access.sink.overflowed() == 0 {
            next();
        }
    }

    #[test]
    fn lines_are_written_in_batches() {
        let (folder, thread) = (tempfile::tempdir().unwrap(), LogThread::start().unwrap());
        let path = folder.path().join("access.log");
        let access = open_file(&thread, "access", &path);
        let mut producer = access.producer();
        assert!(producer.is_empty());
        assert!(line(&mut producer, "first"), "a flush is to be armed");
        assert!(!line(&mut producer, "second\n"));
        assert!(is_written(&access, LONG));
        assert_eq!(fs::read_to_string(&path).unwrap(), "", "nothing is written before the flush");
        producer.flush();
        assert!(is_written(&access, LONG));
        assert_eq!(fs::read_to_string(&path).unwrap(), "first\nsecond\n");
        // A large batch is due at once, and a line of any length is whole.
        assert!(!line(&mut producer, &"x".repeat(100_000)) && producer.is_empty());
        assert!(line(&mut producer, "third"));
        drop(producer);
        assert!(is_written(&access, LONG));
        assert_eq!(
            fs::read_to_string(&path).unwrap().lines().map(str::len).collect::<Vec<_>>(),
            [5, 6, 100_000, 5]
        );
    }

    #[test]
    fn a_target_changes_between_two_batches() {
        let (folder, thread) = (tempfile::tempdir().unwrap(), LogThread::start().unwrap());
        let [first, second] = ["first", "second"].map(|name| folder.path().join(name));
        let access = open_file(&thread, "access", &first);
        let mut producer = access.producer();
        line(&mut producer, "a");
        producer.flush();
        assert!(is_written(&access, LONG));
        let again = open_file(&thread, "access", &second);
        line(&mut producer, "b");
        producer.flush();
        assert!(is_written(&again, LONG));
        line(&mut producer, "c");
        producer.flush();
        open(&thread, "access", "off");
        assert!(!line(&mut producer, "never") && producer.is_empty() && !producer.is_on());
        open_file(&thread, "access", &first);
        line(&mut producer, "d");
        drop(producer);
        assert!(is_written(&access, LONG));
        assert_eq!(fs::read_to_string(&first).unwrap(), "a\nd\n");
        assert_eq!(fs::read_to_string(&second).unwrap(), "b\nc\n");
        let bad = folder.path().join("no/file").display().to_string().parse().unwrap();
        let error = open_on(&thread, "access", &bad).unwrap_err().to_string();
        assert!(error.contains("no/file") && error.contains("make its folder first"), "{error}");
    }

    #[test]
    fn a_target_that_hangs_delays_no_other() {
        let (folder, thread) = (tempfile::tempdir().unwrap(), LogThread::start().unwrap());
        let (mut read, write) = io::pipe().unwrap();
        let hanging = open(&thread, "stream", &format!("/proc/self/fd/{}", write.as_raw_fd()));
        let path = folder.path().join("access.log");
        let access = open_file(&thread, "access", &path);
        let (mut stuck, mut moving) = (hanging.producer(), access.producer());
        let text = "x".repeat(1000);
        fill(&hanging, &mut stuck, &text);
        for nth in 0..1000 {
            line(&mut moving, &nth.to_string());
            moving.flush();
            assert!(is_written(&access, LONG));
        }
        assert_eq!(access.sink.dropped(), 0);
        assert!(hanging.sink.settled() < hanging.sink.enqueued());
        let lost = hanging.sink.overflowed();
        // Another target gets the lines that wait; one line is torn at most.
        let rescued = folder.path().join("stream.log");
        open_file(&thread, "stream", &rescued);
        assert!(is_written(&hanging, LONG));
        drop((write, stuck, moving, thread));
        let mut piped = String::new();
        read.read_to_string(&mut piped).unwrap();
        let rescued = fs::read_to_string(&rescued).unwrap();
        assert!(rescued.lines().all(|line| line == text) && rescued.ends_with('\n'));
        let whole = piped.lines().filter(|line| *line == text).count() + rescued.lines().count();
        assert_eq!(u64::try_from(whole).unwrap() + hanging.sink.dropped(), hanging.sink.enqueued());
        assert!(hanging.sink.dropped() - lost <= 1, "{:?}", hanging.sink);
    }

    #[test]
    fn rotations_lose_and_tear_no_line() {
        let (folder, thread) = (tempfile::tempdir().unwrap(), LogThread::start().unwrap());
        let path = folder.path().join("access.log");
        // Both logs in one file, of which they share the output.
        let sinks = ["access", "stream"].map(|name| open_file(&thread, name, &path));
        let produce = |worker: usize| {
            let access = &sinks[worker % 2];
            let mut producer = access.producer();
            for count in 0..3000 {
                let filler = "x".repeat(count * 37 % 900);
                line(&mut producer, &format!("{worker} {count} {filler}."));
                while access.sink.enqueued() - access.sink.settled() > 100 {
                    thread::yield_now();
                }
            }
        };
        let produce = &produce;
        thread::scope(|scope| {
            (0..8).for_each(|worker| drop(scope.spawn(move || produce(worker))));
            for nth in 0..20 {
                fs::rename(&path, path.with_extension(nth.to_string())).unwrap();
                for sink in thread.sinks() {
                    thread.open(&sink, sink.target()).unwrap();
                }
            }
        });
        assert!(sinks.iter().all(|sink| is_written(sink, LONG) && sink.sink.dropped() == 0));
        let mut seen = BTreeSet::new();
        for file in fs::read_dir(folder.path()).unwrap() {
            for line in fs::read_to_string(file.unwrap().path()).unwrap().lines() {
                let [worker, count, filler] = line.split(' ').collect::<Vec<_>>()[..] else {
                    panic!("{line}")
                };
                let (worker, count): (usize, usize) = (worker.parse().unwrap(), count.parse().unwrap());
                assert_eq!(filler.len(), count * 37 % 900 + 1, "{worker} {count}");
                assert!(seen.insert((worker, count)), "twice: {line}");
            }
        }
        assert_eq!(seen.len(), 8 * 3000);
    }

    /// Reads a datagram, whose header must have this form.
    fn received(server: &UnixDatagram) -> String {
        let mut buffer = vec![0; 100_000];
        let count = server.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..count].to_vec()).unwrap()
    }

    #[test]
    fn syslog_gets_one_datagram_a_line() {
        let (folder, thread) = (tempfile::tempdir().unwrap(), LogThread::start().unwrap());
        let path = folder.path().join("syslog");
        let server = UnixDatagram::bind(&path).unwrap();
        let target = format!("syslog:server=unix:{},facility=daemon,tag=edge,nohostname", path.display());
        let access = open(&thread, "access", &target);
        let mut producer = access.producer();
        for text in ["one", "two", "three"] {
            line(&mut producer, text);
        }
        producer.flush();
        for text in ["one", "two", "three"] {
            let datagram = received(&server);
            let header =
                datagram.strip_suffix(&format!(" edge: {text}")).unwrap_or_else(|| panic!("{datagram}"));
            let time = header.strip_prefix("<30>").unwrap();
            // `Dec  1 09:30:00`
            assert!(time.len() == 15 && time.is_char_boundary(3), "{time}");
            assert_eq!(time.split(':').count(), 3, "{time}");
        }
        // The server is started again: lines meanwhile are lost and counted, later ones arrive.
        drop(server);
        fs::remove_file(&path).unwrap();
        line(&mut producer, "lost");
        producer.flush();
        assert!(is_written(&access, LONG));
        assert_eq!(access.sink.failed(), 1);
        let server = UnixDatagram::bind(&path).unwrap();
        server.set_nonblocking(true).unwrap();
        let mut buffer = [0; 1000];
        while server.recv(&mut buffer).is_err() {
            line(&mut producer, "again");
            producer.flush();
            assert!(is_written(&access, LONG));
        }
        assert!(buffer.starts_with(b"<30>"));
    }

    #[test]
    fn syslog_over_udp_names_the_host() {
        let thread = LogThread::start().unwrap();
        let server = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let target = format!("syslog:server={},severity=debug", server.local_addr().unwrap());
        let access = open(&thread, "access", &target);
        let mut producer = access.producer();
        line(&mut producer, "one");
        producer.flush();
        let mut buffer = [0; 1000];
        let count = server.recv(&mut buffer).unwrap();
        let datagram = std::str::from_utf8(&buffer[..count]).unwrap();
        let host = nix::unistd::gethostname().unwrap().into_string().unwrap();
        assert!(datagram.starts_with("<191>"), "{datagram}");
        assert!(datagram.ends_with(&format!(" {host} countersign: one")), "{datagram}");
        // A line that no datagram holds is lost, and no other one with it.
        line(&mut producer, &"x".repeat(70_000));
        line(&mut producer, "two");
        producer.flush();
        let count = server.recv(&mut buffer).unwrap();
        assert!(buffer[..count].ends_with(b" countersign: two"));
        assert!(is_written(&access, LONG));
        assert_eq!(access.sink.failed(), 1);
        let unknown = "syslog:server=no-host.invalid".parse().unwrap();
        let error = open_on(&thread, "access", &unknown).unwrap_err().to_string();
        assert!(error.starts_with("syslog server no-host.invalid:514: "), "{error}");
        assert_eq!(access.sink.target(), target.parse().unwrap(), "nothing changes");
    }

    #[test]
    fn a_full_disk_costs_the_lines_of_its_batches() {
        let thread = LogThread::start().unwrap();
        let access = open(&thread, "access", "/dev/full");
        let mut producer = access.producer();
        for batch in 1..=20 {
            for _ in 0..5 {
                line(&mut producer, "line");
            }
            producer.flush();
            assert!(is_written(&access, LONG));
            assert_eq!(access.sink.dropped(), 5 * batch);
        }
    }

    #[test]
    fn a_syslog_server_that_stops_blocks_no_producer() {
        let (folder, thread) = (tempfile::tempdir().unwrap(), LogThread::start().unwrap());
        let path = folder.path().join("syslog");
        let server = UnixDatagram::bind(&path).unwrap();
        let access = open(&thread, "access", &format!("syslog:server=unix:{},nohostname", path.display()));
        let mut producer = access.producer();
        fill(&access, &mut producer, "line");
        let enqueued = access.sink.enqueued();
        assert!(access.sink.settled() < enqueued);
        // It reads again: all lines that waited arrive.
        let arrived = enqueued - access.sink.overflowed();
        (0..arrived).for_each(|_| assert!(received(&server).ends_with(" countersign: line")));
        assert!(is_written(&access, LONG));
        assert_eq!(access.sink.failed(), 0);
    }
}

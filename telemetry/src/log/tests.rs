use std::fs::File;
use std::io::{BufRead, BufReader, PipeReader, Read};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use super::*;

const LONG: Duration = Duration::from_secs(60);

/// An error log of its own. The thread is the last field: the log's queue is dropped before it.
struct TestLog {
    queue: LineQueue,
    thread: LogThread,
}

impl TestLog {
    /// A log that queues `lines_max` lines.
    fn open(path: &Path, lines_max: usize) -> Self {
        let thread = LogThread::start().unwrap();
        let queue = LineQueue::open_on(&thread, lines_max, file(path)).unwrap();
        Self { queue, thread }
    }

    /// A log of a few lines that writes to a pipe.
    fn piped() -> (Self, PipeReader) {
        let (read, write) = io::pipe().unwrap();
        (Self::open(&path_of(&write), 8), read)
    }

    fn line(&self, text: &str) {
        self.queue.push(text.as_bytes());
    }

    /// Writes a line; again, while the queue is full.
    fn line_undropped(&self, text: &str) {
        let queued = || self.queue.sink.enqueued() - self.queue.sink.settled();
        while queued() > 1000 {
            thread::yield_now();
        }
        self.line(text);
    }

    fn is_written(&self, patience: Duration) -> bool {
        LogThread::wait_settled(std::slice::from_ref(&self.queue.sink), patience)
    }

    /// Writes until the pipe is full and a line waits for its reader.
    fn fill(&self, text: &str) {
        self.line(text);
        while self.is_written(Duration::from_millis(200)) {
            self.line(text);
        }
    }
}

fn file(path: &Path) -> AccessTarget {
    AccessTarget::File(path.to_owned())
}

/// A path by which a pipe can be opened.
fn path_of(pipe: &impl std::os::fd::AsRawFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", pipe.as_raw_fd()))
}

fn fifo(folder: &Path) -> (PathBuf, File) {
    let path = folder.join("fifo");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    // Both ends, so that the opening does not wait.
    let reader = File::options().read(true).write(true).open(&path).unwrap();
    (path, reader)
}

#[test]
fn a_stopped_reader_loses_lines_but_blocks_no_writer() {
    let (log, read) = TestLog::piped();
    let text = format!("{}\n", "x".repeat(1000));
    log.fill(&text);
    (0..1000).for_each(|_| log.line(&text));
    let dropped = log.queue.sink.dropped();
    assert!(dropped >= 1000 - 8, "{dropped}");
    // The reader resumes: queued and new lines are written.
    let mut lines = BufReader::new(read).lines();
    let whole = text.trim_end();
    assert_eq!(lines.next().unwrap().unwrap(), whole);
    let reader = thread::spawn(move || lines.map(Result::unwrap).collect::<Vec<_>>());
    assert!(log.is_written(LONG));
    log.line("the next\n");
    assert!(log.is_written(LONG));
    assert_eq!(log.queue.sink.failed(), 0);
    drop(log);
    let seen = reader.join().unwrap();
    let other: Vec<_> = seen.iter().filter(|line| *line != whole).map(String::as_str).collect();
    assert!(other[0].starts_with(&format!("{dropped} log lines were dropped")), "{other:?}");
    assert_eq!(other[1..], ["the next"]);
}

#[test]
fn the_end_does_not_wait_for_a_stopped_reader() {
    let (log, mut read) = TestLog::piped();
    log.fill(&"x".repeat(1000));
    drop(log);
    let mut left = Vec::new();
    read.read_to_end(&mut left).unwrap();
    assert!(left.len() <= 64 << 10);
}

#[test]
fn a_full_disk_or_closed_pipe_drops_lines() {
    let folder = tempfile::tempdir().unwrap();
    let (fifo, reader) = fifo(folder.path());
    let logs = [TestLog::open(Path::new("/dev/full"), 8), TestLog::open(&fifo, 8)];
    drop(reader);
    for log in logs {
        for count in 1..=20 {
            log.line("line\n");
            assert!(log.is_written(LONG));
            assert_eq!(log.queue.sink.failed(), count);
        }
    }
}

#[test]
fn a_partial_line_ends_before_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let (path, mut reader) = fifo(folder.path());
    let log = TestLog::open(&path, 8);
    // More than a pipe holds; then its reader goes away, and another one comes.
    log.line(&"x".repeat(200_000));
    reader.read_exact(&mut [0; 40_000]).unwrap();
    drop(reader);
    assert!(log.is_written(LONG));
    assert_eq!(log.queue.sink.failed(), 1);
    let mut reader = File::options().read(true).write(true).open(&path).unwrap();
    log.line("the next\n");
    let mut lines = BufReader::new(&mut reader).lines().map(Result::unwrap);
    let torn = lines.next().unwrap();
    assert!(torn.len() < 200_000 && torn.bytes().all(|byte| byte == b'x'));
    // The report about the lost line comes before or after it.
    assert_eq!(lines.find(|line| !line.contains("were dropped")).unwrap(), "the next");
}

/// Each writer writes numbered lines of many lengths while `rotate` runs again and again; then
/// every line is in one of the files, whole and once.
fn rotate_under_load(rotate: impl Fn(&TestLog, &Path, u32)) {
    const WRITERS: usize = 8;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("error.log");
    let log = TestLog::open(&path, 4096);
    let ended = AtomicBool::new(false);
    let write = |writer: usize| {
        let mut count = 0;
        while count <= 20 || !ended.load(Ordering::Acquire) {
            let filler = "x".repeat(count * 37 % 9000);
            log.line_undropped(&format!("{writer} {count} {filler}.\n"));
            count += 1;
        }
        count
    };
    let write = &write;
    let written: Vec<usize> = thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS).map(|writer| scope.spawn(move || write(writer))).collect();
        (0..20).for_each(|nth| rotate(&log, &path, nth));
        ended.store(true, Ordering::Release);
        writers.into_iter().map(|writer| writer.join().unwrap()).collect()
    });
    assert!(log.is_written(LONG));
    assert_eq!(log.queue.sink.dropped(), 0);
    drop(log);
    let mut seen = vec![std::collections::BTreeSet::new(); WRITERS];
    for file in std::fs::read_dir(folder.path()).unwrap() {
        let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
        assert!(text.is_empty() || text.ends_with(".\n"), "a torn line ends a file");
        for line in text.lines() {
            let [writer, count, filler] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
            let (writer, count): (usize, usize) = (writer.parse().unwrap(), count.parse().unwrap());
            assert_eq!(filler.len(), count * 37 % 9000 + 1, "{writer} {count}");
            assert!(seen[writer].insert(count), "twice: {writer} {count}");
        }
    }
    let seen: Vec<_> = seen.iter().map(std::collections::BTreeSet::len).collect();
    assert_eq!(seen, written);
}

#[test]
fn a_renamed_log_file_loses_and_tears_no_line() {
    rotate_under_load(|log, path, nth| {
        std::fs::rename(path, path.with_extension(nth.to_string())).unwrap();
        log.thread.open(&log.queue.sink, file(path)).unwrap();
        assert!(path.exists(), "the new file is there when the reopening is done");
    });
}

#[test]
fn a_copied_and_truncated_log_file_goes_on_at_its_start() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("error.log");
    let log = TestLog::open(&path, 4096);
    log.line("before\n");
    assert!(log.is_written(LONG));
    std::fs::copy(&path, folder.path().join("copy")).unwrap();
    File::options().write(true).open(&path).unwrap().set_len(0).unwrap();
    log.line("after\n");
    assert!(log.is_written(LONG));
    // O_APPEND: no hole of zeros where the old lines were.
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "after\n");
}

#[test]
fn a_log_file_that_cannot_be_opened_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("error.log");
    let log = TestLog::open(&path, 4096);
    let fifo = folder.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    for (bad, hint) in [
        (folder.path().join("missing/error.log"), "make its folder first"),
        (folder.path().to_owned(), "directory"),
        (fifo, "nothing reads this pipe"),
    ] {
        let error = log.thread.open(&log.queue.sink, file(&bad)).unwrap_err().to_string();
        assert!(error.starts_with(&bad.display().to_string()) && error.contains(hint), "{error}");
    }
    assert_eq!(log.queue.sink.target(), file(&path));
    log.line("still here\n");
    assert!(log.is_written(LONG));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "still here\n");
}

#[test]
fn a_line_of_a_file_is_one_write_of_any_length() {
    // Two processes share a file during an upgrade: two descriptors here.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("error.log");
    let logs = [TestLog::open(&path, 4096), TestLog::open(&path, 4096)];
    thread::scope(|scope| {
        for (nth, log) in logs.iter().enumerate() {
            let text = format!("{}\n", nth.to_string().repeat(20_000));
            scope.spawn(move || (0..200).for_each(|_| log.line_undropped(&text)));
        }
    });
    assert!(logs.iter().all(|log| log.is_written(LONG)));
    let text = std::fs::read_to_string(&path).unwrap();
    let is_whole = |line: &str| line.len() == 20_000 && line.bytes().all(|byte| line.as_bytes()[0] == byte);
    assert!(text.lines().count() == 400 && text.lines().all(is_whole));
}

#[test]
fn a_file_is_checked_and_not_made() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("error.log");
    check_file(&file).unwrap();
    assert!(!file.exists());
    std::fs::write(&file, "kept").unwrap();
    check_file(&file).unwrap();
    assert_eq!(std::fs::read(&file).unwrap(), b"kept");
    check_file(Path::new("/dev/null")).unwrap();
    let error = check_file(&folder.path().join("no/error.log")).unwrap_err().to_string();
    assert!(error.contains("no/error.log") && error.contains("make its folder first"), "{error}");
}

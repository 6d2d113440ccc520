use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicBool;

use super::*;

/// A queue of a few lines that writes to `out`.
fn queue(out: impl Into<OwnedFd>) -> (LineQueue, WorkerGuard) {
    let progress = Arc::<LineCounters>::default();
    let writer = FdWriter::new(Output::Stream(out.into()), Arc::clone(&progress));
    let (lines, guard) = NonBlockingBuilder::default().buffered_lines_limit(8).finish(writer);
    (LineQueue::new(lines, progress), guard)
}

fn line(queue: &LineQueue, text: &str) {
    queue.make_writer().write_all(text.as_bytes()).unwrap();
}

/// Writes until the pipe is full and the writer thread waits for its reader.
fn fill(queue: &LineQueue, text: &str) {
    line(queue, text);
    while queue.wait_drained(Duration::from_millis(200)) {
        line(queue, text);
    }
}

const LONG: Duration = Duration::from_secs(60);

#[test]
fn a_stopped_reader_loses_lines_but_blocks_no_writer() {
    let (read, write) = io::pipe().unwrap();
    let (queue, guard) = queue(write);
    let text = format!("{}\n", "x".repeat(1000));
    fill(&queue, &text);
    (0..1000).for_each(|_| line(&queue, &text));
    let dropped = queue.progress.dropped();
    assert!(dropped >= 1000 - 8, "{dropped}");
    // The reader resumes: queued and new lines are written.
    let mut lines = BufReader::new(read).lines();
    let whole = text.trim_end();
    assert_eq!(lines.next().unwrap().unwrap(), whole);
    let reader = std::thread::spawn(move || lines.map(Result::unwrap).collect::<Vec<_>>());
    assert!(queue.wait_drained(LONG));
    line(&queue, "the next\n");
    assert!(queue.wait_drained(LONG));
    assert_eq!(queue.progress.failed(), 0);
    drop(guard);
    drop(queue);
    let seen = reader.join().unwrap();
    let other: Vec<_> = seen.iter().filter(|line| *line != whole).map(String::as_str).collect();
    assert!(other[0].starts_with(&format!("{dropped} log lines were dropped")), "{other:?}");
    assert_eq!(other[1..], ["the next"]);
}

#[test]
fn exit_does_not_wait_for_a_stopped_reader() {
    let (mut read, write) = io::pipe().unwrap();
    let (queue, guard) = queue(write);
    fill(&queue, &"x".repeat(1000));
    (0..1000).for_each(|_| line(&queue, "x"));
    queue.progress.abandon();
    assert!(queue.wait_drained(LONG));
    assert!(queue.progress.failed() > 0);
    drop(guard);
    drop(queue);
    let mut left = Vec::new();
    read.read_to_end(&mut left).unwrap();
    assert!(left.len() <= 64 << 10);
}

#[test]
fn a_full_disk_or_closed_pipe_drops_lines() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let (read, closed) = io::pipe().unwrap();
    drop(read);
    for (queue, _guard) in [queue(full), queue(closed)] {
        for count in 1..=20 {
            line(&queue, "line\n");
            assert!(queue.wait_drained(LONG));
            assert_eq!(queue.progress.failed(), count);
        }
    }
}

#[test]
fn a_partial_line_ends_before_the_next() {
    let (mut read, write) = io::pipe().unwrap();
    let progress = Arc::<LineCounters>::default();
    let mut writer = FdWriter::new(Output::Stream(write.try_clone().unwrap().into()), Arc::clone(&progress));
    progress.abandon();
    // More than a pipe holds.
    writer.write_all(&[b'x'; 200_000]).unwrap();
    assert_eq!(progress.failed(), 1);
    read.read_exact(&mut [0; 40_000]).unwrap();
    writer.write_all(b"the next\n").unwrap();
    drop((writer, write));
    let mut rest = String::new();
    read.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("x\nthe next\n1 log lines were dropped"), "{}", rest.len());
}

/// A log in a file, its lines not dropped.
fn file_log(path: &Path) -> (Logger, WorkerGuard) {
    let (progress, outputs) = (Arc::<LineCounters>::default(), Arc::<OutputRequests>::default());
    let writer = FdWriter::new(Output::stderr(), Arc::clone(&progress)).following(Arc::clone(&outputs));
    let (lines, guard) = NonBlockingBuilder::default().lossy(false).finish(writer);
    let queue = LineQueue::new(lines, progress);
    let set_ansi = Box::new(|_| ());
    let log = Logger { queue, outputs, filter: None, set_ansi, guard: Mutex::default() };
    log.change_output(Some(path.to_owned())).unwrap();
    (log, guard)
}

/// Each writer writes numbered lines of many lengths while `rotate` runs again and again; then
/// every line is in one of the files, whole and once.
fn rotate_under_load(rotate: impl Fn(&Logger, &Path, u32)) {
    const WRITERS: usize = 8;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("error.log");
    let (log, guard) = file_log(&path);
    let ended = AtomicBool::new(false);
    let write = |writer: usize| {
        let mut count = 0;
        while !ended.load(Ordering::Acquire) {
            let filler = "x".repeat(count * 37 % 9000);
            line(&log.queue, &format!("{writer} {count} {filler}.\n"));
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
    assert!(log.queue.wait_drained(LONG));
    drop(guard);
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
    assert!(written.iter().all(|count| *count > 20), "{written:?}");
}

#[test]
fn a_renamed_log_file_loses_and_tears_no_line() {
    rotate_under_load(|log, path, nth| {
        std::fs::rename(path, path.with_extension(nth.to_string())).unwrap();
        log.change_output(Some(path.to_owned())).unwrap();
        assert!(path.exists(), "the new file is there when the reopening is done");
    });
}

#[test]
fn a_copied_and_truncated_log_file_goes_on_at_its_start() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("error.log");
    let (log, _guard) = file_log(&path);
    line(&log.queue, "before\n");
    assert!(log.queue.wait_drained(LONG));
    std::fs::copy(&path, folder.path().join("copy")).unwrap();
    File::options().write(true).open(&path).unwrap().set_len(0).unwrap();
    line(&log.queue, "after\n");
    assert!(log.queue.wait_drained(LONG));
    // O_APPEND: no hole of zeros where the old lines were.
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "after\n");
}

#[test]
fn a_log_file_that_cannot_be_opened_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("error.log");
    let (log, _guard) = file_log(&path);
    let fifo = folder.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    for (bad, hint) in [
        (folder.path().join("missing/error.log"), "make its folder first"),
        (folder.path().to_owned(), "directory"),
        (fifo, "nothing reads this pipe"),
    ] {
        let error = log.change_output(Some(bad.clone())).unwrap_err().to_string();
        assert!(error.starts_with(&bad.display().to_string()) && error.contains(hint), "{error}");
    }
    log.outputs.request_unattended(folder.path().to_owned());
    assert_eq!(log.outputs.file(), Some(path.clone()));
    line(&log.queue, "still here\n");
    assert!(log.queue.wait_drained(LONG));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "still here\n");
}

#[test]
fn a_line_of_a_file_is_one_write_of_any_length() {
    // Two processes share a file during an upgrade: two descriptors here.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("error.log");
    let logs = [file_log(&path), file_log(&path)];
    thread::scope(|scope| {
        for (nth, (log, _guard)) in logs.iter().enumerate() {
            let text = format!("{}\n", nth.to_string().repeat(20_000));
            scope.spawn(move || (0..200).for_each(|_| line(&log.queue, &text)));
        }
    });
    assert!(logs.iter().all(|(log, _)| log.queue.wait_drained(LONG)));
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

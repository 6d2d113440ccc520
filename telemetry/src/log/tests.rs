use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::AsFd;

use super::*;

/// A queue of a few lines that writes to `out`.
fn queue(out: impl AsFd + Send + Sync + 'static) -> (LineQueue, WorkerGuard) {
    let progress = Arc::<LineCounters>::default();
    let writer = FdWriter::new(out, Arc::clone(&progress));
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
    let mut writer = FdWriter::new(write.try_clone().unwrap(), Arc::clone(&progress));
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

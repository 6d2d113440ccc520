//! A sink: one log on its way to one target, with its queues and counters.
//!
//! Invariant: a producer never waits. A line is counted once when it is enqueued or dropped, and
//! once more when it is written or lost.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crossbeam_queue::ArrayQueue;

use super::target::AccessTarget;

/// Empty buffers that a queue keeps for its producers.
const SPARE_BUFFERS: usize = 8;
/// Larger buffers are not kept.
const SPARE_BYTES_MAX: usize = 64 << 10;

/// Whole lines on their way to a target.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) bytes: Vec<u8>,
    pub(super) lines: u64,
}

/// Batches of one or more producers, and the empty buffers that come back.
#[derive(Debug)]
pub(super) struct Queue {
    filled: ArrayQueue<Batch>,
    spare: ArrayQueue<Vec<u8>>,
    /// Its producer is gone.
    is_closed: AtomicBool,
}

impl Queue {
    fn new(batches_max: usize) -> Self {
        let (filled, spare) = (ArrayQueue::new(batches_max), ArrayQueue::new(SPARE_BUFFERS));
        Self { filled, spare, is_closed: AtomicBool::new(false) }
    }

    /// An empty buffer, a used one if there is any.
    pub(super) fn buffer(&self) -> Vec<u8> {
        self.spare.pop().unwrap_or_default()
    }

    /// Takes a buffer back.
    pub(super) fn recycle(&self, mut buffer: Vec<u8>) {
        if buffer.capacity() <= SPARE_BYTES_MAX {
            buffer.clear();
            let _enough = self.spare.push(buffer);
        }
    }

    pub(super) fn close(&self) {
        self.is_closed.store(true, Ordering::Release);
    }
}

/// One log, such as the error log.
#[derive(Debug)]
pub(super) struct Sink {
    pub(super) name: &'static str,
    /// Where its lines go; changed by the log thread.
    target: Mutex<AccessTarget>,
    is_on: AtomicBool,
    queues: Mutex<Vec<Arc<Queue>>>,
    enqueued: AtomicU64,
    written: AtomicU64,
    /// Lines dropped because a queue was full.
    overflowed: AtomicU64,
    /// Lines that could not be written.
    failed: AtomicU64,
}

impl Sink {
    pub(super) fn new(name: &'static str) -> Self {
        Self {
            name,
            target: Mutex::new(AccessTarget::Off),
            is_on: AtomicBool::new(false),
            queues: Mutex::default(),
            enqueued: AtomicU64::new(0),
            written: AtomicU64::new(0),
            overflowed: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        }
    }

    pub(super) fn target(&self) -> AccessTarget {
        lock(&self.target).clone()
    }

    pub(super) fn set_target(&self, target: AccessTarget) {
        self.is_on.store(target != AccessTarget::Off, Ordering::Release);
        *lock(&self.target) = target;
    }

    /// Whether its lines go anywhere.
    pub(super) fn is_on(&self) -> bool {
        self.is_on.load(Ordering::Relaxed)
    }

    pub(super) fn add_queue(&self, batches_max: usize) -> Arc<Queue> {
        let queue = Arc::new(Queue::new(batches_max));
        lock(&self.queues).push(Arc::clone(&queue));
        queue
    }

    /// Enqueues a batch, or drops it. Whether there is something for the log thread.
    pub(super) fn enqueue(&self, queue: &Queue, batch: Batch) -> bool {
        let lines = batch.lines;
        self.enqueued.fetch_add(lines, Ordering::AcqRel);
        let pushed = queue.filled.push(batch);
        if let Err(batch) = pushed {
            self.overflowed.fetch_add(lines, Ordering::AcqRel);
            queue.recycle(batch.bytes);
            return false;
        }
        true
    }

    /// The next batch of any queue, which the queues give in turn. Forgets queues without producer.
    pub(super) fn dequeue(&self, turn: &mut usize) -> Option<(Arc<Queue>, Batch)> {
        let mut queues = lock(&self.queues);
        let count = queues.len();
        for nth in 0..count {
            let position = turn.wrapping_add(nth) % count;
            let Some(queue) = queues.get(position) else { continue };
            // Before the look: a producer closes its queue after its last batch.
            let is_closed = queue.is_closed.load(Ordering::Acquire);
            if let Some(batch) = queue.filled.pop() {
                *turn = position + 1;
                return Some((Arc::clone(queue), batch));
            }
            if is_closed {
                queues.swap_remove(position);
                drop(queues);
                return self.dequeue(turn);
            }
        }
        None
    }

    pub(super) fn is_empty(&self) -> bool {
        lock(&self.queues).iter().all(|queue| queue.filled.is_empty())
    }

    pub(super) fn count_written(&self, lines: u64) {
        self.written.fetch_add(lines, Ordering::AcqRel);
    }

    pub(super) fn count_failed(&self, lines: u64) {
        self.failed.fetch_add(lines, Ordering::AcqRel);
    }

    pub(super) fn enqueued(&self) -> u64 {
        self.enqueued.load(Ordering::Acquire)
    }

    /// Lines dropped because a queue was full.
    pub(super) fn overflowed(&self) -> u64 {
        self.overflowed.load(Ordering::Acquire)
    }

    /// Lines that could not be written.
    pub(super) fn failed(&self) -> u64 {
        self.failed.load(Ordering::Acquire)
    }

    /// All lines lost so far.
    pub(super) fn dropped(&self) -> u64 {
        self.failed() + self.overflowed()
    }

    /// Lines that are written or lost.
    pub(super) fn settled(&self) -> u64 {
        self.written.load(Ordering::Acquire) + self.dropped()
    }
}

/// What the locks guard is whole after any panic.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

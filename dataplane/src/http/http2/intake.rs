//! What a peer has sent on a stream, and its reader has not taken.
//!
//! `h2` keeps a frame as a part of the buffer that it was read into, of 8 KiB at least: frames of a
//! byte between those of another stream would hold such a buffer each. Invariant: when many small
//! frames come on a connection, what its streams hold is copied together, so that it is as large as
//! their windows.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use h2::RecvStream;
use http::HeaderMap;

/// Frames of fewer bytes are small: larger ones hold at most some twice of what they are.
pub(crate) const SMALL_FRAME: usize = 8 * 1024;
/// So many small frames later the streams of a connection are looked at again.
const SMALL_FRAMES: u32 = 64;
/// With so many entries those of ended streams are removed. A connection has fewer streams.
const ENTRIES_MAX: usize = 256;

/// The receiving side of a stream.
pub(crate) struct Intake {
    stream: RecvStream,
    /// What `h2` no longer holds. Its window is still closed.
    unread: BytesMut,
    /// The reader is woken by the next frame.
    waiting: bool,
}

pub(crate) type SharedIntake = Rc<RefCell<Intake>>;

impl Intake {
    pub(crate) fn new(stream: RecvStream) -> SharedIntake {
        Rc::new(RefCell::new(Self { stream, unread: BytesMut::new(), waiting: false }))
    }

    /// The next data, as [`RecvStream::poll_data`].
    pub(crate) fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, h2::Error>>> {
        if !self.unread.is_empty() {
            return Poll::Ready(Some(Ok(self.unread.split().freeze())));
        }
        let data = self.stream.poll_data(cx);
        self.waiting = data.is_pending();
        data
    }

    /// As [`RecvStream::poll_trailers`].
    pub(crate) fn poll_trailers(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<HeaderMap>, h2::Error>> {
        self.stream.poll_trailers(cx)
    }

    /// Opens the window for data that was taken.
    ///
    /// # Errors
    /// It was not received.
    pub(crate) fn release(&mut self, bytes: usize) -> Result<(), h2::Error> {
        self.stream.flow_control().release_capacity(bytes)
    }

    pub(crate) fn is_end_stream(&self) -> bool {
        self.unread.is_empty() && self.stream.is_end_stream()
    }

    /// Copies what `h2` holds, unless the reader is about to take it. Gives whether more may come.
    fn compact(&mut self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        while !self.waiting {
            match self.stream.poll_data(&mut cx) {
                Poll::Ready(Some(Ok(data))) => self.unread.extend_from_slice(&data),
                // The reader gets its end or its error, too.
                Poll::Ready(Some(Err(_)) | None) => return false,
                Poll::Pending => return true,
            }
        }
        true
    }
}

/// The streams of a connection that receive.
#[derive(Default)]
pub(crate) struct Intakes {
    entries: RefCell<Vec<Weak<RefCell<Intake>>>>,
    /// The small frames of the connection when they were last compacted.
    small_frames: Cell<u32>,
}

impl Intakes {
    pub(crate) fn add(&self, intake: &SharedIntake) {
        let mut entries = self.entries.borrow_mut();
        if entries.len() >= ENTRIES_MAX {
            entries.retain(|entry| entry.strong_count() > 0);
        }
        entries.push(Rc::downgrade(intake));
    }

    /// Copies what the streams hold if many small frames have come. `small_frames`: of the
    /// connection so far.
    pub(crate) fn compact(&self, small_frames: u32) {
        if small_frames.wrapping_sub(self.small_frames.get()) < SMALL_FRAMES {
            return;
        }
        self.small_frames.set(small_frames);
        let is_open = |entry: &Weak<RefCell<Intake>>| {
            entry.upgrade().is_some_and(|intake| intake.borrow_mut().compact())
        };
        self.entries.borrow_mut().retain(is_open);
    }
}

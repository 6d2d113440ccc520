//! An answer's body on its way from the upstream to the client: streamed and timed.
//!
//! Stands behind `exchange`, which makes it once the answer's head is there. Invariant: its connection goes back to the
//! pool only after the body has ended well; an answer that breaks off is never passed on as a whole one.

use std::{
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};

use super::pool::Lease;
use crate::net::alarm::{Alarm, Alarms};

/// An answer's body on its way to the client. When it ends well, its connection goes back to the pool.
pub struct AnswerBody {
    incoming: Incoming,
    lease: Option<Lease>,
    within: Duration,
    alarms: Rc<Alarms>,
    alarm: Option<Alarm>,
}

/// The answer broke off; the client sees a broken answer too, never a short one.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    /// The upstream broke off.
    #[error("the upstream's answer broke off: {0}")]
    Broken(#[from] hyper::Error),
    /// The upstream paused for too long.
    #[error("the upstream's answer paused for more than {0:?}")]
    Slow(Duration),
}

impl AnswerBody {
    /// Wraps the body of an answer. `within`: the longest pause between two pieces.
    pub fn new(incoming: Incoming, lease: Lease, within: Duration, alarms: &Rc<Alarms>) -> Self {
        let mut body = Self { incoming, lease: Some(lease), within, alarms: Rc::clone(alarms), alarm: None };
        if body.incoming.is_end_stream() {
            body.done();
        }
        body
    }

    fn done(&mut self) {
        if let Some(lease) = self.lease.take() {
            lease.give_back();
        }
    }
}

impl HttpBody for AnswerBody {
    type Data = Bytes;
    type Error = AnswerError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, AnswerError>>> {
        let this = &mut *self;
        match Pin::new(&mut this.incoming).poll_frame(cx) {
            Poll::Pending => {
                let within = this.within;
                let alarm = this.alarm.get_or_insert_with(|| this.alarms.after(within));
                match alarm.poll(cx) {
                    Poll::Pending => Poll::Pending,
                    Poll::Ready(()) => {
                        this.lease = None;
                        Poll::Ready(Some(Err(AnswerError::Slow(within))))
                    }
                }
            }
            Poll::Ready(None) => {
                this.done();
                Poll::Ready(None)
            }
            Poll::Ready(Some(Ok(frame))) => {
                this.alarm = None;
                if this.incoming.is_end_stream() {
                    this.done();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                this.lease = None;
                Poll::Ready(Some(Err(error.into())))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

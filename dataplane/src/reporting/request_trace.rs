//! The trace of a request, in its record.
//!
//! Invariant: its size is bounded, whatever its client sends.

use crate::http::trace_context::{Propagation, SpanId, TraceId, TraceParent};

/// The bytes that are kept of a text which a client has sent.
const TEXT_MAX: usize = 1_024;

/// The trace of a request.
#[derive(Debug)]
pub(crate) struct RequestTrace {
    pub(crate) trace_id: TraceId,
    /// Of the request.
    pub(crate) span_id: SpanId,
    /// The client's span. `None`: the trace begins here.
    pub(crate) parent: Option<SpanId>,
    /// Of the first attempt at the upstream; [`SpanId::nth`] of it, of further ones.
    pub(crate) attempt: SpanId,
    /// `None`: it is not recorded.
    pub(crate) head: Option<Box<HeadTexts>>,
}

impl RequestTrace {
    /// What the requests to the upstream carry.
    pub(super) fn propagation(&self) -> Propagation {
        let sampled = self.head.is_some();
        let first = TraceParent { trace_id: self.trace_id, span_id: self.attempt, sampled };
        Propagation { first, continues: self.parent.is_some() }
    }
}

/// What a span has of a request's head, as its client sent it.
#[derive(Debug)]
pub(crate) struct HeadTexts {
    pub(crate) path: String,
    pub(crate) query: Option<String>,
    /// `Host` or `:authority`.
    pub(crate) authority: Option<String>,
    pub(crate) user_agent: Option<String>,
    /// `tracestate`, of a trace that is continued.
    pub(crate) trace_state: Option<String>,
}

/// A text of at most [`TEXT_MAX`] bytes; other bytes than UTF-8 are replaced.
pub(super) fn text(bytes: &[u8]) -> String {
    let kept = bytes.get(..TEXT_MAX).unwrap_or(bytes);
    String::from_utf8_lossy(kept).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_clients_are_bounded_and_valid() {
        assert_eq!(text(b"/a?b"), "/a?b");
        assert_eq!(text(b"a\xffb"), "a\u{fffd}b");
        // Cut within a character.
        let long = format!("{}é", "x".repeat(TEXT_MAX - 1));
        assert_eq!(text(long.as_bytes()), format!("{}\u{fffd}", "x".repeat(TEXT_MAX - 1)));
        // At most three bytes for one.
        assert!(text(&[0xff; 10_000]).len() <= 3 * TEXT_MAX);
    }
}

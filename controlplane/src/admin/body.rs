//! Reading a request's body: bounded in size and time, wiped afterwards, decoded as JSON whatever
//! its content type says (contract 2.2).
//!
//! Invariant: no answer repeats a body. It may hold a private key, so contract 2.2's `req_body` is
//! not sent.

use std::time::Duration;

use bytes::Buf;
use http::StatusCode;
use http_body_util::{BodyExt, Limited};
use hyper::body::{Body, Incoming};
use model::json;
use serde_json::Value;
use zeroize::Zeroizing;

use super::reply::{self, Reply};

/// The largest body that is read, in bytes.
pub(super) const BODY_BYTES_MAX: u64 = 1_572_864;

/// How much more is taken off the wire, unread, before the answer: a peer that is still sending
/// does not listen.
const DISCARDED_MAX: u64 = 8 << 20;

/// Why a body was not read: the answer to give.
pub enum BodyError {
    /// Answer this.
    Rejected(Reply),
    /// The peer stopped sending; nobody waits for an answer.
    Disconnected,
}

impl From<BodyError> for Reply {
    fn from(error: BodyError) -> Self {
        match error {
            BodyError::Rejected(reply) => reply,
            // Nobody reads it; the audit line needs a status.
            BodyError::Disconnected => reply::empty(StatusCode::BAD_REQUEST),
        }
    }
}

/// The longest that a body nobody wants is taken off the wire.
const DISCARD_TIMEOUT: Duration = Duration::from_secs(2);

/// Takes a body off the wire unread, as far as it is small and comes soon.
pub(super) async fn discard(body: Incoming) {
    if body.is_end_stream() {
        return;
    }
    let mut body = Limited::new(body, usize::try_from(BODY_BYTES_MAX).unwrap_or(usize::MAX));
    let rest = async { while let Some(Ok(_)) = body.frame().await {} };
    // However it ends, the answer is given.
    let _ = tokio::time::timeout(DISCARD_TIMEOUT, rest).await;
}

/// Reads a body as JSON; `None` when there is none. `patience` is the longest wait between two
/// pieces.
///
/// # Errors
/// When it is too large, does not come, or is not JSON.
pub(super) async fn read(mut body: Incoming, patience: Duration) -> Result<Option<Value>, BodyError> {
    let announced = body.size_hint().exact().unwrap_or(0);
    let mut kept =
        Zeroizing::new(Vec::with_capacity(usize::try_from(announced.min(BODY_BYTES_MAX)).unwrap_or(0)));
    let mut size = 0;
    loop {
        let frame = match tokio::time::timeout(patience, body.frame()).await {
            Err(_) => return Err(BodyError::Rejected(timeout_reply())),
            Ok(Some(Err(_))) => return Err(BodyError::Disconnected),
            Ok(None) => break,
            Ok(Some(Ok(frame))) => frame,
        };
        let Ok(mut data) = frame.into_data() else { continue };
        size += data.remaining() as u64;
        if size > BODY_BYTES_MAX + DISCARDED_MAX {
            break;
        }
        if size <= BODY_BYTES_MAX && announced <= BODY_BYTES_MAX {
            kept.extend_from_slice(&data);
        }
        data.advance(data.remaining());
    }
    let size = size.max(announced);
    if size > BODY_BYTES_MAX {
        let message = format!(
            "invalid request body: request size {size} is greater than the maximum size {BODY_BYTES_MAX} allowed"
        );
        return Err(BodyError::Rejected(reply::error(StatusCode::BAD_REQUEST, &message, None)));
    }
    if kept.is_empty() {
        return Ok(None);
    }
    json::parse(&kept).map(Some).map_err(|error| {
        let message = format!("invalid request body: {error}");
        BodyError::Rejected(reply::error(StatusCode::BAD_REQUEST, &message, None))
    })
}

fn timeout_reply() -> Reply {
    let message = "the request body did not come in time";
    reply::with_close(reply::error(StatusCode::REQUEST_TIMEOUT, message, None))
}

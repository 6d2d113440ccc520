//! Reading a request's body: bounded in size and time, wiped afterwards, decoded as JSON whatever its content type says (contract 2.2).
//!
//! Invariant: no answer repeats a body. It may hold a private key, so contract 2.2's `req_body` is not sent.

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
pub const MAX: u64 = 1_572_864;

/// How much more is taken off the wire, unread, before the answer: a peer that is still sending does not listen.
const DISCARDED_MAX: u64 = 8 << 20;

/// Why a body was not read: the answer to give.
pub enum BodyError {
    /// Answer this.
    Refused(Reply),
    /// The peer stopped sending; nobody waits for an answer.
    Gone,
}

impl From<BodyError> for Reply {
    fn from(error: BodyError) -> Self {
        match error {
            BodyError::Refused(reply) => reply,
            // Nobody reads it; the audit line needs a status.
            BodyError::Gone => reply::empty(StatusCode::BAD_REQUEST),
        }
    }
}

/// The longest that a body nobody wants is taken off the wire.
const DISCARDED_FOR: Duration = Duration::from_secs(2);

/// Takes a body off the wire unread, as far as it is small and comes soon.
pub async fn discard(body: Incoming) {
    if body.is_end_stream() {
        return;
    }
    let mut body = Limited::new(body, usize::try_from(MAX).unwrap_or(usize::MAX));
    let rest = async { while let Some(Ok(_)) = body.frame().await {} };
    // However it ends, the answer is given.
    let _ = tokio::time::timeout(DISCARDED_FOR, rest).await;
}

/// Reads a body as JSON; `None` when there is none. `patience` is the longest wait between two pieces.
///
/// # Errors
/// When it is too large, does not come, or is not JSON.
pub async fn read(mut body: Incoming, patience: Duration) -> Result<Option<Value>, BodyError> {
    let announced = body.size_hint().exact().unwrap_or(0);
    let mut kept = Zeroizing::new(Vec::with_capacity(usize::try_from(announced.min(MAX)).unwrap_or(0)));
    let mut size = 0;
    loop {
        let frame = match tokio::time::timeout(patience, body.frame()).await {
            Err(_) => return Err(BodyError::Refused(late())),
            Ok(Some(Err(_))) => return Err(BodyError::Gone),
            Ok(None) => break,
            Ok(Some(Ok(frame))) => frame,
        };
        let Ok(mut data) = frame.into_data() else { continue };
        size += data.remaining() as u64;
        if size > MAX + DISCARDED_MAX {
            break;
        }
        if size <= MAX && announced <= MAX {
            kept.extend_from_slice(&data);
        }
        data.advance(data.remaining());
    }
    let size = size.max(announced);
    if size > MAX {
        let message = format!(
            "invalid request body: request size {size} is greater than the maximum size {MAX} allowed"
        );
        return Err(BodyError::Refused(reply::refused(StatusCode::BAD_REQUEST, &message, None)));
    }
    if kept.is_empty() {
        return Ok(None);
    }
    json::parse(&kept).map(Some).map_err(|error| {
        let message = format!("invalid request body: {error}");
        BodyError::Refused(reply::refused(StatusCode::BAD_REQUEST, &message, None))
    })
}

fn late() -> Reply {
    let message = "the request body did not come in time";
    reply::closing(reply::refused(StatusCode::REQUEST_TIMEOUT, message, None))
}

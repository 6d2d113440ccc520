//! Request bodies: bounded in size and time, wiped after use, decoded as JSON whatever the content
//! type (contract 2.2).
//!
//! Invariant: no response repeats a body, which may hold a private key. The `req_body` of contract
//! 2.2 is therefore not sent.

use std::time::Duration;

use bytes::Buf;
use http::StatusCode;
use http_body_util::{BodyExt, Limited};
use hyper::body::{Body, Incoming};
use model::json;
use serde_json::Value;
use zeroize::Zeroizing;

use super::reply::{self, Reply};

pub(super) const BODY_BYTES_MAX: u64 = 1_572_864;

/// Bytes of a batch that is only checked: its check must see all that a large change writes.
pub(super) const DRY_RUN_BYTES_MAX: u64 = 32 << 20;

/// Bytes read and dropped beyond the limit before the response: many clients read no response
/// before they have sent their body.
const DISCARDED_MAX: u64 = 8 << 20;

/// Why a body was not read.
pub enum BodyError {
    /// The response to send.
    Rejected(Reply),
    /// The client closed the connection; it reads no response.
    Disconnected,
}

impl From<BodyError> for Reply {
    fn from(error: BodyError) -> Self {
        match error {
            BodyError::Rejected(reply) => reply,
            // No client reads it. The audit line needs a status.
            BodyError::Disconnected => reply::empty(StatusCode::BAD_REQUEST),
        }
    }
}

/// The longest time that an unwanted body is read and dropped.
const DISCARD_TIMEOUT: Duration = Duration::from_secs(2);

/// Reads and drops a body that no handler reads, as far as it is small and arrives soon.
pub(super) async fn discard(body: Incoming) {
    if body.is_end_stream() {
        return;
    }
    let mut body = Limited::new(body, usize::try_from(BODY_BYTES_MAX).unwrap_or(usize::MAX));
    let drain = async { while let Some(Ok(_)) = body.frame().await {} };
    // The response is sent in either case.
    let _ = tokio::time::timeout(DISCARD_TIMEOUT, drain).await;
}

/// What a body is parsed as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BodyFormat {
    Json,
    Yaml,
}

/// Reads a body of at most `bytes_max`; `None` when it is empty. `idle_timeout` bounds the wait
/// between two frames.
///
/// # Errors
/// When it is too large, arrives too slowly, or does not have the format.
pub(super) async fn read(
    mut body: Incoming,
    format: BodyFormat,
    bytes_max: u64,
    idle_timeout: Duration,
) -> Result<Option<Value>, BodyError> {
    let content_length = body.size_hint().exact().unwrap_or(0);
    let mut content =
        Zeroizing::new(Vec::with_capacity(usize::try_from(content_length.min(bytes_max)).unwrap_or(0)));
    let mut size = 0;
    loop {
        let frame = match tokio::time::timeout(idle_timeout, body.frame()).await {
            Err(_) => return Err(BodyError::Rejected(timeout_reply())),
            Ok(Some(Err(_))) => return Err(BodyError::Disconnected),
            Ok(None) => break,
            Ok(Some(Ok(frame))) => frame,
        };
        let Ok(mut data) = frame.into_data() else { continue };
        size += data.remaining() as u64;
        if size > bytes_max + DISCARDED_MAX {
            break;
        }
        if size <= bytes_max && content_length <= bytes_max {
            content.extend_from_slice(&data);
        }
        data.advance(data.remaining());
    }
    let size = size.max(content_length);
    if size > bytes_max {
        let message = format!(
            "invalid request body: request size {size} is greater than the maximum size {bytes_max} allowed"
        );
        return Err(BodyError::Rejected(reply::error(StatusCode::BAD_REQUEST, &message, None)));
    }
    if content.is_empty() {
        return Ok(None);
    }
    parse(&content, format).map(Some).map_err(|error| {
        let message = format!("invalid request body: {error}");
        BodyError::Rejected(reply::error(StatusCode::BAD_REQUEST, &message, None))
    })
}

/// The error is a text that quotes nothing of the body.
fn parse(content: &[u8], format: BodyFormat) -> Result<Value, String> {
    match format {
        BodyFormat::Json => json::parse(content).map_err(|error| error.to_string()),
        BodyFormat::Yaml => {
            let text = std::str::from_utf8(content).map_err(|_| "invalid yaml request body: not UTF-8")?;
            conf::parse_yaml(text).map_err(|line| format!("invalid yaml request body at line {line}"))
        }
    }
}

fn timeout_reply() -> Reply {
    let message = "the request body did not arrive in time";
    reply::with_close(reply::error(StatusCode::REQUEST_TIMEOUT, message, None))
}

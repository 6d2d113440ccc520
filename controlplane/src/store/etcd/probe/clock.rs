//! Measures the offset of etcd's clock by the Date header of an HTTP response.
//!
//! Both ends check certificates by their own clocks, and leases (`ttl`) run by etcd's.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use http::header::{DATE, HOST};
use http::{Request, StatusCode};
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use time::PrimitiveDateTime;
use time::macros::format_description;

use crate::store::etcd::dial::{self, ClientTls, Endpoint};

/// The offset of etcd's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ClockOffset {
    /// Positive when etcd's clock is ahead.
    pub seconds: i64,
    /// The Date header has a resolution of one second, and the response takes a while.
    pub uncertainty: Duration,
}

impl ClockOffset {
    /// Whether the offset certainly exceeds `limit`.
    pub(crate) fn exceeds(&self, limit: Duration) -> bool {
        Duration::from_secs(self.seconds.unsigned_abs()) > limit + self.uncertainty
    }
}

/// Requests `/version` by HTTP/1.1.
///
/// # Errors
/// Why the clock cannot be measured.
pub(crate) async fn measure(
    endpoint: &Endpoint,
    security: &ClientTls,
    timeout: Duration,
) -> Result<ClockOffset, String> {
    let asked = async {
        let wire = dial::connect_http1(endpoint, security, timeout)
            .await
            .map_err(|error| error.problem.to_string())?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(wire))
            .await
            .map_err(|error| error.to_string())?;
        let question = Request::get("/version")
            .header(HOST, endpoint.authority())
            .body(Empty::<bytes::Bytes>::new())
            .map_err(|error| error.to_string())?;
        let began = Instant::now();
        let answered = async {
            let response = sender.send_request(question).await.map_err(|error| error.to_string())?;
            let now = SystemTime::now();
            let (status, date) = (response.status(), response.headers().get(DATE).cloned());
            match date.as_ref().and_then(|date| date.to_str().ok()).and_then(parse) {
                Some(theirs) if status == StatusCode::OK => Ok(clock_offset(theirs, now, began.elapsed())),
                _ => Err(format!("it answered GET /version with {status} and no date")),
            }
        };
        tokio::select! {
            found = answered => found,
            ended = connection => Err(ended.err().map_or_else(|| "it hung up".to_owned(), |error| error.to_string())),
        }
    };
    tokio::time::timeout(timeout, asked)
        .await
        .map_err(|_| format!("no answer within {}", dial::format_duration(timeout)))?
}

fn clock_offset(theirs: i64, now: SystemTime, took: Duration) -> ClockOffset {
    let ours = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let ours = i64::try_from(ours.as_secs()).unwrap_or(i64::MAX);
    ClockOffset { seconds: theirs.saturating_sub(ours), uncertainty: took + Duration::from_secs(1) }
}

/// `Wed, 25 Nov 2026 23:09:35 GMT`, in seconds since 1970.
fn parse(date: &str) -> Option<i64> {
    let format = format_description!(
        "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT"
    );
    PrimitiveDateTime::parse(date, format).ok().map(|date| date.assume_utc().unix_timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_offset_includes_its_uncertainty() {
        assert_eq!(parse("Thu, 01 Jan 1970 00:01:40 GMT"), Some(100));
        assert_eq!(parse("yesterday"), None);
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let clock = clock_offset(100, at(130), Duration::from_secs(2));
        assert_eq!(clock, ClockOffset { seconds: -30, uncertainty: Duration::from_secs(3) });
        assert!(clock.exceeds(Duration::from_secs(26)));
        assert!(!clock.exceeds(Duration::from_secs(27)));
    }
}

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
    client_tls: &ClientTls,
    timeout: Duration,
) -> Result<ClockOffset, String> {
    let measuring = async {
        let stream = dial::connect_http1(endpoint, client_tls, timeout)
            .await
            .map_err(|error| error.problem.to_string())?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| error.to_string())?;
        let request = Request::get("/version")
            .header(HOST, endpoint.authority())
            .body(Empty::<bytes::Bytes>::new())
            .map_err(|error| error.to_string())?;
        let started = Instant::now();
        let offset_of_response = async {
            let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
            let now = SystemTime::now();
            let (status, date) = (response.status(), response.headers().get(DATE).cloned());
            match date.as_ref().and_then(|date| date.to_str().ok()).and_then(parse) {
                Some(server_time) if status == StatusCode::OK => {
                    Ok(clock_offset(server_time, now, started.elapsed()))
                }
                _ => Err(format!("it responded to GET /version with {status} and no date")),
            }
        };
        tokio::select! {
            offset = offset_of_response => offset,
            result = connection => Err(result.err().map_or_else(|| "it closed the connection".to_owned(), |error| error.to_string())),
        }
    };
    tokio::time::timeout(timeout, measuring)
        .await
        .map_err(|_| format!("no response within {}", dial::format_duration(timeout)))?
}

fn clock_offset(server_time: i64, now: SystemTime, round_trip: Duration) -> ClockOffset {
    let local_time = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let local_time = i64::try_from(local_time.as_secs()).unwrap_or(i64::MAX);
    ClockOffset {
        seconds: server_time.saturating_sub(local_time),
        uncertainty: round_trip + Duration::from_secs(1),
    }
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

//! Which nodes were tried and how each of them answered: nginx's `$upstream_status`, and APISIX's
//! header that shows it.

use http::{HeaderName, HeaderValue, StatusCode};

use super::client::UpstreamError;
use super::exchange::ExchangeError;
use crate::observability::reason::HasReason;

/// Contract 10.4.
pub(crate) const X_APISIX_UPSTREAM_STATUS: HeaderName = HeaderName::from_static("x-apisix-upstream-status");

/// The statuses of an exchange, one for each try.
#[derive(Debug, Default)]
pub struct UpstreamStatus {
    failed: Vec<StatusCode>,
    answered: Option<StatusCode>,
}

impl UpstreamStatus {
    /// Notes a try that failed: 504 where the node was too slow, else 502. What failed before a
    /// node was dialled is no try.
    pub fn record_failure(&mut self, error: &ExchangeError) {
        let tried = !matches!(error, ExchangeError::ClientBody(_))
            && !matches!(error, ExchangeError::Upstream(reach) if !matches!(reach, UpstreamError::Connect(_)));
        if tried && let Some(status) = error.reason().status() {
            self.failed.push(status);
        }
    }

    /// Notes the try that was answered.
    pub fn record_response(&mut self, status: StatusCode) {
        self.answered = Some(status);
    }

    /// The header's value, such as `502, 200`: `always`, or when the last try ended with 5xx.
    /// `None`, too, when no node was tried.
    pub fn header_value(&self, always: bool) -> Option<HeaderValue> {
        let last =
            self.answered.or(self.failed.last().copied()).filter(|last| always || last.is_server_error())?;
        if self.failed.is_empty() {
            return Some(HeaderValue::from(last.as_u16()));
        }
        let all: Vec<&str> = self.failed.iter().chain(&self.answered).map(StatusCode::as_str).collect();
        HeaderValue::try_from(all.join(", ")).ok()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::reason::Reason;

    fn slow() -> ExchangeError {
        let addr = "192.0.2.1:80".parse().unwrap();
        ExchangeError::Timeout { addr, reason: Reason::UpstreamReadTimeout, within: Duration::from_secs(1) }
    }

    fn shown(tries: &[Result<u16, ExchangeError>], always: bool) -> Option<String> {
        let mut status = UpstreamStatus::default();
        for tried in tries {
            match tried {
                Ok(code) => status.record_response(StatusCode::from_u16(*code).unwrap()),
                Err(error) => status.record_failure(error),
            }
        }
        status.header_value(always).map(|value| value.to_str().unwrap().to_owned())
    }

    #[test]
    fn each_try_is_shown_and_the_last_one_decides() {
        let name = || ExchangeError::Upstream(UpstreamError::Resolve("a".into()));
        for (tries, wanted, always) in [
            (vec![], None, None),
            (vec![Ok(200)], None, Some("200")),
            (vec![Ok(404)], None, Some("404")),
            (vec![Ok(500)], Some("500"), Some("500")),
            (vec![Ok(599)], Some("599"), Some("599")),
            (vec![Err(slow())], Some("504"), Some("504")),
            (vec![Err(slow()), Ok(200)], None, Some("504, 200")),
            (vec![Err(slow()), Ok(503)], Some("504, 503"), Some("504, 503")),
            // No node was asked: the answer is the gateway's alone.
            (vec![Err(name())], None, None),
            (vec![Err(UpstreamError::NoNode.into())], None, None),
            (vec![Err(ExchangeError::ClientBody(Reason::BodyTimeout))], None, None),
            (
                vec![Err(slow()), Err(name()), Err(UpstreamError::RetryTimeout(1).into())],
                Some("504"),
                Some("504"),
            ),
        ] {
            assert_eq!(shown(&tries, false).as_deref(), wanted, "{tries:?}");
            assert_eq!(shown(&tries, true).as_deref(), always, "{tries:?}");
        }
    }
}

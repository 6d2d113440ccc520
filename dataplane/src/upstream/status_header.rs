//! The status of each attempt: nginx's `$upstream_status`, and APISIX's header that shows it.

use http::{HeaderName, HeaderValue, StatusCode};

/// Contract 10.4.
pub(crate) const X_APISIX_UPSTREAM_STATUS: HeaderName = HeaderName::from_static("x-apisix-upstream-status");

/// The statuses of an exchange, one for each attempt.
#[derive(Debug, Default)]
pub(crate) struct UpstreamStatus {
    failed: Vec<StatusCode>,
    response: Option<StatusCode>,
}

impl UpstreamStatus {
    /// Records a failed attempt.
    pub(crate) fn record_failure(&mut self, status: StatusCode) {
        self.failed.push(status);
    }

    pub(crate) fn record_response(&mut self, status: StatusCode) {
        self.response = Some(status);
    }

    /// The value of the header, such as `502, 200`: `always`, or when the last attempt ended with
    /// 5xx. `None`, too, without any attempt.
    pub(crate) fn header_value(&self, always: bool) -> Option<HeaderValue> {
        let last =
            self.response.or(self.failed.last().copied()).filter(|last| always || last.is_server_error())?;
        if self.failed.is_empty() {
            return Some(HeaderValue::from(last.as_u16()));
        }
        let all: Vec<&str> = self.failed.iter().chain(&self.response).map(StatusCode::as_str).collect();
        HeaderValue::try_from(all.join(", ")).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `Err`: the status of a failed attempt.
    fn header(attempts: &[Result<u16, u16>], always: bool) -> Option<String> {
        let mut status = UpstreamStatus::default();
        for attempt in attempts {
            match *attempt {
                Ok(code) => status.record_response(StatusCode::from_u16(code).unwrap()),
                Err(code) => status.record_failure(StatusCode::from_u16(code).unwrap()),
            }
        }
        status.header_value(always).map(|value| value.to_str().unwrap().to_owned())
    }

    #[test]
    fn each_attempt_is_shown_and_the_last_one_decides() {
        for (attempts, by_default, always) in [
            (&[][..], None, None),
            (&[Ok(200)], None, Some("200")),
            (&[Ok(404)], None, Some("404")),
            (&[Ok(500)], Some("500"), Some("500")),
            (&[Ok(599)], Some("599"), Some("599")),
            (&[Err(504)], Some("504"), Some("504")),
            (&[Err(504), Ok(200)], None, Some("504, 200")),
            (&[Err(504), Ok(503)], Some("504, 503"), Some("504, 503")),
            (&[Err(504), Err(502)], Some("504, 502"), Some("504, 502")),
        ] {
            assert_eq!(header(attempts, false).as_deref(), by_default, "{attempts:?}");
            assert_eq!(header(attempts, true).as_deref(), always, "{attempts:?}");
        }
    }
}

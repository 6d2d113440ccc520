//! The attempts of an exchange, one for each try of a node: nginx's `$upstream_*` variables, and
//! APISIX's header that shows the statuses.
//!
//! Invariant: at most the last attempt is still open; its end is that of the request.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use smallvec::SmallVec;

use crate::http::trace_context::Propagation;

/// Contract 10.4.
pub(crate) const X_APISIX_UPSTREAM_STATUS: HeaderName = HeaderName::from_static("x-apisix-upstream-status");

/// One try of a node.
#[derive(Debug, Clone)]
pub(crate) struct Attempt {
    /// The node's address. `None`: its name did not resolve.
    pub(crate) addr: Option<SocketAddr>,
    pub(crate) started: Instant,
    /// How long the connection took, with a wait for one; zero where the pool had one. `None`:
    /// there was none.
    pub(crate) connect: Option<Duration>,
    /// From the start until the head of the response had arrived.
    pub(crate) header: Option<Duration>,
    /// From the start until it failed. `None`: it did not; it ended with the request.
    pub(crate) failed: Option<Duration>,
    /// The node's, or 502 or 504 for a failed attempt. `None`: no node was dialled, or the client
    /// failed.
    pub(crate) status: Option<StatusCode>,
}

/// The attempts of an exchange, the first one first.
#[derive(Debug, Default)]
pub(crate) struct Attempts {
    all: SmallVec<[Attempt; 1]>,
    /// The trace that they belong to, each as a span of its own.
    pub(crate) trace: Option<Propagation>,
    /// Whether a report needs [`Self::host`].
    pub(crate) keeps_host: bool,
    /// The `Host` of the last one.
    host: Option<Box<str>>,
}

impl Attempts {
    /// All of them.
    pub(crate) fn all(&self) -> &[Attempt] {
        &self.all
    }

    /// The `Host` that the last node got; `None` without one that was tried, and where it is not
    /// kept.
    pub(crate) fn host(&self) -> Option<&str> {
        self.host.as_deref()
    }

    /// The `Host` of the attempt.
    pub(crate) fn set_host(&mut self, host: &str) {
        if self.keeps_host && self.host() != Some(host) {
            self.host = Some(host.into());
        }
    }

    /// The next attempt starts.
    pub(crate) fn begin(&mut self) {
        self.all.push(Attempt {
            addr: None,
            started: Instant::now(),
            connect: None,
            header: None,
            failed: None,
            status: None,
        });
    }

    /// Sets the headers that name the span of the attempt that has begun, where there is one.
    pub(crate) fn set_trace_headers(&self, headers: &mut HeaderMap) {
        if let Some(trace) = &self.trace {
            trace.set_headers(self.all.len().saturating_sub(1), headers);
        }
    }

    /// The node is tried at this address.
    pub(crate) fn set_addr(&mut self, addr: SocketAddr) {
        if let Some(last) = self.all.last_mut() {
            last.addr = Some(addr);
        }
    }

    /// There is a connection; `is_pooled`: the pool had one at once.
    pub(crate) fn connected(&mut self, is_pooled: bool) {
        if let Some(last) = self.all.last_mut() {
            last.connect = Some(if is_pooled { Duration::ZERO } else { last.started.elapsed() });
        }
    }

    /// The head of the response has arrived.
    pub(crate) fn responded(&mut self, status: StatusCode) {
        if let Some(last) = self.all.last_mut() {
            last.header = Some(last.started.elapsed());
            last.status = Some(status);
        }
    }

    /// The attempt has failed.
    pub(crate) fn failed(&mut self, status: Option<StatusCode>) {
        if let Some(last) = self.all.last_mut() {
            last.failed = Some(last.started.elapsed());
            last.status = status;
        }
    }

    /// The value of the header, such as `502, 200`: `always`, or when the last attempt ended with
    /// 5xx. `None`, too, without any attempt.
    pub(crate) fn status_header(&self, always: bool) -> Option<HeaderValue> {
        let mut statuses = self.all.iter().filter_map(|attempt| attempt.status);
        let last = statuses.next_back().filter(|last| always || last.is_server_error())?;
        let before: SmallVec<[StatusCode; 4]> = statuses.collect();
        if before.is_empty() {
            return Some(HeaderValue::from(last.as_u16()));
        }
        let all: Vec<&str> = before.iter().chain([&last]).map(StatusCode::as_str).collect();
        HeaderValue::try_from(all.join(", ")).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `Err`: the status of a failed attempt.
    fn header(attempts: &[Result<u16, u16>], always: bool) -> Option<String> {
        let mut all = Attempts::default();
        for attempt in attempts {
            all.begin();
            match *attempt {
                Ok(code) => all.responded(StatusCode::from_u16(code).unwrap()),
                Err(code) => all.failed(StatusCode::from_u16(code).ok()),
            }
        }
        all.status_header(always).map(|value| value.to_str().unwrap().to_owned())
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

    #[test]
    fn an_attempt_has_the_times_of_its_stages() {
        let mut attempts = Attempts::default();
        attempts.begin();
        attempts.failed(None);
        attempts.begin();
        attempts.set_addr(([127, 0, 0, 1], 80).into());
        attempts.connected(true);
        attempts.responded(StatusCode::OK);
        let [failed, served] = attempts.all() else { panic!("{attempts:?}") };
        assert!(failed.addr.is_none() && failed.connect.is_none() && failed.failed.is_some());
        assert_eq!(served.connect, Some(Duration::ZERO));
        assert!(served.header.is_some() && served.failed.is_none() && served.status.is_some());
    }
}

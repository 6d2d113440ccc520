//! One attempt over an HTTP/1 connection.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;

use http::{Request, Response};
use hyper::body::Incoming;

use super::{ExchangeError, FailedAttempt, response_in_time, set_host, take};
use crate::http::interim::{InterimResponses, RECEIVED_MAX};
use crate::upstream::client::{UpstreamClient, UpstreamTarget};
use crate::upstream::framing;
use crate::upstream::pool::PooledConnection;
use crate::upstream::request_body::{RequestBody, SendProgress};
use crate::upstream::response_body::{ResponseLimits, ResponseSource, UpstreamResponseBody};

impl UpstreamClient {
    pub(super) async fn attempt_http1(
        &self,
        target: &UpstreamTarget<'_>,
        mut connection: PooledConnection,
        request: &mut Option<Request<RequestBody>>,
        host: &str,
    ) -> Result<Response<UpstreamResponseBody>, FailedAttempt> {
        let (reused, addr) = (connection.reused, connection.addr());
        let mut sent = take(request)?;
        set_host(&mut sent, host);
        let progress = sent.body().progress();
        if let Some(interim) = target.interim {
            interim.attach(&mut sent);
        }
        let mut response = pin!(connection.sender.try_send_request(sent));
        let answer = pin!(poll_fn(|cx| {
            let answer = response.as_mut().poll(cx);
            match target.interim.is_some_and(InterimResponses::is_flooded) {
                true => Poll::Ready(None),
                false => answer.map(Some),
            }
        }));
        match response_in_time(answer, &progress, &target.timeouts, &self.timers).await {
            Ok(None) => Err(ExchangeError::InterimResponses { addr, max: RECEIVED_MAX }.into()),
            Ok(Some(Ok(response))) => Ok(self.wrap_http1(target, response, connection, progress)?),
            Ok(Some(Err(mut failed))) => {
                if let Some(reason) = progress.failed() {
                    return Err(ExchangeError::ClientBody(reason).into());
                }
                *request = failed.take_message();
                let error = failed.into_error();
                let has_answered =
                    error.is_parse() || target.interim.is_some_and(InterimResponses::has_received);
                let stale = reused && !has_answered;
                Err(FailedAttempt { error: ExchangeError::of_http1(addr, error), stale })
            }
            Err((reason, within)) => Err(ExchangeError::Timeout { addr, reason, within }.into()),
        }
    }

    /// Checks the response and makes its head the gateway's own.
    pub(in crate::upstream) fn wrap_http1(
        &self,
        target: &UpstreamTarget<'_>,
        mut response: Response<Incoming>,
        mut connection: PooledConnection,
        progress: SendProgress,
    ) -> Result<Response<UpstreamResponseBody>, ExchangeError> {
        let addr = connection.addr();
        // A node may respond early and close. On a connection that stays open, hyper has left the
        // body out.
        if progress.was_dropped() && !connection.is_closed() {
            return Err(ExchangeError::RequestBodyUnsent { addr });
        }
        let accepted = framing::accept_response(&mut response);
        connection.reusable = accepted.map_err(|error| ExchangeError::Framing { addr, error })?;
        let limits = ResponseLimits::new(target, self.settings.get().head);
        Ok(response.map(|incoming| {
            let source = ResponseSource::Http1 { incoming, connection: Some(connection), progress };
            UpstreamResponseBody::new(source, limits, &self.timers)
        }))
    }
}

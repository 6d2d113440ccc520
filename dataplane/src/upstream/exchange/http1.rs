//! One attempt over an HTTP/1 connection.

use http::{Request, Response};
use hyper::body::Incoming;

use super::{ExchangeError, FailedAttempt, response_in_time, set_host};
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
        mut request: Request<RequestBody>,
        host: &str,
    ) -> Result<Response<UpstreamResponseBody>, FailedAttempt> {
        set_host(&mut request, host);
        let progress = request.body().progress();
        let (reused, addr) = (connection.reused, connection.addr());
        if let Some(interim) = target.interim {
            interim.attach(&mut request);
        }
        let response = connection.sender.try_send_request(request);
        match response_in_time(response, &progress, &target.timeouts, &self.timers).await {
            Ok(Ok(response)) => {
                self.wrap_http1(target, response, connection, progress).map_err(FailedAttempt::sent)
            }
            Ok(Err(mut failed)) => {
                let unsent = failed.take_message();
                if let Some(reason) = progress.failed() {
                    return Err(FailedAttempt::sent(ExchangeError::ClientBody(reason)));
                }
                let error = ExchangeError::of_http1(addr, failed.into_error());
                Err(FailedAttempt { error, unsent, stale: reused })
            }
            Err((reason, within)) => {
                Err(FailedAttempt::sent(ExchangeError::Timeout { addr, reason, within }))
            }
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
        let limits = ResponseLimits::new(target, self.head);
        Ok(response.map(|incoming| {
            let source = ResponseSource::Http1 { incoming, connection: Some(connection), progress };
            UpstreamResponseBody::new(source, limits, &self.timers)
        }))
    }
}

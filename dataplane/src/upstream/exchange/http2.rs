//! One attempt over a stream of an HTTP/2 connection.
//!
//! Invariant: a request is sent again only where RFC 9113 section 8.7 says that the node has not
//! processed it, or where it may be sent twice; its body only while all that was read of it is
//! kept.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use h2::client::ResponseFuture;
use h2::{Reason, RecvStream};
use http::request::Parts;
use http::{Request, Response, StatusCode};

use super::{ExchangeError, FailedAttempt, response_in_time, take};
use crate::http::grpc;
use crate::http::interim::{InterimResponses, RECEIVED_MAX};
use crate::upstream::client::{UpstreamClient, UpstreamTarget};
use crate::upstream::framing::{self, FramingError};
use crate::upstream::http2::body::Http2ResponseBody;
use crate::upstream::http2::head::http2_head;
use crate::upstream::http2::upload::Upload;
use crate::upstream::pool::node::StreamSlot;
use crate::upstream::request_body::{RequestBody, SendProgress};
use crate::upstream::response_body::{ResponseLimits, ResponseSource, UpstreamResponseBody};

impl UpstreamClient {
    pub(super) async fn attempt_http2(
        &self,
        target: &UpstreamTarget<'_>,
        stream: StreamSlot,
        request: &mut Option<Request<RequestBody>>,
        host: &str,
    ) -> Result<Response<UpstreamResponseBody>, FailedAttempt> {
        let addr = stream.addr();
        let (parts, body) = take(request)?.into_parts();
        let scheme = if target.upstream.scheme.is_encrypted() { "https" } else { "http" };
        let accepts_trailers = target.upstream.scheme.is_grpc() || grpc::is_grpc_type(&parts.headers);
        let head = http2_head(&parts, host, scheme, accepts_trailers)
            .map_err(|error| ExchangeError::Authority { addr, error })?;
        let progress = body.progress();
        let (answer, send) = match stream.connection.send_request(head, body.is_empty()) {
            Ok(sent) => sent,
            Err(error) => {
                *request = Some(Request::from_parts(parts, body));
                return Err(FailedAttempt { error: ExchangeError::Http2 { addr, error }, stale: true });
            }
        };
        let upload = if body.is_empty() { None } else { Some(Upload::start(send, body)) };
        let answer = pin!(Answer { future: answer, interim: 0, channel: target.interim, addr });
        match response_in_time(answer, &progress, &target.timeouts, &self.timers).await {
            Ok(Ok(response)) => Ok(self.wrap_http2(target, response, stream, (upload, progress))?),
            Ok(Err(_)) if let Some(reason) = progress.failed() => {
                Err(ExchangeError::ClientBody(reason).into())
            }
            Ok(Err(error)) => {
                let has_answered = target.interim.is_some_and(InterimResponses::has_received);
                let (failed, unsent) = failed(error, &stream, (parts, upload), has_answered);
                *request = unsent;
                Err(failed)
            }
            Err((reason, within)) => {
                // It may be a dead one, as an HTTP/1 connection that is closed for this.
                stream.connection.retire();
                Err(ExchangeError::Timeout { addr, reason, within }.into())
            }
        }
    }

    /// Checks the response and makes its head the gateway's own.
    fn wrap_http2(
        &self,
        target: &UpstreamTarget<'_>,
        mut response: Response<RecvStream>,
        stream: StreamSlot,
        (upload, progress): (Option<Upload>, SendProgress),
    ) -> Result<Response<UpstreamResponseBody>, ExchangeError> {
        let addr = stream.addr();
        if let Some(upload) = &upload {
            upload.forget_start();
        }
        framing::accept_response(&mut response).map_err(|error| ExchangeError::Framing { addr, error })?;
        let (head, body) = response.into_parts();
        let body = Http2ResponseBody::new(&head, body);
        if let Some(intake) = body.intake() {
            stream.connection.add_intake(intake);
        }
        let source = ResponseSource::Http2 { body, exchange: Some((upload, stream)), progress };
        let limits = ResponseLimits::new(target, self.settings.get().head);
        Ok(Response::from_parts(head, UpstreamResponseBody::new(source, limits, &self.timers)))
    }
}

/// An attempt without a response, and its request, when the node cannot have seen it.
fn failed(
    error: ExchangeError,
    stream: &StreamSlot,
    (parts, upload): (Parts, Option<Upload>),
    has_answered: bool,
) -> (FailedAttempt, Option<Request<RequestBody>>) {
    let error = match stream.connection.alert() {
        Some(alert) => ExchangeError::Alert { addr: stream.addr(), alert },
        None => error,
    };
    let unprocessed = matches!(&error, ExchangeError::Http2 { error, .. } if is_unprocessed(error));
    let body = match &upload {
        None => Some(RequestBody::empty()),
        Some(upload) if unprocessed => upload.take_back(),
        Some(_) => None,
    };
    let unsent = body.filter(|_| unprocessed).map(|body| Request::from_parts(parts, body));
    // What cannot be read is an answer, too.
    let has_answered =
        has_answered || matches!(&error, ExchangeError::Http2 { error, .. } if error.is_library());
    let aged = stream.connection.is_retired() && stream.connection.has_served();
    let stale = unprocessed || aged && !has_answered;
    (FailedAttempt { error, stale }, unsent)
}

/// Whether the node says that it has not processed the request (RFC 9113 section 8.7): it is above
/// the last stream of a GOAWAY, or refused.
fn is_unprocessed(error: &h2::Error) -> bool {
    let refused = error.is_reset() && error.reason() == Some(Reason::REFUSED_STREAM);
    error.is_remote() && (error.is_go_away() || refused)
}

/// Waits for the final response.
struct Answer<'a> {
    future: ResponseFuture,
    /// 1xx responses so far.
    interim: u32,
    /// Where they go.
    channel: Option<&'a InterimResponses>,
    addr: SocketAddr,
}

impl Future for Answer<'_> {
    type Output = Result<Response<RecvStream>, ExchangeError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let addr = self.addr;
        // Before the final one, whose poll would drop them.
        while let Poll::Ready(Some(interim)) = self.future.poll_informational(cx) {
            let interim = interim.map_err(|error| ExchangeError::Http2 { addr, error })?;
            // To `h2` it is like the others.
            if interim.status() == StatusCode::SWITCHING_PROTOCOLS {
                let error = FramingError::SwitchingProtocols;
                return Poll::Ready(Err(ExchangeError::Framing { addr, error }));
            }
            if let Some(channel) = self.channel {
                channel.push(interim.status(), interim.headers());
            }
            self.interim += 1;
            if self.interim > RECEIVED_MAX {
                return Poll::Ready(Err(ExchangeError::InterimResponses { addr, max: RECEIVED_MAX }));
            }
        }
        Pin::new(&mut self.future).poll(cx).map_err(|error| ExchangeError::Http2 { addr, error })
    }
}

//! One request of a connection, and the order of its stages.
//!
//! Target, authorization, headers, destination, allow-list, identity headers and rewrite, upstream.
//! Invariants: nothing of a request is forwarded that was not checked, and an error page has its
//! status only.

use std::mem;
use std::sync::Arc;
use std::time::Instant;

use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Request, Response, Version, header};
use hyper::body::Body;
use hyper::rt::Write;
use model::admission::{self, ClientVerification, ConnectionAuth};
use model::destination::{self, Destination};
use model::{ProxyRewrite, RequestTarget, Snapshot, raw_path};
use pki::Identity;

use super::Connection;
use super::active_request::ActiveRequest;
use super::tunnel::WebSocketTunnel;
use crate::filters::headers;
use crate::filters::real_ip::ClientAddress;
use crate::filters::rewrite::{self, EvaluatedRewrite, RewriteError};
use crate::filters::variables::RequestContext;
use crate::filters::{identity, path};
use crate::http::RequestHandler;
use crate::http::grpc::{self, CountedStatus};
use crate::http::head::HeadError;
use crate::http::incoming_body::IncomingBody;
use crate::http::interim::InterimResponses;
use crate::http::upgrade::WebSocketHandshake;
use crate::http::{error_page, request};
use crate::io::chunk_read::ChunkRead;
use crate::observability::HasReason;
use crate::observability::log::{self, ClientDenial};
use crate::proxy::response_body::{self, ResponseBody, ResponseContent};
use crate::reason::Reason;
use crate::reporting::record::{RequestRecord, UpstreamFacts};
use crate::upstream::attempts::X_APISIX_UPSTREAM_STATUS;
use crate::upstream::client::UpstreamTarget;
use crate::upstream::exchange::{self, ExchangeError};
use crate::upstream::request_body::RequestBody;
use crate::upstream::response_body::{UpstreamBodyError, UpstreamResponseBody};
use crate::upstream::upgrade::UpgradeReply;

impl RequestHandler for Connection {
    type Body = ResponseBody;
    type BodyError = UpstreamBodyError;
    type Tunnel = WebSocketTunnel;

    fn handle(&self, request: Request<IncomingBody>) -> impl Future<Output = Response<ResponseBody>> {
        let is_head = *request.method() == Method::HEAD;
        let is_call = grpc::is_call(&request);
        let record = RequestRecord::new(&self.facts, &request);
        let mut active = Box::new(ActiveRequest::new(&self.worker, &self.facts, record));
        // Not an `async fn`: its future would hold the request twice.
        async move {
            let counters = &self.worker.counters;
            let mut response = forward(self, request, is_call, &mut active).await.unwrap_or_else(|reason| {
                counters.record_error(reason);
                active.record.reason = Some(reason);
                let mut response = error_response(reason, is_call);
                if reason == Reason::Misdirected && self.is_site_removed() {
                    error_page::set_connection_close(&mut response);
                }
                response
            });
            response_body::adjust_to_method(is_head, &mut response);
            let counted = response.extensions().get().map(|CountedStatus(status)| *status);
            let status = counted.unwrap_or_else(|| response.status());
            counters.record_response(status);
            response.headers_mut().insert(header::SERVER, self.server_header());
            active.record.responded(&response, status);
            response.map(|content| ResponseBody::new(content, active))
        }
    }

    fn take_tunnel(
        &self,
        response: &mut Response<ResponseBody>,
    ) -> Option<(WebSocketTunnel, Option<IncomingBody>)> {
        let (tunnel, request) = response.body_mut().take_tunnel()?;
        let mut tunnel = *tunnel;
        tunnel.request = request;
        let body = tunnel.body.take();
        Some((tunnel, body))
    }

    async fn relay(&self, client: impl ChunkRead + Write + Unpin, tunnel: WebSocketTunnel) {
        self.relay_web_socket(client, tunnel).await;
    }

    fn reject_head(&self, error: HeadError) -> Vec<u8> {
        self.record_rejected(&error);
        error_page::raw_error_response(error.reason(), &self.server_header())
    }

    fn record_parse_error(&self, error: &hyper::Error) {
        self.record_rejected(error);
    }

    fn record_send_timeout(&self) {
        self.worker.counters.record_error(Reason::SendTimeout);
        log::client_timed_out(&self.facts.info, Reason::SendTimeout);
    }
}

impl Connection {
    /// Records a head that never becomes a request, and its response.
    fn record_rejected(&self, error: &dyn HasReason) {
        let (counters, reason) = (&self.worker.counters, error.reason());
        log::request_rejected(self.facts.info, error);
        counters.record_error(reason);
        let mut record = RequestRecord::malformed(&self.facts);
        (record.reason, record.status) = (Some(reason), reason.status());
        if let Some(status) = reason.status() {
            counters.record_response(status);
        }
        drop(ActiveRequest::new(&self.worker, &self.facts, record));
    }

    /// Whether the connection's site is gone, so that every further request is misdirected.
    fn is_site_removed(&self) -> bool {
        self.sni().is_some_and(|sni| self.worker.snapshot().site(sni).is_none())
    }

    fn server_header(&self) -> HeaderValue {
        if self.worker.config().server_tokens { error_page::SERVER_WITH_VERSION } else { error_page::SERVER }
    }

    /// Checks the head of a request, and reads what it is sent by.
    fn check_head(
        &self,
        parts: &mut Parts,
        body_length: Option<u64>,
        client: &ClientAddress,
        is_call: bool,
    ) -> Result<CheckedHead, Reason> {
        let config = self.worker.config();
        let rejected = |error: &dyn HasReason| {
            log::request_rejected(client, error);
            error.reason()
        };
        let handshake =
            request::check(parts, body_length, config.head_limits).map_err(|error| rejected(&error))?;
        let timeout =
            if is_call { grpc::timeout(&parts.headers).map_err(|error| rejected(&error))? } else { None };
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let target = request::parse_target(parts.version, &parts.uri, &parts.headers, config.path_options)
            .map_err(|error| rejected(&error))?;
        Ok(CheckedHead { handshake, deadline, target })
    }

    /// The client for the record of a request: as its site verified it, and for a denied request as
    /// the connection did.
    fn client_of_record(&self, verification: &Result<ClientVerification, Reason>) -> ClientVerification {
        match (verification, &self.client_auth) {
            (Ok(client), _) => client.clone(),
            (Err(_), Some(client_auth)) => client_auth.verification().clone(),
            (Err(_), None) => ClientVerification::NotRequested,
        }
    }

    /// Checks whether the client may request this target under the current policies.
    fn authorize(
        &self,
        snapshot: &Snapshot,
        target: &RequestTarget,
        client: &ClientAddress,
    ) -> Result<ClientVerification, Reason> {
        let Some(client_auth) = &self.client_auth else { return Ok(ClientVerification::NotRequested) };
        let ssl = snapshot.site(&client_auth.sni).map(Arc::as_ref);
        if let Some(ssl) = ssl {
            client_auth.update_verdict(ssl);
        }
        let verification = client_auth.verification();
        let connection = ConnectionAuth { sni: &client_auth.sni, ssl, client: &verification };
        admission::admit(&connection, snapshot, target).cloned().inspect_err(|&reason| {
            let verify_reason = verification.rejection_for(reason);
            if let Some(verify_reason) = verify_reason {
                self.worker.counters.record_certificate_rejection(verify_reason);
            }
            let (sni, host, leaf) = (Some(&client_auth.sni), target.host.as_ref(), client_auth.leaf());
            log::request_denied(
                client,
                &ClientDenial { reason, sni, host, verify_reason, leaf: leaf.as_ref() },
            );
        })
    }
}

/// The head of a request that is well-formed.
struct CheckedHead {
    handshake: Option<WebSocketHandshake>,
    /// Of a gRPC call.
    deadline: Option<Instant>,
    target: RequestTarget,
}

/// Forwards a request to its upstream.
async fn forward(
    connection: &Connection,
    request: Request<IncomingBody>,
    is_call: bool,
    active: &mut ActiveRequest,
) -> Result<Response<ResponseContent>, Reason> {
    let worker = &connection.worker;
    let config = worker.config();
    let snapshot = worker.snapshot();
    let (mut parts, body) = request.into_parts();
    // Before the first check: the body of a request that is denied is read and discarded.
    let interim = body.interim().cloned();
    let mut body = RequestBody::new(body, config.body_max, config.body_timeout);
    active.record.request_body = Some(body.progress());
    // From the headers as the client sent them.
    let client = ClientAddress::resolve(&connection.facts.info, config.real_ip.as_ref(), &parts.headers);
    active.record.client_addr = client.info.peer;
    let checked = connection.check_head(&mut parts, body.size_hint().exact(), &client, is_call);
    let verification = match &checked {
        Ok(head) => connection.authorize(&snapshot, &head.target, &client),
        Err(reason) => Err(*reason),
    };
    active.record.client = connection.client_of_record(&verification);
    let target = checked.as_ref().ok().map(|head| &head.target);
    worker.reporter.request_begun(&mut active.record, &connection.facts, &parts, target);
    let (CheckedHead { handshake, deadline, target }, verification) = (checked?, verification?);
    let expects_continue = !body.is_empty() && request::expects_continue(&parts.headers);
    // Before the first use of a header: a spoofed one must not even select a route.
    let forwarded = connection.forwarded_context(&config, &target, &client);
    let takes_trailers = headers::prepare_request(&mut parts.headers, &forwarded);
    let checked = CheckedRequest {
        connection,
        snapshot: &snapshot,
        client: &client,
        target: &target,
        verification: &verification,
        is_call,
        takes_trailers: takes_trailers && parts.version == Version::HTTP_11,
        deadline,
    };
    let destination = checked.find_destination(&parts, &mut active.record)?;
    if let Some(handshake) = handshake.filter(|_| !destination.enable_websocket) {
        let error = request::refused(handshake);
        log::request_rejected(client, &error);
        return Err(error.reason());
    }
    if config.body_max > 0 && content_length(&parts.headers).is_some_and(|length| length > config.body_max) {
        return Err(Reason::BodyTooLarge);
    }
    let path = checked.rewrite(&mut parts, &destination)?;
    active.record.upstream = Some(UpstreamFacts { scheme: destination.upstream.scheme, uri: path.clone() });
    active.permit = connection.acquire_permit(&client)?;
    if let Some(handshake) = handshake {
        // Boxed: rare, and large.
        return Ok(Box::pin(checked.open_web_socket(
            &destination,
            handshake,
            (parts, path),
            (body, interim.as_ref()),
            &mut active.record,
        ))
        .await);
    }
    if let Some(interim) = interim.as_ref().filter(|_| expects_continue) {
        parts.headers.insert(header::EXPECT, HeaderValue::from_static("100-continue"));
        body.wait_for_continue(interim.clone());
    }
    let mut request = Some(exchange::upstream_request(parts, path, body));
    Ok(checked.send(&destination, &mut request, interim.as_ref(), &mut active.record).await)
}

/// A request whose client is authorized.
struct CheckedRequest<'a> {
    connection: &'a Connection,
    snapshot: &'a Snapshot,
    client: &'a ClientAddress,
    target: &'a RequestTarget,
    verification: &'a ClientVerification,
    /// Of gRPC.
    is_call: bool,
    takes_trailers: bool,
    deadline: Option<Instant>,
}

impl<'a> CheckedRequest<'a> {
    /// The request as the variables of routes and rewrites read it.
    fn context<'p>(&self, parts: &'p Parts) -> RequestContext<'p>
    where
        'a: 'p,
    {
        RequestContext {
            parts,
            target: self.target,
            info: &self.client.info,
            tls: self.connection.facts.tls.get().map(|tls| (&tls.sni, &tls.params)),
            client: self.verification,
        }
    }

    /// Finds the destination, and checks the allow-list of its route.
    fn find_destination(&self, parts: &Parts, record: &mut RequestRecord) -> Result<Destination<'a>, Reason> {
        let (context, target) = (self.context(parts), self.target);
        let peer = self.client.info.peer.ip();
        let destination = destination::find(self.snapshot, target, parts.method.as_str(), peer, &context)
            .inspect_err(|&reason| {
                log::no_destination(self.client, reason, target.host.as_ref(), &target.path)
            })?;
        record.route = Some(self.connection.worker.reporter.routes.route(destination.route));
        identity::check_allow_list(destination.client_identity, self.verification).inspect_err(|_| {
            let identity = self.verification.identity();
            let leaf = identity.map(|identity| identity.certificate().der());
            let uris = identity.map(Identity::san_uris).unwrap_or_default();
            log::client_not_allowed(self.client, &destination.route.id, leaf, uris);
        })?;
        Ok(destination)
    }

    /// Sends the request to its upstream. Whatever goes wrong there is a response, too.
    async fn send(
        &self,
        destination: &Destination<'_>,
        request: &mut Option<Request<RequestBody>>,
        interim: Option<&InterimResponses>,
        record: &mut RequestRecord,
    ) -> Response<ResponseContent> {
        let target = self.upstream_target(destination, interim);
        let upstreams = &self.connection.worker.upstreams;
        let result = upstreams.send_request(&target, request, &mut record.attempts).await;
        self.respond(destination, result, record, |response| self.client_response(response))
    }

    /// Performs the handshake of a WebSocket with its upstream.
    async fn open_web_socket(
        &self,
        destination: &Destination<'_>,
        handshake: WebSocketHandshake,
        (mut parts, path): (Parts, PathAndQuery),
        (mut body, interim): (RequestBody, Option<&InterimResponses>),
        record: &mut RequestRecord,
    ) -> Response<ResponseContent> {
        handshake.set_request_fields(&mut parts.headers);
        let request = exchange::upstream_request(parts, path, RequestBody::empty());
        let target = self.upstream_target(destination, interim);
        let upstreams = &self.connection.worker.upstreams;
        let result = upstreams.request_upgrade(&target, &request, &mut record.attempts).await;
        self.respond(destination, result, record, |response| {
            let (head, reply) = response.into_parts();
            let upstream = match reply {
                UpgradeReply::Switched(upstream) => *upstream,
                UpgradeReply::Refused(body) => {
                    return self.client_response(Response::from_parts(head, body));
                }
            };
            let (timeouts, route) = (target.timeouts, destination.route.id.clone());
            let body = body.take_incoming();
            let tunnel = WebSocketTunnel { upstream, body, timeouts, route, request: None };
            let mut response = Response::from_parts(head, ResponseContent::Tunnel(Some(Box::new(tunnel))));
            headers::prepare_response(response.headers_mut(), false);
            handshake.set_response_head(&mut response);
            response
        })
    }

    fn upstream_target<'t>(
        &'t self,
        destination: &'t Destination<'_>,
        interim: Option<&'t InterimResponses>,
    ) -> UpstreamTarget<'t> {
        let Destination { upstream, timeouts, proxy_rewrite, global_rewrite, .. } = *destination;
        let rewritten =
            proxy_rewrite.and_then(ProxyRewrite::host).or(global_rewrite.and_then(ProxyRewrite::host));
        let authority = rewritten.or(self.target.authority.as_deref());
        let (snapshot, deadline) = (self.snapshot, self.deadline);
        UpstreamTarget { snapshot, upstream, timeouts, authority, interim, deadline }
    }

    /// The client's response to what the upstream has answered, or has failed to.
    fn respond<B>(
        &self,
        destination: &Destination<'_>,
        result: Result<Response<B>, ExchangeError>,
        record: &mut RequestRecord,
        make: impl FnOnce(Response<B>) -> Response<ResponseContent>,
    ) -> Response<ResponseContent> {
        let (client, route) = (self.client, &destination.route.id);
        let config = self.connection.worker.config();
        let checked = match result {
            Ok(response) => {
                config.head_limits.check_response(&response).map(|()| response).map_err(|error| {
                    log::response_rejected(client, route, &error);
                    Reason::UpstreamInvalid
                })
            }
            Err(error) => {
                log::upstream_failed(client, route, &error);
                Err(error.reason())
            }
        };
        let mut response = match checked {
            Ok(response) => make(response),
            Err(reason) => {
                self.connection.worker.counters.record_error(reason);
                record.reason = Some(reason);
                error_response(reason, self.is_call)
            }
        };
        if let Some(status) = record.attempts.status_header(config.show_upstream_status) {
            response.headers_mut().insert(X_APISIX_UPSTREAM_STATUS, status);
        }
        response
    }

    /// Applies the `proxy-rewrite` of the global rules, sets the identity headers, then applies the
    /// route's `proxy-rewrite`. Returns the path to forward.
    fn rewrite(&self, parts: &mut Parts, destination: &Destination<'_>) -> Result<PathAndQuery, Reason> {
        let global = self.evaluate(destination.global_rewrite, parts, destination)?;
        let global_path = global.and_then(|evaluated| evaluated.apply(parts));
        // Evaluated before identity headers are set: the values come from the request itself.
        let evaluated = self.evaluate(destination.proxy_rewrite, parts, destination)?;
        if let Some(block) = destination.client_identity {
            let site = self.site();
            let headers = &self.connection.identity_headers;
            headers.set_headers(&mut parts.headers, block, self.verification, site);
        }
        let path = match evaluated {
            Some(evaluated) => evaluated.apply(parts),
            None => global_path,
        };
        if let Some(path) = path {
            return Ok(path);
        }
        let uses_raw_path = destination.proxy_rewrite.is_some_and(ProxyRewrite::uses_raw_path);
        match mem::take(&mut parts.uri).into_parts().path_and_query {
            Some(raw) if uses_raw_path && raw.path() != self.target.forwarded_path() => {
                self.check_raw_path(destination).map(|()| raw)
            }
            raw => path::forwarded_path(self.target, raw)
                .map_err(|error| self.rewrite_failed(destination, &error.into())),
        }
    }

    fn evaluate<'r>(
        &self,
        rewrite: Option<&'r ProxyRewrite>,
        parts: &Parts,
        destination: &Destination<'_>,
    ) -> Result<Option<EvaluatedRewrite<'r>>, Reason> {
        let evaluated = rewrite.map(|rewrite| rewrite::evaluate(rewrite, &self.context(parts)));
        evaluated.transpose().map_err(|error| self.rewrite_failed(destination, &error))
    }

    /// Checks that the raw path bypasses no rule that the normalized path meets.
    fn check_raw_path(&self, destination: &Destination<'_>) -> Result<(), Reason> {
        let policy = self.site().and_then(|site| site.client.as_deref());
        raw_path::check_request(self.snapshot, destination, policy, self.verification)
            .map_err(|conflict| self.rewrite_failed(destination, &RewriteError::RawPathConflict(conflict)))
    }

    fn rewrite_failed(&self, destination: &Destination<'_>, error: &RewriteError) -> Reason {
        log::rewrite_failed(self.client, &destination.route.id, error);
        error.reason()
    }

    /// An upstream's response as the client's.
    fn client_response(&self, response: Response<UpstreamResponseBody>) -> Response<ResponseContent> {
        let mut response = response.map(ResponseContent::Upstream);
        headers::prepare_response(response.headers_mut(), self.takes_trailers);
        response
    }

    /// The connection's site.
    fn site(&self) -> Option<&'a model::Ssl> {
        self.snapshot.site(self.connection.sni()?).map(Arc::as_ref)
    }
}

fn error_response(reason: Reason, is_call: bool) -> Response<ResponseContent> {
    let response = if is_call { grpc::error_response(reason) } else { error_page::error_response(reason) };
    response.map(ResponseContent::full)
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

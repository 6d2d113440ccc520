//! One request of a connection: from its head to the answer's.
//!
//! [`answer`]: target -> admitted -> headers -> destination -> permitted -> identity headers -> upstream. The only
//! place that knows the order of these stages. Invariant: nothing of a request is forwarded that
//! was not judged, and a refusal says only its status.

use std::mem;
use std::sync::Arc;

use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderValue, Method, Request, Response, header};
use hyper::body::Body as _;
use model::admission::{self, ClientVerification};
use model::destination::{self, Destination};
use model::{ProxyRewrite, RequestTarget, Snapshot, raw_path};
use pki::Identity;

use super::Connection;
use super::request_limit::RequestPermit;
use crate::body::asked::IncomingBody;
use crate::body::response;
use crate::body::response::ResponseBody;
use crate::filters::headers::{ForwardedContext, PeerTrust};
use crate::filters::real_ip::ClientAddress;
use crate::filters::rewrite::RewriteError;
use crate::filters::{headers, identity, path, rewrite, variables};
use crate::http::head::HeadError;
use crate::http::{error_page, request};
use crate::observability::log;
use crate::reason::Reason;
use crate::upstream::client::UpstreamTarget;
use crate::upstream::exchange;
use crate::upstream::request_body::RequestBody;
use crate::upstream::response_body::UpstreamResponseBody;
use crate::upstream::status_header::{UpstreamStatus, X_APISIX_UPSTREAM_STATUS};

/// Walks one request: the answer to a refused one is a page that says only its status.
pub async fn handle_request(
    connection: &Connection,
    request: Request<IncomingBody>,
) -> Response<ResponseBody> {
    let counters = &connection.worker.counters;
    let head = *request.method() == Method::HEAD;
    let mut response = match forward(connection, request).await {
        Ok(response) => response,
        Err(reason) => {
            counters.record_error(reason);
            let mut refusal = error_page::error_response(reason);
            if reason == Reason::Misdirected && connection.is_site_removed() {
                error_page::set_connection_close(&mut refusal);
            }
            refusal
        }
    };
    response::adjust_to_method(head, &mut response);
    counters.record_response(response.status());
    response.headers_mut().insert(header::SERVER, connection.server_header());
    response
}

/// The answer to a head that is no request yet, as bytes; the connection ends with it.
pub fn reject_head(connection: &Connection, error: HeadError) -> Vec<u8> {
    let (counters, reason) = (&connection.worker.counters, error.reason());
    log::request_rejected(connection.arrival.peer, reason, &error);
    counters.record_error(reason);
    if let Some(status) = reason.status() {
        counters.record_response(status);
    }
    error_page::raw_error_response(reason, &connection.server_header())
}

/// Records a head that hyper could not read, and has answered.
pub fn record_parse_error(connection: &Connection, error: &hyper::Error) {
    let counters = &connection.worker.counters;
    let reason = if error.is_parse_too_large() { Reason::HeadTooLarge } else { Reason::BadRequest };
    log::request_rejected(connection.arrival.peer, reason, error);
    counters.record_error(reason);
    if let Some(status) = reason.status() {
        counters.record_response(status);
    }
}

/// Records an HTTP/2 stream that its client does not read.
pub fn record_send_timeout(connection: &Connection) {
    connection.worker.counters.record_error(Reason::SendTimeout);
    log::client_timed_out(connection.arrival.peer, Reason::SendTimeout);
}

/// Target -> admitted -> headers -> destination -> permitted -> told -> upstream.
async fn forward(
    connection: &Connection,
    asked: Request<IncomingBody>,
) -> Result<Response<ResponseBody>, Reason> {
    let worker = &connection.worker;
    let rules = &worker.shared.config;
    let snapshot = worker.snapshot();
    let (mut parts, body) = asked.into_parts();
    // Wrapped first: whatever is refused from here on, what the client still sends is read out.
    let body = RequestBody::new(body, rules.body_max, rules.body_timeout);
    // Read off the headers as they came.
    let remote = ClientAddress::resolve(&connection.arrival, rules.real_ip.as_ref(), &parts.headers);
    request::check(&mut parts, body.size_hint().exact(), rules.head_limits).map_err(|error| {
        log::request_rejected(remote, error.reason(), &error);
        error.reason()
    })?;
    let target = request::parse_target(parts.version, &parts.uri, &parts.headers, rules.path_options)
        .map_err(|error| {
            log::request_rejected(remote, Reason::BadRequest, &error);
            Reason::BadRequest
        })?;
    let client = connection.authorize(&snapshot, &target, &remote)?;
    // Before anything reads a header: claims from outside must not even choose a route.
    headers::prepare_request(&mut parts.headers, &connection.forwarded(&target, &remote));
    let destination = connection.destination(
        &snapshot,
        &connection.request_context(&parts, &target, &client, &remote),
        &remote,
    )?;
    if rules.body_max > 0 && content_length(&parts.headers).is_some_and(|length| length > rules.body_max) {
        return Err(Reason::BodyTooLarge);
    }
    let path = connection.rewrite_request(&mut parts, &target, &client, &remote, &snapshot, &destination)?;
    let under_way = connection.acquire_permit(&remote)?;
    let request = exchange::upstream_request(parts, path, body);
    let Destination { upstream, timeouts, proxy_rewrite, .. } = destination;
    let authority = proxy_rewrite.and_then(ProxyRewrite::host).or(target.authority.as_deref());
    let plan = UpstreamTarget { snapshot: &snapshot, upstream, timeouts, authority };
    let mut status = UpstreamStatus::default();
    let exchanged = worker.upstreams.send_request(&plan, request, &mut status).await;
    let answered = match exchanged {
        Ok(response) => rules.head_limits.check_response(&response).map(|()| response).map_err(|error| {
            log::response_rejected(remote, &destination.route.id, &error);
            Reason::UpstreamInvalid
        }),
        Err(error) => {
            let reason = error.reason();
            log::upstream_failed(remote, reason, &destination.route.id, &error);
            Err(reason)
        }
    };
    let mut response = answered.map_or_else(
        |reason| {
            worker.counters.record_error(reason);
            error_page::error_response(reason)
        },
        |response| client_response(response, under_way),
    );
    if let Some(status) = status.header_value(rules.show_upstream_status) {
        response.headers_mut().insert(X_APISIX_UPSTREAM_STATUS, status);
    }
    Ok(response)
}

impl Connection {
    /// Whether this client may ask for this target, under the newest policies, and who it is for
    /// this request.
    fn authorize(
        &self,
        snapshot: &Snapshot,
        target: &RequestTarget,
        remote: &ClientAddress,
    ) -> Result<ClientVerification, Reason> {
        let Some(established) = &self.client_auth else { return Ok(ClientVerification::NotRequested) };
        let ssl = snapshot.site(&established.sni).map(Arc::as_ref);
        if let Some(ssl) = ssl {
            established.update_verdict(ssl);
        }
        let client = established.client();
        let site = admission::ConnectionAuth { sni: &established.sni, ssl, client: &client };
        admission::admit(&site, snapshot, target).cloned().inspect_err(|&reason| {
            let rule = client.rejection_for(reason);
            if let Some(rule) = rule {
                self.worker.counters.record_certificate_rejection(rule);
            }
            let (sni, host, leaf) = (&established.sni, target.host.as_ref(), established.leaf());
            let leaf = leaf.as_ref();
            log::request_denied(remote, &log::ClientDenial { reason, sni, host, verify_reason: rule, leaf });
        })
    }

    /// Whether the site that this connection was made for is gone, so that none of its requests is
    /// answered any more.
    fn is_site_removed(&self) -> bool {
        let established = self.client_auth.as_ref();
        established.is_some_and(|established| self.worker.snapshot().site(&established.sni).is_none())
    }

    /// Counts a request in, unless its client has too many under way. `None`: it is not limited.
    fn acquire_permit(&self, remote: &ClientAddress) -> Result<Option<RequestPermit>, Reason> {
        let Some(clients) = &self.worker.request_limiter else { return Ok(None) };
        let named;
        let client = match remote.real_ip() {
            Some(address) => {
                named = clients.client(address);
                &named
            }
            None => {
                let dialled_us = self.peer_requests.get_or_init(|| {
                    let rules = &self.worker.shared.config;
                    let peer = remote.direct_peer.ip();
                    let trust =
                        PeerTrust::of(peer, rules.trusted_addresses.as_deref(), rules.real_ip.as_ref());
                    (!trust.forwarded && !trust.address).then(|| clients.client(peer))
                });
                let Some(client) = dialled_us else { return Ok(None) };
                client
            }
        };
        client.acquire().map(Some).map_err(|error| {
            log::request_rejected(remote, Reason::TooManyRequests, &error);
            Reason::TooManyRequests
        })
    }

    /// What the forwarded headers are made from. Trusted is the connection's peer, whoever it
    /// speaks for.
    fn forwarded<'a>(&'a self, target: &'a RequestTarget, remote: &ClientAddress) -> ForwardedContext<'a> {
        let rules = &self.worker.shared.config;
        let (trusted, real_ip) = (rules.trusted_addresses.as_deref(), rules.real_ip.as_ref());
        ForwardedContext {
            connection: &self.connection_headers,
            real_ip: remote.real_ip(),
            has_trusted_addresses: trusted.is_some(),
            trust: PeerTrust::of(remote.direct_peer.ip(), trusted, real_ip),
            real_ip_header: real_ip.map(model::RealIp::header),
            authority: target.authority.as_deref(),
        }
    }

    /// A request as the variables of routes see it.
    fn request_context<'a>(
        &'a self,
        parts: &'a Parts,
        target: &'a RequestTarget,
        client: &'a ClientVerification,
        remote: &'a ClientAddress,
    ) -> variables::RequestContext<'a> {
        let sni = self.client_auth.as_ref().map(|established| &established.sni);
        variables::RequestContext {
            parts,
            target,
            info: &remote.info,
            direct_peer: remote.direct_peer,
            tls: sni.zip(self.facts.as_ref()),
            client,
        }
    }

    /// Where the request goes, if its route lets this client through.
    fn destination<'a>(
        &self,
        snapshot: &'a Snapshot,
        seen: &variables::RequestContext<'_>,
        remote: &ClientAddress,
    ) -> Result<Destination<'a>, Reason> {
        let variables::RequestContext { parts, target, client, .. } = *seen;
        let found = destination::find(snapshot, target, parts.method.as_str(), seen.info.peer.ip(), seen)
            .inspect_err(|&reason| log::no_destination(remote, reason, target.host.as_ref(), &target.path))?;
        identity::check_allow_list(found.client_identity, client).inspect_err(|_| {
            let identity = client.identity();
            let leaf = identity.map(|identity| identity.certificate().der());
            let uris = identity.map(Identity::san_uris).unwrap_or_default();
            log::client_not_allowed(remote, &found.route.id, leaf, uris);
        })?;
        Ok(found)
    }

    /// Tells the upstream who the client is, then rewrites what the route wants rewritten. Gives
    /// the path to forward.
    fn rewrite_request(
        &self,
        parts: &mut Parts,
        target: &RequestTarget,
        client: &ClientVerification,
        remote: &ClientAddress,
        snapshot: &Snapshot,
        to: &Destination<'_>,
    ) -> Result<PathAndQuery, Reason> {
        // Worked out before anything is changed: values come from the request as the client made it.
        let worked_out = to
            .proxy_rewrite
            .map(|block| rewrite::evaluate(block, &self.request_context(parts, target, client, remote)));
        let rewritten = worked_out.transpose().map_err(|error| {
            log::rewrite_failed(remote, &to.route.id, &error);
            Reason::BadRequest
        })?;
        if let Some(block) = to.client_identity {
            let site = self.client_auth.as_ref().and_then(|established| snapshot.site(&established.sni));
            self.identity_headers.set_headers(&mut parts.headers, block, client, site.map(Arc::as_ref));
        }
        let raw = to.proxy_rewrite.is_some_and(ProxyRewrite::uses_raw_path);
        if let Some(path) = rewritten.and_then(|rewritten| rewritten.apply(parts)) {
            return Ok(path);
        }
        match mem::take(&mut parts.uri).into_parts().path_and_query {
            Some(own) if raw && own.path() != target.forwarded_path() => {
                self.check_raw_path(client, snapshot, to).map(|()| own)
            }
            own => path::forwarded_path(target, own).map_err(|error| {
                log::request_rejected(self.arrival.peer, Reason::BadRequest, &error);
                Reason::BadRequest
            }),
        }
    }

    /// Whether no rule could be walked round by a path that is not the judged one.
    fn check_raw_path(
        &self,
        client: &ClientVerification,
        snapshot: &Snapshot,
        to: &Destination<'_>,
    ) -> Result<(), Reason> {
        let site = self.client_auth.as_ref().and_then(|established| snapshot.site(&established.sni));
        let policy = site.and_then(|site| site.client.as_deref());
        raw_path::check_request(snapshot, to, policy, client).map_err(|conflict| {
            let error = RewriteError::RawPathConflict(conflict);
            log::rewrite_failed(self.arrival.peer, &to.route.id, &error);
            Reason::BadRequest
        })
    }

    /// What the `Server` header says.
    fn server_header(&self) -> HeaderValue {
        if self.worker.shared.config.server_tokens {
            error_page::SERVER_WITH_VERSION
        } else {
            error_page::SERVER
        }
    }
}

fn content_length(headers: &http::HeaderMap<HeaderValue>) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn client_response(
    response: Response<UpstreamResponseBody>,
    under_way: Option<RequestPermit>,
) -> Response<ResponseBody> {
    let mut response = response.map(|body| ResponseBody::Upstream { body, _permit: under_way });
    headers::prepare_response(response.headers_mut());
    response
}

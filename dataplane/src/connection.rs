//! A connection's walk: the only place that knows the order of its stages.
//!
//! [`serve`]: accepted -> ClientHello -> site -> handshake -> client -> HTTP session.
//! [`answer`], for each request of the session: target -> admitted -> headers -> destination -> permitted -> told -> upstream.
//! [`carry`], where a stream is passed on instead: admitted -> destination -> node -> both ways.
//! The stages hand values back and never call each other; `docs/WALKS.md` mirrors this file line by line.

use std::{mem, net::SocketAddr, rc::Rc, sync::Arc};

use http::{HeaderValue, Method, Request, Response, header, request::Parts, uri::PathAndQuery};
use model::{
    ProxyRewrite, Snapshot, StreamQuery, Target,
    admission::{self, Client},
    destination::{self, Destination},
    raw_path,
};
use pki::Identity;

use crate::{
    drain::Running,
    http::{
        activity::Asked,
        body::{self, Body},
        head::HeadError,
        reply, request,
        session::{self, Protocol},
    },
    net::{
        listener::Speaks,
        plain::PlainStream,
        pump::Pump,
        watchdog::{Phase, Watched},
    },
    observe::log,
    outcome::Reason,
    route::{
        headers::{self, Forwarded, Trust, Via},
        identity::{self, Forms},
        path,
        remote::Remote,
        rewrite::{self, RewriteError},
        variables,
    },
    rt::{Reader, Socket, Writer},
    stream::{
        self, Failed, StreamError,
        relay::{self, Moved, Side},
    },
    tls::{
        engine::Engine, facts::Facts, handshake, hello, live::Established, refusal::Refused, site::Purpose,
        stream::TlsStream, ticket::Resumption,
    },
    upstream::{
        answer_body::AnswerBody,
        dial::Dialled,
        exchange,
        reach::Plan,
        request_body::RequestBody,
        status::{UpstreamStatus, X_APISIX_UPSTREAM_STATUS},
    },
    worker::Worker,
};

/// Who came, and where.
#[derive(Debug, Clone, Copy)]
pub struct Arrival {
    /// The client's address.
    pub peer: SocketAddr,
    /// The listener's.
    pub local: SocketAddr,
    /// What is spoken there.
    pub speaks: Speaks,
}

/// One client connection, for every request on it.
pub struct Connection {
    worker: Rc<Worker>,
    arrival: Arrival,
    /// How long requests take, as the watchdog sees it.
    pub watched: Watched,
    /// What TLS established; `None` on a plain listener.
    established: Option<Rc<Established>>,
    /// What TLS agreed on; `None` on a plain listener.
    facts: Option<Facts>,
    /// The connection as headers, for every request.
    via: Via,
    /// The client as headers, for the routes that forward it.
    forms: Forms,
}

/// Walks a connection from accept to end.
pub async fn serve(worker: Rc<Worker>, socket: Socket, arrival: Arrival) {
    let running = worker.drain.enter();
    worker.counters.open.add();
    let mut pump = Pump::new(socket);
    let Some(hang_up) = pump.hang_up() else { return };
    let phase = if arrival.speaks.begins_with_tls() { Phase::Handshake } else { Phase::Head };
    let watched = worker.watchdog.watch(hang_up, phase);
    pump.set_watched(watched.clone());
    match arrival.speaks {
        Speaks::Http => serve_plain(&worker, pump, arrival, watched, &running).await,
        Speaks::Https => serve_tls(&worker, pump, arrival, watched, &running).await,
        Speaks::Stream { tls: false } => {
            watched.enter(Phase::Relay);
            Box::pin(serve_stream(&worker, PlainStream::new(pump), &arrival, None)).await;
        }
        Speaks::Stream { tls: true } => serve_tls_stream(&worker, pump, &arrival, &watched).await,
    }
    worker.counters.open.sub();
}

async fn serve_plain(
    worker: &Rc<Worker>,
    mut pump: Pump,
    arrival: Arrival,
    watched: Watched,
    running: &Running,
) {
    let Ok(protocol) = session::sniff(&mut pump, worker.shared.rules.http2).await else { return };
    let connection = Connection::new(worker, arrival, watched, None);
    Box::pin(session::run(PlainStream::new(pump), protocol, Rc::new(connection), running)).await;
}

async fn serve_tls(
    worker: &Rc<Worker>,
    mut pump: Pump,
    arrival: Arrival,
    watched: Watched,
    running: &Running,
) {
    // Boxed, here and below: what a handshake needs is given back before the session, and an idle session is small.
    match Box::pin(establish(worker, &mut pump, arrival.peer, Purpose::Http)).await {
        Ok((tls, established)) => {
            worker.counters.shook_hands(tls.is_resumed());
            let established = Rc::new(established);
            let _entered = match worker.live.enter(&established, watched.clone(), &worker.snapshot()) {
                Ok(entered) => entered,
                Err(reason) => return established.ended(&worker.counters, reason),
            };
            watched.enter(Phase::Head);
            let protocol = Protocol::negotiated(tls.alpn());
            let facts = Facts::of(&tls);
            pump.settle();
            let connection = Connection::new(worker, arrival, watched, Some((established, facts)));
            Box::pin(session::run(TlsStream::new(tls, pump), protocol, Rc::new(connection), running)).await;
        }
        Err(refused) => {
            if refused.reason() == Reason::PlainHttp {
                pump.staged().extend_from_slice(&reply::raw_refusal(Reason::PlainHttp, &reply::SERVER));
            }
            refuse(worker, pump, &arrival, &watched, refused).await;
        }
    }
}

async fn serve_tls_stream(worker: &Worker, mut pump: Pump, arrival: &Arrival, watched: &Watched) {
    match Box::pin(establish(worker, &mut pump, arrival.peer, Purpose::Stream)).await {
        Ok((tls, established)) => {
            worker.counters.handshakes.add();
            let established = Rc::new(established);
            let _entered = match worker.live.enter(&established, watched.clone(), &worker.snapshot()) {
                Ok(entered) => entered,
                Err(reason) => return established.ended(&worker.counters, reason),
            };
            watched.enter(Phase::Relay);
            let client = TlsStream::new(tls, pump);
            Box::pin(serve_stream(worker, client, arrival, Some(&established))).await;
        }
        Err(refused) => refuse(worker, pump, arrival, watched, refused).await,
    }
}

async fn serve_stream(
    worker: &Worker,
    mut client: impl Side,
    arrival: &Arrival,
    established: Option<&Established>,
) {
    if let Err(failed) = carry(worker, &mut client, arrival, established).await {
        if let Some(reason) = failed.error.reason() {
            worker.counters.ended(reason);
        }
        log::stream_ended(arrival, established.map(|established| &established.sni), &failed);
        // A stream that broke off must not look like one that ended.
        if matches!(failed.error, StreamError::Relay(_)) {
            return;
        }
    }
    relay::farewell(&mut client).await;
}

/// The end of a connection whose handshake failed: counted, told to the operator, and an alert to the peer.
async fn refuse(worker: &Worker, pump: Pump, arrival: &Arrival, watched: &Watched, refused: Refused) {
    let refused = if watched.fired() { refused.by_timeout() } else { refused };
    worker.counters.ended(refused.reason());
    if let Some(rule) = refused.rule() {
        worker.counters.certificate_refused(rule);
    }
    log::handshake_refused(arrival, &refused);
    Box::pin(handshake::part(pump)).await;
}

/// ClientHello -> site -> handshake -> client. Over any pair of halves: the benchmarks shake hands in memory, by this very code.
///
/// # Errors
/// [`Refused`]; what the peer is to be told has been put into the pump.
pub async fn establish<R: Reader, W: Writer>(
    worker: &Worker,
    pump: &mut Pump<R, W>,
    peer: SocketAddr,
    purpose: Purpose,
) -> Result<(Engine, Established), Refused> {
    let rules = &worker.shared.rules;
    let hello = hello::read(pump).await.map_err(Refused::hello)?;
    let Some(sni) = hello.server_name(rules.fallback_sni.as_ref()) else {
        return Err(Refused::site(pump, None, Reason::NoSni));
    };
    let snapshot = worker.snapshot();
    let Some(ssl) = snapshot.site(&sni).map(Arc::clone) else {
        return Err(Refused::site(pump, Some(sni), Reason::NoSite));
    };
    if let Some(blocked) = &ssl.blocked {
        let refused = Refused::site(pump, Some(sni), Reason::BlockedSite);
        return Err(refused.because(format!("ssl {} is blocked: {}", ssl.id, blocked.why())));
    }
    let as_of = snapshot.site_changes();
    drop(snapshot);
    let config = match worker.shared.sites.config(&ssl, purpose) {
        Ok(config) => config,
        Err(error) => {
            let refused = Refused::site(pump, Some(sni), Reason::BadSite);
            return Err(refused.because(format!("the site of ssl {} cannot be served: {error}", ssl.id)));
        }
    };
    let mut resumption = Resumption::default();
    let mut tls = resumption
        .during(|| hello.begin(config, pump.staged()))
        .map_err(|error| Refused::handshake(sni.clone(), error.into()))?;
    let driven = handshake::drive_with(&mut tls, pump, &mut resumption).await;
    worker.counters.tickets_refused(resumption.refused());
    driven.map_err(|error| Refused::handshake(sni.clone(), error))?;
    let established = Established::new(sni, peer, tls.peer_chain(), &ssl, as_of, purpose);
    // The verifier refused everybody else, and so did the ticket. Should both have been wrong, nobody gets in.
    if !established.satisfies(&ssl) {
        tls.close();
        let _staging_never_fails = tls.stage(pump.staged());
        return Err(Refused::unverified(established.sni));
    }
    Ok((tls, established))
}

/// Admitted -> destination -> node -> both ways.
async fn carry(
    worker: &Worker,
    client: &mut impl Side,
    arrival: &Arrival,
    established: Option<&Established>,
) -> Result<(), Failed> {
    let refused = |reason| Failed { route: None, error: StreamError::Refused(reason) };
    let snapshot = worker.snapshot();
    if let Some(established) = established {
        established.admits_stream().map_err(refused)?;
    }
    let sni = established.map(|established| &established.sni);
    let query = StreamQuery { sni, remote: arrival.peer.ip(), server: arrival.local };
    let route = stream::find::route(&snapshot, &query).map_err(refused)?;
    let failed = |error| Failed { route: Some(route.id.clone()), error };
    let destination = stream::find::destination(&snapshot, route, &query)
        .map_err(|reason| failed(StreamError::Refused(reason)))?;
    let stream::find::Destination { upstream, timeouts, authority, .. } = destination;
    let plan = Plan { snapshot: &snapshot, upstream, timeouts, authority: Some(authority) };
    let dialled = Box::pin(worker.upstreams.connect(&plan)).await.map_err(|error| failed(error.into()))?;
    let counters = &worker.counters;
    counters.streams.add();
    let route = route.id.clone();
    // From here on the stream lives as long as its two sides; the snapshot need not.
    drop(snapshot);
    let moved = Moved { to_upstream: &counters.streamed_up, to_client: &counters.streamed_down };
    let carried = match dialled {
        Dialled::Plain(mut node) => relay::relay(client, &mut node, &timeouts, &moved).await,
        Dialled::Tls(mut node) => relay::relay(client, &mut node, &timeouts, &moved).await,
    };
    carried.map_err(|error| Failed { route: Some(route), error: error.into() })
}

/// Walks one request: the answer to a refused one is a page that says only its status.
pub async fn answer(connection: &Connection, request: Request<Asked>) -> Response<Body> {
    let counters = &connection.worker.counters;
    let head = *request.method() == Method::HEAD;
    let mut response = match forward(connection, request).await {
        Ok(response) => response,
        Err(reason) => {
            counters.ended(reason);
            reply::refusal(reason)
        }
    };
    body::frame_for(head, &mut response);
    counters.answered(response.status());
    response.headers_mut().insert(header::SERVER, connection.server());
    response
}

/// The answer to a head that is no request yet, as bytes; the connection ends with it.
pub fn refuse_head(connection: &Connection, error: HeadError) -> Vec<u8> {
    let (counters, reason) = (&connection.worker.counters, error.reason());
    log::request_refused(connection.arrival.peer, reason, &error);
    counters.ended(reason);
    if let Some(status) = reason.status() {
        counters.answered(status);
    }
    reply::raw_refusal(reason, &connection.server())
}

/// Target -> admitted -> headers -> destination -> permitted -> told -> upstream.
async fn forward(connection: &Connection, asked: Request<Asked>) -> Result<Response<Body>, Reason> {
    let worker = &connection.worker;
    let rules = &worker.shared.rules;
    let snapshot = worker.snapshot();
    let (mut parts, body) = asked.into_parts();
    // Wrapped first: whatever is refused from here on, what the client still sends is read out.
    let body = RequestBody::new(body, rules.body_max, rules.body_timeout);
    // Read off the headers as they came.
    let remote = Remote::of(&connection.arrival, rules.real_ip.as_ref(), &parts.headers);
    request::check(&mut parts, rules.head).map_err(|error| {
        log::request_refused(remote, error.reason(), &error);
        error.reason()
    })?;
    let target =
        request::target(parts.version, &parts.uri, &parts.headers, rules.paths).map_err(|error| {
            log::request_refused(remote, Reason::BadRequest, &error);
            Reason::BadRequest
        })?;
    let client = connection.admit(&snapshot, &target, &remote)?;
    // Before anything reads a header: claims from outside must not even choose a route.
    headers::to_upstream(&mut parts.headers, &connection.forwarded(&target, &remote));
    let destination =
        connection.destination(&snapshot, &connection.seen(&parts, &target, &client, &remote), &remote)?;
    if rules.body_max > 0 && declared_length(&parts.headers).is_some_and(|length| length > rules.body_max) {
        return Err(Reason::BodyTooLarge);
    }
    let path = connection.tell(&mut parts, &target, &client, &remote, &snapshot, &destination)?;
    let request = exchange::outgoing(parts, path, body);
    let Destination { upstream, timeouts, proxy_rewrite, .. } = destination;
    let authority = proxy_rewrite.and_then(ProxyRewrite::host).or(target.authority.as_deref());
    let plan = Plan { snapshot: &snapshot, upstream, timeouts, authority };
    let mut status = UpstreamStatus::default();
    let exchanged = worker.upstreams.exchange(&plan, request, &mut status).await;
    let answered = match exchanged {
        Ok(response) => rules.head.admit(0, response.headers()).map(|()| response).map_err(|error| {
            log::answer_refused(remote, &destination.route.id, &error);
            Reason::UpstreamInvalid
        }),
        Err(error) => {
            let reason = error.reason();
            log::exchange_failed(remote, reason, &destination.route.id, &error);
            Err(reason)
        }
    };
    let mut response = answered.map_or_else(
        |reason| {
            worker.counters.ended(reason);
            reply::refusal(reason)
        },
        incoming,
    );
    if let Some(status) = status.header(rules.show_upstream_status) {
        response.headers_mut().insert(X_APISIX_UPSTREAM_STATUS, status);
    }
    Ok(response)
}

impl Connection {
    /// `secured`: what TLS established and agreed on.
    fn new(
        worker: &Rc<Worker>,
        arrival: Arrival,
        watched: Watched,
        secured: Option<(Rc<Established>, Facts)>,
    ) -> Self {
        let (established, facts) = secured.unzip();
        let via = Via::new(arrival.peer, arrival.local.port(), established.is_some());
        let forms = Forms::default();
        Self { worker: Rc::clone(worker), arrival, watched, established, facts, via, forms }
    }

    /// Whether this client may ask for this target, under the newest policies, and who it is for this request.
    fn admit(&self, snapshot: &Snapshot, target: &Target, remote: &Remote) -> Result<Client, Reason> {
        let Some(established) = &self.established else { return Ok(Client::NotAsked) };
        let ssl = snapshot.site(&established.sni).map(Arc::as_ref);
        if let Some(ssl) = ssl {
            established.review(ssl);
        }
        let client = established.client();
        let site = admission::Site { sni: &established.sni, ssl, client: &client };
        admission::admit(&site, snapshot, target).cloned().inspect_err(|&reason| {
            let rule = client.refused_by(reason);
            if let Some(rule) = rule {
                self.worker.counters.certificate_refused(rule);
            }
            let (sni, host, leaf) = (&established.sni, target.host.as_ref(), established.leaf());
            let leaf = leaf.as_ref();
            log::client_refused(remote, &log::Denied { reason, sni, host, rule, leaf });
        })
    }

    /// What the forwarded headers are made from. Trusted is the connection's peer, whoever it speaks for.
    fn forwarded<'a>(&'a self, target: &'a Target, remote: &Remote) -> Forwarded<'a> {
        let rules = &self.worker.shared.rules;
        let (trusted, real_ip) = (rules.trusted.as_deref(), rules.real_ip.as_ref());
        Forwarded {
            via: &self.via,
            client: remote.found(),
            bounded: trusted.is_some(),
            trust: Trust::of(remote.direct.ip(), trusted, real_ip),
            authority: target.authority.as_deref(),
        }
    }

    /// A request as the variables of routes see it.
    fn seen<'a>(
        &'a self,
        parts: &'a Parts,
        target: &'a Target,
        client: &'a Client,
        remote: &'a Remote,
    ) -> variables::Request<'a> {
        let sni = self.established.as_ref().map(|established| &established.sni);
        variables::Request {
            parts,
            target,
            arrival: &remote.arrival,
            direct: remote.direct,
            tls: sni.zip(self.facts.as_ref()),
            client,
        }
    }

    /// Where the request goes, if its route lets this client through.
    fn destination<'a>(
        &self,
        snapshot: &'a Snapshot,
        seen: &variables::Request<'_>,
        remote: &Remote,
    ) -> Result<Destination<'a>, Reason> {
        let variables::Request { parts, target, client, .. } = *seen;
        let found = destination::find(snapshot, target, parts.method.as_str(), seen.arrival.peer.ip(), seen)
            .inspect_err(|&reason| log::no_destination(remote, reason, target.host.as_ref(), &target.path))?;
        identity::permit(found.client_identity, client).inspect_err(|_| {
            let identity = client.identity();
            let leaf = identity.map(|identity| identity.certificate().der());
            let uris = identity.map(Identity::san_uris).unwrap_or_default();
            log::not_allowed(remote, &found.route.id, leaf, uris);
        })?;
        Ok(found)
    }

    /// Tells the upstream who the client is, then rewrites what the route wants rewritten. Gives the path to forward.
    fn tell(
        &self,
        parts: &mut Parts,
        target: &Target,
        client: &Client,
        remote: &Remote,
        snapshot: &Snapshot,
        to: &Destination<'_>,
    ) -> Result<PathAndQuery, Reason> {
        // Worked out before anything is changed: values come from the request as the client made it.
        let worked_out =
            to.proxy_rewrite.map(|block| rewrite::work_out(block, &self.seen(parts, target, client, remote)));
        let rewritten = worked_out.transpose().map_err(|error| {
            log::not_rewritten(remote, &to.route.id, &error);
            Reason::BadRequest
        })?;
        if let Some(block) = to.client_identity {
            let site = self.established.as_ref().and_then(|established| snapshot.site(&established.sni));
            self.forms.tell(&mut parts.headers, block, client, site.map(Arc::as_ref));
        }
        let raw = to.proxy_rewrite.is_some_and(ProxyRewrite::real_uri);
        if let Some(path) = rewritten.and_then(|rewritten| rewritten.apply(parts)) {
            return Ok(path);
        }
        match mem::take(&mut parts.uri).into_parts().path_and_query {
            Some(own) if raw && own.path() != target.forwarded() => {
                self.judge_raw_path(target, client, snapshot, to).map(|()| own)
            }
            own => path::forwarded(target, own).map_err(|error| {
                log::request_refused(self.arrival.peer, Reason::BadRequest, &error);
                Reason::BadRequest
            }),
        }
    }

    /// Whether no rule could be walked round by a path that is not the judged one.
    fn judge_raw_path(
        &self,
        target: &Target,
        client: &Client,
        snapshot: &Snapshot,
        to: &Destination<'_>,
    ) -> Result<(), Reason> {
        let site = self.established.as_ref().and_then(|established| snapshot.site(&established.sni));
        let policy = site.and_then(|site| site.client.as_deref());
        raw_path::judge(snapshot, to, target.host.as_ref(), policy, client).map_err(|conflict| {
            let error = RewriteError::RealUri(conflict);
            log::not_rewritten(self.arrival.peer, &to.route.id, &error);
            Reason::BadRequest
        })
    }

    /// What the `Server` header says.
    fn server(&self) -> HeaderValue {
        if self.worker.shared.rules.server_tokens { reply::SERVER_WITH_VERSION } else { reply::SERVER }
    }

    /// The worker this connection lives on.
    pub fn worker(&self) -> &Worker {
        &self.worker
    }
}

fn declared_length(headers: &http::HeaderMap<HeaderValue>) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn incoming(response: Response<AnswerBody>) -> Response<Body> {
    let mut response = response.map(Body::Upstream);
    headers::to_client(response.headers_mut());
    response
}

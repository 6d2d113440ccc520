//! The handler: the one function that knows in which order a request is judged (contract 2.1, 2.2).
//!
//! Address, client certificate, OPTIONS, path, key, then the table. Verbs are the same for every
//! kind of resource; what differs between kinds lives in `model` and `change`.

mod data_planes;

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::EXPECT;
use http::request::Parts;
use http::{Method, Request, StatusCode};
use hyper::body::Incoming;
use model::{Id, Key, Kind};
use pki::Keyring;
use rustls_pki_types::UnixTime;
use serde_json::{Value, json};
use tokio::sync::Notify;

use super::access::{Access, Caller};
use super::body::{self, BodyError};
use super::client::{AdminClient, ClientCertStatus};
use super::list::{self, DocumentView, ListQuery, ListView};
use super::metrics::{self, Operation};
use super::nodes::FleetStatus;
use super::path::{AdminPath, ApiResource};
use super::query::Query;
use super::reply::{self, Reply, ResponseHeaders};
use super::{audit, denied_nodes};
use crate::change::private_keys::redact_clear_keys;
use crate::change::{ChangeError, ChangePipeline, CommittedChange, WriteOptions};
use crate::current_snapshot::CurrentSnapshot;
use crate::error_counters::ErrorReason;
use crate::publish::{DeniedNodes, StoreAcceptance};
use crate::store::{CachedDocuments, Store, StoreError, StoredDocument};
use crate::{explain, lint};

/// The longest time to live, in seconds.
const TTL_MAX: f64 = u32::MAX as f64;

/// The Admin API, behind its listener.
pub struct AdminApi {
    /// Where documents are read.
    pub store: Arc<dyn Store>,
    /// Through which they are changed.
    pub changes: ChangePipeline,
    /// Who may ask.
    pub access: Access,
    /// The data planes.
    pub fleet: Arc<dyn FleetStatus>,
    /// Which of them may not connect.
    pub denied: Arc<DeniedNodes>,
    /// Whether they take this store's state over for another one's.
    pub acceptance: Arc<StoreAcceptance>,
    /// What they are served.
    pub current: CurrentSnapshot,
    /// Opens the private keys in stored documents.
    pub keyring: Arc<Keyring>,
    /// Headers of every answer.
    pub headers: ResponseHeaders,
    /// The longest wait for a piece of a request's body.
    pub body_timeout: Duration,
    /// Whether there are stream routes (`apisix.proxy_mode`).
    pub stream_routes_enabled: bool,
}

/// A request whose caller is known.
struct AdminRequest {
    method: Method,
    query: Query,
    id: Option<String>,
    sub_path: Option<String>,
    body: Result<Option<Value>, BodyError>,
}

impl AdminApi {
    /// Answers a request. Never fails: what goes wrong is an answer. `authorised` is notified once
    /// the caller is known.
    pub async fn handle(
        self: &Arc<Self>,
        peer: &Arc<AdminClient>,
        request: Request<Incoming>,
        authorised: &Notify,
    ) -> Reply {
        let (head, body) = request.into_parts();
        let mut body = Some(body);
        let named = self.access.client_address(peer.address.ip(), &head.headers);
        let named =
            named.map(|address| Arc::new(AdminClient { address, certificate: peer.certificate.clone() }));
        let reply = self.authorize(named.as_ref().unwrap_or(peer), &head, &mut body, authorised).await;
        // A peer that is refused while it still sends would lose the answer with the connection.
        if let Some(body) = body
            && !head.headers.contains_key(EXPECT)
        {
            body::discard(body).await;
        }
        reply::with_common_headers(reply, self.headers)
    }

    async fn authorize(
        self: &Arc<Self>,
        peer: &Arc<AdminClient>,
        head: &Parts,
        body: &mut Option<Incoming>,
        authorised: &Notify,
    ) -> Reply {
        if !self.access.allows(peer.address.ip()) {
            if let Some(earlier) = ErrorReason::AdminAddress.record() {
                tracing::warn!(from = %peer.address, earlier, "refused by allow_admin");
            }
            return reply::with_close(reply::status_page(StatusCode::FORBIDDEN));
        }
        if let Some(refusal) = check_certificate(peer, UnixTime::now()) {
            return refusal;
        }
        if head.method == Method::OPTIONS {
            return reply::options();
        }
        let (row, id, sub_path) = match AdminPath::parse(head.uri.path()) {
            AdminPath::Elsewhere => return reply::status_page(StatusCode::NOT_FOUND),
            AdminPath::Root if head.method == Method::HEAD => return reply::empty(StatusCode::OK),
            AdminPath::Root => return reply::status_page(StatusCode::NOT_FOUND),
            AdminPath::Resource(row, id, sub_path) => (Ok(row), id, sub_path),
            AdminPath::Unknown(name) => (Err(name), None, None),
        };
        let query = Query::parse(head.uri.query());
        // A question changes nothing, although it needs a body.
        let reads = head.method == Method::GET
            || (head.method == Method::POST && matches!(row, Ok(ApiResource::Explain)));
        let caller = match self.access.authenticate(reads, &query, &head.headers) {
            Ok(caller) => caller,
            Err(error) => {
                if let Some(earlier) = ErrorReason::AdminKey.record() {
                    tracing::warn!(from = %peer.address, earlier, "failed to check token: {error}");
                }
                let body = json!({"error_msg": "failed to check token", "description": error.to_string()});
                return reply::json(StatusCode::UNAUTHORIZED, &body);
            }
        };
        authorised.notify_one();
        let row = match row {
            Ok(row) => row,
            Err(name) => {
                let message = format!("Unsupported resource type: {name}");
                return reply::error(StatusCode::NOT_FOUND, &message, None);
            }
        };
        if row == ApiResource::Resource(Kind::StreamRoute)
            && let Some(refusal) = self.check_stream_routes(&head.method)
        {
            return refusal;
        }
        let body = match (&head.method, body.take()) {
            (&Method::PUT | &Method::POST | &Method::PATCH, Some(body)) => {
                body::read(body, self.body_timeout).await
            }
            _ => Ok(None),
        };
        self.dispatch(
            peer,
            caller,
            row,
            AdminRequest { method: head.method.clone(), query, id, sub_path, body },
        )
        .await
    }

    async fn dispatch(
        self: &Arc<Self>,
        peer: &Arc<AdminClient>,
        caller: Caller,
        row: ApiResource,
        asked: AdminRequest,
    ) -> Reply {
        let writes = matches!(asked.method, Method::PUT | Method::POST | Method::PATCH | Method::DELETE);
        match row {
            ApiResource::Resource(kind) if writes => {
                // A task of its own: a peer that hangs up must not end a write between its commit and its
                // audit line.
                let (admin, peer) = (Arc::clone(self), Arc::clone(peer));
                let task =
                    tokio::spawn(async move { admin.audited_write(&peer, &caller, kind, asked).await });
                task.await.unwrap_or_else(|_| reply::empty(StatusCode::INTERNAL_SERVER_ERROR))
            }
            ApiResource::Resource(kind) if asked.method == Method::GET => {
                let read = self.read(kind, &asked).await;
                reply::with_api_version(read.unwrap_or_else(|error| error_reply(ChangeError::Store(error))))
            }
            ApiResource::Resource(_) => reply::with_api_version(not_found()),
            ApiResource::Schema => reply::with_api_version(handle_schema(asked)),
            ApiResource::DataPlanes if asked.id.as_deref() == Some(data_planes::ACCEPT_STORE) => {
                self.accept_store(peer, &caller, asked).await
            }
            ApiResource::DataPlanes => self.data_planes(&asked).await,
            ApiResource::DeniedNodes => self.denied_nodes(peer, &caller, asked).await,
            ApiResource::Explain => self.handle_explain(peer, asked).await,
            ApiResource::Lint => self.handle_lint(&asked).await,
        }
    }

    /// Stream routes may be switched off altogether, and are never changed in part (contract 2.2).
    fn check_stream_routes(&self, method: &Method) -> Option<Reply> {
        if !self.stream_routes_enabled {
            let message = "stream mode is disabled, can not add stream routes";
            let hint = "set apisix.proxy_mode to http&stream, and the listeners in apisix.stream_proxy.tcp";
            return Some(reply::error(StatusCode::BAD_REQUEST, message, Some(hint)));
        }
        let refused = "not supported `PATCH` method for stream route";
        (*method == Method::PATCH).then(|| {
            reply::with_api_version(reply::error(
                StatusCode::METHOD_NOT_ALLOWED,
                refused,
                Some("PUT the whole"),
            ))
        })
    }

    async fn audited_write(
        &self,
        peer: &AdminClient,
        caller: &Caller,
        kind: Kind,
        asked: AdminRequest,
    ) -> Reply {
        let method = asked.method.clone();
        let what = [Some(kind.plural()), asked.id.as_deref(), asked.sub_path.as_deref()];
        let what = what.into_iter().flatten().collect::<Vec<_>>().join("/");
        let begun = Instant::now();
        let reply = reply::with_api_version(self.write(kind, asked).await);
        metrics::observe_duration(Operation::Change, begun);
        let revision = reply.headers().get(reply::REVISION);
        let revision = revision.and_then(|value| value.to_str().ok()?.parse().ok());
        if let Some(revision) = revision {
            self.current.note_write(revision);
        }
        let status = reply.status();
        audit::write(&audit::AuditEntry {
            caller,
            client: peer,
            method: &method,
            resource: &what,
            status,
            revision,
        });
        reply
    }

    async fn denied_nodes(&self, peer: &AdminClient, caller: &Caller, asked: AdminRequest) -> Reply {
        let AdminRequest { method, id, sub_path, body, .. } = asked;
        let body = match body {
            Ok(body) => body,
            Err(refused) => return refused.into(),
        };
        let reply = match &sub_path {
            None => denied_nodes::handle(&self.denied, &method, id.as_deref(), body).await,
            Some(_) => not_found(),
        };
        if method != Method::GET {
            let path = [Some("denied_nodes"), id.as_deref(), sub_path.as_deref()];
            let what = path.into_iter().flatten().collect::<Vec<_>>().join("/");
            audit_without_revision(peer, caller, &method, &what, &reply);
        }
        reply
    }

    async fn read(&self, kind: Kind, asked: &AdminRequest) -> Result<Reply, StoreError> {
        let Some(id) = &asked.id else {
            return match ListQuery::from_query(kind, &asked.query) {
                Ok(selection) => self.list(kind, selection).await,
                Err(refusal) => Ok(refusal),
            };
        };
        // A text that cannot be an id is the name of nothing.
        let Ok(id) = Id::parse(id) else { return Ok(reply::key_not_found()) };
        let key = Key::new(kind, id);
        let show = |item: Option<StoredDocument>| {
            item.map_or_else(reply::key_not_found, |item| {
                reply::json(StatusCode::OK, &DocumentView::of(self.store.prefix(), item))
            })
        };
        match self.store.get(&key).await {
            Ok(found) => Ok(show(found)),
            Err(error) => {
                let CachedDocuments { age, documents: loaded } = self.cached(kind, error)?;
                let found = loaded.items.into_iter().find(|item| item.key == key);
                Ok(reply::with_age(show(found), age))
            }
        }
    }

    async fn list(&self, kind: Kind, selection: ListQuery) -> Result<Reply, StoreError> {
        let shown =
            |store: &dyn Store, page| reply::json(StatusCode::OK, &ListView::of(store.prefix(), page));
        if let Some((first, size)) = selection.page_bounds() {
            let begun = Instant::now();
            match self.store.page(kind, first, size).await {
                Ok(page) => {
                    let reply = shown(&*self.store, page);
                    metrics::observe_duration(Operation::Page, begun);
                    return Ok(reply);
                }
                Err(StoreError::Unavailable { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let read = async {
            match self.store.list(kind).await {
                Ok(loaded) => Ok((loaded, None)),
                Err(error) => self
                    .cached(kind, error)
                    .map(|CachedDocuments { age, documents: loaded }| (loaded, Some(age))),
            }
        };
        let store = Arc::clone(&self.store);
        list::reply_from_full_read(read, move |(loaded, age)| {
            let reply = shown(&*store, selection.apply(loaded.items));
            age.into_iter().fold(reply, reply::with_age)
        })
        .await
    }

    /// What is remembered of a kind while the store cannot be reached; the answer says so in a
    /// header.
    fn cached(&self, kind: Kind, error: StoreError) -> Result<CachedDocuments, StoreError> {
        match error {
            StoreError::Unavailable { .. } => self.store.cached(Some(kind)).ok_or(error),
            error => Err(error),
        }
    }

    async fn write(&self, kind: Kind, asked: AdminRequest) -> Reply {
        let AdminRequest { method, query, id, sub_path, body } = asked;
        let body = match body {
            Ok(body) => body,
            Err(refused) => return refused.into(),
        };
        let ttl = match self.ttl(&method, &query) {
            Ok(ttl) => ttl,
            Err((message, hint)) => return reply::error(StatusCode::BAD_REQUEST, message, hint),
        };
        let moment = WriteOptions { now: UnixTime::now(), ttl };
        let (id, sub_path) = (id.as_deref(), sub_path.as_deref());
        let done = match method {
            Method::PUT => self.changes.put(kind, id, body, moment).await,
            Method::POST => self.changes.post(kind, id, body, moment).await,
            _ => {
                let Some(id) = id else {
                    let message = format!("missing {} id", kind.noun());
                    return reply::error(StatusCode::BAD_REQUEST, &message, None);
                };
                // A text that cannot be an id is the name of nothing.
                let Ok(id) = Id::parse(id) else { return reply::key_not_found() };
                let key = Key::new(kind, id);
                if method == Method::PATCH {
                    self.changes.patch(&key, sub_path, body, moment).await
                } else {
                    self.changes.delete(&key, query.get("force") == Some("true")).await
                }
            }
        };
        match done {
            Ok(done) => change_reply(&method, self.store.prefix(), done),
            Err(error) => error_reply(error),
        }
    }

    /// `?ttl=`: seconds until the store removes what is written, where it can (contract 2.3). The
    /// error is why not, and advice.
    fn ttl(
        &self,
        method: &Method,
        query: &Query,
    ) -> Result<Option<NonZeroU32>, (&'static str, Option<&'static str>)> {
        let Some(ttl) = query.get("ttl").filter(|_| *method != Method::DELETE) else { return Ok(None) };
        let seconds: f64 = ttl.parse().map_err(|_| ("invalid argument ttl: should be a number", None))?;
        if !self.store.supports_ttl() {
            let hint = "only an etcd store (config_provider: etcd) forgets by itself";
            return Err((
                "invalid argument ttl: this store keeps documents until they are deleted",
                Some(hint),
            ));
        }
        if !(1.0..=TTL_MAX).contains(&seconds) {
            return Err(("invalid argument ttl: should be from 1 to 4294967295 seconds", None));
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "the range was just checked"
        )]
        Ok(NonZeroU32::new(seconds as u32))
    }

    async fn handle_explain(&self, peer: &AdminClient, asked: AdminRequest) -> Reply {
        if asked.method != Method::POST || asked.id.is_some() {
            return not_found();
        }
        let body = match asked.body {
            Ok(body) => body,
            Err(refused) => return refused.into(),
        };
        match explain::parse(body, peer.address.ip()) {
            Ok(question) => {
                let snapshot = self.current.snapshot().await;
                let listeners = self.current.listeners.clone();
                // A hostile chain costs a second at most, but not on the runtime.
                let work = tokio::task::spawn_blocking(move || {
                    explain::explain(&question, &snapshot, &listeners, UnixTime::now())
                });
                work.await.map_or_else(
                    |_| reply::empty(StatusCode::INTERNAL_SERVER_ERROR),
                    |answer| reply::json(StatusCode::OK, &answer),
                )
            }
            Err(problem) => error_reply(ChangeError::Invalid(problem)),
        }
    }

    async fn handle_lint(&self, asked: &AdminRequest) -> Reply {
        if asked.method != Method::GET || asked.id.is_some() {
            return not_found();
        }
        let found = lint::collect(&*self.store, &self.current, &*self.fleet, UnixTime::now());
        let shown = list::reply_from_full_read(found, |found| reply::json(StatusCode::OK, &found.to_json()));
        shown.await.unwrap_or_else(|error| error_reply(ChangeError::Store(error)))
    }
}

/// The 400 page for a connection without a good client certificate; the handshake succeeded, as
/// with nginx (contract 2.1).
fn check_certificate(peer: &AdminClient, now: UnixTime) -> Option<Reply> {
    let refused = |why: &str| {
        if let Some(earlier) = ErrorReason::AdminCertificate.record() {
            tracing::warn!(from = %peer.address, why, earlier, "refused a client certificate");
        }
        Some(reply::closing_error_page("The SSL certificate error"))
    };
    match &peer.certificate {
        ClientCertStatus::NotRequested => None,
        ClientCertStatus::Missing => {
            if let Some(earlier) = ErrorReason::AdminCertificate.record() {
                tracing::warn!(from = %peer.address, earlier, "no client certificate");
            }
            Some(reply::closing_error_page("No required SSL certificate was sent"))
        }
        ClientCertStatus::Rejected(why) => refused(why),
        ClientCertStatus::Verified { expires, .. } if now > *expires => {
            refused("it expired while the connection was open")
        }
        ClientCertStatus::Verified { .. } => None,
    }
}

/// A change that was made, as the contract shows it; a private key in clear is not repeated
/// (contract 12.5).
fn change_reply(method: &Method, prefix: &str, mut done: CommittedChange) -> Reply {
    redact_clear_keys(done.key.kind, &mut done.document);
    let told = done.notes;
    let key = format!("{prefix}/{}", done.key);
    let reply = if *method == Method::DELETE {
        reply::json(StatusCode::OK, &json!({"deleted": "1", "key": key}))
    } else {
        let status = if done.existed { StatusCode::OK } else { StatusCode::CREATED };
        reply::json(status, &json!({"key": key, "value": done.document}))
    };
    reply::with_notes(reply::with_revision(reply, done.revision), &told)
}

/// A write of a private entry, which has no revision.
fn audit_without_revision(peer: &AdminClient, caller: &Caller, method: &Method, what: &str, reply: &Reply) {
    let status = reply.status();
    audit::write(&audit::AuditEntry { caller, client: peer, method, resource: what, status, revision: None });
}

fn error_reply(error: ChangeError) -> Reply {
    match error {
        ChangeError::Invalid(problem) => reply::problem(&problem),
        ChangeError::NotFound => reply::key_not_found(),
        ChangeError::Store(error) => reply::error(StatusCode::SERVICE_UNAVAILABLE, &error.to_string(), None),
    }
}

fn not_found() -> Reply {
    reply::error(StatusCode::NOT_FOUND, "not found", None)
}

/// `GET schema/{kind}`, and `POST schema/validate/{kinds}`: the schema alone, nothing of what
/// `change::check` adds (contract 2.8).
fn handle_schema(asked: AdminRequest) -> Reply {
    let AdminRequest { method, id, sub_path, body, .. } = asked;
    let body = match body {
        Ok(body) => body,
        Err(refused) => return refused.into(),
    };
    match (method, id.as_deref(), sub_path.as_deref()) {
        (Method::GET, Some(name), None) => match Kind::ADMIN.into_iter().find(|kind| kind.singular() == name)
        {
            Some(kind) => reply::json(StatusCode::OK, model::json_schema(kind)),
            None => reply::error(StatusCode::BAD_REQUEST, &format!("not found schema: {name}"), None),
        },
        (Method::POST, Some("validate"), Some(plural)) => {
            match Kind::ADMIN.into_iter().find(|kind| kind.plural() == plural) {
                Some(kind) => match model::validate(kind, &body.unwrap_or(Value::Null)) {
                    Ok(()) => reply::empty(StatusCode::OK),
                    Err(problem) => reply::problem(&problem),
                },
                None => reply::error(StatusCode::BAD_REQUEST, &format!("not found schema: {plural}"), None),
            }
        }
        _ => not_found(),
    }
}

//! The request handler: the order in which a request is checked (contract 2.1, 2.2).
//!
//! Address, client certificate, OPTIONS, path, key, resource. The methods are the same for every
//! kind of resource; `model` and `change` own what differs between kinds.

mod data_planes;
mod documents;

use std::sync::Arc;
use std::time::Duration;

use http::header::EXPECT;
use http::request::Parts;
use http::{Method, Request, StatusCode};
use hyper::body::Incoming;
use model::Kind;
use pki::Keyring;
use rustls_pki_types::UnixTime;
use serde_json::{Value, json};
use tokio::sync::Notify;

use super::access::{Access, AdminClient, Caller, ClientCertStatus};
use super::body::{self, BodyError};
use super::list;
use super::path::{AdminPath, ApiResource};
use super::query::Query;
use super::reply::{self, Reply, ResponseHeaders};
use super::{audit, denied_nodes};
use crate::change::{ChangeError, ChangePipeline};
use crate::current_snapshot::CurrentSnapshot;
use crate::listener_errors::ErrorReason;
use crate::publish::{DeniedNodes, FleetStatus, StoreAcceptance};
use crate::store::Store;
use crate::{explain, lint};

/// The Admin API without its listener.
pub struct AdminApi {
    pub store: Arc<dyn Store>,
    pub changes: ChangePipeline,
    pub access: Access,
    pub fleet: Arc<dyn FleetStatus>,
    pub denied: Arc<DeniedNodes>,
    pub acceptance: Arc<StoreAcceptance>,
    pub current: CurrentSnapshot,
    /// Decrypts the private keys in stored documents.
    pub keyring: Arc<Keyring>,
    pub headers: ResponseHeaders,
    /// The longest wait between two frames of a request body.
    pub body_timeout: Duration,
    /// Whether `apisix.proxy_mode` has stream routes.
    pub stream_routes_enabled: bool,
}

/// A request of an authenticated caller.
struct AdminRequest {
    method: Method,
    query: Query,
    id: Option<String>,
    sub_path: Option<String>,
    body: Result<Option<Value>, BodyError>,
}

impl AdminApi {
    /// Handles a request; failures are responses. `authenticated` is notified once the caller is
    /// authenticated.
    pub async fn handle(
        self: &Arc<Self>,
        client: &Arc<AdminClient>,
        request: Request<Incoming>,
        authenticated: &Notify,
    ) -> Reply {
        let (head, body) = request.into_parts();
        let mut body = Some(body);
        let real_ip = self.access.client_address(client.address.ip(), &head.headers);
        let forwarded =
            real_ip.map(|address| Arc::new(AdminClient { address, certificate: client.certificate.clone() }));
        let reply =
            self.authorize(forwarded.as_ref().unwrap_or(client), &head, &mut body, authenticated).await;
        // A client that is rejected while it sends would lose the response when the connection
        // closes.
        if let Some(body) = body
            && !head.headers.contains_key(EXPECT)
        {
            body::discard(body).await;
        }
        reply::with_common_headers(reply, self.headers)
    }

    async fn authorize(
        self: &Arc<Self>,
        client: &Arc<AdminClient>,
        head: &Parts,
        body: &mut Option<Incoming>,
        authenticated: &Notify,
    ) -> Reply {
        if !self.access.allows(client.address.ip()) {
            if let Some(suppressed) = ErrorReason::AdminAddress.record() {
                tracing::warn!(peer = %client.address, suppressed, "denied by allow_admin");
            }
            return reply::with_close(reply::status_page(StatusCode::FORBIDDEN));
        }
        if let Some(rejection) = check_certificate(client, UnixTime::now()) {
            return rejection;
        }
        if head.method == Method::OPTIONS {
            return reply::options();
        }
        let (resource, id, sub_path) = match AdminPath::parse(head.uri.path()) {
            AdminPath::NotAdmin => return reply::status_page(StatusCode::NOT_FOUND),
            AdminPath::Root if head.method == Method::HEAD => return reply::empty(StatusCode::OK),
            AdminPath::Root => return reply::status_page(StatusCode::NOT_FOUND),
            AdminPath::Resource(resource, id, sub_path) => (Ok(resource), id, sub_path),
            AdminPath::Unknown(name) => (Err(name), None, None),
        };
        let query = Query::parse(head.uri.query());
        // `POST explain` changes nothing, although it has a body.
        let reads = head.method == Method::GET
            || (head.method == Method::POST && matches!(resource, Ok(ApiResource::Explain)));
        let caller = match self.access.authenticate(reads, &query, &head.headers) {
            Ok(caller) => caller,
            Err(error) => {
                if let Some(suppressed) = ErrorReason::AdminKey.record() {
                    tracing::warn!(peer = %client.address, suppressed, "failed to check token: {error}");
                }
                let body = json!({"error_msg": "failed to check token", "description": error.to_string()});
                return reply::json(StatusCode::UNAUTHORIZED, &body);
            }
        };
        authenticated.notify_one();
        let resource = match resource {
            Ok(resource) => resource,
            Err(name) => {
                let message = format!("Unsupported resource type: {name}");
                return reply::error(StatusCode::NOT_FOUND, &message, None);
            }
        };
        if resource == ApiResource::Documents(Kind::StreamRoute)
            && let Some(error) = self.check_stream_routes(&head.method)
        {
            return error;
        }
        let body = match (&head.method, body.take()) {
            (&Method::PUT | &Method::POST | &Method::PATCH, Some(body)) => {
                body::read(body, self.body_timeout).await
            }
            _ => Ok(None),
        };
        self.dispatch(
            client,
            caller,
            resource,
            AdminRequest { method: head.method.clone(), query, id, sub_path, body },
        )
        .await
    }

    async fn dispatch(
        self: &Arc<Self>,
        client: &Arc<AdminClient>,
        caller: Caller,
        resource: ApiResource,
        request: AdminRequest,
    ) -> Reply {
        let writes = matches!(request.method, Method::PUT | Method::POST | Method::PATCH | Method::DELETE);
        match resource {
            ApiResource::Documents(kind) if writes => {
                // Runs as its own task: a closed connection must not cancel a write between its
                // commit and its audit line.
                let (api, client) = (Arc::clone(self), Arc::clone(client));
                let task =
                    tokio::spawn(async move { api.audited_write(&client, &caller, kind, request).await });
                task.await.unwrap_or_else(|_| reply::empty(StatusCode::INTERNAL_SERVER_ERROR))
            }
            ApiResource::Documents(kind) if request.method == Method::GET => {
                let read = self.read(kind, &request).await;
                reply::with_api_version(read.unwrap_or_else(|error| error_reply(ChangeError::Store(error))))
            }
            ApiResource::Documents(_) => reply::with_api_version(not_found()),
            ApiResource::Schema => reply::with_api_version(handle_schema(request)),
            ApiResource::DataPlanes if request.id.as_deref() == Some(data_planes::ACCEPT_STORE) => {
                self.accept_store(client, &caller, request).await
            }
            ApiResource::DataPlanes => self.data_planes(&request).await,
            ApiResource::DeniedNodes => self.denied_nodes(client, &caller, request).await,
            ApiResource::Explain => self.handle_explain(client, request).await,
            ApiResource::Lint => self.handle_lint(&request).await,
        }
    }

    /// Stream routes can be switched off as a whole, and cannot be patched (contract 2.2).
    fn check_stream_routes(&self, method: &Method) -> Option<Reply> {
        if !self.stream_routes_enabled {
            let message = "stream mode is disabled, can not add stream routes";
            let hint = "set apisix.proxy_mode to http&stream, and the listeners in apisix.stream_proxy.tcp";
            return Some(reply::error(StatusCode::BAD_REQUEST, message, Some(hint)));
        }
        let message = "not supported `PATCH` method for stream route";
        (*method == Method::PATCH).then(|| {
            reply::with_api_version(reply::error(
                StatusCode::METHOD_NOT_ALLOWED,
                message,
                Some("PUT the whole"),
            ))
        })
    }

    async fn denied_nodes(&self, client: &AdminClient, caller: &Caller, request: AdminRequest) -> Reply {
        let AdminRequest { method, id, sub_path, body, .. } = request;
        let body = match body {
            Ok(body) => body,
            Err(error) => return error.into(),
        };
        let reply = match &sub_path {
            None => denied_nodes::handle(&self.denied, &method, id.as_deref(), body).await,
            Some(_) => not_found(),
        };
        if method != Method::GET {
            let path = [Some("denied_nodes"), id.as_deref(), sub_path.as_deref()];
            let resource = path.into_iter().flatten().collect::<Vec<_>>().join("/");
            audit_without_revision(client, caller, &method, &resource, &reply);
        }
        reply
    }

    async fn handle_explain(&self, client: &AdminClient, request: AdminRequest) -> Reply {
        if request.method != Method::POST || request.id.is_some() {
            return not_found();
        }
        let body = match request.body {
            Ok(body) => body,
            Err(error) => return error.into(),
        };
        match explain::parse(body, client.address.ip()) {
            Ok(query) => {
                let snapshot = self.current.snapshot().await;
                let listeners = self.current.listeners.clone();
                // A hostile chain costs up to a second: too long for a runtime thread.
                let work = tokio::task::spawn_blocking(move || {
                    explain::explain(&query, &snapshot, &listeners, UnixTime::now())
                });
                work.await.map_or_else(
                    |_| reply::empty(StatusCode::INTERNAL_SERVER_ERROR),
                    |explanation| reply::json(StatusCode::OK, &explanation),
                )
            }
            Err(problem) => error_reply(ChangeError::Invalid(problem)),
        }
    }

    async fn handle_lint(&self, request: &AdminRequest) -> Reply {
        if request.method != Method::GET || request.id.is_some() {
            return not_found();
        }
        let report = lint::collect(&*self.store, &self.current, &*self.fleet, UnixTime::now());
        let reply =
            list::reply_from_full_read(report, |report| reply::json(StatusCode::OK, &report.into_json()));
        reply.await.unwrap_or_else(|error| error_reply(ChangeError::Store(error)))
    }
}

/// The 400 page for a connection without a valid client certificate. The handshake succeeded, as
/// with nginx (contract 2.1).
fn check_certificate(client: &AdminClient, now: UnixTime) -> Option<Reply> {
    let reject = |error: &str| {
        if let Some(suppressed) = ErrorReason::AdminCertificate.record() {
            tracing::warn!(peer = %client.address, error, suppressed, "rejected a client certificate");
        }
        Some(reply::closing_error_page("The SSL certificate error"))
    };
    match &client.certificate {
        ClientCertStatus::NotRequested => None,
        ClientCertStatus::Missing => {
            if let Some(suppressed) = ErrorReason::AdminCertificate.record() {
                tracing::warn!(peer = %client.address, suppressed, "no client certificate");
            }
            Some(reply::closing_error_page("No required SSL certificate was sent"))
        }
        ClientCertStatus::Rejected(error) => reject(error),
        ClientCertStatus::Verified { expires, .. } if now > *expires => {
            reject("it expired while the connection was open")
        }
        ClientCertStatus::Verified { .. } => None,
    }
}

/// Audits a write of an internal store entry, which has no revision.
fn audit_without_revision(
    client: &AdminClient,
    caller: &Caller,
    method: &Method,
    resource: &str,
    reply: &Reply,
) {
    let status = reply.status();
    audit::write(&audit::AuditEntry { caller, client, method, resource, status, revision: None });
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

/// `GET schema/{kind}` and `POST schema/validate/{kinds}`: the JSON Schema alone, without the
/// checks of `change::check` (contract 2.8).
fn handle_schema(request: AdminRequest) -> Reply {
    let AdminRequest { method, id, sub_path, body, .. } = request;
    let body = match body {
        Ok(body) => body,
        Err(error) => return error.into(),
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

//! The request handler: the order in which a request is checked (contract 2.1, 2.2).
//!
//! Address, client certificate, OPTIONS, path, key, resource, method, body. `operation` has the
//! table of what can be called; `model` and `change` own what differs between kinds of resources.

mod configs;
mod data_planes;
mod documents;
mod plugins;
mod put_configs;
mod put_digest;
mod schema;
mod writes;

use std::sync::Arc;
use std::time::{Duration, Instant};

use conf::AdminRole;
use http::header::{CONTENT_TYPE, EXPECT, HeaderName, IF_MATCH, IF_NONE_MATCH, RETRY_AFTER};
use http::request::Parts;
use http::{HeaderMap, Method, Request, StatusCode};
use hyper::body::Incoming;
use model::Kind;
use pki::Keyring;
use rustls_pki_types::UnixTime;
use serde_json::{Value, json};
use tokio::sync::Notify;

use super::access::{Access, AccessError, AdminClient, Caller, ClientCertStatus};
use super::audit::{self, AuditEntry};
use super::body::{self, BodyError, BodyFormat};
use super::list;
use super::operation::{Call, Effect, Operation};
use super::path::{self, AdminPath, Match, NoOperation};
use super::query::Query;
use super::reply::{self, Reply, ResponseHeaders};
use super::{absent, denied_nodes, metrics, openapi, precondition};
use crate::change::{ChangeError, ChangePipeline};
use crate::current_snapshot::CurrentSnapshot;
use crate::listener_errors::ErrorReason;
use crate::publish::{DeniedNodes, FleetStatus, StoreAcceptance};
use crate::store::Store;
use crate::{explain, lint};

const YAML: &str = "application/yaml";

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
    operation: &'static Operation,
    headers: HeaderMap,
    query: Query,
    /// The values of the first and the second parameter of the operation's path.
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
        let started = Instant::now();
        let (head, body) = request.into_parts();
        let mut body = Some(body);
        let real_ip = client.allowed.client_address(client.address.ip(), &head.headers);
        let forwarded =
            real_ip.map(|address| Arc::new(AdminClient { address, ..AdminClient::clone(client) }));
        let reply =
            self.authorize(forwarded.as_ref().unwrap_or(client), &head, &mut body, authenticated).await;
        let reply = match head.method {
            Method::GET | Method::HEAD => precondition::conditional_get(reply, &head.headers),
            _ => reply,
        };
        metrics::record_request(&head, reply.status(), started);
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
        if !client.allowed.allows(client.address.ip()) {
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
        let below = match AdminPath::parse(head.uri.path()) {
            AdminPath::Root if head.method == Method::HEAD => return reply::empty(StatusCode::OK),
            AdminPath::Elsewhere | AdminPath::Root => return reply::status_page(StatusCode::NOT_FOUND),
            AdminPath::Below(below) => below,
        };
        let found = path::find(&head.method, &below);
        let required = match &found {
            Ok(found) => found.operation.role(),
            Err(_) if matches!(head.method, Method::GET | Method::HEAD) => AdminRole::Viewer,
            Err(_) => AdminRole::Admin,
        };
        let query = Query::parse(head.uri.query());
        let caller = match self.access.authenticate(required, client, &query, &head.headers) {
            Ok(caller) => caller,
            Err(error) => return unauthorized(client, error),
        };
        authenticated.notify_one();
        if let Some(reply) = self.denial(required, (client, &caller), &head.headers, path::name(&below)) {
            if let Ok(Match { operation: Operation { effect: Effect::Writes, method, .. }, .. }) = &found {
                audit::write(&AuditEntry::without_commit(&caller, client, method, &below, reply.status()));
            }
            return reply;
        }
        let Match { operation, id, sub_path } = match found {
            Ok(found) => found,
            Err(NoOperation::NotFound) => return reply::with_api_version(not_found()),
            Err(NoOperation::UnknownName) => {
                let message = format!("Unsupported resource type: {}", path::name(&below));
                return reply::error(StatusCode::NOT_FOUND, &message, None);
            }
        };
        let body = match (&operation.method, body.take()) {
            (&Method::PUT | &Method::POST | &Method::PATCH, Some(body)) if !operation.is_rejected() => {
                let format = body_format(operation.call, &head.headers);
                body::read(body, format, body_bytes_max(operation.call, &query), self.body_timeout).await
            }
            (_, unread) => {
                *body = unread;
                Ok(None)
            }
        };
        let request = AdminRequest { operation, headers: head.headers.clone(), query, id, sub_path, body };
        if operation.effect == Effect::Writes {
            // Runs as its own task: a closed connection must not cancel a write between its commit
            // and its audit line.
            let (api, client) = (Arc::clone(self), Arc::clone(client));
            let task = tokio::spawn(async move { api.audited(&client, &caller, &below, request).await });
            return task.await.unwrap_or_else(|_| reply::empty(StatusCode::INTERNAL_SERVER_ERROR));
        }
        self.call(client, request).await
    }

    /// The response to a call that not even a caller with the role may make.
    fn denial(
        &self,
        required: AdminRole,
        (client, caller): (&AdminClient, &Caller),
        headers: &HeaderMap,
        name: &str,
    ) -> Option<Reply> {
        if required == AdminRole::Admin && !caller.has_key() && is_cross_site(headers) {
            if let Some(suppressed) = ErrorReason::AdminCrossSite.record() {
                tracing::warn!(peer = %client.address, suppressed, "denied a cross-site request without an admin key");
            }
            return Some(cross_site());
        }
        let is_off = !self.stream_routes_enabled && name == Kind::StreamRoute.plural();
        is_off.then(stream_routes_disabled)
    }

    /// Calls an operation that writes, with its audit line. `resource` is the path.
    async fn audited(
        &self,
        client: &AdminClient,
        caller: &Caller,
        resource: &str,
        request: AdminRequest,
    ) -> Reply {
        let method = request.operation.method.clone();
        let call = request.operation.call;
        let unknown = request.query.unknown(&WRITE_ARGUMENTS);
        // Of `dry_run=false&dry_run=true` one would not hold.
        let reply = match (request.query.repeated(&WRITE_ARGUMENTS), call) {
            (Some(name), _) => Err(rejected_argument(name, "it is given more than once")),
            (None, Call::Documents(kind)) => self.write(client, caller, kind, resource, request).await,
            (None, Call::Batch) => self.batch(client, caller, request).await,
            (None, Call::PutConfigs) => self.put_configs(client, caller, request).await,
            (None, _) => match reject_arguments(&request, &WRITE_ARGUMENTS) {
                Some(rejection) => Err(rejection),
                None => Err(self.call(client, request).await),
            },
        };
        // What has reached a commit has left a line for each document.
        let reply = reply.unwrap_or_else(|reply| {
            audit::write(&AuditEntry::without_commit(caller, client, &method, resource, reply.status()));
            reply
        });
        let reply = reply::with_warnings(reply, &unknown);
        if matches!(call, Call::Documents(_)) { reply::with_api_version(reply) } else { reply }
    }

    async fn call(&self, client: &AdminClient, request: AdminRequest) -> Reply {
        let method = &request.operation.method;
        match request.operation.call {
            Call::Documents(kind) => reply::with_api_version(self.read(kind, &request).await),
            Call::Absent(kind) => absent::handle(kind, method, request.operation.path == kind.path),
            Call::Batch | Call::PutConfigs => not_found(),
            Call::Reject(rejection) => {
                let reply = reply::error(rejection.status(), &rejection.message(method), None);
                reply::with_api_version(reply)
            }
            Call::Schema => reply::with_api_version(schema::show(request)),
            Call::ValidateDocument => reply::with_api_version(schema::validate(request)),
            Call::PluginList => plugins::list(&request.query),
            Call::Plugins => reply::with_api_version(plugins::show(request.id.as_deref(), &request.query)),
            Call::ReloadPlugins => reply::text(StatusCode::OK, "done"),
            Call::ServerInfo => self.server_info(),
            Call::OpenApi => openapi::show(),
            Call::Configs => self.configs(&request).await,
            Call::ValidateConfigs => self.validate_configs(request).await,
            Call::DataPlanes => self.data_planes(&request).await,
            Call::AcceptStore => self.accept_store(request).await,
            Call::DeniedNodes => self.denied_nodes(request).await,
            Call::Explain => self.handle_explain(client, request).await,
            Call::Lint => self.handle_lint().await,
        }
    }

    /// What APISIX's plugin `server-info` reports.
    fn server_info(&self) -> Reply {
        let body = json!({
            "id": self.store.identity(),
            "hostname": conf::host_name(),
            "version": env!("CARGO_PKG_VERSION"),
        });
        reply::json(StatusCode::OK, &body)
    }

    async fn denied_nodes(&self, request: AdminRequest) -> Reply {
        match request.body {
            Ok(body) => {
                denied_nodes::handle(&self.denied, &request.operation.method, request.id.as_deref(), body)
                    .await
            }
            Err(error) => error.into(),
        }
    }

    async fn handle_explain(&self, client: &AdminClient, request: AdminRequest) -> Reply {
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

    async fn handle_lint(&self) -> Reply {
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

fn body_bytes_max(call: Call, query: &Query) -> u64 {
    let only_checked = call == Call::Batch && query.get("dry_run") == Some("true");
    if only_checked { body::DRY_RUN_BYTES_MAX } else { body::BODY_BYTES_MAX }
}

/// A body is JSON whatever its content type (contract 2.2), and a whole configuration may be YAML.
fn body_format(call: Call, headers: &HeaderMap) -> BodyFormat {
    let yaml = headers.get(CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(YAML.as_bytes()));
    if yaml && matches!(call, Call::ValidateConfigs | Call::PutConfigs) {
        BodyFormat::Yaml
    } else {
        BodyFormat::Json
    }
}

/// The 401 of a request without a valid key (contract 2.1); 429 for too many wrong keys, which also
/// ends the connection.
fn unauthorized(client: &AdminClient, error: AccessError) -> Reply {
    let reason = match error {
        AccessError::TooManyWrongKeys { .. } => ErrorReason::AdminWrongKeys,
        AccessError::ViewerMethod => ErrorReason::AdminRole,
        AccessError::MissingKey | AccessError::WrongKey => ErrorReason::AdminKey,
    };
    if let Some(suppressed) = reason.record() {
        tracing::warn!(peer = %client.address, suppressed, "failed to check token: {error}");
    }
    let body = json!({"error_msg": "failed to check token", "description": error.to_string()});
    let AccessError::TooManyWrongKeys { retry_after } = error else {
        return reply::json(StatusCode::UNAUTHORIZED, &body);
    };
    let mut reply = reply::with_close(reply::json(StatusCode::TOO_MANY_REQUESTS, &body));
    reply.headers_mut().insert(RETRY_AFTER, retry_after.into());
    reply
}

/// The arguments of writes of documents, and the headers that belong to them.
const WRITE_ARGUMENTS: [&str; 5] = ["dry_run", "weaken", "wait", "ttl", "force"];

/// 400 for an argument or a precondition that an operation does not take: ignored, it would be
/// thought to hold. `arguments` are those of other writes.
fn reject_arguments(request: &AdminRequest, arguments: &[&str]) -> Option<Reply> {
    let argument = arguments.iter().copied().find(|name| request.query.get(name).is_some());
    let headers = [IF_MATCH, IF_NONE_MATCH];
    let header = headers.iter().find(|name| request.headers.contains_key(*name)).map(HeaderName::as_str);
    let name = argument.or(header)?;
    Some(rejected_argument(name, "this operation does not take it"))
}

fn rejected_argument(name: &str, why: &str) -> Reply {
    let message = format!("invalid argument {name}: {why}");
    reply::error(StatusCode::BAD_REQUEST, &message, Some("leave it out; nothing was written"))
}

/// Whether a browser says that another site's page made the request. A client certificate goes with
/// it without anybody's doing, and a form needs no permission of CORS.
fn is_cross_site(headers: &HeaderMap) -> bool {
    let text = |name: &str| headers.get(name).map(|value| value.as_bytes().to_vec());
    let fetched = text("sec-fetch-site").is_some_and(|site| site != b"same-origin" && site != b"none");
    let host = text("host").unwrap_or_default();
    let from_elsewhere = text("origin").is_some_and(|origin| {
        let authority = origin.windows(3).position(|part| part == b"://").map(|at| at + 3);
        authority.and_then(|at| origin.get(at..)) != Some(&host)
    });
    fetched || from_elsewhere
}

/// 403 for such a request without an admin key.
fn cross_site() -> Reply {
    let hint = "a page of another site needs an admin key: a certificate alone is not its user's consent";
    reply::error(StatusCode::FORBIDDEN, "cross-site request without an admin key", Some(hint))
}

/// Stream routes can be switched off as a whole (contract 2.2).
fn stream_routes_disabled() -> Reply {
    let message = "stream mode is disabled, can not add stream routes";
    let hint = "set apisix.proxy_mode to http&stream, and the listeners in apisix.stream_proxy.tcp";
    reply::error(StatusCode::BAD_REQUEST, message, Some(hint))
}

fn error_reply(error: ChangeError) -> Reply {
    let (status, members) = writes::error_members(error);
    reply::json(status, &members)
}

fn not_found() -> Reply {
    reply::error(StatusCode::NOT_FOUND, "not found", None)
}

//! Writes: PUT, POST, PATCH and DELETE of documents, alone or as a batch (contract 2.3).
//!
//! Reads the arguments of a write, has `change` carry it out, and waits for the data planes where
//! the caller asks for it. Invariant: a batch is one commit; every operation of it leaves one audit
//! line.

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use http::{Method, StatusCode};
use model::{Kind, Problem, redact};
use rustls_pki_types::UnixTime;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::data_planes::WAIT_MAX;
use super::{AdminApi, AdminRequest, error_reply, reject_arguments};
use crate::admin::access::{AdminClient, Caller};
use crate::admin::metrics::{self, TimedOperation};
use crate::admin::operation::Call;
use crate::admin::path::{self, AdminPath};
use crate::admin::query::Query;
use crate::admin::reply::{self, Reply};
use crate::admin::{audit, precondition};
use crate::change::fairness::Pauses;
use crate::change::private_keys::redact_clear_keys;
use crate::change::{
    AcceptedChange, AcceptedChanges, Action, ChangeError, ChangeRequest, RejectedChanges, WriteOptions,
};
use crate::store::StoreError;

/// The longest time to live, in seconds.
const TTL_MAX: f64 = u32::MAX as f64;

/// Bytes of the method and of the path of an operation in a batch: they go into answers and the
/// audit log. A request line has its own limit.
const OPERATION_LINE_MAX: usize = 4096;
/// Operations of a batch.
const BATCH_MAX: usize = 128;
/// Operations of a batch that is only checked. A change of more than [`BATCH_MAX`] is written in
/// several batches, and each refers to those before it.
const DRY_RUN_BATCH_MAX: usize = 10_000;

/// The arguments that every write takes.
pub(super) struct WriteArguments {
    pub dry_run: bool,
    allow_weakening: bool,
    /// How long to wait for the data planes.
    wait: Option<Duration>,
}

/// A request of a batch, and what its audit line says of it.
pub(super) struct NamedChange {
    pub method: Method,
    /// `routes/1`
    pub resource: String,
    pub request: ChangeRequest,
}

/// The body of `POST batch`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BatchBody {
    operations: Vec<BatchOperation>,
}

/// A request in a batch, as it would be sent alone.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BatchOperation {
    method: String,
    /// `/apisix/admin/routes/1`, with the query arguments `force` and `ttl` where needed.
    path: String,
    #[serde(default)]
    body: Option<Value>,
    #[serde(default)]
    if_match: Option<String>,
    #[serde(default)]
    if_none_match: Option<String>,
}

impl AdminApi {
    /// Writes one document; `resource` is its path in the audit line.
    ///
    /// # Errors
    /// The response to a request that reaches no commit, and so has left no audit line.
    pub(super) async fn write(
        &self,
        client: &AdminClient,
        caller: &Caller,
        kind: Kind,
        resource: &str,
        request: AdminRequest,
    ) -> Result<Reply, Reply> {
        let method = request.operation.method.clone();
        let (change, arguments) = parse_write(kind, resource, request)?;
        let AcceptedChanges { revision, changes } =
            match self.apply_audited(client, caller, std::slice::from_ref(&change), &arguments, None).await {
                Ok(accepted) => accepted,
                Err(rejected) => return Ok(error_reply(rejected.error)),
            };
        let Some(accepted) = changes.into_iter().next() else {
            return Ok(reply::empty(StatusCode::INTERNAL_SERVER_ERROR));
        };
        let notes = accepted.notes.clone();
        let (status, mut body) = self.result_members(&method, accepted, revision);
        if revision.is_none() {
            body.insert("dry_run".to_owned(), true.into());
        }
        let reply = self.waited_reply(status, body, revision, &arguments).await;
        let reply = reply::with_notes(reply, &notes);
        Ok(match revision {
            Some(revision) if method != Method::DELETE => precondition::with_revision_tag(reply, revision),
            _ => reply,
        })
    }

    /// `POST batch`: several writes in one commit.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub(super) async fn batch(
        &self,
        client: &AdminClient,
        caller: &Caller,
        request: AdminRequest,
    ) -> Result<Reply, Reply> {
        if let Some(rejection) = reject_arguments(&request, &["ttl", "force"]) {
            return Err(rejection);
        }
        let AdminRequest { query, body, .. } = request;
        let body = body.map_err(Reply::from)?;
        let arguments = WriteArguments::parse(&query).map_err(|problem| reply::problem(&problem))?;
        let operations_max = if arguments.dry_run { DRY_RUN_BATCH_MAX } else { BATCH_MAX };
        let operations = parse_batch(body, operations_max).map_err(batch_error)?;
        let AcceptedChanges { revision, changes } =
            match self.apply_audited(client, caller, &operations, &arguments, None).await {
                Ok(accepted) => accepted,
                Err(rejected) => return Ok(batch_error(rejected)),
            };
        let mut results = Vec::with_capacity(changes.len());
        let mut pauses = Pauses::new();
        for (change, operation) in changes.into_iter().zip(&operations) {
            results.push(self.batch_result(&operation.method, change, revision));
            pauses.let_others_run().await;
        }
        let mut body = Map::new();
        match revision {
            Some(revision) => body.insert("revision".to_owned(), revision.into()),
            None => body.insert("dry_run".to_owned(), true.into()),
        };
        body.insert("results".to_owned(), Value::Array(results));
        Ok(self.waited_reply(StatusCode::OK, body, revision, &arguments).await)
    }

    /// Carries out the operations in one commit; each leaves an audit line, but a dry run of more
    /// than a commit takes leaves one for all. `based_on`: the commit
    /// fails when any document was written after that revision, and leaves no line then.
    pub(super) async fn apply_audited(
        &self,
        client: &AdminClient,
        caller: &Caller,
        operations: &[NamedChange],
        arguments: &WriteArguments,
        based_on: Option<u64>,
    ) -> Result<AcceptedChanges, RejectedChanges> {
        let started = Instant::now();
        let requests: Vec<_> = operations.iter().map(|operation| operation.request.clone()).collect();
        let applied = self.changes.apply(&requests, arguments.options(), based_on).await;
        metrics::observe_duration(TimedOperation::Change, started);
        if based_on.is_some() && applied.as_ref().is_err_and(RejectedChanges::is_conflict) {
            return applied;
        }
        let (revision, statuses) = match &applied {
            Ok(AcceptedChanges { revision, changes }) => {
                (*revision, changes.iter().map(|change| status(change, *revision)).collect::<Vec<_>>())
            }
            Err(rejected) => {
                let (status, _) = error_members(rejected.error.clone());
                (None, vec![status; operations.len()])
            }
        };
        if let Some(revision) = revision {
            self.current.note_write(revision);
        }
        let dry_run = arguments.dry_run;
        if let ([NamedChange { method, resource, .. }, others @ ..], [status, ..]) =
            (operations, statuses.as_slice())
            && dry_run
            && others.len() >= BATCH_MAX
        {
            let (resource, status) = (&format!("{resource} and {} more", others.len()), *status);
            audit::write(&audit::AuditEntry { caller, client, method, resource, status, revision, dry_run });
            return applied;
        }
        for (NamedChange { method, resource, .. }, status) in operations.iter().zip(statuses) {
            audit::write(&audit::AuditEntry { caller, client, method, resource, status, revision, dry_run });
        }
        applied
    }

    /// The response to a commit, once the data planes serve it where the caller waits for that.
    pub(super) async fn waited_reply(
        &self,
        mut status: StatusCode,
        mut body: Map<String, Value>,
        revision: Option<u64>,
        arguments: &WriteArguments,
    ) -> Reply {
        if let Some(behind) = self.wait(revision, arguments.wait).await {
            status = StatusCode::ACCEPTED;
            body.insert("behind".to_owned(), behind);
        }
        let reply = reply::json(status, &body);
        revision.into_iter().fold(reply, reply::with_revision)
    }

    fn batch_result(&self, method: &Method, change: AcceptedChange, revision: Option<u64>) -> Value {
        let notes = change.notes.clone();
        let (status, mut members) = self.result_members(method, change, revision);
        members.insert("status".to_owned(), status.as_u16().into());
        if revision.is_some() {
            members.insert("kept".to_owned(), notes.kept.into());
            members.insert("warnings".to_owned(), notes.warnings.into());
        }
        Value::Object(members)
    }

    /// The status and the body of a write. A private key in clear is not repeated (contract 12.5).
    fn result_members(
        &self,
        method: &Method,
        change: AcceptedChange,
        revision: Option<u64>,
    ) -> (StatusCode, Map<String, Value>) {
        let status = status(&change, revision);
        let AcceptedChange { key, kind, mut before, mut document, notes } = change;
        redact_clear_keys(kind, &mut document);
        let prefix = self.store.prefix();
        let key = key.map(|key| format!("{prefix}/{key}"));
        let mut members = Map::new();
        let mut insert = |name: &str, value: Value| members.insert(name.to_owned(), value);
        if revision.is_some() && *method == Method::DELETE {
            insert("deleted", "1".into());
        }
        insert("key", key.into());
        if revision.is_none() {
            before.iter_mut().for_each(|before| redact_clear_keys(kind, before));
            let difference = json_patch::diff(before.as_ref().unwrap_or(&Value::Null), &document);
            insert("difference", serde_json::to_value(difference).unwrap_or_default());
            insert("kept", notes.kept.into());
            insert("warnings", notes.warnings.into());
            insert("findings", notes.findings.into());
        }
        if *method != Method::DELETE {
            insert("value", document);
        }
        (status, members)
    }

    /// Waits until the data planes serve a revision; returns those that are behind in the end.
    async fn wait(&self, revision: Option<u64>, timeout: Option<Duration>) -> Option<Value> {
        let (revision, timeout) = revision.zip(timeout)?;
        let view = self.fleet.wait_acknowledged(revision, timeout).await.err()?;
        Some(view.get("behind").cloned().unwrap_or_else(|| json!([])))
    }
}

/// The change of a request, and its arguments.
///
/// # Errors
/// The response to an invalid argument or body.
#[allow(clippy::result_large_err)] // the error is the response
fn parse_write(
    kind: Kind,
    resource: &str,
    request: AdminRequest,
) -> Result<(NamedChange, WriteArguments), Reply> {
    let AdminRequest { operation, query, headers, id, sub_path, body } = request;
    let body = body.map_err(Reply::from)?;
    let parsed = WriteArguments::parse(&query).and_then(|arguments| {
        let precondition =
            precondition::of_write(&headers).map_err(|error| argument_problem(&error.to_string()))?;
        let ttl = ttl(&query)?;
        let action = action(&operation.method, &query, sub_path, body)?;
        let request = ChangeRequest { kind, id, action, precondition, ttl };
        Ok((
            NamedChange { method: operation.method.clone(), resource: resource.to_owned(), request },
            arguments,
        ))
    });
    parsed.map_err(|problem| reply::problem(&problem))
}

impl WriteArguments {
    pub(super) fn parse(query: &Query) -> Result<Self, Problem> {
        let wait = match query.get("wait").map(str::parse::<f64>) {
            None => None,
            Some(seconds) => {
                let seconds = seconds.ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
                Some(seconds.filter(|seconds| *seconds <= WAIT_MAX).ok_or_else(|| {
                    argument_problem("invalid argument wait: should be a number of seconds from 0 to 60")
                })?)
            }
        };
        Ok(Self { dry_run: flag(query, "dry_run")?, allow_weakening: flag(query, "weaken")?, wait })
    }

    fn options(&self) -> WriteOptions {
        let Self { dry_run, allow_weakening, .. } = *self;
        WriteOptions { now: UnixTime::now(), dry_run, allow_weakening }
    }
}

/// An argument that is `true` or `false`; another value is an error, so that no misspelt `dry_run`
/// writes.
fn flag(query: &Query, name: &str) -> Result<bool, Problem> {
    match query.get(name) {
        None | Some("false") => Ok(false),
        Some("true") => Ok(true),
        Some(_) => Err(argument_problem(&format!("invalid argument {name}: should be true or false"))),
    }
}

/// The status of one write.
fn status(change: &AcceptedChange, revision: Option<u64>) -> StatusCode {
    let created = change.before.is_none() && revision.is_some();
    if created { StatusCode::CREATED } else { StatusCode::OK }
}

fn argument_problem(message: &str) -> Problem {
    Problem::new("", message)
}

fn action(
    method: &Method,
    query: &Query,
    sub_path: Option<String>,
    body: Option<Value>,
) -> Result<Action, Problem> {
    match *method {
        Method::PUT => Ok(Action::Put { body }),
        Method::POST => Ok(Action::Post { body }),
        Method::PATCH => Ok(Action::Patch { sub_path, body }),
        Method::DELETE => Ok(Action::Delete { force: query.get("force") == Some("true") }),
        _ => Err(Problem::new("method", "invalid method: should be PUT, POST, PATCH or DELETE")),
    }
}

/// `?ttl=`: seconds until the store removes the document (contract 2.3).
fn ttl(query: &Query) -> Result<Option<NonZeroU32>, Problem> {
    let Some(ttl) = query.get("ttl") else { return Ok(None) };
    let seconds: f64 =
        ttl.parse().map_err(|_| argument_problem("invalid argument ttl: should be a number"))?;
    if !(1.0..=TTL_MAX).contains(&seconds) {
        return Err(argument_problem("invalid argument ttl: should be from 1 to 4294967295 seconds"));
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the range was just checked")]
    Ok(NonZeroU32::new(seconds as u32))
}

fn rejected(operation: Option<usize>, problem: Problem) -> RejectedChanges {
    RejectedChanges { operation, error: problem.into() }
}

fn parse_batch(body: Option<Value>, operations_max: usize) -> Result<Vec<NamedChange>, RejectedChanges> {
    let whole = |message: String| rejected(None, Problem::new("operations", message));
    let body = body.filter(Value::is_object);
    let body = body.ok_or_else(|| whole("invalid batch: should be an object with operations".to_owned()))?;
    let body = serde_json::from_value::<BatchBody>(body)
        .map_err(|error| whole(format!("invalid batch: {error}")))?;
    let count = body.operations.len();
    if !(1..=operations_max).contains(&count) {
        return Err(whole(format!("invalid batch: {count} operations, should be 1 to {operations_max}")));
    }
    let operations = body.operations.into_iter().enumerate();
    operations
        .map(|(index, operation)| {
            parse_operation(operation).map_err(|problem| rejected(Some(index), problem))
        })
        .collect()
}

/// The request of an operation; the row of the table says which documents it writes.
fn parse_operation(operation: BatchOperation) -> Result<NamedChange, Problem> {
    let BatchOperation { method, path, body, if_match, if_none_match } = operation;
    let no_write = |message: String| {
        Problem::new("path", message)
            .with_hint("an operation of a batch writes one document, like PUT /apisix/admin/routes/1")
    };
    for (field, text) in [("method", &method), ("path", &path)] {
        if text.len() > OPERATION_LINE_MAX {
            let message = format!("invalid {field}: {} bytes, at most {OPERATION_LINE_MAX}", text.len());
            return Err(Problem::new(field, message));
        }
    }
    let method: Method =
        method.parse().map_err(|_| Problem::new("method", format!("invalid method: {method}")))?;
    let (path, query) =
        path.split_once('?').map_or((path.as_str(), None), |(path, query)| (path, Some(query)));
    let AdminPath::Below(below) = AdminPath::parse(path) else {
        return Err(no_write(format!("invalid path: {path} is not below /apisix/admin")));
    };
    let found =
        path::find(&method, &below).map_err(|_| no_write(format!("no operation: {method} {path}")))?;
    let kind = match found.operation.call {
        Call::Documents(kind) if method != Method::GET => kind,
        Call::Reject(rejection) => return Err(no_write(rejection.message(&method))),
        _ => return Err(no_write(format!("no write of a document: {method} {path}"))),
    };
    let precondition = precondition::parse(if_match.as_deref(), if_none_match.as_deref())
        .map_err(|error| argument_problem(&error.to_string()))?;
    let query = Query::parse(query);
    if let Some(other) = query.names().find(|name| !["force", "ttl"].contains(name)) {
        let message = format!("invalid argument {other}: an operation takes force and ttl");
        return Err(
            argument_problem(&message).with_hint("dry_run, weaken and wait are arguments of the batch")
        );
    }
    if let Some(name) = query.repeated(&["force", "ttl"]) {
        return Err(argument_problem(&format!("invalid argument {name}: it is given more than once")));
    }
    let action = action(&method, &query, found.sub_path, body)?;
    let request = ChangeRequest { kind, id: found.id, action, precondition, ttl: ttl(&query)? };
    Ok(NamedChange { method, resource: below, request })
}

/// The response to a batch of which nothing was written.
pub(super) fn batch_error(rejected: RejectedChanges) -> Reply {
    let RejectedChanges { operation, error } = rejected;
    let message = error.to_string();
    let (status, mut members) = error_members(error);
    let Some(operation) = operation else { return reply::json(status, &members) };
    let message = members.remove("error_msg").unwrap_or_else(|| message.into());
    let message = message.as_str().unwrap_or_default();
    members.insert("error_msg".to_owned(), format!("operation {operation}: {message}").into());
    members.insert("operation".to_owned(), operation.into());
    members.remove("message");
    reply::json(status, &members)
}

/// The status and the body of a failed write.
pub(super) fn error_members(error: ChangeError) -> (StatusCode, Map<String, Value>) {
    let text = redact(&error.to_string()).into_owned();
    let members = |value: Value| match value {
        Value::Object(members) => members,
        _ => Map::new(),
    };
    match error {
        ChangeError::Invalid(problem) => (StatusCode::BAD_REQUEST, reply::problem_members(&problem)),
        ChangeError::NotFound => (StatusCode::NOT_FOUND, members(json!({"message": text}))),
        ChangeError::PreconditionFailed(_) => {
            let hint = "read the object again: the ETag of a GET is what If-Match takes";
            (StatusCode::PRECONDITION_FAILED, members(json!({"error_msg": text, "hint": hint})))
        }
        ChangeError::Weakens(weakenings) => {
            let hint = "deployment.admin.protect_client_auth denies it; with ?weaken=true it is made";
            let body = json!({"error_msg": text, "weakenings": weakenings, "hint": hint});
            (StatusCode::CONFLICT, members(body))
        }
        // It would be rejected again.
        ChangeError::Store(StoreError::TooManyOperations { .. }) => {
            (StatusCode::BAD_REQUEST, members(json!({"error_msg": text})))
        }
        ChangeError::Store(_) => (StatusCode::SERVICE_UNAVAILABLE, members(json!({"error_msg": text}))),
    }
}

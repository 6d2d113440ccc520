//! `PUT /apisix/admin/configs`: replaces the whole configuration in one commit, as an API-driven
//! standalone APISIX does (contract 2.8).
//!
//! The difference to what is stored becomes a batch: documents that differ are written, those that
//! are missing are removed. Invariant: a body that is invalid in one document changes none.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use http::{HeaderMap, Method, StatusCode};
use model::{Id, Key, Kind, Problem, extension};
use pki::Keyring;
use rustls_pki_types::UnixTime;
use serde_json::{Map, Value, json};

use super::configs;
use super::put_digest::{DIGEST, PutDigest};
use super::writes::{NamedChange, WriteArguments, batch_error};
use super::{AdminApi, AdminRequest, error_reply, reject_arguments};
use crate::admin::access::{AdminClient, Caller};
use crate::admin::reply::{self, Reply};
use crate::change::private_keys;
use crate::change::{
    AcceptedChange, AcceptedChanges, Action, ChangeError, ChangeNotes, ChangeRequest, RequestPrecondition,
};
use crate::store::{DocumentList, StoreError};

/// Attempts while others write.
const ATTEMPTS: usize = 16;

/// The longest digest, in bytes.
const DIGEST_MAX: usize = 256;

impl AdminApi {
    /// `PUT configs`
    ///
    /// # Errors
    /// The response to a request that reaches no commit, and so has left no audit line.
    pub(super) async fn put_configs(
        &self,
        client: &AdminClient,
        caller: &Caller,
        request: AdminRequest,
    ) -> Result<Reply, Reply> {
        if let Some(rejection) = reject_arguments(&request, &["ttl", "force"]) {
            return Err(rejection);
        }
        let digest = digest_of(&request.headers)?;
        let arguments = WriteArguments::parse(&request.query).map_err(|problem| reply::problem(&problem))?;
        let body = configs::body_object(request.body)?;
        for _ in 0..ATTEMPTS {
            let replaced = self.replace_all(client, caller, &digest, body.clone(), &arguments).await?;
            if let Some(reply) = replaced {
                return Ok(reply);
            }
        }
        Err(store_error(StoreError::Conflict { key: None }))
    }

    /// `None`: another writer was faster, so that the difference is another one now.
    async fn replace_all(
        &self,
        client: &AdminClient,
        caller: &Caller,
        digest: &str,
        mut body: Map<String, Value>,
        arguments: &WriteArguments,
    ) -> Result<Option<Reply>, Reply> {
        let stored = self.store.load().await.map_err(store_error)?;
        let before = PutDigest::of(&*self.store, &stored).await.map_err(store_error)?;
        if before.as_ref().is_some_and(|before| before.digest == digest) {
            return Err(reply::empty(StatusCode::NO_CONTENT));
        }
        keep_private_keys(&mut body, &stored);
        let body = Arc::new(body);
        let (checked, keyring) = (Arc::clone(&body), Arc::clone(&self.keyring));
        // Hundreds of certificates take a while.
        let work =
            tokio::task::spawn_blocking(move || configs::validate(&checked, &keyring, UnixTime::now()));
        match work.await {
            Ok(errors) if errors.is_empty() => {}
            Ok(errors) => {
                // APISIX stops at the first error, and its text is the message.
                let first = errors.first().and_then(|error| error.get("error")).cloned();
                let body = json!({"error_msg": first, "errors": errors});
                return Err(reply::json(StatusCode::BAD_REQUEST, &body));
            }
            Err(_) => return Err(reply::empty(StatusCode::INTERNAL_SERVER_ERROR)),
        }
        let operations = difference(&body, &stored, before.as_ref(), &self.keyring)
            .map_err(|problem| reply::problem(&problem))?;
        let mut notes = ChangeNotes::default();
        let revision = if operations.is_empty() {
            (!arguments.dry_run).then_some(stored.revision)
        } else {
            let based_on = Some(stored.revision);
            match self.apply_audited(client, caller, &operations, arguments, based_on).await {
                Ok(accepted) => {
                    notes = all_notes(&accepted);
                    accepted.revision
                }
                Err(rejected) if rejected.is_conflict() => return Ok(None),
                Err(rejected) => return Ok(Some(batch_error(rejected))),
            }
        };
        // Without a commit nothing has left an audit line.
        #[allow(clippy::result_large_err)] // the error is the response
        let outcome = |reply| if operations.is_empty() { Err(reply) } else { Ok(Some(reply)) };
        let Some(revision) = revision else {
            let changes = operations.iter().map(|change| format!("{} {}", change.method, change.resource));
            let changes = changes.collect::<Vec<_>>();
            let body = json!({"dry_run": true, "changes": changes, "kept": notes.kept,
                "warnings": notes.warnings, "findings": notes.findings});
            return outcome(reply::json(StatusCode::OK, &body));
        };
        let kept = PutDigest {
            digest: digest.to_owned(),
            last_modified: UnixTime::now().as_secs(),
            revision,
            documents: documents_after(&stored, &operations),
            versions: versions(&body),
        };
        if let Err(error) = kept.keep(&*self.store).await {
            tracing::warn!(%error, "the digest of the configuration was not kept: its client sends it again");
        }
        let mut reply = self.waited_reply(StatusCode::ACCEPTED, Map::new(), Some(revision), arguments).await;
        kept.add_headers(&mut reply);
        outcome(reply::with_notes(reply, &notes))
    }
}

/// The digest that the client gives to its configuration.
///
/// # Errors
/// The response to a request without one.
#[allow(clippy::result_large_err)] // the error is the response
fn digest_of(headers: &HeaderMap) -> Result<String, Reply> {
    let Some(digest) = headers.get(DIGEST).and_then(|digest| digest.to_str().ok()) else {
        let hint = "X-Digest: TEXT names the configuration; the same text again is answered with 204";
        return Err(reply::error(StatusCode::BAD_REQUEST, "missing digest header", Some(hint)));
    };
    if digest.len() > DIGEST_MAX {
        let message = format!("invalid digest header: more than {DIGEST_MAX} characters");
        return Err(reply::error(StatusCode::BAD_REQUEST, &message, None));
    }
    Ok(digest.to_owned())
}

fn store_error(error: StoreError) -> Reply {
    error_reply(ChangeError::Store(error))
}

/// The writes that make the stored documents those of `body`, which is valid.
///
/// # Errors
/// When a section's version is older than the stored one, or a document has no id.
fn difference(
    body: &Map<String, Value>,
    stored: &DocumentList,
    last_put: Option<&PutDigest>,
    keyring: &Keyring,
) -> Result<Vec<NamedChange>, Problem> {
    let mut operations = Vec::new();
    for kind in Kind::ALL {
        let before: HashMap<&Id, _> = stored
            .items
            .iter()
            .filter(|item| item.key.kind == kind)
            .map(|item| (&item.key.id, item))
            .collect();
        let version_key = configs::version_key(kind.plural());
        if let Some(given) = body.get(&version_key).and_then(Value::as_f64) {
            let of_last_put = last_put.and_then(|put| put.versions.get(&version_key)?.as_f64());
            let newest = before.values().map(|item| item.mod_revision).max().unwrap_or_default();
            #[expect(clippy::cast_precision_loss, reason = "revisions are far below 2^53")]
            let version = of_last_put.unwrap_or(newest as f64);
            if given < version {
                let message = format!("{version_key} must be greater than or equal to ({version})");
                return Err(Problem::new(version_key, message));
            }
            // APISIX keeps a section whose version is the stored one.
            if given.total_cmp(&version).is_eq() {
                continue;
            }
        }
        let mut named = HashSet::new();
        for item in body.get(kind.plural()).and_then(Value::as_array).into_iter().flatten() {
            let document = configs::without_metadata(item);
            let id = configs::id_of(&document)
                .ok_or_else(|| Problem::new("id", format!("missing {} id", kind.noun())))?;
            let id = Id::parse(&id)?;
            let unchanged =
                before.get(&id).is_some_and(|item| equals_stored(kind, &document, &item.document, keyring));
            if !unchanged {
                operations.push(change(kind, &id, Method::PUT, Action::Put { body: Some(document) }));
            }
            named.insert(id);
        }
        let gone = before.keys().filter(|id| !named.contains(**id));
        operations.extend(gone.map(|id| change(kind, id, Method::DELETE, Action::Delete { force: false })));
    }
    Ok(operations)
}

/// Keeps the private keys of ssls that repeat their certificates without them, as GET shows them.
fn keep_private_keys(body: &mut Map<String, Value>, stored: &DocumentList) {
    let ssls = body.get_mut(Kind::Ssl.plural()).and_then(Value::as_array_mut);
    for ssl in ssls.into_iter().flatten() {
        let Some(id) = configs::id_of(ssl) else { continue };
        let before =
            stored.items.iter().find(|item| item.key.kind == Kind::Ssl && item.key.id.as_str() == id);
        if let (Some(before), Some(members)) = (before, ssl.as_object_mut()) {
            private_keys::carry_over(Kind::Ssl, Some(&before.document), members);
        }
    }
}

/// The number of documents after the operations.
fn documents_after(stored: &DocumentList, operations: &[NamedChange]) -> usize {
    let known: HashSet<String> = stored.items.iter().map(|item| item.key.to_string()).collect();
    let (removed, written): (Vec<_>, Vec<_>) =
        operations.iter().partition(|change| change.method == Method::DELETE);
    let created = written.iter().filter(|change| !known.contains(&change.resource)).count();
    stored.items.len() + created - removed.len()
}

/// The notes of all changes, each with its resource.
fn all_notes(accepted: &AcceptedChanges) -> ChangeNotes {
    let mut all = ChangeNotes::default();
    for AcceptedChange { key, notes, .. } in &accepted.changes {
        let Some(key) = key else { continue };
        let named = |notes: &[String]| notes.iter().map(|note| format!("{key}: {note}")).collect::<Vec<_>>();
        all.kept.extend(named(&notes.kept));
        all.warnings.extend(named(&notes.warnings));
        all.findings.extend(named(&notes.findings));
    }
    all
}

/// The versions that a configuration gives to its sections.
fn versions(body: &Map<String, Value>) -> Map<String, Value> {
    let keys = Kind::ALL.map(|kind| configs::version_key(kind.plural()));
    let given = keys.into_iter().filter_map(|key| Some((key.clone(), body.get(&key)?.clone())));
    given.filter(|(_, version)| version.is_number()).collect()
}

fn change(kind: Kind, id: &Id, method: Method, action: Action) -> NamedChange {
    let resource = Key::new(kind, id.clone()).to_string();
    let precondition = RequestPrecondition::Unconditional;
    let request = ChangeRequest { kind, id: Some(id.to_string()), action, precondition, ttl: None };
    NamedChange { method, resource, request }
}

/// Whether a PUT of the document would change nothing but its time: it keeps the extension fields
/// that it does not mention. One key has one encrypted text.
fn equals_stored(kind: Kind, document: &Value, stored: &Value, keyring: &Keyring) -> bool {
    let mut document = document.clone();
    if let Some(members) = document.as_object_mut() {
        extension::carry_over(kind, Some(stored), members);
    }
    let with_text_id = |mut value: Value| {
        if let (Some(id), Some(members)) = (configs::id_of(&value), value.as_object_mut()) {
            members.insert("id".to_owned(), id.into());
            private_keys::seal_private_keys(kind, members, keyring);
        }
        value
    };
    with_text_id(document) == with_text_id(configs::without_metadata(stored))
}

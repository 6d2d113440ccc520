//! The only code that writes the configuration.
//!
//! Plans all requests (documents with id, times, extension fields and encrypted private keys,
//! checked against the store as they will leave it), and commits them at once against the revisions
//! that the plan is based on. When another writer is faster, the plan is made anew on what that one
//! wrote: a PUT states the whole document. A PATCH applies to the document that its caller saw, so
//! it fails then (contract 2.3), and so does a request with a precondition.

use std::collections::HashMap;
use std::sync::Arc;

use model::{Id, Key, Kind, Problem, Resource};
use pki::Keyring;
use rustls_pki_types::UnixTime;
use serde_json::{Map, Value};
use tokio::sync::Mutex;

use super::fairness::let_others_run;
use super::overlay::{DocumentSource, StoreOverlay};
use super::protection::{self, ComparedWrite};
use super::{
    AcceptedChange, AcceptedChanges, Action, ChangeError, ChangeNotes, ChangeRequest, RejectedChanges,
    RequestPrecondition, WriteOptions, check, draft, extension_fields, private_keys,
};
use crate::compile::compile_stored;
use crate::store::{Batch, Condition, Mutation, Precondition, Store, StoreError, StoredDocument};

/// Attempts of a commit while others write the same documents.
const CAS_ATTEMPTS: usize = 16;

/// Makes changes.
#[derive(Clone)]
pub struct ChangePipeline {
    store: Arc<dyn Store>,
    keyring: Arc<Keyring>,
    protect_client_auth: bool,
    /// Held by a write whose commit has lost against another, so that it does not lose again to the
    /// writers of this process. Held from its start by a protected write, whose commit fails after
    /// any other of the kinds that it has read, and by its dry run, whose comparison takes as long.
    turn: Arc<Mutex<()>>,
}

/// A request with its document.
struct PlannedChange {
    /// Under a placeholder id for a POST, so that an invalid document takes no revision.
    key: Key,
    before: Option<StoredDocument>,
    /// The whole new document; `None`: it is removed.
    document: Option<Map<String, Value>>,
    notes: ChangeNotes,
}

/// Checked changes, and what the commit must require of other documents.
struct ChangePlan {
    changes: Vec<PlannedChange>,
    conditions: Vec<Condition>,
}

/// How `create_time` and `update_time` are set, in unix seconds.
enum Timestamps<'a> {
    /// A whole document: keeps the creation time of the document that it replaces.
    Replace(Option<&'a Value>),
    /// A patched document: keeps times from the request; `has_update_time` says whether the update
    /// time is one of them.
    Patch { has_update_time: bool },
}

/// Names the request that fails.
fn at<E: Into<ChangeError>>(operation: usize) -> impl Fn(E) -> RejectedChanges {
    move |error| RejectedChanges { operation: Some(operation), error: error.into() }
}

impl ChangePipeline {
    /// Makes changes in `store` and encrypts private keys with `keyring`.
    pub fn new(store: Arc<dyn Store>, keyring: Arc<Keyring>) -> Self {
        Self { store, keyring, protect_client_auth: false, turn: Arc::default() }
    }

    /// Denies changes that weaken client authentication, unless their caller allows it
    /// (`deployment.admin.protect_client_auth`).
    #[must_use]
    pub fn with_protected_client_auth(mut self, protect: bool) -> Self {
        self.protect_client_auth = protect;
        self
    }

    /// Carries out all requests in one commit, or none of them. A dry run only checks them.
    /// `based_on`: the requests follow from the whole configuration at that revision, so the commit
    /// fails when any document was written since.
    ///
    /// # Errors
    /// The first request that is invalid or whose precondition does not hold, or the store's error.
    pub async fn apply(
        &self,
        requests: &[ChangeRequest],
        options: WriteOptions,
        based_on: Option<u64>,
    ) -> Result<AcceptedChanges, RejectedChanges> {
        let mut turn = match self.protect_client_auth {
            true => Some(self.turn.lock().await),
            false => None,
        };
        let mut reserved = HashMap::new();
        // A dry run has no commit that would check its plan.
        let mut recent = self.store.recent().filter(|_| !options.dry_run);
        for _ in 0..CAS_ATTEMPTS {
            let source = recent.take().map_or(DocumentSource::Store(&*self.store), DocumentSource::Recent);
            let mut plan = match self.plan(requests, options, &source).await {
                // Recent documents may lack what was written a moment ago.
                Err(_) if source.is_recent() => continue,
                plan => plan?,
            };
            if options.dry_run {
                return Ok(plan.accept(requests, None));
            }
            if let Some(since) = based_on {
                let unchanged = Kind::ALL.map(|kind| Condition::KindUnchanged { kind, since });
                plan.conditions.extend(unchanged);
            }
            self.assign_ids(requests, &mut plan, &mut reserved).await?;
            match self.store.commit(plan.batch(requests)).await {
                Ok(committed) => return Ok(plan.accept(requests, Some(committed.revision))),
                Err(StoreError::Conflict { .. }) if source.is_recent() => {}
                Err(StoreError::Conflict { key }) => {
                    self.check_expiry(&plan, key.as_ref()).await?;
                    if based_on.is_some() {
                        let error = StoreError::Conflict { key }.into();
                        return Err(RejectedChanges { operation: None, error });
                    }
                    plan.check_conflict(requests, key.as_ref())?;
                    if turn.is_none() {
                        turn = Some(self.turn.lock().await);
                    }
                }
                Err(error) => return Err(RejectedChanges { operation: None, error: error.into() }),
            }
        }
        let error = StoreError::Conflict { key: None }.into();
        Err(RejectedChanges { operation: None, error })
    }

    /// Drafts and checks all documents.
    async fn plan(
        &self,
        requests: &[ChangeRequest],
        options: WriteOptions,
        source: &DocumentSource<'_>,
    ) -> Result<ChangePlan, RejectedChanges> {
        let mut changes = Vec::with_capacity(requests.len());
        let mut pending = HashMap::with_capacity(requests.len());
        for (index, request) in requests.iter().enumerate() {
            let change = draft_change(request, options.now, source).await.map_err(at(index))?;
            if !matches!(request.action, Action::Post { .. }) {
                let document = change.document.clone().map(Value::Object);
                if pending.insert(change.key.clone(), document).is_some() {
                    let message = format!("{} is written twice in one batch", change.key);
                    return Err(at(index)(Problem::new("", message)));
                }
            }
            changes.push(change);
        }
        let mut resources = Vec::with_capacity(changes.len());
        for (index, change) in changes.iter_mut().enumerate() {
            resources.push(self.check_alone(change, options.now).map_err(at(index))?);
            let_others_run(index).await;
        }
        let mut overlay = StoreOverlay::new(source, pending);
        let compiled: Vec<Resource> = resources.iter().flatten().cloned().collect();
        for (index, (change, request)) in changes.iter().zip(requests).enumerate() {
            let checked = match (resources.get(index).and_then(Option::as_ref), &request.action) {
                (Some(resource), _) => {
                    check::check_references(resource, &compiled, &self.keyring, &mut overlay).await
                }
                (None, Action::Delete { force: true }) => Ok(()),
                (None, _) => check::check_removal(&change.key, &mut overlay).await,
            };
            checked.map_err(at(index))?;
            if let Some(document) = &change.document {
                let checked = check::check_global_rule(&change.key, document, &mut overlay).await;
                checked.map_err(at(index))?;
            }
            let_others_run(index).await;
        }
        if self.protect_client_auth {
            self.protect(requests, &mut changes, &resources, options, &mut overlay).await?;
        }
        let conditions = overlay.into_conditions();
        for (index, (change, resource)) in changes.iter_mut().zip(&resources).enumerate() {
            let expires = requests.get(index).is_some_and(|request| request.ttl.is_some());
            self.finish(change, resource.as_ref(), expires);
        }
        Ok(ChangePlan { changes, conditions })
    }

    /// Denies changes that weaken client authentication together. If their caller accepts that, it
    /// is in their notes.
    async fn protect(
        &self,
        requests: &[ChangeRequest],
        changes: &mut [PlannedChange],
        resources: &[Option<Resource>],
        options: WriteOptions,
        overlay: &mut StoreOverlay<'_>,
    ) -> Result<(), RejectedChanges> {
        let writes =
            changes.iter().zip(resources).zip(requests).map(|((change, after), request)| ComparedWrite {
                key: &change.key,
                before: change.before.as_ref(),
                after: after.as_ref(),
                gets_id: matches!(request.action, Action::Post { .. }),
                ttl: request.ttl,
            });
        let writes: Vec<_> = writes.collect();
        let compared = protection::compare(&writes, overlay, &self.keyring).await;
        let compared = compared.map_err(|error| RejectedChanges { operation: None, error })?;
        let weakenings = compared.weakenings;
        if !options.allow_weakening {
            compared.relied_on.into_iter().for_each(|key| overlay.require_lasting(key));
        }
        match weakenings.first() {
            Some((first, _)) if !options.allow_weakening => {
                let texts = weakenings.iter().map(|(index, weakening)| match writes.get(*index) {
                    Some(ComparedWrite { gets_id: true, key, .. }) if writes.len() > 1 => {
                        format!("{}: {weakening}", key.kind.plural())
                    }
                    Some(write) if writes.len() > 1 => format!("{}: {weakening}", write.key),
                    _ => weakening.clone(),
                });
                Err(at(*first)(ChangeError::Weakens(texts.collect())))
            }
            _ => {
                for (index, weakening) in weakenings {
                    changes.get_mut(index).into_iter().for_each(|change| {
                        change.notes.warnings.push(weakening.clone());
                    });
                }
                Ok(())
            }
        }
    }

    /// Checks and compiles a document by itself; `None` for a removal.
    fn check_alone(&self, change: &mut PlannedChange, now: UnixTime) -> Result<Option<Resource>, Problem> {
        let Some(members) = change.document.take() else { return Ok(None) };
        let Key { kind, id } = &change.key;
        let document = Value::Object(members);
        let (resource, findings) = check::check_document(*kind, id, &document, &self.keyring, now)?;
        private_keys::reject_stray_keys(*kind, &document)?;
        change.notes.findings = findings;
        change.notes.warnings.extend(model::plugin_warnings(&document));
        if let Value::Object(members) = document {
            change.document = Some(members);
        }
        Ok(Some(resource))
    }

    /// Denies a plan that relies on the protection of a document that expires.
    async fn check_expiry(&self, plan: &ChangePlan, key: Option<&Key>) -> Result<(), RejectedChanges> {
        let relied_on = key.filter(|key| plan.conditions.contains(&Condition::NeverExpires((*key).clone())));
        let Some(key) = relied_on else { return Ok(()) };
        let rejected = |error| RejectedChanges { operation: None, error };
        // Another writer may have changed or removed it: then the next plan shows what is weaker.
        let is_changed = |found: &StoredDocument| {
            plan.conditions.iter().any(|condition| match condition {
                Condition::Unchanged { key: read, since } => read == key && found.mod_revision > *since,
                _ => false,
            })
        };
        match self.store.get(key).await.map_err(|error| rejected(error.into()))? {
            Some(found) if !is_changed(&found) => {
                let text = format!("{key} expires, which protects what the changed objects did");
                Err(rejected(ChangeError::Weakens(vec![text])))
            }
            _ => Ok(()),
        }
    }

    /// Adds what the change by itself weakens to its notes, unless all changes were compared
    /// together, and encrypts the private keys. `expires`: the document has a time to live.
    fn finish(&self, change: &mut PlannedChange, resource: Option<&Resource>, expires: bool) {
        if let Some(before) = change.before.as_ref().filter(|_| !self.protect_client_auth) {
            let mut weakenings = self.weakenings(before, resource);
            if expires && resource.is_some() {
                // The store removes it later, without anybody to ask.
                weakenings.extend(self.weakenings(before, None));
            }
            change.notes.warnings.extend(weakenings);
        }
        if let Some(document) = &mut change.document {
            private_keys::seal_private_keys(change.key.kind, document, &self.keyring);
        }
    }

    /// What the protection loses when `now` replaces `before`, or nothing does.
    fn weakenings(&self, before: &StoredDocument, now: Option<&Resource>) -> Vec<String> {
        let Some(before) = compile_stored(before, &self.keyring, None).0 else { return Vec::new() };
        let weakened = match now {
            Some(now) => model::weakenings(&before.resource, now),
            None => model::removal_weakenings(&before.resource),
        };
        weakened.iter().map(ToString::to_string).collect()
    }

    /// Gives the documents of POSTs their ids; `reserved` keeps them over repeated attempts.
    async fn assign_ids(
        &self,
        requests: &[ChangeRequest],
        plan: &mut ChangePlan,
        reserved: &mut HashMap<usize, Id>,
    ) -> Result<(), RejectedChanges> {
        for (index, (request, change)) in requests.iter().zip(&mut plan.changes).enumerate() {
            if !matches!(request.action, Action::Post { .. }) {
                continue;
            }
            let id = match reserved.get(&index) {
                Some(id) => id.clone(),
                None => {
                    let number = self.store.reserve_id().await.map_err(at(index))?;
                    let id = Id::parse(&format!("{number:020}")).map_err(at(index))?;
                    reserved.insert(index, id.clone());
                    id
                }
            };
            if let Some(document) = &mut change.document {
                document.insert("id".to_owned(), Value::String(id.to_string()));
            }
            change.key = Key::new(request.kind, id);
        }
        Ok(())
    }
}

impl ChangePlan {
    fn batch(&self, requests: &[ChangeRequest]) -> Batch {
        let mutations = self.changes.iter().zip(requests).map(|(change, request)| {
            let key = change.key.clone();
            let precondition = change
                .before
                .as_ref()
                .map_or(Precondition::Absent, |before| Precondition::ModRevision(before.mod_revision));
            match &change.document {
                Some(document) => {
                    let document = Value::Object(document.clone());
                    Mutation::Put { key, document, precondition, ttl: request.ttl }
                }
                None => Mutation::Delete { key, precondition },
            }
        });
        Batch { mutations: mutations.collect(), conditions: self.conditions.clone() }
    }

    /// Whether the plan can be made anew after another writer changed `key`.
    fn check_conflict(&self, requests: &[ChangeRequest], key: Option<&Key>) -> Result<(), RejectedChanges> {
        let lost = self.changes.iter().position(|change| Some(&change.key) == key);
        let Some((index, request)) = lost.and_then(|index| Some((index, requests.get(index)?))) else {
            return Ok(());
        };
        match (&request.action, &request.precondition) {
            (Action::Patch { .. }, RequestPrecondition::Unconditional) => {
                Err(at(index)(StoreError::Conflict { key: key.cloned() }))
            }
            // A precondition is checked again.
            _ => Ok(()),
        }
    }

    /// The changes as their caller sees them. Logs their notes once they are committed.
    fn accept(self, requests: &[ChangeRequest], revision: Option<u64>) -> AcceptedChanges {
        let accepted = self.changes.into_iter().zip(requests).map(|(change, request)| {
            let PlannedChange { key, before, document, notes } = change;
            if let Some(revision) = revision {
                extension_fields::log_notes(&key, revision, &notes);
            }
            let assigned = revision.is_some() || !matches!(request.action, Action::Post { .. });
            AcceptedChange {
                kind: request.kind,
                key: assigned.then_some(key),
                before: before.map(|before| before.document),
                document: document.map_or(Value::Null, Value::Object),
                notes,
            }
        });
        AcceptedChanges { revision, changes: accepted.collect() }
    }
}

/// The document of a request, and the one that it replaces.
async fn draft_change(
    request: &ChangeRequest,
    now: UnixTime,
    source: &DocumentSource<'_>,
) -> Result<PlannedChange, ChangeError> {
    let ChangeRequest { kind, id, action, precondition, .. } = request;
    match action {
        Action::Put { body } => {
            let draft::Draft { key, mut document } = draft::put(*kind, id.as_deref(), body.clone())?;
            let before = source.get(&key).await?;
            check_precondition(precondition, before.as_ref())?;
            let stored = before.as_ref().map(|before| &before.document);
            draft::forbid_times(&document, stored)?;
            let kept = private_keys::carry_over(*kind, stored, &mut document);
            let mut notes = extension_fields::carry_over(&key, stored, &mut document);
            notes.kept.extend(kept);
            set_timestamps(&mut document, Timestamps::Replace(stored), now);
            Ok(PlannedChange { key, before, document: Some(document), notes })
        }
        Action::Post { body } => {
            let mut document = draft::post(*kind, id.as_deref(), body.clone())?;
            check_precondition(precondition, None)?;
            let key = Key::new(*kind, Id::parse("0")?);
            let notes = extension_fields::carry_over(&key, None, &mut document);
            set_timestamps(&mut document, Timestamps::Replace(None), now);
            Ok(PlannedChange { key, before: None, document: Some(document), notes })
        }
        Action::Patch { sub_path, body } => {
            draft_patch(request, sub_path.as_deref(), body.as_ref(), now, source).await
        }
        Action::Delete { .. } => {
            let key = existing_key(request)?;
            let before = source.get(&key).await?.ok_or(ChangeError::NotFound)?;
            check_precondition(precondition, Some(&before))?;
            Ok(PlannedChange { key, before: Some(before), document: None, notes: ChangeNotes::default() })
        }
    }
}

async fn draft_patch(
    request: &ChangeRequest,
    sub_path: Option<&str>,
    body: Option<&Value>,
    now: UnixTime,
    source: &DocumentSource<'_>,
) -> Result<PlannedChange, ChangeError> {
    let key = existing_key(request)?;
    // Errors of the request itself come before the look-up of the document.
    if body.is_none() || (sub_path.is_none() && !body.is_some_and(Value::is_object)) {
        draft::patch(&key, Value::Object(Map::new()), sub_path, body.cloned())?;
        return Err(ChangeError::NotFound);
    }
    let has_update_time = sub_path.is_none() && body.is_some_and(|body| body.get("update_time").is_some());
    let before = source.get(&key).await?.ok_or(ChangeError::NotFound)?;
    check_precondition(&request.precondition, Some(&before))?;
    let mentions_crls = extension_fields::mentions_crls(sub_path, body);
    let mut document = draft::patch(&key, before.document.clone(), sub_path, body.cloned())?.document;
    let notes = extension_fields::settle_patched(
        &key,
        &before.document,
        &mut document,
        sub_path.is_some(),
        mentions_crls,
    );
    set_timestamps(&mut document, Timestamps::Patch { has_update_time }, now);
    Ok(PlannedChange { key, before: Some(before), document: Some(document), notes })
}

/// The name of a document that must exist.
fn existing_key(request: &ChangeRequest) -> Result<Key, ChangeError> {
    let Some(id) = &request.id else {
        return Err(Problem::new("id", format!("missing {} id", request.kind.noun())).into());
    };
    // A string that is no valid id names no document.
    let id = Id::parse(id).map_err(|_| ChangeError::NotFound)?;
    Ok(Key::new(request.kind, id))
}

fn check_precondition(
    precondition: &RequestPrecondition,
    before: Option<&StoredDocument>,
) -> Result<(), ChangeError> {
    if precondition.holds(before.map(|before| before.mod_revision)) {
        return Ok(());
    }
    Err(ChangeError::PreconditionFailed(match (precondition, before) {
        (RequestPrecondition::Absent, _) => "the object exists",
        (_, None) => "the object does not exist",
        _ => "the object was changed: read it again",
    }))
}

fn set_timestamps(document: &mut Map<String, Value>, times: Timestamps<'_>, now: UnixTime) {
    let now = now.as_secs();
    match times {
        Timestamps::Replace(before) => {
            let created = before.and_then(|before| before.get("create_time")).cloned();
            document.insert("create_time".to_owned(), created.unwrap_or_else(|| now.into()));
            document.insert("update_time".to_owned(), now.into());
        }
        Timestamps::Patch { has_update_time } => {
            document.entry("create_time").or_insert_with(|| now.into());
            if !has_update_time {
                document.insert("update_time".to_owned(), now.into());
            }
        }
    }
}

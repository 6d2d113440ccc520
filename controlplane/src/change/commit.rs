//! The only code that writes the configuration.
//!
//! Plans all requests (documents with id, times, extension fields and encrypted private keys,
//! checked against the store as they will leave it), and commits them at once against the revisions
//! that the plan is based on. When another writer is faster, the plan is made anew on what that one
//! wrote: a PUT states the whole document. A PATCH applies to the document that its caller saw, so
//! it fails then (contract 2.3), and so does a request with a precondition.

use std::collections::HashMap;
use std::sync::Arc;

use model::lint::Severity;
use model::{Id, Key, Kind, Problem, Resource};
use pki::Keyring;
use rustls_pki_types::UnixTime;
use serde_json::Value;
use tokio::sync::{Mutex, OwnedMutexGuard};

use super::fairness::Pauses;
use super::overlay::{DocumentSource, StoreOverlay};
use super::planned::{PlannedChange, draft_change};
use super::protection::{self, ComparedWrite};
use super::{
    AcceptedChange, AcceptedChanges, Action, ChangeError, ChangeRequest, RejectedChanges,
    RequestPrecondition, WriteOptions, check, extension_fields, private_keys,
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
    /// any other of the kinds that it has read.
    turn: Turn,
    /// Held by the dry run of a protected write, whose comparison takes as long: one at a time, and
    /// no write waits for it.
    dry_run_turn: Turn,
}

/// Its guard goes into work that cannot be stopped.
type Turn = Arc<Mutex<()>>;

/// Checked changes, and what the commit must require of other documents.
struct ChangePlan {
    changes: Vec<PlannedChange>,
    conditions: Vec<Condition>,
}

/// Names the request that fails.
fn at<E: Into<ChangeError>>(operation: usize) -> impl Fn(E) -> RejectedChanges {
    move |error| RejectedChanges { operation: Some(operation), error: error.into() }
}

impl ChangePipeline {
    /// Makes changes in `store` and encrypts private keys with `keyring`.
    pub fn new(store: Arc<dyn Store>, keyring: Arc<Keyring>) -> Self {
        let (turn, dry_run_turn) = Default::default();
        Self { store, keyring, protect_client_auth: false, turn, dry_run_turn }
    }

    /// Encrypts with this keyring from now on. Clones with different keyrings share their turns.
    #[must_use]
    pub(crate) fn with_keyring(mut self, keyring: Arc<Keyring>) -> Self {
        self.keyring = keyring;
        self
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
        let own_turn = if options.dry_run { &self.dry_run_turn } else { &self.turn };
        let mut turn = match self.protect_client_auth {
            true => Some(Arc::clone(own_turn).lock_owned().await),
            false => None,
        };
        let mut reserved = HashMap::new();
        // A dry run has no commit that would check its plan.
        let mut recent = self.store.recent().filter(|_| !options.dry_run);
        for _ in 0..CAS_ATTEMPTS {
            let source = recent.take().map_or(DocumentSource::Store(&*self.store), DocumentSource::Recent);
            let mut plan = match self.plan(requests, options, &source, &mut turn).await {
                // Recent documents may lack what was written a moment ago.
                Err(_) if source.is_recent() => continue,
                plan => plan?,
            };
            if options.dry_run {
                self.check_lasting(&plan).await?;
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
                        turn = Some(Arc::clone(own_turn).lock_owned().await);
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
        turn: &mut Option<OwnedMutexGuard<()>>,
    ) -> Result<ChangePlan, RejectedChanges> {
        let mut pauses = Pauses::new();
        let mut changes = Vec::with_capacity(requests.len());
        let mut pending = HashMap::with_capacity(requests.len());
        for (index, request) in requests.iter().enumerate() {
            let change = draft_change(request, options.now, source).await.map_err(at(index))?;
            pauses.let_others_run().await;
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
            pauses.let_others_run().await;
        }
        let mut overlay = StoreOverlay::new(source, pending);
        let compiled: Vec<Resource> = resources.iter().flatten().cloned().collect();
        let mut checks = check::ReferenceChecks::new(&mut overlay, &self.keyring, &compiled);
        for (index, (change, request)) in changes.iter_mut().zip(requests).enumerate() {
            let before = change.before.as_ref().map(|before| &before.document);
            let checked = match (resources.get(index).and_then(Option::as_ref), &request.action) {
                (Some(resource), _) => checks.check(resource).await.map(|()| None),
                (None, Action::Delete { force: true }) => Ok(None),
                (None, _) => checks.check_removal(&change.key, before).await,
            };
            change.notes.warnings.extend(checked.map_err(at(index))?);
            if let Some(document) = &change.document {
                checks.check_global_rule(&change.key, document).await.map_err(at(index))?;
            }
            pauses.let_others_run().await;
        }
        if self.protect_client_auth {
            self.protect(requests, &mut changes, &resources, options, &mut overlay, turn).await?;
        }
        let conditions = overlay.into_conditions();
        for (index, (change, resource)) in changes.iter_mut().zip(&resources).enumerate() {
            let expires = requests.get(index).is_some_and(|request| request.ttl.is_some());
            self.finish(change, resource.as_ref(), expires);
            pauses.let_others_run().await;
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
        turn: &mut Option<OwnedMutexGuard<()>>,
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
        let compared = protection::compare(&writes, overlay, &self.keyring, turn).await;
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
        // What cannot be meant is a warning of the write.
        for finding in findings {
            match finding.severity {
                Severity::Error => change.notes.warnings.push(finding.to_string()),
                _ => change.notes.findings.push(finding.to_string()),
            }
        }
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
            Some(found) if !is_changed(&found) => Err(relies_on_expiring(key)),
            _ => Ok(()),
        }
    }

    /// As [`Self::check_expiry`], for a plan that has no commit to find it out.
    async fn check_lasting(&self, plan: &ChangePlan) -> Result<(), RejectedChanges> {
        let mut lasting = plan.conditions.iter().filter_map(|condition| match condition {
            Condition::NeverExpires(key) => Some(key),
            _ => None,
        });
        let Some(first) = lasting.next() else { return Ok(()) };
        let rejected = |error: StoreError| RejectedChanges { operation: None, error: error.into() };
        let expiries = self.store.expiries().await.map_err(rejected)?;
        match std::iter::once(first).chain(lasting).find(|key| expiries.contains_key(*key)) {
            Some(key) => Err(relies_on_expiring(key)),
            None => Ok(()),
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

/// The error of a plan that relies on the protection of a document that expires.
fn relies_on_expiring(key: &Key) -> RejectedChanges {
    let text = format!("{key} expires, which protects what the changed objects did");
    RejectedChanges { operation: None, error: ChangeError::Weakens(vec![text]) }
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

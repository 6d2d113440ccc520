//! The only code that writes the configuration.
//!
//! Sets id, times and extension fields, has the draft checked, encrypts its private keys, and
//! commits it against the revision it is based on. A PUT states the whole document, so when another
//! writer is faster it is rebuilt on the new revision; a PATCH applies to the document that its
//! caller saw, so it fails then (contract 2.3).

use std::num::NonZeroU32;
use std::sync::Arc;

use model::{Id, Key, Kind, Resource};
use pki::Keyring;
use rustls_pki_types::UnixTime;
use serde_json::{Map, Value};

use super::{
    ChangeError, ChangeNotes, CommittedChange, WriteOptions, check, draft, extension_fields, private_keys,
};
use crate::compile::compile_stored;
use crate::store::{Mutation, Precondition, Store, StoreError, StoredDocument};

/// Attempts of a PUT while others write the same key.
const CAS_ATTEMPTS: usize = 16;

/// Makes changes.
#[derive(Clone)]
pub struct ChangePipeline {
    store: Arc<dyn Store>,
    keyring: Arc<Keyring>,
}

/// How `create_time` and `update_time` are set, in unix seconds.
enum Timestamps<'a> {
    /// A whole document: keeps the creation time of the document that it replaces.
    Replace(Option<&'a Value>),
    /// A patched document: keeps times from the request; `has_update_time` says whether the update
    /// time is one of them.
    Patch { has_update_time: bool },
}

impl ChangePipeline {
    /// Makes changes in `store` and encrypts private keys with `keyring`.
    pub fn new(store: Arc<dyn Store>, keyring: Arc<Keyring>) -> Self {
        Self { store, keyring }
    }

    /// Creates or replaces the document of that name.
    ///
    /// # Errors
    /// When the document is invalid or the store fails.
    pub async fn put(
        &self,
        kind: Kind,
        url_id: Option<&str>,
        body: Option<Value>,
        options: WriteOptions,
    ) -> Result<CommittedChange, ChangeError> {
        let draft::Draft { key, document: requested } = draft::put(kind, url_id, body)?;
        let WriteOptions { now, ttl } = options;
        for _ in 0..CAS_ATTEMPTS {
            let before = self.store.get(&key).await?;
            let stored = before.as_ref().map(|before| &before.document);
            let mut document = requested.clone();
            let notes = extension_fields::carry_over(&key, stored, &mut document);
            let (mut document, notes) =
                self.check_and_seal(&key, before.as_ref(), document, notes, now).await?;
            set_timestamps(&mut document, Timestamps::Replace(stored), now);
            let expect =
                before.map_or(Precondition::Absent, |before| Precondition::ModRevision(before.mod_revision));
            match self.commit(&key, document, expect, ttl, notes).await {
                Err(ChangeError::Store(StoreError::Conflict { .. })) => {}
                result => return result,
            }
        }
        Err(StoreError::Conflict { key: Some(key) }.into())
    }

    /// Creates a document under a new, unique id.
    ///
    /// # Errors
    /// When the document is invalid or the store fails.
    pub async fn post(
        &self,
        kind: Kind,
        url_id: Option<&str>,
        body: Option<Value>,
        options: WriteOptions,
    ) -> Result<CommittedChange, ChangeError> {
        let mut document = draft::post(kind, url_id, body)?;
        let WriteOptions { now, ttl } = options;
        // Checked under a placeholder id, so that an invalid document takes no revision.
        let placeholder = Key::new(kind, Id::parse("0")?);
        let notes = extension_fields::carry_over(&placeholder, None, &mut document);
        let (mut document, notes) = self.check_and_seal(&placeholder, None, document, notes, now).await?;
        set_timestamps(&mut document, Timestamps::Replace(None), now);
        let id = format!("{:020}", self.store.reserve_id().await?);
        document.insert("id".to_owned(), Value::String(id.clone()));
        self.commit(&Key::new(kind, Id::parse(&id)?), document, Precondition::Absent, ttl, notes).await
    }

    /// Changes a part of a document.
    ///
    /// # Errors
    /// When the document does not exist, the result is invalid, another writer has changed it, or
    /// the store fails.
    pub async fn patch(
        &self,
        key: &Key,
        sub_path: Option<&str>,
        body: Option<Value>,
        options: WriteOptions,
    ) -> Result<CommittedChange, ChangeError> {
        let WriteOptions { now, ttl } = options;
        // Errors of the request itself come before the look-up of the document.
        if body.is_none() || (sub_path.is_none() && !body.as_ref().is_some_and(Value::is_object)) {
            draft::patch(key, Value::Object(Map::new()), sub_path, body)?;
            return Err(ChangeError::NotFound);
        }
        let has_update_time =
            sub_path.is_none() && body.as_ref().is_some_and(|body| body.get("update_time").is_some());
        let before = self.store.get(key).await?.ok_or(ChangeError::NotFound)?;
        let mentions_crls = extension_fields::mentions_crls(sub_path, body.as_ref());
        let mut document = draft::patch(key, before.document.clone(), sub_path, body)?.document;
        let notes = extension_fields::settle_patched(
            key,
            &before.document,
            &mut document,
            sub_path.is_some(),
            mentions_crls,
        );
        set_timestamps(&mut document, Timestamps::Patch { has_update_time }, now);
        let (document, notes) = self.check_and_seal(key, Some(&before), document, notes, now).await?;
        self.commit(key, document, Precondition::ModRevision(before.mod_revision), ttl, notes).await
    }

    /// Removes a document; `force` skips the search for documents that refer to it.
    ///
    /// # Errors
    /// When it does not exist, others refer to it, or the store fails.
    pub async fn delete(&self, key: &Key, force: bool) -> Result<CommittedChange, ChangeError> {
        if !force {
            check::check_removal(key, &*self.store).await?;
        }
        let before = self.store.get(key).await?.ok_or(ChangeError::NotFound)?;
        let removal = Mutation::Delete { key: key.clone(), precondition: Precondition::Unconditional };
        let removed = self.store.commit(removal.into()).await?;
        if !removed.first().existed {
            return Err(ChangeError::NotFound);
        }
        let notes = ChangeNotes { kept: Vec::new(), warnings: self.weakenings(&before, None) };
        extension_fields::log_notes(key, removed.revision, &notes);
        Ok(CommittedChange {
            key: key.clone(),
            document: Value::Null,
            revision: removed.revision,
            existed: true,
            notes,
        })
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

    /// Checks a document, adds what it weakens to the notes, and encrypts its private keys.
    async fn check_and_seal(
        &self,
        key: &Key,
        before: Option<&StoredDocument>,
        document: Map<String, Value>,
        mut notes: ChangeNotes,
        now: UnixTime,
    ) -> Result<(Map<String, Value>, ChangeNotes), ChangeError> {
        let document = Value::Object(document);
        let resource =
            check::check_document(key.kind, &key.id, &document, &self.keyring, &*self.store, now).await?;
        private_keys::reject_stray_keys(key.kind, &document)?;
        let Value::Object(mut document) = document else { return Err(ChangeError::NotFound) };
        if let Some(before) = before {
            notes.warnings.extend(self.weakenings(before, Some(&resource)));
        }
        private_keys::seal_private_keys(key.kind, &mut document, &self.keyring);
        Ok((document, notes))
    }

    async fn commit(
        &self,
        key: &Key,
        document: Map<String, Value>,
        expect: Precondition,
        ttl: Option<NonZeroU32>,
        notes: ChangeNotes,
    ) -> Result<CommittedChange, ChangeError> {
        let document = Value::Object(document);
        let write = Mutation::Put { key: key.clone(), document: document.clone(), precondition: expect, ttl };
        let committed = self.store.commit(write.into()).await?;
        extension_fields::log_notes(key, committed.revision, &notes);
        Ok(CommittedChange {
            key: key.clone(),
            document,
            revision: committed.revision,
            existed: committed.first().existed,
            notes,
        })
    }
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

//! One request of a plan: its whole document with times and extension fields, and the stored one
//! that it replaces.
//!
//! Invariant: a precondition is checked against the very document from which the new one is made.

use model::{Id, Key, Problem};
use rustls_pki_types::UnixTime;
use serde_json::{Map, Value};

use super::overlay::DocumentSource;
use super::{
    Action, ChangeError, ChangeNotes, ChangeRequest, RequestPrecondition, draft, extension_fields,
    private_keys,
};
use crate::store::StoredDocument;

/// A request with its document.
pub(super) struct PlannedChange {
    /// Under a placeholder id for a POST, so that an invalid document takes no revision.
    pub(super) key: Key,
    pub(super) before: Option<StoredDocument>,
    /// The whole new document; `None`: it is removed.
    pub(super) document: Option<Map<String, Value>>,
    pub(super) notes: ChangeNotes,
}

/// How `create_time` and `update_time` are set, in unix seconds.
enum Timestamps<'a> {
    /// A whole document: keeps the creation time of the document that it replaces.
    Replace(Option<&'a Value>),
    /// A patched document: keeps times from the request; `has_update_time` says whether the update
    /// time is one of them.
    Patch { has_update_time: bool },
}

/// The document of a request, and the one that it replaces.
///
/// # Errors
/// The request is invalid, or its precondition does not hold; or a store error.
pub(super) async fn draft_change(
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

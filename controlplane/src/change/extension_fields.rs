//! Extension fields across a change: fields that the request does not mention are kept
//! (`model::extension`).
//!
//! A tool that knows only APISIX's schema reads, edits and writes back without them, so their
//! absence means nothing. CRLs that are carried over to another bundle are dropped where no
//! certificate of it has signed them: the bundle is what the request changes.

use model::{Key, Kind, extension};
use serde_json::{Map, Value};

use super::ChangeNotes;
use crate::compile;

const CRL_FIELD: &str = "client.crl";

/// For a document that replaces `before`, or is new.
pub(crate) fn carry_over(
    key: &Key,
    before: Option<&Value>,
    document: &mut Map<String, Value>,
) -> ChangeNotes {
    let carried = extension::carry_over(key.kind, before, document);
    let warnings = removal_warnings(&carried.removed);
    let mut notes = ChangeNotes { kept: carried.kept, warnings, findings: Vec::new() };
    if notes.kept.iter().any(|field| field == CRL_FIELD) {
        drop_unsigned_crls(key.kind, document, &mut notes);
    }
    notes
}

/// Removes the extension fields that are `null`: a request to remove them, which no schema accepts.
/// For a check of a document that no write follows.
pub(crate) fn remove_nulls(kind: Kind, document: &mut Value) {
    if let Some(members) = document.as_object_mut() {
        extension::carry_over(kind, None, members);
    }
}

/// For a patched document. `at_place`: the part at a sub-path was replaced as a whole.
pub(super) fn settle_patched(
    key: &Key,
    before: &Value,
    document: &mut Map<String, Value>,
    at_place: bool,
    mentions_crls: bool,
) -> ChangeNotes {
    let mut notes = ChangeNotes::default();
    if at_place {
        notes.kept = extension::carry_over(key.kind, Some(before), document).kept;
    }
    notes.warnings = removal_warnings(&extension::apply_removals(key.kind, before, document));
    if !mentions_crls {
        drop_unsigned_crls(key.kind, document, &mut notes);
    }
    notes
}

/// Whether a PATCH mentions CRLs.
pub(super) fn mentions_crls(sub_path: Option<&str>, body: Option<&Value>) -> bool {
    let mentions = |pointer: &str| body.is_some_and(|body| body.pointer(pointer).is_some());
    match sub_path {
        None => mentions("/client/crl"),
        Some("client") => mentions("/crl"),
        Some(path) => path == "client/crl" || path.starts_with("client/crl/"),
    }
}

fn removal_warnings(fields: &[String]) -> Vec<String> {
    fields.iter().map(|field| format!("{field}: removed")).collect()
}

fn drop_unsigned_crls(kind: Kind, document: &mut Map<String, Value>, notes: &mut ChangeNotes) {
    let mut whole = Value::Object(std::mem::take(document));
    let dropped = compile::drop_unsigned_crls(kind, &mut whole);
    if let Value::Object(members) = whole {
        *document = members;
    }
    notes.warnings.extend(
        dropped
            .iter()
            .map(|crl| format!("{CRL_FIELD}: {crl} is dropped, no certificate of client.ca has signed it")),
    );
    if document.get("client").is_some_and(|client| client.get("crl").is_none()) {
        notes.kept.retain(|field| !field.starts_with(CRL_FIELD));
    }
}

/// Logs the effects of a change on the control plane that made it.
pub(super) fn log_notes(key: &Key, revision: u64, notes: &ChangeNotes) {
    if !notes.kept.is_empty() {
        let fields = notes.kept.join(", ");
        tracing::warn!(resource = %key, revision, fields, "kept fields that the request does not mention: null removes them");
    }
    for warning in notes.warnings.iter().chain(&notes.findings) {
        tracing::warn!(resource = %key, revision, "{warning}");
    }
}

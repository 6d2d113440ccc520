//! Plans a copy: the desired documents of the target, and their differences to its current ones. No
//! I/O.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::time::Instant;

use aws_lc_rs::digest::{Context, SHA256};
use data_encoding::HEXLOWER;
use model::Key;
use pki::Keyring;
use serde_json::{Map, Value};

use super::location::{Document, Location, LocationContent};
use super::opener::OpenLocation;
use crate::change::extension_fields;
use crate::change::private_keys::seal_private_keys;
use crate::store::StoredDocument;

/// The desired state of the target.
pub(super) struct DesiredState {
    pub documents: Vec<Document>,
    /// Notes about skipped and adapted documents.
    pub notes: Vec<String>,
    /// Documents that cannot be read here but that another program may serve: a copy without them
    /// would protect less.
    pub unreadable: Vec<String>,
}

pub(super) struct PlannedWrite {
    pub document: Document,
    /// The mod revision of the replaced document.
    pub replaces: Option<u64>,
}

pub(super) struct Plan {
    pub writes: Vec<PlannedWrite>,
    unchanged: usize,
    /// Keys that only the target has.
    only_in_target: Vec<String>,
    /// The target is an existing file, which a write replaces as a whole, with everything that only
    /// the target has.
    rewrites_file: bool,
}

/// The source's documents, adapted to the target: private keys in clear are sealed for a store, and
/// a document in a file has its id as a member. Extension fields that only the target has are kept.
pub(super) fn desired_state(
    source: LocationContent,
    target: &OpenLocation,
    current: &LocationContent,
    keyring: &Keyring,
) -> DesiredState {
    let by_key = by_key(&current.items);
    let documents = Vec::with_capacity(source.items.len());
    let mut desired = DesiredState { documents, notes: source.skipped, unreadable: Vec::new() };
    let to_file = match target {
        OpenLocation::File { .. } => true,
        OpenLocation::Store { .. } => false,
        OpenLocation::Absent { location } => matches!(location, Location::Yaml(_)),
    };
    for StoredDocument { key, document, salvaged, .. } in source.items {
        let Value::Object(mut document) = document else {
            let what = format!("it is no JSON object, but {}", json_type(&document));
            match salvaged {
                Some(_) => desired.unreadable.push(format!("{key}: {what}")),
                None => desired.notes.push(format!("{key} is left out: {what}")),
            }
            continue;
        };
        if to_file {
            set_id(&key, &mut document);
        } else {
            seal_private_keys(key.kind, &mut document, keyring);
        }
        let before = by_key.get(&key).map(|item| &item.document);
        let notes = extension_fields::carry_over(&key, before, &mut document);
        let kept = notes
            .kept
            .iter()
            .map(|field| format!("{field} of the target is kept: the source does not have it"));
        desired.notes.extend(kept.chain(notes.warnings).map(|line| format!("{key}: {line}")));
        let mut expires = source.expiries.get(&key).copied();
        if to_file && let Some(end) = expires.take() {
            let seconds = end.saturating_duration_since(Instant::now()).as_secs();
            let note =
                format!("{key}: its time to live ({seconds} s left) is not in the file, so its copy stays");
            desired.notes.push(note);
        }
        desired.documents.push(Document { key, value: Value::Object(document), expires });
    }
    desired.documents.sort_by(|one, other| one.key.cmp(&other.key));
    desired
}

/// In a file, a document has no other name than its `id`.
fn set_id(key: &Key, document: &mut Map<String, Value>) {
    let id = key.id.as_str();
    let is_set = match document.get("id") {
        Some(Value::String(value)) => value == id,
        Some(Value::Number(value)) => value.to_string() == id,
        _ => false,
    };
    if !is_set {
        document.insert("id".to_owned(), id.into());
    }
}

/// The text of a value that a store could not read (in angle brackets); otherwise only the type,
/// because the value may be a private key.
fn json_type(document: &Value) -> &str {
    match document {
        Value::String(text) if text.starts_with('<') => text,
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Number(_) => "a number",
        Value::Bool(_) => "true or false",
        Value::Null => "null",
        Value::Object(_) => "an object",
    }
}

pub(super) fn by_key(items: &[StoredDocument]) -> HashMap<&Key, &StoredDocument> {
    items.iter().map(|item| (&item.key, item)).collect()
}

impl Plan {
    pub(super) fn of(desired: &[Document], current: &LocationContent, target: &OpenLocation) -> Self {
        let mut by_key: BTreeMap<&Key, &StoredDocument> =
            current.items.iter().map(|item| (&item.key, item)).collect();
        let (mut writes, mut unchanged) = (Vec::new(), 0);
        for document in desired {
            match by_key.remove(&document.key) {
                Some(found)
                    if found.document == document.value
                        && current.expiries.contains_key(&document.key) == document.expires.is_some() =>
                {
                    unchanged += 1;
                }
                found => writes.push(PlannedWrite {
                    document: document.clone(),
                    replaces: found.map(|found| found.mod_revision),
                }),
            }
        }
        let mut only_in_target: Vec<String> = by_key.keys().map(ToString::to_string).collect();
        let rewrites_file = matches!(target, OpenLocation::File { path, .. } if path.exists());
        if rewrites_file {
            only_in_target.extend(current.skipped.iter().cloned());
        }
        Self { writes, unchanged, only_in_target, rewrites_file }
    }

    pub(super) fn is_done(&self) -> bool {
        self.writes.is_empty() && (!self.rewrites_file || self.only_in_target.is_empty())
    }

    /// The documents that `--overwrite` would replace.
    pub(super) fn conflicts(&self) -> Vec<String> {
        let replaced = self.writes.iter().filter(|write| write.replaces.is_some());
        let mut conflicts: Vec<String> =
            replaced.map(|write| format!("{} differs", write.document.key)).collect();
        if self.rewrites_file && !self.is_done() {
            conflicts.extend(self.only_in_target.iter().map(|name| format!("{name}: only in the target")));
            if conflicts.is_empty() {
                conflicts.push("the file, which is written as a whole".to_owned());
            }
        }
        conflicts
    }

    pub(super) fn print_summary(&self, out: &mut dyn io::Write) -> io::Result<()> {
        let differ = self.writes.iter().filter(|write| write.replaces.is_some()).count();
        let outcome = if self.rewrites_file { "would go" } else { "stay" };
        let new = self.writes.len() - differ;
        let (unchanged, only) = (self.unchanged, self.only_in_target.len());
        writeln!(
            out,
            "{new} are new, {differ} differ, {unchanged} are the same, {only} are only in the target and {outcome}"
        )
    }
}

/// Over keys and documents; independent of the order of members.
pub(super) fn digest(documents: &[Document]) -> String {
    let mut context = Context::new(&SHA256);
    for Document { key, value, .. } in documents {
        let mut value = value.clone();
        value.sort_all_objects();
        for text in [key.to_string(), value.to_string()] {
            context.update(&text.len().to_le_bytes());
            context.update(text.as_bytes());
        }
    }
    HEXLOWER.encode(context.finish().as_ref())
}

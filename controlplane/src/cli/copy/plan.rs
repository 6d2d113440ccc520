//! Plans a copy: the desired documents of the target, and their differences to its current ones. No
//! I/O.

use std::collections::{BTreeMap, HashMap};
use std::io;

use aws_lc_rs::digest::{Context, SHA256};
use model::Key;
use pki::Keyring;
use serde_json::{Map, Value};

use super::location::{LocationContent, OpenLocation};
use crate::change::extension_fields;
use crate::change::private_keys::seal_private_keys;
use crate::store::StoredDocument;

/// A desired document of the target.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Document {
    pub key: Key,
    pub value: Value,
}

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
    found: LocationContent,
    target: &OpenLocation,
    there: &LocationContent,
    keyring: &Keyring,
) -> DesiredState {
    let held = by_key(&there.items);
    let documents = Vec::with_capacity(found.items.len());
    let mut wanted = DesiredState { documents, notes: found.skipped, unreadable: Vec::new() };
    let to_file = match target {
        OpenLocation::File { .. } => true,
        OpenLocation::Store { .. } => false,
        OpenLocation::Absent { place } => matches!(place, super::Location::Yaml(_)),
    };
    for StoredDocument { key, document, salvaged, .. } in found.items {
        let Value::Object(mut document) = document else {
            let what = format!("it is no JSON object, but {}", json_type(&document));
            match salvaged {
                Some(_) => wanted.unreadable.push(format!("{key}: {what}")),
                None => wanted.notes.push(format!("{key} is left out: {what}")),
            }
            continue;
        };
        if to_file {
            set_id(&key, &mut document);
        } else {
            seal_private_keys(key.kind, &mut document, keyring);
        }
        let before = held.get(&key).map(|held| &held.document);
        let told = extension_fields::carry_over(&key, before, &mut document);
        let kept = told
            .kept
            .iter()
            .map(|field| format!("{field} of the target is kept: the source does not have it"));
        wanted.notes.extend(kept.chain(told.warnings).map(|line| format!("{key}: {line}")));
        wanted.documents.push(Document { key, value: Value::Object(document) });
    }
    wanted.documents.sort_by(|one, other| one.key.cmp(&other.key));
    wanted
}

/// In a file, a document has no other name than its `id`.
fn set_id(key: &Key, document: &mut Map<String, Value>) {
    let id = key.id.as_str();
    let says = match document.get("id") {
        Some(Value::String(said)) => said == id,
        Some(Value::Number(said)) => said.to_string() == id,
        _ => false,
    };
    if !says {
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
    pub(super) fn of(wanted: &[Document], there: &LocationContent, target: &OpenLocation) -> Self {
        let mut held: BTreeMap<&Key, &StoredDocument> =
            there.items.iter().map(|item| (&item.key, item)).collect();
        let (mut writes, mut same) = (Vec::new(), 0);
        for document in wanted {
            match held.remove(&document.key) {
                Some(there) if there.document == document.value => same += 1,
                there => writes.push(PlannedWrite {
                    document: document.clone(),
                    replaces: there.map(|there| there.mod_revision),
                }),
            }
        }
        let mut only_there: Vec<String> = held.keys().map(ToString::to_string).collect();
        let whole = matches!(target, OpenLocation::File { path, .. } if path.exists());
        if whole {
            only_there.extend(there.skipped.iter().cloned());
        }
        Self { writes, unchanged: same, only_in_target: only_there, rewrites_file: whole }
    }

    pub(super) fn is_done(&self) -> bool {
        self.writes.is_empty() && (!self.rewrites_file || self.only_in_target.is_empty())
    }

    /// The documents that `--overwrite` would replace.
    pub(super) fn conflicts(&self) -> Vec<String> {
        let replaced = self.writes.iter().filter(|write| write.replaces.is_some());
        let mut found: Vec<String> =
            replaced.map(|write| format!("{} differs", write.document.key)).collect();
        if self.rewrites_file && !self.is_done() {
            found.extend(self.only_in_target.iter().map(|name| format!("{name}: only in the target")));
            if found.is_empty() {
                found.push("the file, which is written as a whole".to_owned());
            }
        }
        found
    }

    pub(super) fn print_summary(&self, out: &mut dyn io::Write) -> io::Result<()> {
        let differ = self.writes.iter().filter(|write| write.replaces.is_some()).count();
        let fate = if self.rewrites_file { "would go" } else { "stay" };
        let new = self.writes.len() - differ;
        let (same, only) = (self.unchanged, self.only_in_target.len());
        writeln!(
            out,
            "{new} are new, {differ} differ, {same} are the same, {only} are only in the target and {fate}"
        )
    }
}

/// Over keys and documents; independent of the order of members.
pub(super) fn digest(documents: &[Document]) -> String {
    let mut context = Context::new(&SHA256);
    for Document { key, value } in documents {
        let mut value = value.clone();
        value.sort_all_objects();
        for text in [key.to_string(), value.to_string()] {
            context.update(&text.len().to_le_bytes());
            context.update(text.as_bytes());
        }
    }
    context.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

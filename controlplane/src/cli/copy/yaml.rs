//! The rules of an APISIX in a file (`apisix.yaml`): one list per kind, one document per entry,
//! then `#END`.
//!
//! Reading assigns the ids of an APISIX (`arr_` and the position of an entry without an id).
//! Writing is atomic, with mode 0600, and quotes texts so that every YAML reader and the
//! substitution of variables yield the document's text. Extension fields (`model::extension`) have
//! a list of their own, which an APISIX ignores: it would reject them in a route.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use model::{Id, Key, Kind, extension, redact};
use serde_json::Value;

use super::error::CopyError;
use super::location::{Document, LocationContent, skipped_note};
use crate::store::StoredDocument;

/// The list of extension fields; each entry names its document in `resource`.
const EXTENSIONS: &str = "countersign_extensions";
const RESOURCE: &str = "resource";

pub(super) fn read(path: &Path) -> Result<LocationContent, CopyError> {
    let rules = conf::read_apisix_yaml(path, &|name| std::env::var(name).ok())?;
    // The offending value may be a misplaced private key.
    let invalid =
        |what: String| CopyError::InvalidRules { path: path.to_owned(), what: redact(&what).into_owned() };
    let Value::Object(sections) = rules else {
        return Err(invalid("expected lists under routes:, upstreams:, ...".to_owned()));
    };
    let (mut items, mut left_out, mut keys) = (Vec::new(), Vec::new(), HashSet::new());
    let mut extensions = Vec::new();
    for (name, entries) in sections {
        let entries = match entries {
            Value::Array(entries) => entries,
            Value::Null => Vec::new(),
            _ => return Err(invalid(format!("{name}: expected a list"))),
        };
        if name == EXTENSIONS {
            extensions = entries;
            continue;
        }
        let Some(kind) = Kind::from_plural(&name) else {
            left_out.push(skipped_note(&name, entries.len()));
            continue;
        };
        for (document, position) in entries.into_iter().zip(1..) {
            let item = parse_item(kind, document, position)
                .map_err(|what| invalid(format!("{name}[{position}].id: {what}")))?;
            if !keys.insert(item.key.clone()) {
                return Err(invalid(format!("{name}[{position}].id: {} is there already", item.key)));
            }
            items.push(item);
        }
    }
    let mut merged = HashSet::new();
    for (fields, position) in extensions.into_iter().zip(1..) {
        merge_extension_entry(&mut items, &mut merged, fields)
            .map_err(|what| invalid(format!("{EXTENSIONS}[{position}]: {what}")))?;
    }
    items.sort_by_cached_key(|item| item.key.to_string());
    Ok(LocationContent { items, revision: None, skipped: left_out })
}

/// Merges the extension fields of one entry into its document. An entry without its document would
/// protect nothing, and of two entries for one document neither is authoritative.
fn merge_extension_entry(
    items: &mut [StoredDocument],
    merged: &mut HashSet<Key>,
    mut fields: Value,
) -> Result<(), String> {
    let members = fields.as_object_mut().ok_or("expected an object")?;
    let resource = members.shift_remove(RESOURCE).unwrap_or_default();
    let name = resource.as_str().ok_or("expected resource: routes/1, or another document of this file")?;
    let item = items.iter_mut().find(|item| item.key.to_string() == name);
    let item = item.ok_or_else(|| format!("resource: there is no {name} in this file"))?;
    if let Some(member) = extension::unknown_member(item.key.kind, members) {
        return Err(format!("{member}: this is no extension field of {name}; it belongs into the document"));
    }
    if !merged.insert(item.key.clone()) {
        return Err(format!("resource: there is an entry for {name} already; put their fields into one"));
    }
    if let Some(document) = item.document.as_object_mut() {
        extension::merge(item.key.kind, document, fields, false);
    }
    Ok(())
}

fn parse_item(kind: Kind, mut document: Value, position: usize) -> Result<StoredDocument, String> {
    let id = match document.get("id") {
        Some(Value::String(id)) => id.clone(),
        Some(Value::Number(id)) => id.to_string(),
        Some(other) => return Err(format!("found {other}, expected a text or a number")),
        None => format!("arr_{position}"),
    };
    let key = Key::new(kind, Id::parse(&id).map_err(|problem| format!("found {id:?}: {problem}"))?);
    if let Some(object) = document.as_object_mut() {
        object.entry("id").or_insert_with(|| id.into());
    }
    Ok(StoredDocument {
        key,
        document,
        create_revision: 0,
        mod_revision: 0,
        stale_extensions: false,
        salvaged: None,
    })
}

/// Writes a temporary file and renames it.
pub(super) fn write(path: &Path, documents: &[Document]) -> Result<(), CopyError> {
    let written = || {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(".tmp");
        let temporary = folder.join(name);
        // Left by a killed run; removing it avoids following a symbolic link.
        if let Err(error) = fs::remove_file(&temporary)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            return Err(error);
        }
        // The file holds private keys, sealed or not.
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(render(documents).as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        fs::File::open(folder)?.sync_all()
    };
    written().map_err(|source| CopyError::WriteFailed { path: path.to_owned(), source })
}

pub(super) fn render(documents: &[Document]) -> String {
    let mut out = String::new();
    let mut extensions = Vec::new();
    for kind in Kind::ALL {
        let of_kind = documents.iter().filter(|document| document.key.kind == kind);
        let of_kind = of_kind.map(|Document { key, value }| {
            let mut value = value.clone();
            let fields = value.as_object_mut().and_then(|members| extension::split(kind, members));
            if let Some(Value::Object(mut fields)) = fields {
                fields.shift_insert(0, RESOURCE.to_owned(), key.to_string().into());
                extensions.push(Value::Object(fields));
            }
            value
        });
        list(&mut out, kind.plural(), &of_kind.collect::<Vec<_>>());
    }
    list(&mut out, EXTENSIONS, &extensions);
    out.push_str("#END\n");
    out
}

/// One list under its name; nothing for an empty list.
fn list(out: &mut String, name: &str, entries: &[Value]) {
    if entries.is_empty() {
        return;
    }
    out.push_str(name);
    out.push(':');
    for entry in entries {
        out.push_str("\n  -");
        emit(out, entry, 4);
    }
    out.push('\n');
}

/// The value after a `-` or a `key:`, with the leading blank or line break.
fn emit(out: &mut String, value: &Value, indent: usize) {
    let line = |out: &mut String| {
        out.push('\n');
        out.extend(std::iter::repeat_n(' ', indent));
    };
    match value {
        Value::Object(members) if !members.is_empty() => {
            for (key, value) in members {
                line(out);
                if is_plain_scalar(key) {
                    out.push_str(key)
                } else {
                    quote(out, key)
                }
                out.push(':');
                emit(out, value, indent + 2);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for item in items {
                line(out);
                out.push('-');
                emit(out, item, indent + 2);
            }
        }
        Value::String(text) => match block_scalar(text) {
            Some((style, text)) => {
                let _ = write!(out, " {style}");
                for text in text.split('\n') {
                    if text.is_empty() {
                        out.push('\n')
                    } else {
                        line(out)
                    }
                    out.push_str(text);
                }
            }
            None => {
                out.push(' ');
                quote(out, text);
            }
        },
        // Empty collections, numbers and literals have the same syntax in YAML and JSON.
        other => {
            let _ = write!(out, " {other}");
        }
    }
}

/// Whether a key needs no quotes, in YAML 1.1 either.
fn is_plain_scalar(key: &str) -> bool {
    let word = ["true", "false", "null", "yes", "no", "on", "off", "y", "n"];
    key.starts_with(|c: char| c.is_ascii_alphabetic())
        && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-')
        && !word.iter().any(|word| word.eq_ignore_ascii_case(key))
}

/// A text of several lines as a block scalar: its style and body. Only for printable ASCII, such as
/// a PEM or a description.
fn block_scalar(text: &str) -> Option<(&'static str, &str)> {
    let harmless = text.chars().all(|c| matches!(c, '\n' | ' '..='~')) && !text.contains("${{");
    let (style, body) = match text.strip_suffix('\n') {
        Some(body) => ("|", body),
        None => ("|-", text),
    };
    let starts = body.starts_with(|c: char| c.is_ascii_graphic());
    (harmless && starts && body.contains('\n') && !body.ends_with('\n')).then_some((style, body))
}

/// A double-quoted scalar: JSON's escapes, and more where YAML or the substitution of variables
/// needs them.
fn quote(out: &mut String, text: &str) {
    let quoted = Value::from(text).to_string().replace("${{", "\\u0024{{");
    for c in quoted.chars() {
        if matches!(c, '\u{7f}'..='\u{9f}' | '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}') {
            let _ = write!(out, "\\u{:04x}", u32::from(c));
        } else {
            out.push(c);
        }
    }
}

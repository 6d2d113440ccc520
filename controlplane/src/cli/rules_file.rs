//! Documents in a file of the form of `apisix.yaml`: one list per kind, one document per entry.
//!
//! [`parse`] assigns documents to keys, [`render`] writes YAML that every YAML reader and the
//! substitution of variables read back as the same documents. Extension fields
//! (`model::extension`) may stand in the document, or in a list of their own, which an APISIX
//! ignores: it would reject them in a route. No I/O.

use std::collections::HashSet;
use std::fmt::Write as _;

use model::{Id, Key, Kind, extension};
use serde_json::Value;

/// The list of extension fields; each entry names its document in `resource`.
pub(crate) const EXTENSIONS: &str = "countersign_extensions";
const RESOURCE: &str = "resource";

/// The content of a file.
#[derive(Debug, Default)]
pub(crate) struct RulesFile {
    /// Ordered by the text of their keys. Each has its id as a member.
    pub documents: Vec<(Key, Value)>,
    /// The kinds that have a list, empty or not.
    pub kinds: Vec<Kind>,
    /// Lists of other names and the number of their entries.
    pub skipped: Vec<(String, usize)>,
}

/// What an entry without an id gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MissingId {
    /// `arr_` and its position in the list, as in an APISIX.
    Position,
    /// An error.
    Rejected,
}

/// Assigns the documents of a file to keys.
///
/// # Errors
/// The place in the file and the problem. The text may quote a value: see [`model::redact`].
pub(crate) fn parse(rules: Value, missing_id: MissingId) -> Result<RulesFile, String> {
    let Value::Object(sections) = rules else {
        return Err("expected lists under routes:, upstreams:, ...".to_owned());
    };
    let (mut file, mut keys) = (RulesFile::default(), HashSet::new());
    let mut extensions = Vec::new();
    for (name, entries) in sections {
        let entries = match entries {
            Value::Array(entries) => entries,
            Value::Null => Vec::new(),
            _ => return Err(format!("{name}: expected a list")),
        };
        if name == EXTENSIONS {
            extensions = entries;
            continue;
        }
        let Some(kind) = Kind::from_plural(&name) else {
            file.skipped.push((name, entries.len()));
            continue;
        };
        file.kinds.push(kind);
        for (document, position) in entries.into_iter().zip(1..) {
            let item = parse_entry(kind, document, position, missing_id)
                .map_err(|what| format!("{name}[{position}].id: {what}"))?;
            if !keys.insert(item.0.clone()) {
                return Err(format!("{name}[{position}].id: {} is there already", item.0));
            }
            file.documents.push(item);
        }
    }
    let mut merged = HashSet::new();
    for (fields, position) in extensions.into_iter().zip(1..) {
        merge_extension_entry(&mut file.documents, &mut merged, fields)
            .map_err(|what| format!("{EXTENSIONS}[{position}]: {what}"))?;
    }
    file.documents.sort_by_cached_key(|(key, _)| key.to_string());
    Ok(file)
}

/// Merges the extension fields of one entry into its document. An entry without its document would
/// protect nothing, and of two entries for one document neither is authoritative.
fn merge_extension_entry(
    documents: &mut [(Key, Value)],
    merged: &mut HashSet<Key>,
    mut fields: Value,
) -> Result<(), String> {
    let members = fields.as_object_mut().ok_or("expected an object")?;
    let resource = members.shift_remove(RESOURCE).unwrap_or_default();
    let name = resource.as_str().ok_or("expected resource: routes/1, or another document of this file")?;
    let item = documents.iter_mut().find(|(key, _)| key.to_string() == name);
    let (key, document) = item.ok_or_else(|| format!("resource: there is no {name} in this file"))?;
    if let Some(member) = extension::unknown_member(key.kind, members) {
        return Err(format!("{member}: this is no extension field of {name}; it belongs into the document"));
    }
    if !merged.insert(key.clone()) {
        return Err(format!("resource: there is an entry for {name} already; put their fields into one"));
    }
    if let Some(document) = document.as_object_mut() {
        extension::merge(key.kind, document, fields, false);
    }
    Ok(())
}

/// The key of a document by its member `id`, which it has afterwards.
fn parse_entry(
    kind: Kind,
    mut document: Value,
    position: usize,
    missing_id: MissingId,
) -> Result<(Key, Value), String> {
    let id = match document.get("id") {
        Some(Value::String(id)) => id.clone(),
        Some(Value::Number(id)) => id.to_string(),
        Some(other) => return Err(format!("found {other}, expected a text or a number")),
        None if missing_id == MissingId::Rejected => {
            return Err("the entry has no id; each needs one, so that it can be found again".to_owned());
        }
        None => format!("arr_{position}"),
    };
    let key = Key::new(kind, Id::parse(&id).map_err(|problem| format!("found {id:?}: {problem}"))?);
    if let Some(object) = document.as_object_mut() {
        object.entry("id").or_insert_with(|| id.into());
    }
    Ok((key, document))
}

/// The text of a file with these documents and `#END`. Extension fields are in their own list.
pub(crate) fn render<'a>(documents: impl Iterator<Item = (&'a Key, &'a Value)> + Clone) -> String {
    let mut out = String::new();
    let mut extensions = Vec::new();
    for kind in Kind::ALL {
        let of_kind = documents.clone().filter(|(key, _)| key.kind == kind);
        let of_kind = of_kind.map(|(key, value)| {
            let mut value = value.clone();
            let fields = value.as_object_mut().and_then(|members| extension::split(kind, members));
            if let Some(Value::Object(mut fields)) = fields {
                fields.shift_insert(0, RESOURCE.to_owned(), key.to_string().into());
                extensions.push(Value::Object(fields));
            }
            value
        });
        let of_kind: Vec<_> = of_kind.collect();
        if !of_kind.is_empty() {
            render_list(&mut out, kind.plural(), &of_kind);
        }
    }
    if !extensions.is_empty() {
        render_list(&mut out, EXTENSIONS, &extensions);
    }
    out.push_str("#END\n");
    out
}

/// One list under its name.
pub(crate) fn render_list(out: &mut String, name: &str, entries: &[Value]) {
    out.push_str(name);
    out.push(':');
    if entries.is_empty() {
        out.push_str(" []");
    }
    for entry in entries {
        out.push_str("\n  -");
        emit(out, entry, 4);
    }
    out.push('\n');
}

/// The YAML text of one value.
pub(crate) fn render_value(value: &Value) -> String {
    let mut out = String::new();
    emit(&mut out, value, 0);
    out.push('\n');
    out.trim_start().to_owned()
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

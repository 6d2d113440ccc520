//! Extension fields: members of documents that APISIX's schema does not have.
//!
//! A program that knows only that schema (APISIX's dashboard, ADC, APISIX on the same etcd) reads a
//! document, changes it and writes it back without these fields. Since they protect, a document
//! that does not mention one keeps it ([`carry_over`]), and `null` removes it. In a store that
//! APISIX reads, they are stored beside the document ([`split`], [`merge`]), because APISIX's
//! schema rejects unknown members of a route. Invariant: the tables here list every such field, and
//! `split` then `merge` is the identity.

use serde_json::{Map, Value};

use crate::id::Kind;

/// An extension field.
#[derive(Debug, PartialEq, Eq)]
pub struct Extension {
    /// The names of the objects around the field, outermost first, and then its own.
    path: &'static [&'static str],
    /// The sibling without which the field has no meaning.
    requires: Option<Sibling>,
    /// The field means the same without its siblings: where the innermost object around it is
    /// missing, it is created again.
    stands_alone: bool,
}

/// A member beside an extension field, whatever its value or with this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sibling {
    name: &'static str,
    value: Option<&'static str>,
}

impl Sibling {
    fn is_in(self, object: &Map<String, Value>) -> bool {
        let found = object.get(self.name);
        found.is_some_and(|found| self.value.is_none_or(|value| found == value))
    }
}

const fn field(path: &'static [&'static str]) -> Extension {
    Extension { path, requires: None, stands_alone: false }
}

const fn lone_field(path: &'static [&'static str]) -> Extension {
    Extension { stands_alone: true, ..field(path) }
}

/// `http2` is for https alone.
const fn http2_field(path: &'static [&'static str]) -> Extension {
    Extension { requires: Some(Sibling { name: "scheme", value: Some("https") }), ..field(path) }
}

// Without `client` there is nothing to revoke.
const SSL: [Extension; 2] = [
    field(&["client", "crl"]),
    Extension { requires: Some(Sibling { name: "crl", value: None }), ..field(&["client", "crl_policy"]) },
];
// A document without `tls` or `keepalive_pool` still has servers to verify, and nodes to spare.
const UPSTREAM: [Extension; 3] = [
    http2_field(&["http2"]),
    lone_field(&["keepalive_pool", "max_connections"]),
    lone_field(&["tls", "verify_identity"]),
];
// Without `upstream` there is none, or one of its own id with fields of its own.
const HTTP2: Extension = http2_field(&["upstream", "http2"]);
const MAX_CONNECTIONS: Extension = lone_field(&["upstream", "keepalive_pool", "max_connections"]);
const VERIFY_IDENTITY: Extension = lone_field(&["upstream", "tls", "verify_identity"]);
const STREAM_ROUTE: [Extension; 3] = [HTTP2, MAX_CONNECTIONS, VERIFY_IDENTITY];
const ROUTE: [Extension; 4] = [field(&["client_identity"]), HTTP2, MAX_CONNECTIONS, VERIFY_IDENTITY];

/// The extension fields of a kind, in the order in which they are carried over.
pub fn extensions(kind: Kind) -> &'static [Extension] {
    match kind {
        Kind::Ssl => &SSL,
        Kind::Upstream => &UPSTREAM,
        Kind::Route | Kind::Service => &ROUTE,
        Kind::StreamRoute => &STREAM_ROUTE,
        Kind::PluginConfig | Kind::GlobalRule => &[],
    }
}

impl Extension {
    /// The path of the field in the document, like `client.crl`.
    pub fn field(&self) -> String {
        self.path.join(".")
    }

    /// The names of the objects around it, and its own name.
    fn split_path(&self) -> (&'static [&'static str], &'static str) {
        self.path.split_last().map_or((&[], ""), |(name, parents)| (parents, *name))
    }

    fn name(&self) -> &'static str {
        self.split_path().1
    }

    fn of<'a>(&self, document: &'a Map<String, Value>) -> Option<&'a Value> {
        let (first, rest) = self.path.split_first()?;
        rest.iter().try_fold(document.get(*first)?, |value, name| value.get(*name))
    }

    /// The object that may contain the field, if the document has it.
    fn parent_of<'a>(&self, document: &'a mut Map<String, Value>) -> Option<&'a mut Map<String, Value>> {
        let (parents, _) = self.split_path();
        within(document, parents)
    }

    /// Whether a document of another program, with this object around the field, decides about it.
    fn is_settled_in(&self, parent: &Map<String, Value>) -> bool {
        let lacks_sibling =
            self.requires.is_some_and(|needed| needed.value.is_some() && !needed.is_in(parent));
        parent.contains_key(self.name()) || lacks_sibling
    }

    /// The object for a stored field; one that is absent is created for a field that stands alone.
    fn restored_parent<'a>(
        &self,
        document: &'a mut Map<String, Value>,
    ) -> Option<&'a mut Map<String, Value>> {
        match self.split_path().0.split_last() {
            Some((innermost, outer)) if self.stands_alone => {
                let object = within(document, outer)?;
                object.entry(*innermost).or_insert_with(|| Value::Object(Map::new())).as_object_mut()
            }
            _ => self.parent_of(document),
        }
    }
}

/// The object at the path, if the document has it.
fn within<'a>(document: &'a mut Map<String, Value>, path: &[&str]) -> Option<&'a mut Map<String, Value>> {
    path.iter().try_fold(document, |object, name| object.get_mut(*name)?.as_object_mut())
}

/// What happened to the extension fields of a replaced document.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct CarriedOver {
    /// Fields that the new document does not mention and keeps.
    pub kept: Vec<String>,
    /// Fields that the new document removes, by `null` or by lacking the object around them without
    /// which they have no meaning.
    pub removed: Vec<String>,
}

/// Carries the extension fields of `before` over to a document that replaces it and does not
/// mention them. `null` removes a field, and the member with it.
pub fn carry_over(kind: Kind, before: Option<&Value>, document: &mut Map<String, Value>) -> CarriedOver {
    let mut carried = CarriedOver::default();
    let before = before.and_then(Value::as_object);
    for extension in extensions(kind) {
        let old = before.and_then(|before| extension.of(before));
        let parent = match old {
            Some(_) => extension.restored_parent(document),
            None => extension.parent_of(document),
        };
        let Some(parent) = parent else {
            carried.removed.extend(old.map(|_| extension.field()));
            continue;
        };
        let removes = match parent.get(extension.name()) {
            Some(Value::Null) => true,
            Some(_) => continue,
            None => extension.requires.is_some_and(|needed| !needed.is_in(parent)),
        };
        if removes {
            parent.shift_remove(extension.name());
        }
        let Some(old) = old else { continue };
        if removes {
            carried.removed.push(extension.field());
        } else {
            parent.insert(extension.name().to_owned(), old.clone());
            carried.kept.push(extension.field());
        }
    }
    carried
}

/// Applies a patch to extension fields: `null` removes one, and the fields that require it unless
/// the patch sets them. Returns the removed fields of `before`.
pub fn apply_removals(kind: Kind, before: &Value, document: &mut Map<String, Value>) -> Vec<String> {
    let before = before.as_object();
    let mut removed = Vec::new();
    for extension in extensions(kind) {
        let old = before.and_then(|before| extension.of(before));
        if let Some(parent) = extension.parent_of(document) {
            let needs = extension.requires.filter(|needed| !needed.is_in(parent));
            let unchanged = parent.get(extension.name()) == old;
            if parent.get(extension.name()).is_some_and(Value::is_null) || (needs.is_some() && unchanged) {
                parent.shift_remove(extension.name());
            }
        }
        if old.is_some() && extension.of(document).is_none() {
            removed.push(extension.field());
        }
    }
    removed
}

/// Moves the extension fields out of a document, into an object of the same shape; `None` if there
/// are none.
pub fn split(kind: Kind, document: &mut Map<String, Value>) -> Option<Value> {
    let mut fields = Map::new();
    for extension in extensions(kind) {
        let (parents, name) = extension.split_path();
        let taken = extension.parent_of(document).and_then(|parent| parent.shift_remove(name));
        let Some(value) = taken else { continue };
        let object = parents.iter().try_fold(&mut fields, |object, parent| {
            object.entry(*parent).or_insert_with(|| Value::Object(Map::new())).as_object_mut()
        });
        if let Some(object) = object {
            object.insert(name.to_owned(), value);
        }
    }
    (!fields.is_empty()).then_some(Value::Object(fields))
}

/// Merges the fields of [`split`] back. If the document is the newer of the two, its own value of a
/// field wins, because its writer knew the field, and one that has no meaning in it is dropped. So
/// are fields of an object that the document no longer has, unless they mean the same without it.
/// An `extension` with any other member is unreadable as a whole: it must not replace members of
/// the document.
pub fn merge(kind: Kind, document: &mut Map<String, Value>, extension: Value, document_is_newer: bool) {
    let fields = match extension {
        Value::Object(fields) if unknown_member(kind, &fields).is_none() => fields,
        _ => return mark_unreadable(kind, document, "it is not an object of extension fields alone"),
    };
    for extension in extensions(kind) {
        if let Some(value) = extension.of(&fields)
            && let Some(parent) = extension.restored_parent(document)
            && !(document_is_newer && extension.is_settled_in(parent))
        {
            parent.insert(extension.name().to_owned(), value.clone());
        }
    }
}

/// Marks the extension fields of a document as unreadable with a text that no schema accepts, so
/// that the document is not served without their protection.
pub fn mark_unreadable(kind: Kind, document: &mut Map<String, Value>, why: &str) {
    let text = format!("<the extension fields that are stored beside the document cannot be read: {why}>");
    for extension in extensions(kind) {
        mark(document, extension.path, &text);
    }
}

/// Puts the text at the path, or in place of the first object on it that is missing.
fn mark(object: &mut Map<String, Value>, path: &[&str], text: &str) {
    let Some((name, rest)) = path.split_first() else { return };
    match object.get_mut(*name) {
        Some(Value::Object(inner)) if !rest.is_empty() => mark(inner, rest, text),
        _ => drop(object.insert((*name).to_owned(), text.into())),
    }
}

/// The first member that is no extension field of the kind, and contains none.
pub fn unknown_member(kind: Kind, fields: &Map<String, Value>) -> Option<String> {
    unknown_within(kind, &mut Vec::new(), fields)
}

fn unknown_within<'a>(
    kind: Kind,
    outer: &mut Vec<&'a str>,
    fields: &'a Map<String, Value>,
) -> Option<String> {
    for (name, value) in fields {
        outer.push(name);
        let unknown = match value {
            Value::Object(members) if extensions(kind).iter().any(|known| is_around(outer, known.path)) => {
                unknown_within(kind, outer, members)
            }
            _ if extensions(kind).iter().any(|known| known.path == outer.as_slice()) => None,
            _ => Some(outer.join(".")),
        };
        if unknown.is_some() {
            return unknown;
        }
        outer.pop();
    }
    None
}

/// Whether `outer` is the path of an object around `path`.
fn is_around(outer: &[&str], path: &[&str]) -> bool {
    path.len() > outer.len() && path.starts_with(outer)
}

#[cfg(test)]
mod tests;

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
    /// The object that contains the field; `None` is the document itself.
    parent: Option<&'static str>,
    name: &'static str,
    /// The sibling without which the field has no meaning.
    requires: Option<&'static str>,
}

const SSL: [Extension; 2] = [
    Extension { parent: Some("client"), name: "crl", requires: None },
    Extension { parent: Some("client"), name: "crl_policy", requires: Some("crl") },
];
const IDENTITY: [Extension; 1] = [Extension { parent: None, name: "client_identity", requires: None }];

/// The extension fields of a kind, in the order in which they are carried over.
pub fn extensions(kind: Kind) -> &'static [Extension] {
    match kind {
        Kind::Ssl => &SSL,
        Kind::Route | Kind::Service => &IDENTITY,
        Kind::Upstream | Kind::PluginConfig | Kind::StreamRoute | Kind::GlobalRule => &[],
    }
}

impl Extension {
    /// The path of the field in the document, like `client.crl`.
    pub fn field(&self) -> String {
        self.parent.map_or_else(|| self.name.to_owned(), |parent| format!("{parent}.{}", self.name))
    }

    fn of<'a>(&self, document: &'a Map<String, Value>) -> Option<&'a Value> {
        match self.parent {
            Some(parent) => document.get(parent)?.get(self.name),
            None => document.get(self.name),
        }
    }

    /// The object that may contain the field, if the document has it.
    fn parent_of<'a>(&self, document: &'a mut Map<String, Value>) -> Option<&'a mut Map<String, Value>> {
        match self.parent {
            Some(parent) => document.get_mut(parent)?.as_object_mut(),
            None => Some(document),
        }
    }
}

/// What happened to the extension fields of a replaced document.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct CarriedOver {
    /// Fields that the new document does not mention and keeps.
    pub kept: Vec<String>,
    /// Fields that the new document removes, by `null` or by lacking the object around them.
    pub removed: Vec<String>,
}

/// Carries the extension fields of `before` over to a document that replaces it and does not
/// mention them. `null` removes a field, and the member with it.
pub fn carry_over(kind: Kind, before: Option<&Value>, document: &mut Map<String, Value>) -> CarriedOver {
    let mut carried = CarriedOver::default();
    let before = before.and_then(Value::as_object);
    for extension in extensions(kind) {
        let old = before.and_then(|before| extension.of(before));
        let Some(parent) = extension.parent_of(document) else {
            carried.removed.extend(old.map(|_| extension.field()));
            continue;
        };
        let removes = match parent.get(extension.name) {
            Some(Value::Null) => true,
            Some(_) => continue,
            None => extension.requires.is_some_and(|needed| !parent.contains_key(needed)),
        };
        if removes {
            parent.shift_remove(extension.name);
        }
        let Some(old) = old else { continue };
        if removes {
            carried.removed.push(extension.field());
        } else {
            parent.insert(extension.name.to_owned(), old.clone());
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
            let needs = extension.requires.filter(|needed| !parent.contains_key(*needed));
            let unchanged = parent.get(extension.name) == old;
            if parent.get(extension.name).is_some_and(Value::is_null) || (needs.is_some() && unchanged) {
                parent.shift_remove(extension.name);
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
        let Some(value) =
            extension.parent_of(document).and_then(|parent| parent.shift_remove(extension.name))
        else {
            continue;
        };
        let object = match extension.parent {
            Some(parent) => {
                let object = fields.entry(parent).or_insert_with(|| Value::Object(Map::new()));
                object.as_object_mut()
            }
            None => Some(&mut fields),
        };
        if let Some(object) = object {
            object.insert(extension.name.to_owned(), value);
        }
    }
    (!fields.is_empty()).then_some(Value::Object(fields))
}

/// Merges the fields of [`split`] back. If the document is the newer of the two, its own value of a
/// field wins, because its writer knew the field. Fields of an object that the document no longer
/// has are dropped. An `extension` with any other member is unreadable as a whole: it must not
/// replace members of the document.
pub fn merge(kind: Kind, document: &mut Map<String, Value>, extension: Value, document_is_newer: bool) {
    let fields = match extension {
        Value::Object(fields) if unknown_member(kind, &fields).is_none() => fields,
        _ => return mark_unreadable(kind, document, "it is not an object of extension fields alone"),
    };
    let put = |object: &mut Map<String, Value>, name: String, value: Value| {
        if !(document_is_newer && object.contains_key(&name)) {
            object.insert(name, value);
        }
    };
    for (name, value) in fields {
        match value {
            Value::Object(members) if is_parent(kind, &name) => {
                let Some(object) = document.get_mut(&name).and_then(Value::as_object_mut) else { continue };
                members.into_iter().for_each(|(member, value)| put(object, member, value));
            }
            value => put(document, name, value),
        }
    }
}

/// Marks the extension fields of a document as unreadable with a text that no schema accepts, so
/// that the document is not served without their protection.
pub fn mark_unreadable(kind: Kind, document: &mut Map<String, Value>, why: &str) {
    let text = format!("<the extension fields that are stored beside the document cannot be read: {why}>");
    for extension in extensions(kind) {
        match extension.parent_of(document) {
            Some(parent) => drop(parent.insert(extension.name.to_owned(), text.as_str().into())),
            None => {
                let parent = extension.parent.unwrap_or(extension.name);
                document.insert(parent.to_owned(), text.as_str().into());
            }
        }
    }
}

/// The first member that is no extension field of the kind.
pub fn unknown_member(kind: Kind, fields: &Map<String, Value>) -> Option<String> {
    let is_field = |parent: Option<&str>, name: &str| {
        extensions(kind).iter().any(|extension| extension.parent == parent && extension.name == name)
    };
    fields.iter().find_map(|(name, value)| match value {
        Value::Object(members) if is_parent(kind, name) => {
            let member = members.keys().find(|member| !is_field(Some(name), member))?;
            Some(format!("{name}.{member}"))
        }
        _ => (!is_field(None, name)).then(|| name.clone()),
    })
}

fn is_parent(kind: Kind, name: &str) -> bool {
    extensions(kind).iter().any(|extension| extension.parent == Some(name))
}

#[cfg(test)]
mod tests;

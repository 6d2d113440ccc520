//! Extension fields: members of documents that APISIX's schema does not know.
//!
//! A program that knows only that schema (APISIX's dashboard, ADC, an APISIX on the same etcd)
//! reads a document, changes what it knows and writes the rest back without these. They protect, so
//! a document that does not mention one keeps it ([`carry`]); `null` removes it. In a store that an
//! APISIX reads, too, they are kept beside the document ([`split`], [`merge`]), because its schema
//! refuses unknown members at the top of a route. Invariant: the table here names every such field,
//! and `split` then `merge` is the identity.

use serde_json::{Map, Value};

use crate::id::Kind;

/// One extension field.
#[derive(Debug, PartialEq, Eq)]
pub struct Extension {
    /// The object that holds it; `None`: the document itself.
    parent: Option<&'static str>,
    name: &'static str,
    /// The member of the same object without which it means nothing.
    requires: Option<&'static str>,
}

const SSL: [Extension; 2] = [
    Extension { parent: Some("client"), name: "crl", requires: None },
    Extension { parent: Some("client"), name: "crl_policy", requires: Some("crl") },
];
const IDENTITY: [Extension; 1] = [Extension { parent: None, name: "client_identity", requires: None }];

/// The extension fields of a kind, in the order in which they are carried.
pub fn extensions(kind: Kind) -> &'static [Extension] {
    match kind {
        Kind::Ssl => &SSL,
        Kind::Route | Kind::Service => &IDENTITY,
        Kind::Upstream | Kind::StreamRoute | Kind::GlobalRule => &[],
    }
}

impl Extension {
    /// Its place in the document: `client.crl`.
    pub fn field(&self) -> String {
        self.parent.map_or_else(|| self.name.to_owned(), |parent| format!("{parent}.{}", self.name))
    }

    fn of<'a>(&self, document: &'a Map<String, Value>) -> Option<&'a Value> {
        match self.parent {
            Some(parent) => document.get(parent)?.get(self.name),
            None => document.get(self.name),
        }
    }

    /// The object that may hold it, if the document has that.
    fn parent_of<'a>(&self, document: &'a mut Map<String, Value>) -> Option<&'a mut Map<String, Value>> {
        match self.parent {
            Some(parent) => document.get_mut(parent)?.as_object_mut(),
            None => Some(document),
        }
    }
}

/// What became of the extension fields of a document that is replaced.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct CarriedOver {
    /// Fields that the new document does not mention and keeps.
    pub kept: Vec<String>,
    /// Fields that the new document removes: it has `null` in their place, or not the object that
    /// held them.
    pub removed: Vec<String>,
}

/// Carries the extension fields of `before` over to a document that takes its place and does not
/// mention them. `null` in such a field's place removes it, and is taken out of the document.
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

/// The extension fields of a document that a part is changed of: `null` in the place of one removes
/// it, and what needs it goes with it unless the change says otherwise. Gives the names of those
/// that `before` had and the document has not.
pub fn settle(kind: Kind, before: &Value, document: &mut Map<String, Value>) -> Vec<String> {
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

/// Takes the extension fields out of a document: an object of the same shape with them alone;
/// `None` when there are none.
pub fn split(kind: Kind, document: &mut Map<String, Value>) -> Option<Value> {
    let mut taken = Map::new();
    for extension in extensions(kind) {
        let Some(value) =
            extension.parent_of(document).and_then(|parent| parent.shift_remove(extension.name))
        else {
            continue;
        };
        let place = match extension.parent {
            Some(parent) => {
                let place = taken.entry(parent).or_insert_with(|| Value::Object(Map::new()));
                place.as_object_mut()
            }
            None => Some(&mut taken),
        };
        if let Some(place) = place {
            place.insert(extension.name.to_owned(), value);
        }
    }
    (!taken.is_empty()).then_some(Value::Object(taken))
}

/// Puts back what [`split`] took. A field that the document has itself is kept where the document
/// is the newer of the two: whoever wrote it there knew of it. An object that the document no
/// longer has took its fields with it. With any other member the whole counts as unreadable: it
/// must not replace what the document says about itself.
pub fn merge(kind: Kind, document: &mut Map<String, Value>, extension: Value, document_is_newer: bool) {
    let taken = match extension {
        Value::Object(taken) if unknown_member(kind, &taken).is_none() => taken,
        _ => return mark_unreadable(kind, document, "it is not an object of extension fields alone"),
    };
    let put = |place: &mut Map<String, Value>, name: String, value: Value| {
        if !(document_is_newer && place.contains_key(&name)) {
            place.insert(name, value);
        }
    };
    for (name, value) in taken {
        match value {
            Value::Object(members) if is_parent(kind, &name) => {
                let Some(place) = document.get_mut(&name).and_then(Value::as_object_mut) else { continue };
                members.into_iter().for_each(|(member, value)| put(place, member, value));
            }
            value => put(document, name, value),
        }
    }
}

/// Marks each extension field of a document as unreadable: a text in its place, or in that of the
/// object that should hold it, which no schema takes, so that the document is not served without
/// what it was to have.
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

/// The first member of what should be [`split`]'s that is no extension field of that kind.
pub fn unknown_member(kind: Kind, taken: &Map<String, Value>) -> Option<String> {
    let is_field = |parent: Option<&str>, name: &str| {
        extensions(kind).iter().any(|extension| extension.parent == parent && extension.name == name)
    };
    taken.iter().find_map(|(name, value)| match value {
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

//! Drafts: the whole document that a request results in.
//!
//! PUT and POST carry the document; PATCH carries a part that is merged into the stored one
//! (contract 2.3). A draft has an id where it must have one; `check` validates its content.
//! [`forbid_times`] is apart, because a PUT may repeat the times of the document that it replaces.

use model::{Id, Key, Kind, Problem, lua_type};
use serde_json::{Map, Value};

/// A document before the check.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Draft {
    pub key: Key,
    pub document: Map<String, Value>,
}

/// The document of a PUT: the id is in the URL, in the body, or equal in both.
///
/// # Errors
/// The contract's texts for what is missing or does not match.
pub(crate) fn put(kind: Kind, url_id: Option<&str>, body: Option<Value>) -> Result<Draft, Problem> {
    let mut document = object(body)?;
    let key = resolve_id(kind, url_id, &mut document)?;
    Ok(Draft { key, document })
}

/// The document of a POST, whose id the store assigns.
///
/// # Errors
/// When there is no body, or the URL or the body has an id.
pub(crate) fn post(
    kind: Kind,
    url_id: Option<&str>,
    body: Option<Value>,
) -> Result<Map<String, Value>, Problem> {
    let document = object(body)?;
    if url_id.is_some() || document.contains_key("id") {
        return Err(Problem::new("id", format!("wrong {} id, do not need it", kind.noun())));
    }
    forbid_times(&document, None)?;
    Ok(document)
}

/// The stored document after a PATCH; `sub_path` is the part of the URL behind the id.
///
/// # Errors
/// When there is no body, it cannot be merged, or it changes the id.
pub(crate) fn patch(
    key: &Key,
    mut stored: Value,
    sub_path: Option<&str>,
    body: Option<Value>,
) -> Result<Draft, Problem> {
    let body = body.ok_or_else(|| Problem::new("", "missing new configuration"))?;
    match sub_path {
        Some(path) => set_at_path(&mut stored, path, body)?,
        None if body.is_object() => merge(&mut stored, body),
        None => return Err(Problem::new("", "invalid configuration")),
    }
    let mut document = object(Some(stored))?;
    resolve_id(key.kind, Some(key.id.as_str()), &mut document)?;
    Ok(Draft { key: key.clone(), document })
}

fn object(body: Option<Value>) -> Result<Map<String, Value>, Problem> {
    match body {
        None | Some(Value::Null) => Err(Problem::new("", "missing configurations")),
        Some(Value::Object(document)) => Ok(document),
        Some(other) => Err(Problem::new(
            "",
            format!("invalid configuration: wrong type: expected object, got {}", lua_type(&other)),
        )),
    }
}

/// The id: the URL's, as text, or else the body's.
fn resolve_id(kind: Kind, url_id: Option<&str>, document: &mut Map<String, Value>) -> Result<Key, Problem> {
    let body_id = match document.get("id") {
        None | Some(Value::Null) => None,
        Some(Value::String(text)) => Some(text.clone()),
        Some(Value::Number(number)) => Some(number.to_string()),
        // No valid id: the empty one leads to the contract's text.
        Some(_) => Some(String::new()),
    };
    let id = match (url_id, body_id) {
        (None, None) => return Err(Problem::new("id", format!("missing {} id", kind.noun()))),
        (Some(url), Some(body)) if url != body => {
            return Err(Problem::new("id", format!("wrong {} id", kind.noun())));
        }
        (Some(url), _) => {
            document.insert("id".to_owned(), Value::String(url.to_owned()));
            url.to_owned()
        }
        (None, Some(body)) => body,
    };
    Ok(Key::new(kind, Id::parse(&id)?))
}

/// The gateway sets the times, and only PATCH may. A document that was read may be written back:
/// its times are those of `before`.
///
/// # Errors
/// Names the first time that is neither absent nor unchanged.
pub(crate) fn forbid_times(document: &Map<String, Value>, before: Option<&Value>) -> Result<(), Problem> {
    for parent in ["", "/upstream", "/plugins"] {
        let object = match parent.strip_prefix('/') {
            None => Some(document),
            Some(name) => document.get(name).and_then(Value::as_object),
        };
        for time in ["create_time", "update_time"] {
            let Some(value) = object.and_then(|object| object.get(time)) else { continue };
            let unchanged =
                before.and_then(|before| before.pointer(&format!("{parent}/{time}"))) == Some(value);
            if !unchanged {
                let field = format!("{parent}/{time}").trim_start_matches('/').replace('/', ".");
                let message = format!("the property is forbidden:  {field}");
                return Err(Problem::new(field, message)
                    .with_hint("leave it out: the gateway sets it; only a PATCH may change it"));
            }
        }
    }
    Ok(())
}

/// Objects merge member by member, `null` removes a member, any other value replaces (contract
/// 2.3).
fn merge(origin: &mut Value, change: Value) {
    let Value::Object(change) = change else {
        *origin = change;
        return;
    };
    if !origin.is_object() {
        *origin = Value::Object(Map::new());
    }
    let Value::Object(origin) = origin else { return };
    for (name, value) in change {
        if value.is_null() {
            origin.shift_remove(&name);
        } else {
            merge(origin.entry(name).or_insert(Value::Null), value);
        }
    }
}

/// Levels of a patched document. A stored document must be readable again (`model::json`: 128
/// levels), and a deep one would overflow the stack.
const LEVELS_MAX: usize = 100;

/// Sets `value` at `path` and creates the objects on the way. Elements of arrays are not
/// addressable.
fn set_at_path(document: &mut Value, path: &str, value: Value) -> Result<(), Problem> {
    if path.split('/').count() + levels(&value) > LEVELS_MAX {
        return Err(Problem::new("", format!("invalid sub-path: more than {LEVELS_MAX} levels")));
    }
    let invalid = |path: &str| Problem::new("", format!("invalid sub-path: /{path}"));
    let (parents, last) = match path.rsplit_once('/') {
        Some((parents, last)) => (Some(parents), last),
        None => (None, path),
    };
    if last.is_empty() {
        return Err(invalid(path));
    }
    let mut parent = document;
    let mut parent_path = String::new();
    for name in parents.into_iter().flat_map(|parents| parents.split('/')) {
        parent_path = if parent_path.is_empty() { name.to_owned() } else { format!("{parent_path}/{name}") };
        let object = parent.as_object_mut().ok_or_else(|| invalid(&parent_path))?;
        parent = object.entry(name).or_insert_with(|| Value::Object(Map::new()));
        if !parent.is_object() {
            return Err(invalid(&parent_path));
        }
    }
    parent.as_object_mut().ok_or_else(|| invalid(path))?.insert(last.to_owned(), value);
    Ok(())
}

/// The levels of objects and arrays in a parsed value.
fn levels(value: &Value) -> usize {
    let deepest = match value {
        Value::Array(items) => items.iter().map(levels).max(),
        Value::Object(members) => members.values().map(levels).max(),
        _ => return 0,
    };
    1 + deepest.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn key(id: &str) -> Key {
        Key::new(Kind::Ssl, Id::parse(id).unwrap())
    }

    fn message<T: std::fmt::Debug>(result: Result<T, Problem>) -> String {
        result.unwrap_err().message
    }

    #[test]
    fn put_takes_its_id_from_url_or_body() {
        let draft = put(Kind::Ssl, Some("1"), Some(json!({"sni": "a"}))).unwrap();
        assert_eq!((draft.key, Value::Object(draft.document)), (key("1"), json!({"sni": "a", "id": "1"})));
        let draft = put(Kind::Ssl, None, Some(json!({"id": 7}))).unwrap();
        assert_eq!((draft.key, Value::Object(draft.document)), (key("7"), json!({"id": 7})));
        let draft = put(Kind::Ssl, Some("7"), Some(json!({"id": 7}))).unwrap();
        assert_eq!(Value::Object(draft.document), json!({"id": "7"}));
        assert_eq!(message(put(Kind::Ssl, None, Some(json!({})))), "missing ssl id");
        assert_eq!(message(put(Kind::Upstream, Some("1"), Some(json!({"id": 2})))), "wrong upstream id");
        assert_eq!(message(put(Kind::Ssl, Some("1"), None)), "missing configurations");
        let none =
            "invalid configuration: property \"id\" validation failed: object matches none of the required";
        assert_eq!(message(put(Kind::Ssl, Some("*invalid"), Some(json!({})))), none);
        assert_eq!(message(put(Kind::Ssl, None, Some(json!({"id": [1]})))), none);
        assert!(message(put(Kind::Ssl, Some("1"), Some(json!("x")))).contains("expected object, got string"));
    }

    #[test]
    fn post_needs_no_id() {
        assert_eq!(post(Kind::Ssl, None, Some(json!({"a": 1}))).unwrap().len(), 1);
        for refused in [
            post(Kind::Upstream, Some("1"), Some(json!({}))),
            post(Kind::Upstream, None, Some(json!({"id": 1}))),
        ] {
            assert_eq!(message(refused), "wrong upstream id, do not need it");
        }
    }

    #[test]
    fn times_are_absent_or_those_of_the_document_before() {
        for (document, path) in [
            (json!({"create_time": 1}), "create_time"),
            (json!({"upstream": {"update_time": 1}}), "upstream.update_time"),
            (json!({"plugins": {"create_time": 1}}), "plugins.create_time"),
        ] {
            let forbidden = format!("the property is forbidden:  {path}");
            assert_eq!(message(post(Kind::Route, None, Some(document.clone()))), forbidden);
            let members = document.as_object().unwrap();
            assert_eq!(message(forbid_times(members, Some(&json!({"create_time": 2})))), forbidden);
            assert_eq!(forbid_times(members, Some(&document)), Ok(()), "read and written back");
        }
    }

    #[test]
    fn patch_merges_whole_documents() {
        let stored = json!({"id": "1", "client": {"ca": "x", "depth": 2}, "snis": ["a", "b"], "status": 1});
        let change =
            json!({"client": {"depth": 3}, "snis": ["c"], "status": null, "labels": {"a": null, "b": "c"}});
        let draft = patch(&key("1"), stored.clone(), None, Some(change)).unwrap();
        let expected =
            json!({"id": "1", "client": {"ca": "x", "depth": 3}, "snis": ["c"], "labels": {"b": "c"}});
        assert_eq!(Value::Object(draft.document), expected);
        assert_eq!(message(patch(&key("1"), stored.clone(), None, None)), "missing new configuration");
        assert_eq!(
            message(patch(&key("1"), stored.clone(), None, Some(json!([1])))),
            "invalid configuration"
        );
        assert_eq!(message(patch(&key("1"), stored, None, Some(json!({"id": 2})))), "wrong ssl id");
    }

    #[test]
    fn patch_sets_values_at_a_path() {
        let stored = json!({"id": "1", "snis": ["a"], "client": {"depth": 1}});
        let placed = |path: &str, value| {
            patch(&key("1"), stored.clone(), Some(path), Some(value))
                .map(|draft| Value::Object(draft.document))
        };
        assert_eq!(placed("snis", json!(["x", "y"])).unwrap()["snis"], json!(["x", "y"]));
        assert_eq!(placed("client/depth", json!(5)).unwrap()["client"], json!({"depth": 5}));
        assert_eq!(placed("a/0/b", json!(5)).unwrap()["a"], json!({"0": {"b": 5}}));
        assert_eq!(message(placed("client/depth/x/y", json!(1))), "invalid sub-path: /client/depth");
        assert_eq!(message(placed("snis/0", json!("x"))), "invalid sub-path: /snis");
        assert_eq!(message(placed("snis/", json!("x"))), "invalid sub-path: /snis/");
        let deep = "invalid sub-path: more than 100 levels";
        let path = vec!["a"; LEVELS_MAX].join("/");
        assert!(placed(&path, json!(1)).is_ok());
        assert_eq!(message(placed(&path, json!({}))), deep);
        assert_eq!(message(placed(&format!("{path}/a"), json!(1))), deep);
        let nested = (0..120).fold(json!(1), |value, _| json!([value]));
        assert_eq!(message(placed("a", nested)), deep);
    }

    fn json_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<u8>().prop_map(Value::from)
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                prop::collection::btree_map("[a-c]", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        /// Merging is last-writer-wins: doing it twice is doing it once.
        #[test]
        fn merging_twice_is_merging_once(origin in json_value(), change in json_value()) {
            let mut once = origin;
            merge(&mut once, change.clone());
            let mut twice = once.clone();
            merge(&mut twice, change);
            prop_assert_eq!(once, twice);
        }

        #[test]
        fn a_value_set_at_a_path_reads_back(path in "[a-c]{1,2}(/[a-c]{1,2}){0,3}", value in json_value()) {
            let mut document = Value::Object(Map::new());
            set_at_path(&mut document, &path, value.clone()).unwrap();
            prop_assert_eq!(document.pointer(&format!("/{path}")), Some(&value));
        }
    }
}

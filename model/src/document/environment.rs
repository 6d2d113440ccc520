//! `$env://NAME` and `$env://NAME/member`: certificates and keys of an ssl that come from
//! environment variables (contract 4.5).
//!
//! References are resolved before `compile`, which rejects the remaining ones. The caller supplies
//! the environment. Only `cert`, `key`, `certs[]`, `keys[]` and `client.ca` take references.
//! Invariant: no message contains a value or a part of one, and values are wiped after use.

use std::borrow::Cow;

use serde_json::Value;
use zeroize::{Zeroize, Zeroizing};

use crate::id::Kind;
use crate::json;
use crate::problem::Problem;
use crate::schema::env_ref_path;

const HINT: &str = "references are looked up in the control plane's environment, when a document is written and when the control plane \
                    starts; data planes need no variables";

/// A document whose references are replaced by their values.
pub struct ResolvedDocument<'a> {
    document: Cow<'a, Value>,
    refs: Vec<ResolvedRef>,
}

/// A reference and its value.
struct ResolvedRef {
    location: RefLocation,
    uri: String,
    value: Zeroizing<String>,
}

/// A field that takes references.
struct RefLocation {
    /// A JSON pointer.
    pointer: String,
    /// The field as users write it.
    field: String,
}

impl ResolvedDocument<'_> {
    /// The document to compile.
    pub fn document(&self) -> &Value {
        &self.document
    }

    /// The resolved references and their values, in the order of the document's fields.
    pub fn resolved_refs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.refs.iter().map(|drawn| (drawn.uri.as_str(), drawn.value.as_str()))
    }
}

impl Drop for ResolvedDocument<'_> {
    fn drop(&mut self) {
        let Cow::Owned(document) = &mut self.document else { return };
        for drawn in &self.refs {
            if let Some(Value::String(value)) = document.pointer_mut(&drawn.location.pointer) {
                value.zeroize();
            }
        }
    }
}

/// Replaces the references of a document by values of the environment.
///
/// # Errors
///
/// The first reference that does not resolve: its field, its variable and the cause.
pub fn resolve_references<'a>(
    kind: Kind,
    document: &'a Value,
    environment: &dyn Fn(&str) -> Option<String>,
) -> Result<ResolvedDocument<'a>, Problem> {
    let mut resolved = ResolvedDocument { document: Cow::Borrowed(document), refs: Vec::new() };
    for place in ref_locations(kind, document) {
        let Some(uri) = document.pointer(&place.pointer).and_then(Value::as_str) else { continue };
        let Some(path) = env_ref_path(uri) else { continue };
        let value = look_up_variable(path, environment).map_err(|why| {
            let field = &place.field;
            let message = format!("failed to resolve secret reference: {uri}, field: {field}, err: {why}");
            Problem::new(field, message).with_hint(HINT)
        })?;
        if let Some(Value::String(text)) = resolved.document.to_mut().pointer_mut(&place.pointer) {
            value.as_str().clone_into(text);
        }
        resolved.refs.push(ResolvedRef { uri: uri.to_owned(), value, location: place });
    }
    Ok(resolved)
}

fn ref_locations(kind: Kind, document: &Value) -> Vec<RefLocation> {
    if kind != Kind::Ssl {
        return Vec::new();
    }
    let place =
        |pointer: &str, field: &str| RefLocation { pointer: pointer.to_owned(), field: field.to_owned() };
    let mut places = vec![place("/cert", "cert"), place("/key", "key")];
    for list in ["certs", "keys"] {
        let length = document.get(list).and_then(Value::as_array).map_or(0, Vec::len);
        places.extend(
            (0..length)
                .map(|at| place(&format!("/{list}/{at}"), &format!("{list}[{}]", at.saturating_add(1)))),
        );
    }
    places.push(place("/client/ca", "client.ca"));
    places
}

fn look_up_variable(
    path: &str,
    environment: &dyn Fn(&str) -> Option<String>,
) -> Result<Zeroizing<String>, String> {
    let (name, member) = match path.split_once('/') {
        Some((name, member)) => (name, Some(member)),
        None => (path, None),
    };
    // Logs show the reference, so it must not contain line breaks.
    if name.is_empty() || path.chars().any(char::is_control) {
        return Err("it names no environment variable".to_owned());
    }
    let text = environment(name).map(Zeroizing::new);
    let text = text.ok_or_else(|| format!("the environment variable {name} is not set, or is not text"))?;
    let Some(member) = member.filter(|member| !member.is_empty()) else { return Ok(text) };
    let members = json::parse(text.as_bytes()).map_err(|error| {
        format!("the environment variable {name} is not JSON ({error}), so it has no member {member}")
    })?;
    match members.get(member) {
        Some(Value::String(value)) => Ok(Zeroizing::new(value.clone())),
        _ => Err(format!("the environment variable {name} has no text under {member}")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn environment(name: &str) -> Option<String> {
        match name {
            "CERT" => Some("the certificate".to_owned()),
            "PASTED" => Some("{\"key\": \"-----BEGIN X-----\nAA==\n\"}".to_owned()),
            "TWICE" => Some("{\"key\": \"a\", \"key\": \"b\"}".to_owned()),
            "PAIR" => Some(r#"{"key": "the key", "number": 1, "a/b": "slashed"}"#.to_owned()),
            _ => None,
        }
    }

    fn problem_of(document: &Value) -> Problem {
        match resolve_references(Kind::Ssl, document, &environment) {
            Ok(resolved) => panic!("resolved: {}", resolved.document()),
            Err(problem) => problem,
        }
    }

    #[test]
    fn every_field_resolves_and_the_original_is_unchanged() {
        let document = json!({
            "cert": "$env://CERT", "key": "$ENV://PAIR/key", "certs": ["as it is", "$eNv://CERT"],
            "keys": ["$env://PAIR/a/b"], "client": {"ca": "$env://CERT", "depth": 1}, "sni": "$env://CERT"
        });
        let resolved = resolve_references(Kind::Ssl, &document, &environment).unwrap();
        let expected = json!({
            "cert": "the certificate", "key": "the key", "certs": ["as it is", "the certificate"],
            "keys": ["slashed"], "client": {"ca": "the certificate", "depth": 1}, "sni": "$env://CERT"
        });
        assert_eq!(resolved.document(), &expected);
        assert_eq!(resolved.resolved_refs().count(), 5);
        assert_eq!(resolved.resolved_refs().nth(1), Some(("$ENV://PAIR/key", "the key")));
        assert_eq!(document["key"], "$ENV://PAIR/key");
    }

    #[test]
    fn a_member_may_be_a_pasted_pem() {
        let document = json!({"key": "$env://PASTED/key"});
        let resolved = resolve_references(Kind::Ssl, &document, &environment).unwrap();
        assert_eq!(resolved.document()["key"], "-----BEGIN X-----\nAA==\n");
    }

    #[test]
    fn a_document_without_references_is_borrowed() {
        let document = json!({"cert": "x", "key": "$secret://vault/1/key", "keys": 7, "client": []});
        assert!(matches!(
            resolve_references(Kind::Ssl, &document, &environment).unwrap().document,
            Cow::Borrowed(_)
        ));
        let upstream = json!({"tls": {"client_cert": "$env://CERT"}, "cert": "$env://CERT"});
        let resolved = resolve_references(Kind::Upstream, &upstream, &environment).unwrap();
        assert_eq!((resolved.document(), resolved.resolved_refs().count()), (&upstream, 0));
    }

    #[test]
    fn resolution_errors_name_field_and_variable_but_no_value() {
        for (document, field, expected) in [
            (json!({"key": "$env://GONE"}), "key", "variable GONE is not set"),
            (json!({"certs": ["x", "$env://cert"]}), "certs[2]", "variable cert is not set"),
            (json!({"client": {"ca": "$env://PAIR/none"}}), "client.ca", "PAIR has no text under none"),
            (json!({"keys": ["$env://PAIR/number"]}), "keys[1]", "PAIR has no text under number"),
            (json!({"cert": "$env://CERT/x"}), "cert", "variable CERT is not JSON"),
            (
                json!({"key": "$env://TWICE/key"}),
                "key",
                "variable TWICE is not JSON (the member \"key\" occurs twice",
            ),
            (json!({"cert": "$env://"}), "cert", "names no environment variable"),
            (json!({"cert": "$env:///x"}), "cert", "names no environment variable"),
            (json!({"cert": "$env://A\nB"}), "cert", "names no environment variable"),
        ] {
            let problem = problem_of(&document);
            assert_eq!(problem.field, field);
            assert!(problem.message.contains(expected) && problem.message.contains("field: "), "{problem}");
            assert!(!problem.to_string().contains("the certificate"), "{problem}");
        }
    }
}

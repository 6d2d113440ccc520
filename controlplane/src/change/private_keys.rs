//! Private keys in documents: encrypted before a document is stored (contract 4.6), redacted in
//! responses.
//!
//! The clear text is wiped in place. A value that does not start with `---` (encrypted already, or
//! a reference) is kept. Invariant: a private key is in the encrypted members or nowhere, and no
//! response to a write has one in clear.

use model::{Kind, Problem, has_private_key_armor, redact};
use pki::Keyring;
use serde_json::{Map, Value};
use zeroize::Zeroize;

/// Encrypts every private key of a document, in place.
pub(crate) fn seal_private_keys(kind: Kind, document: &mut Map<String, Value>, keyring: &Keyring) {
    for text in private_key_values(kind, document) {
        if let Value::String(text) = text {
            let sealed = keyring.seal(text);
            text.zeroize();
            *text = sealed;
        }
    }
}

/// Replaces every private key that is stored in clear, for want of a keyring, by `null`.
pub(crate) fn redact_clear_keys(kind: Kind, document: &mut Value) {
    let Value::Object(document) = document else { return };
    for key in private_key_values(kind, document) {
        if let Value::String(text) = key
            && text.starts_with("---")
        {
            text.zeroize();
            *key = Value::Null;
        }
    }
}

/// The members of a document that hold private keys.
fn private_key_values(kind: Kind, document: &mut Map<String, Value>) -> Vec<&mut Value> {
    match kind {
        Kind::Ssl => {
            let (mut key, mut keys) = (None, None);
            for (name, value) in document {
                match name.as_str() {
                    "key" => key = Some(value),
                    "keys" => keys = value.as_array_mut(),
                    _ => {}
                }
            }
            key.into_iter().chain(keys.into_iter().flatten()).collect()
        }
        Kind::Upstream => upstream_private_key(document).into_iter().collect(),
        Kind::Service | Kind::Route | Kind::StreamRoute => {
            let upstream = document.get_mut("upstream").and_then(Value::as_object_mut);
            upstream.and_then(upstream_private_key).into_iter().collect()
        }
        Kind::PluginConfig | Kind::GlobalRule => Vec::new(),
    }
}

/// Keeps the stored private keys of an ssl whose certificates a request repeats without them, as a
/// GET shows it; returns the kept members. A certificate that changes needs its key.
pub(crate) fn carry_over(
    kind: Kind,
    before: Option<&Value>,
    document: &mut Map<String, Value>,
) -> Vec<String> {
    let Some(before) = before.filter(|_| kind == Kind::Ssl) else { return Vec::new() };
    let mut kept = Vec::new();
    for (certificates, keys) in [("cert", "key"), ("certs", "keys")] {
        let repeated =
            document.get(certificates).is_some_and(|given| before.get(certificates) == Some(given));
        if let (true, false, Some(stored)) = (repeated, document.contains_key(keys), before.get(keys)) {
            document.insert(keys.to_owned(), stored.clone());
            kept.push(keys.to_owned());
        }
    }
    kept
}

/// The texts of these members ([`private_key_values`]) in a stored document.
pub(crate) fn private_key_texts(kind: Kind, document: &Value) -> impl Iterator<Item = &str> {
    let many = document.get("keys").and_then(Value::as_array).filter(|_| kind == Kind::Ssl);
    let one = match kind {
        Kind::Ssl => document.get("key"),
        Kind::Upstream => document.pointer("/tls/client_key"),
        Kind::Service | Kind::Route | Kind::StreamRoute => document.pointer("/upstream/tls/client_key"),
        Kind::PluginConfig | Kind::GlobalRule => None,
    };
    one.into_iter().chain(many.into_iter().flatten()).filter_map(Value::as_str)
}

fn upstream_private_key(upstream: &mut Map<String, Value>) -> Option<&mut Value> {
    upstream.get_mut("tls")?.get_mut("client_key")
}

/// Rejects a private key in a member that is not encrypted, where it would be stored and shown in
/// clear. (APISIX keeps it behind the certificates of `cert`, for example.)
///
/// # Errors
/// Names the member.
pub(crate) fn reject_stray_keys(kind: Kind, document: &Value) -> Result<(), Problem> {
    let Some(field) = stray_key(kind, "", document) else { return Ok(()) };
    let message = format!("invalid configuration: property \"{field}\": the text holds a private key");
    let hint = "a private key belongs into key, keys or tls.client_key, which are encrypted; leave it out of other members, which are shown to \
                every viewer";
    Err(Problem::new(field, message).with_hint(hint))
}

/// Redacts, in a document that another program stored, what [`reject_stray_keys`] rejects: viewers
/// must not see it. A placeholder text replaces it, not `null`, which would remove an extension
/// field when it is written back.
pub(crate) fn redact_stray_keys(kind: Kind, document: &mut Value) {
    redact_below(kind, "", document);
}

fn redact_below(kind: Kind, path: &str, value: &mut Value) {
    match value {
        Value::String(text) if has_private_key_armor(text) && !is_sealed(kind, path) => {
            let redacted = redact(text).into_owned();
            text.zeroize();
            *text = redacted;
        }
        Value::Array(items) => {
            (1..).zip(items).for_each(|(at, item)| redact_below(kind, &format!("{path}[{at}]"), item));
        }
        Value::Object(members) => {
            if members.keys().any(|name| has_private_key_armor(name)) {
                let redacted = |(name, member): (String, Value)| (redact(&name).into_owned(), member);
                *members = std::mem::take(members).into_iter().map(redacted).collect();
            }
            members.iter_mut().for_each(|(name, member)| redact_below(kind, &join_path(path, name), member));
        }
        _ => {}
    }
}

fn join_path(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// Whether a private key at this path is encrypted: the members of [`private_key_values`].
fn is_sealed(kind: Kind, path: &str) -> bool {
    match kind {
        Kind::Ssl => path == "key" || path.starts_with("keys["),
        Kind::Upstream => path == "tls.client_key",
        Kind::Service | Kind::Route | Kind::StreamRoute => path == "upstream.tls.client_key",
        Kind::PluginConfig | Kind::GlobalRule => false,
    }
}

/// The path of the first private key outside the members of [`private_key_values`].
fn stray_key(kind: Kind, path: &str, value: &Value) -> Option<String> {
    match value {
        Value::String(text) if has_private_key_armor(text) && !is_sealed(kind, path) => Some(path.to_owned()),
        Value::Array(items) => {
            (1..).zip(items).find_map(|(at, item)| stray_key(kind, &format!("{path}[{at}]"), item))
        }
        Value::Object(members) => members.iter().find_map(|(name, member)| {
            let path = join_path(path, name);
            has_private_key_armor(name).then(|| path.clone()).or_else(|| stray_key(kind, &path, member))
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn encrypted_members_and_searched_members_are_the_same() {
        let upstream = json!({"tls": {"client_cert": "c", "client_key": "k"}});
        let inline = json!({"key": "no", "upstream": upstream});
        for (kind, document) in [
            (Kind::Ssl, json!({"cert": "c", "key": "k", "keys": ["l", 7], "certs": ["c"]})),
            (Kind::Upstream, upstream),
            (Kind::Service, inline.clone()),
            (Kind::Route, inline.clone()),
            (Kind::StreamRoute, inline.clone()),
            (Kind::PluginConfig, inline.clone()),
            (Kind::GlobalRule, inline),
        ] {
            let found: Vec<_> = private_key_texts(kind, &document).map(str::to_owned).collect();
            let mut members = document.as_object().unwrap().clone();
            let sealed = private_key_values(kind, &mut members).into_iter();
            assert_eq!(found, sealed.filter_map(|key| key.as_str().map(str::to_owned)).collect::<Vec<_>>());
        }
    }

    #[test]
    fn keys_of_repeated_certificates_are_kept() {
        let stored = json!({"cert": "c", "key": "k", "certs": ["d"], "keys": ["l"]});
        let written = |document: Value, kind| {
            let Value::Object(mut document) = document else { panic!("not an object") };
            let kept = carry_over(kind, Some(&stored), &mut document);
            (Value::Object(document), kept.join(","))
        };
        let shown = json!({"cert": "c", "certs": ["d"]});
        assert_eq!(written(shown.clone(), Kind::Ssl), (stored.clone(), "key,keys".to_owned()));
        assert_eq!(written(shown.clone(), Kind::Upstream), (shown, String::new()));
        for unlike in
            [json!({"cert": "x"}), json!({}), json!({"cert": "c", "key": "new"}), json!({"certs": []})]
        {
            assert_eq!(written(unlike.clone(), Kind::Ssl), (unlike, String::new()));
        }
    }

    const CLEAR: &str = "---not really a key";

    fn sealed(kind: Kind, document: Value, keyring: &Keyring) -> Value {
        let Value::Object(mut document) = document else { panic!("not an object") };
        seal_private_keys(kind, &mut document, keyring);
        Value::Object(document)
    }

    #[test]
    fn every_private_key_member_is_encrypted() {
        let keyring = Keyring::new(vec!["qeddd145sfvddff3".to_owned()]).unwrap();
        let upstream = json!({"tls": {"client_cert": CLEAR, "client_key": CLEAR}});
        for (kind, document, places) in [
            (
                Kind::Ssl,
                json!({"cert": CLEAR, "key": CLEAR, "certs": [CLEAR], "keys": [CLEAR, "kept"]}),
                vec!["/key", "/keys/0"],
            ),
            (Kind::Upstream, upstream.clone(), vec!["/tls/client_key"]),
            (Kind::Service, json!({"upstream": upstream}), vec!["/upstream/tls/client_key"]),
            (Kind::Route, json!({"upstream": upstream}), vec!["/upstream/tls/client_key"]),
            (Kind::StreamRoute, json!({"upstream": upstream}), vec!["/upstream/tls/client_key"]),
        ] {
            let mut expected = document.clone();
            for place in places {
                *expected.pointer_mut(place).unwrap() = Value::String(keyring.seal(CLEAR));
            }
            let once = sealed(kind, document, &keyring);
            assert_eq!(once, expected);
            assert_eq!(sealed(kind, once.clone(), &keyring), once, "sealing twice is sealing once");
        }
    }

    #[test]
    fn without_a_keyring_keys_stay_clear() {
        let document = json!({"key": CLEAR});
        assert_eq!(sealed(Kind::Ssl, document.clone(), &Keyring::empty()), document);
    }

    #[test]
    fn a_key_in_clear_is_redacted_and_an_encrypted_one_is_not() {
        let hidden = |kind, mut document: Value| {
            redact_clear_keys(kind, &mut document);
            document
        };
        let ssl = json!({"cert": "c", "key": CLEAR, "keys": [CLEAR, "c2VhbGVk"]});
        assert_eq!(hidden(Kind::Ssl, ssl), json!({"cert": "c", "key": null, "keys": [null, "c2VhbGVk"]}));
        let upstream = json!({"tls": {"client_cert": "c", "client_key": CLEAR}});
        let clear = json!({"tls": {"client_cert": "c", "client_key": null}});
        assert_eq!(hidden(Kind::Upstream, upstream.clone()), clear);
        for kind in [Kind::Route, Kind::Service, Kind::StreamRoute] {
            assert_eq!(hidden(kind, json!({"upstream": upstream})), json!({"upstream": clear}));
        }
    }

    #[test]
    fn a_stray_key_of_another_program_is_redacted() {
        let key = "-----BEGIN EC PRIVATE KEY-----\nAASECRET\n-----END EC PRIVATE KEY-----\n";
        let cert = "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n";
        let behind = format!("{cert}{key}");
        let upstream = json!({"tls": {"client_cert": behind, "client_key": "sealed"}});
        for (kind, document) in [
            (Kind::Ssl, json!({"cert": behind, "client": {"ca": behind, "skip_mtls_uri_regex": ["a", key]}})),
            (Kind::Ssl, json!({"certs": [cert, behind], "client": {"crl": [key]}, "desc": key})),
            (Kind::Upstream, upstream.clone()),
            (Kind::Route, json!({"upstream": upstream, "labels": {key: "x"}, "plugins": {"p": [[key]]}})),
        ] {
            let mut shown = document.clone();
            redact_stray_keys(kind, &mut shown);
            assert!(!shown.to_string().contains("SECRET"), "{shown}");
            assert!(
                shown.to_string().contains("not repeated") && !shown.to_string().contains("null"),
                "{shown}"
            );
        }
        // Certificates, and keys in encrypted members, are unchanged.
        for (kind, document) in [
            (Kind::Ssl, json!({"cert": cert, "client": {"ca": cert, "depth": 1}, "snis": ["a"]})),
            (Kind::Upstream, json!({"tls": {"client_cert": cert, "client_key": key}})),
        ] {
            let mut shown = document.clone();
            redact_stray_keys(kind, &mut shown);
            assert_eq!(shown, document);
        }
    }

    #[test]
    fn a_stray_key_is_rejected_with_its_field() {
        let key = "-----BEGIN EC PRIVATE KEY-----\nAA==\n-----END EC PRIVATE KEY-----\n";
        let field =
            |kind, document: Value| reject_stray_keys(kind, &document).err().map(|problem| problem.field);
        for (kind, document, stray) in [
            (Kind::Ssl, json!({"key": key, "keys": [key]}), None),
            (Kind::Upstream, json!({"tls": {"client_key": key}}), None),
            (Kind::Route, json!({"upstream": {"tls": {"client_key": key}}}), None),
            (Kind::Ssl, json!({"cert": format!("a certificate\n{key}")}), Some("cert")),
            (Kind::Ssl, json!({"certs": ["", key]}), Some("certs[2]")),
            (Kind::Ssl, json!({"tls": {"client_key": key}}), Some("tls.client_key")),
            (Kind::Upstream, json!({"key": key}), Some("key")),
            (
                Kind::Upstream,
                json!({"tls": {"client_cert": key, "client_key": key}}),
                Some("tls.client_cert"),
            ),
            (Kind::Route, json!({"desc": key}), Some("desc")),
            (Kind::GlobalRule, json!({"plugins": {"x": [[key]]}}), Some("plugins.x[1][1]")),
        ] {
            assert_eq!(field(kind, document.clone()).as_deref(), stray, "{document}");
        }
        let named = reject_stray_keys(Kind::Route, &json!({ "labels": {key: "x"} })).unwrap_err();
        assert!(!named.to_string().contains("AA=="), "{named}");
    }
}

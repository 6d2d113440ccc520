//! Sealing: the private keys of a document are encrypted before it is stored (contract 4.6).
//!
//! The clear text is wiped where it stood. What does not start with `---` (sealed already, or a reference) stays as it is.

use model::Kind;
use pki::Keyring;
use serde_json::{Map, Value};
use zeroize::Zeroize;

/// Seals every private key of a document of that kind, in place.
pub(crate) fn seal(kind: Kind, document: &mut Map<String, Value>, keyring: &Keyring) {
    match kind {
        Kind::Ssl => {
            seal_text(document.get_mut("key"), keyring);
            for key in document.get_mut("keys").and_then(Value::as_array_mut).into_iter().flatten() {
                seal_text(Some(key), keyring);
            }
        }
        Kind::Upstream => seal_upstream(document, keyring),
        Kind::Service | Kind::Route | Kind::StreamRoute => {
            if let Some(upstream) = document.get_mut("upstream").and_then(Value::as_object_mut) {
                seal_upstream(upstream, keyring);
            }
        }
        Kind::GlobalRule => {}
    }
}

fn seal_upstream(upstream: &mut Map<String, Value>, keyring: &Keyring) {
    let tls = upstream.get_mut("tls").and_then(Value::as_object_mut);
    seal_text(tls.and_then(|tls| tls.get_mut("client_key")), keyring);
}

fn seal_text(value: Option<&mut Value>, keyring: &Keyring) {
    if let Some(Value::String(text)) = value {
        let sealed = keyring.seal(text);
        text.zeroize();
        *text = sealed;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const CLEAR: &str = "---not really a key";

    fn sealed(kind: Kind, document: Value, keyring: &Keyring) -> Value {
        let Value::Object(mut document) = document else { panic!("not an object") };
        seal(kind, &mut document, keyring);
        Value::Object(document)
    }

    #[test]
    fn every_place_of_a_private_key_is_sealed() {
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
        assert_eq!(sealed(Kind::Ssl, document.clone(), &Keyring::none()), document);
    }
}

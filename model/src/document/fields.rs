//! Typed access to the members of a document that passed its schema. The bounds of Rust types are
//! checked here, since a schema cannot express them.

use std::sync::Arc;
use std::time::Duration;

use pki::{CertError, KeyError, Keyring, PrivateKey, certificates_from_pem};
use serde_json::Value;

use super::unsupported;
use crate::id::Id;
use crate::pattern::NamePattern;
use crate::plugin::is_observer;
use crate::problem::{Problem, ProblemKind};
use crate::resource::{KeyPair, Timeouts};
use crate::schema::is_reference;

/// The longest duration of a document, one year, so that sums cannot overflow.
const SECONDS_MAX: f64 = 31_536_000.0;

pub(crate) fn string<'a>(document: &'a Value, name: &str) -> Option<&'a str> {
    document.get(name)?.as_str()
}

pub(crate) fn strings<'a>(document: &'a Value, name: &str) -> Vec<&'a str> {
    let items = document.get(name).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    items.iter().filter_map(Value::as_str).collect()
}

pub(crate) fn flag(document: &Value, name: &str) -> Option<bool> {
    document.get(name)?.as_bool()
}

/// `status` is 1 or absent.
pub(crate) fn enabled(document: &Value) -> bool {
    document.get("status").and_then(Value::as_f64) != Some(0.0)
}

/// Whether a member exists and is no empty object or array.
pub(crate) fn is_set(document: &Value, name: &str) -> bool {
    match document.get(name) {
        None => false,
        Some(Value::Object(members)) => !members.is_empty(),
        Some(Value::Array(items)) => !items.is_empty(),
        Some(_) => true,
    }
}

/// An id: a string, or a number that stands for its decimal text.
pub(crate) fn id(document: &Value, name: &str) -> Result<Option<Id>, Problem> {
    let Some(value) = document.get(name) else { return Ok(None) };
    let text = match (value, value.as_u64(), value.as_f64()) {
        (Value::String(text), _, _) => text.clone(),
        (_, Some(whole), _) => whole.to_string(),
        (_, _, Some(number)) => format!("{number}"),
        _ => String::new(),
    };
    Id::parse(&text).map(Some).map_err(|problem| Problem { field: name.to_owned(), ..problem })
}

/// An integer of at least 0.
pub(crate) fn unsigned(document: &Value, name: &str) -> Result<Option<u32>, Problem> {
    let Some(number) = document.get(name).and_then(Value::as_f64) else { return Ok(None) };
    if (0.0..=f64::from(u32::MAX)).contains(&number) {
        // The number is an integer in range, so the cast is exact.
        return Ok(Some(number as u32));
    }
    Err(Problem::new(name, format!("invalid configuration: {name} is too large: {number}")))
}

/// An integer of either sign.
pub(crate) fn signed(document: &Value, name: &str) -> Result<Option<i32>, Problem> {
    let Some(number) = document.get(name).and_then(Value::as_f64) else { return Ok(None) };
    if (f64::from(i32::MIN)..=f64::from(i32::MAX)).contains(&number) {
        return Ok(Some(number as i32));
    }
    Err(Problem::new(name, format!("invalid configuration: {name} is out of range: {number}")))
}

/// Fractional seconds, rounded up to milliseconds, so that a small value does not become zero.
pub(crate) fn seconds(document: &Value, name: &str) -> Result<Option<Duration>, Problem> {
    let Some(seconds) = document.get(name).and_then(Value::as_f64) else { return Ok(None) };
    if (0.0..=SECONDS_MAX).contains(&seconds) {
        return Ok(Some(Duration::from_millis((seconds * 1000.0).ceil() as u64)));
    }
    let message = format!("invalid configuration: {name} is too large: {seconds} seconds");
    Err(Problem::new(name, message).with_hint(format!("at most {SECONDS_MAX} seconds")))
}

pub(crate) fn timeouts(document: &Value) -> Result<Option<Timeouts>, Problem> {
    let Some(timeout) = document.get("timeout") else { return Ok(None) };
    let read = |name| seconds(timeout, name).map_err(|problem| problem.within("timeout"));
    // The schema accepts an empty array for an empty object and then rejects it for its missing
    // members.
    match (read("connect")?, read("send")?, read("read")?) {
        (Some(connect), Some(send), Some(read)) => Ok(Some(Timeouts { connect, send, read })),
        _ => Ok(None),
    }
}

/// `one` or `many` as name patterns without duplicates.
pub(crate) fn names(document: &Value, one: &str, many: &str) -> Result<Vec<NamePattern>, Problem> {
    let mut found: Vec<NamePattern> = Vec::new();
    let mut add = |text: &str, field: String| {
        let name = NamePattern::parse(text).map_err(|problem| {
            let message = format!("invalid configuration: property \"{field}\": {}", problem.message);
            Problem { field, message, ..problem }
        })?;
        if !found.contains(&name) {
            found.push(name);
        }
        Ok::<_, Problem>(())
    };
    if let Some(text) = string(document, one) {
        add(text, one.to_owned())?;
    } else {
        for (index, text) in (1..).zip(strings(document, many)) {
            add(text, format!("{many}[{index}]"))?;
        }
    }
    // A million resources may exist, each holding on to unused capacity.
    found.shrink_to_fit();
    Ok(found)
}

/// Schemas do not apply to referenced values, so each field that takes references would need its
/// checks repeated. [`super::resolve_references`] replaced the supported references; this function
/// rejects the rest. References in purely descriptive fields have no meaning, nor have those of
/// plugins without an effect.
pub(crate) fn forbid_secret_references(document: &Value) -> Result<(), Problem> {
    let Some(members) = document.as_object() else { return Ok(()) };
    let plugins = document.get("plugins").and_then(Value::as_object);
    let honoured = plugins.into_iter().flatten().filter(|(name, _)| !is_observer(name));
    let members = members
        .iter()
        .map(|member| ("", member))
        .filter(|(_, (name, _))| !matches!(name.as_str(), "name" | "desc" | "labels" | "plugins"));
    for (outer, (name, value)) in members.chain(honoured.map(|plugin| ("plugins", plugin))) {
        if let Some(inner) = reference_within(value) {
            let field = Problem::new(inner, "").within(name).within(outer).field;
            return Err(unsupported(
                &field,
                "$env://NAME can stand in an ssl's cert, key, certs, keys and client.ca, and nothing resolves $secret://; put the text \
                 itself here: private keys are encrypted before they are stored",
            ));
        }
    }
    Ok(())
}

/// The path of the first reference in a value.
fn reference_within(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => is_reference(text).then(String::new),
        Value::Array(items) => (1..).zip(items).find_map(|(index, item)| {
            let inner = reference_within(item)?;
            Some(Problem::new(inner, "").within(&format!("[{index}]")).field)
        }),
        Value::Object(members) => members.iter().find_map(|(name, member)| {
            let inner = reference_within(member)?;
            Some(Problem::new(inner, "").within(name).field)
        }),
        _ => None,
    }
}

/// A PEM chain and its private key, which is plain or encrypted, from the two members named by
/// `fields`. Messages are those of the Admin API (contract 4.1, step 2). The decrypted key stays
/// inside this function, in memory that is wiped.
pub(crate) fn key_pair(
    cert: &str,
    key: &str,
    fields: [&str; 2],
    keyring: &Keyring,
) -> Result<KeyPair, Problem> {
    let [cert_field, key_field] = fields;
    let chain = certificates_from_pem(cert).map_err(|error| {
        Problem::new(cert_field, "failed to parse cert: PEM_read_bio_X509_AUX() failed")
            .with_hint(error.to_string())
            .with_kind(cert_problem_kind(&error))
    })?;
    let opened = keyring.open(key).map_err(|error| {
        Problem::new(key_field, "failed to decrypt previous encrypted key").with_hint(format!(
            "{error}: a key is PEM text, or was encrypted with a key of data_encryption.keyring"
        ))
    })?;
    let key = PrivateKey::from_pem(&opened).map_err(|error| {
        Problem::new(key_field, "failed to parse key: PEM_read_bio_PrivateKey() failed")
            .with_hint(error.to_string())
            .with_kind(if matches!(error, KeyError::Unsupported) {
                ProblemKind::Unsupported
            } else {
                ProblemKind::Invalid
            })
    })?;
    // APISIX detects the mismatch in the first handshake, when the site is down already.
    if let Some(leaf) = chain.first() {
        key.matches(leaf).map_err(|error| {
            Problem::new(key_field, format!("{key_field} does not belong to {cert_field}: {error}"))
                .with_hint(
                    "the first certificate of the text must be the key's own, its issuers come after it",
                )
                .with_kind(ProblemKind::Unusable)
        })?;
    }
    Ok(KeyPair { chain, key: Arc::new(key) })
}

/// Readers of the Admin API see the bundle, and the store does not encrypt it.
pub(crate) fn forbid_private_key(field: &str, text: &str) -> Result<(), Problem> {
    let begins = |line: &str| line.starts_with("-----BEGIN ") && line.contains("PRIVATE KEY-----");
    if !text.lines().any(begins) {
        return Ok(());
    }
    let message = format!("failed to validate {field}: the text holds a private key");
    Err(Problem::new(field, message).with_hint(
        "expected certificates only; the key of a CA does not belong here, and this one should be replaced",
    ))
}

/// APISIX parses some certificates that this gateway does not, so its document is valid but
/// unsupported.
pub(crate) fn cert_problem_kind(error: &CertError) -> ProblemKind {
    match error {
        CertError::NoCertificate { .. } | CertError::Pem(_) => ProblemKind::Invalid,
        CertError::InBundle { error, .. } => cert_problem_kind(error),
        _ => ProblemKind::Unsupported,
    }
}

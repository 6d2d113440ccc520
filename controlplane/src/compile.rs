//! Compiles documents to resources, with the values of their references to this process's
//! environment.
//!
//! Documents that are written (`change`: [`compile`]) and stored ones (`publish`:
//! [`compile_stored`]) are compiled by the same code: what the first accepts the second publishes.
//! The document keeps its references; only the resource, which is sent to the data planes, has the
//! values. Each resource has a version, by which nodes and control planes compare what they hold.

use aws_lc_rs::digest::{Context, SHA256};
use model::lint::{Finding, Severity};
use model::{Blocked, Id, Kind, Problem, ResolvedDocument, Resource, Versioned, resolve_references};
use pki::Keyring;
use serde_json::Value;

use crate::store::StoredDocument;

/// Two releases may compile one document to different resources, which must then be sent again.
const PROGRAM_VERSION: &str = env!("CARGO_PKG_VERSION");

/// Checks and compiles a document.
///
/// # Errors
/// The first problem: an unresolved reference, or an error of `model::compile`.
pub(crate) fn compile(kind: Kind, id: &Id, document: &Value, keyring: &Keyring) -> Result<Resource, Problem> {
    let resolved = resolve_references(kind, document, &env_var).map_err(|unresolved| {
        // As in APISIX, the schema comes first; it takes any reference.
        match model::validate(kind, document) {
            Ok(()) => unresolved,
            Err(problem) => model::invalid_configuration(problem),
        }
    })?;
    log_env_refs(resolved.resolved_refs());
    model::compile(kind, id, resolved.document(), keyring)
}

/// Compiles a stored document, which another program may have written. `before` is the resource it
/// replaces.
///
/// Returns the replacement, or `None` to keep `before`, and the findings about the document.
pub(crate) fn compile_stored(
    stored: &StoredDocument,
    keyring: &Keyring,
    before: Option<&Resource>,
) -> (Option<Versioned>, Vec<Finding>) {
    compile_stored_with(stored, keyring, before, &env_var)
}

/// The version that [`compile_stored`] assigns unless the resource is blocked, without compiling:
/// equal versions need no compilation. `None` when a reference cannot be resolved.
pub(crate) fn expected_version(stored: &StoredDocument) -> Option<u64> {
    let resolved = resolve_references(stored.key.kind, &stored.document, &env_var).ok()?;
    Some(version_digest(stored, resolved.resolved_refs(), None))
}

/// Whether the references of a document resolve; `None` when it has none.
pub(crate) fn check_references(stored: &StoredDocument) -> Option<Result<(), String>> {
    match resolve_references(stored.key.kind, &stored.document, &env_var) {
        Ok(resolved) => resolved.resolved_refs().next().map(|_| Ok(())),
        Err(problem) => Some(Err(problem.to_string())),
    }
}

fn env_var(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

fn compile_stored_with(
    stored: &StoredDocument,
    keyring: &Keyring,
    before: Option<&Resource>,
    environment: &dyn Fn(&str) -> Option<String>,
) -> (Option<Versioned>, Vec<Finding>) {
    let StoredDocument { key, document, .. } = stored;
    let (reduced, dropped) = without_unsigned_crls(stored, environment);
    let document = reduced.as_ref().unwrap_or(document);
    let resolved = resolve_references(key.kind, document, environment);
    let env_refs = || resolved.iter().flat_map(ResolvedDocument::resolved_refs);
    log_env_refs(env_refs());
    let compiled = match (&resolved, &stored.salvaged) {
        (_, Some(salvaged)) => model::compile_salvaged(key, document.as_str().unwrap_or_default(), salvaged),
        (Ok(resolved), None) => model::compile_stored(key.kind, &key.id, resolved.document(), keyring),
        (Err(problem), None) => model::stored_with_problem(key.kind, &key.id, document, problem.clone()),
    };
    let (resource, mut findings) = compiled.resolve(before);
    findings.extend(dropped);
    let versioned = resource.map(|resource| Versioned {
        version: version_digest(stored, env_refs(), resource.blocked()),
        resource,
    });
    (versioned, findings)
}

/// A document whose `client.ca` another program changed, without the CRLs of the extension fields
/// that the new bundle did not sign: they must not block the bundle.
fn without_unsigned_crls(
    stored: &StoredDocument,
    environment: &dyn Fn(&str) -> Option<String>,
) -> (Option<Value>, Vec<Finding>) {
    let StoredDocument { key, document, stale_extensions, .. } = stored;
    let has_stale_crls =
        key.kind == Kind::Ssl && *stale_extensions && document.pointer("/client/crl").is_some();
    if !has_stale_crls {
        return (None, Vec::new());
    }
    let mut document = document.clone();
    let dropped = drop_unsigned_crls_with(key.kind, &mut document, environment);
    let findings = dropped.iter().map(|crl| Finding {
        severity: Severity::Warning,
        resource: Some(key.clone()),
        field: "client.crl".to_owned(),
        message: format!(
            "another program changed client.ca: {crl} is not used, no certificate of it has signed it"
        ),
        hint: "write client.crl with the lists of the new authorities, or null, through the Admin API"
            .to_owned(),
    });
    let findings: Vec<_> = findings.collect();
    ((!findings.is_empty()).then_some(document), findings)
}

/// Removes the CRLs of an ssl that no certificate of its bundle has signed; returns their
/// descriptions.
pub(crate) fn drop_unsigned_crls(kind: Kind, document: &mut Value) -> Vec<String> {
    drop_unsigned_crls_with(kind, document, &env_var)
}

fn drop_unsigned_crls_with(
    kind: Kind,
    document: &mut Value,
    environment: &dyn Fn(&str) -> Option<String>,
) -> Vec<String> {
    if kind != Kind::Ssl || document.pointer("/client/crl").is_none() {
        return Vec::new();
    }
    // An unresolved reference is reported later, with its field.
    let bundle = resolve_references(kind, document, environment).ok().and_then(|resolved| {
        resolved.document().pointer("/client/ca").and_then(Value::as_str).map(str::to_owned)
    });
    let client = document.get_mut("client").and_then(Value::as_object_mut);
    match (bundle, client) {
        (Some(bundle), Some(client)) => model::drop_unsigned_crls(client, &bundle),
        _ => Vec::new(),
    }
}

fn log_env_refs<'a>(env_refs: impl Iterator<Item = (&'a str, &'a str)>) {
    for (uri, _) in env_refs {
        tracing::info!("fetching data from env uri: {uri}");
    }
}

/// A digest over everything that a resource is made of: the program's version, the revision and
/// text of the document, the values of its references, and why it is blocked. The revision alone is
/// not enough: a cluster restored from an older backup reuses revisions, and a variable may change
/// while the control plane is down. Nor is the document: a keyring entry that is added or removed
/// unblocks or blocks it. The digest is equal on all control planes that read the same store in the
/// same environment.
fn version_digest<'a>(
    stored: &StoredDocument,
    env_refs: impl Iterator<Item = (&'a str, &'a str)>,
    blocked: Option<&Blocked>,
) -> u64 {
    let mut context = Context::new(&SHA256);
    let mut part = |bytes: &[u8]| {
        context.update(&bytes.len().to_le_bytes());
        context.update(bytes);
    };
    part(PROGRAM_VERSION.as_bytes());
    part(&stored.mod_revision.to_le_bytes());
    part(stored.document.to_string().as_bytes());
    if let Some(salvaged) = &stored.salvaged {
        part(salvaged.matchers().to_string().as_bytes());
    }
    for text in env_refs.flat_map(|(uri, value)| [uri, value]) {
        part(text.as_bytes());
    }
    if let Some(blocked) = blocked {
        part(blocked.reason().as_bytes());
    }
    let first = context.finish().as_ref().first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
    // A SHA-256 digest has 32 bytes.
    first.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use model::Key;
    use pki::ca::{Authority, AuthoritySpec, IssuedCertificate, LeafSpec};
    use serde_json::json;

    use super::*;

    fn pair(authority: &Authority) -> IssuedCertificate {
        authority.issue(&LeafSpec::server("test.com")).unwrap()
    }

    /// The compiled resource; the findings when it is blocked or invalid.
    fn compiled(document: &Value, pair: &IssuedCertificate) -> Result<Versioned, Vec<Finding>> {
        let environment = |name: &str| match name {
            "CERT" => Some(pair.certificate_pem.clone()),
            "KEY" => Some(pair.key_pem.to_string()),
            "AGAIN" => Some("$env://CERT".to_owned()),
            _ => None,
        };
        let key = Key::new(Kind::Ssl, Id::parse("1").unwrap());
        let stored = StoredDocument {
            key,
            document: document.clone(),
            create_revision: 7,
            mod_revision: 7,
            stale_extensions: false,
            salvaged: None,
        };
        let (versioned, findings) = compile_stored_with(&stored, &Keyring::empty(), None, &environment);
        versioned.filter(|versioned| versioned.resource.blocked().is_none()).ok_or(findings)
    }

    #[test]
    fn a_reference_is_its_value_and_changes_the_version() {
        let authority = Authority::root(&AuthoritySpec::new("CA")).unwrap();
        let (one, two) = (pair(&authority), pair(&authority));
        let plain = json!({"cert": one.certificate_pem, "key": &*one.key_pem, "sni": "test.com"});
        let refers = json!({"cert": "$env://CERT", "key": "$env://KEY", "sni": "test.com"});
        let written = compiled(&plain, &one).unwrap();
        let env_refs = compiled(&refers, &one).unwrap();
        assert!(written.resource == env_refs.resource);
        assert_ne!(written.version, env_refs.version);
        assert_eq!(env_refs.version, compiled(&refers, &one).unwrap().version);
        assert_ne!(env_refs.version, compiled(&refers, &two).unwrap().version);
    }

    #[test]
    fn a_version_covers_the_revision_and_the_text() {
        let stored = |modified, document| StoredDocument {
            key: Key::new(Kind::Upstream, Id::parse("u").unwrap()),
            document,
            create_revision: 1,
            mod_revision: modified,
            stale_extensions: false,
            salvaged: None,
        };
        let upstream = |port: u16| json!({"nodes": {format!("10.0.0.1:{port}"): 1}});
        let first = stored(7, upstream(1));
        let compiled = compile_stored(&first, &Keyring::empty(), None).0.unwrap();
        assert_eq!(expected_version(&first), Some(compiled.version));
        // A restored cluster reuses a revision for another text.
        assert_ne!(expected_version(&first), expected_version(&stored(7, upstream(2))));
        assert_ne!(expected_version(&first), expected_version(&stored(8, upstream(1))));
        // The creation revision does not reach the data planes.
        assert_eq!(
            expected_version(&first),
            expected_version(&StoredDocument { create_revision: 5, ..first.clone() })
        );
        let unresolved = json!({"cert": "$env://COUNTERSIGN_TEST_NOT_SET", "key": "x", "sni": "a.test"});
        let key = Key::new(Kind::Ssl, Id::parse("1").unwrap());
        assert_eq!(
            expected_version(&StoredDocument { key: key.clone(), document: unresolved, ..first.clone() }),
            None
        );
        // One document with a key that the keyring opens, and with one that it does not.
        let authority = Authority::root(&AuthoritySpec::new("CA")).unwrap();
        let pair = pair(&authority);
        let ring = |entry: &str| Keyring::new(vec![entry.to_owned()]).unwrap();
        let (own, other) = (ring("0123456789abcdef"), ring("fedcba9876543210"));
        let sealed = json!({"cert": pair.certificate_pem, "key": own.seal(&pair.key_pem), "sni": "test.com"});
        let sealed = StoredDocument { key, document: sealed, ..first };
        let of = |keyring: &Keyring| compile_stored(&sealed, keyring, None).0.unwrap();
        assert_eq!(expected_version(&sealed), Some(of(&own).version));
        assert!(of(&other).resource.blocked().is_some());
        assert_ne!(of(&other).version, of(&own).version);
    }

    #[test]
    fn a_referenced_value_is_checked_and_never_quoted() {
        let authority = Authority::root(&AuthoritySpec::new("CA")).unwrap();
        let (own, other) = (pair(&authority), pair(&authority));
        for (document, field) in [
            (json!({"cert": "$env://KEY", "key": "$env://KEY", "sni": "test.com"}), "cert"),
            (json!({"cert": "$env://CERT", "key": "$env://CERT", "sni": "test.com"}), "key"),
            (json!({"cert": other.certificate_pem, "key": "$env://KEY", "sni": "test.com"}), "key"),
            // A value is not resolved again.
            (json!({"cert": "$env://AGAIN", "key": "$env://KEY", "sni": "test.com"}), "cert"),
            (json!({"cert": "$env://CERT", "key": "$env://GONE", "sni": "test.com"}), "key"),
        ] {
            let findings = compiled(&document, &own).unwrap_err();
            assert!(findings.len() == 1 && findings[0].field == field, "{findings:?}");
            let shown = format!("{findings:?}");
            let mut secrets = own.key_pem.lines().filter(|line| !line.starts_with('-'));
            assert!(!secrets.any(|line| shown.contains(line)), "{shown}");
        }
    }
}

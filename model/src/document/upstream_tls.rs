//! Compiles the `tls` of an upstream: the client certificate, and the servers that are accepted.
//!
//! Invariant: a member that is to protect and cannot is an error, never ignored.

use std::sync::Arc;

use pki::{Certificate, Keyring, TrustAnchors, certificates_from_pem, verify_server_chain};
use rustls_pki_types::UnixTime;
use serde_json::Value;

use super::fields::{cert_problem_kind, flag, forbid_private_key, id, key_pair, string, strings};
use crate::problem::{Problem, ProblemKind};
use crate::resource::{Upstream, UpstreamIdentity, UpstreamTls};
use crate::server_identity::ServerIdentity;

/// The `tls` of an upstream document; fields are relative to that document.
pub(super) fn compile(document: &Value, keyring: &Keyring) -> Result<UpstreamTls, Problem> {
    let Some(tls) = document.get("tls") else { return Ok(UpstreamTls::default()) };
    let compiled = UpstreamTls {
        identity: identity(tls, keyring)?,
        verify: flag(tls, "verify"),
        anchors: anchors(tls)?.map(Arc::new),
        verify_identity: tls.get("verify_identity").map(server_identity).transpose()?.map(Arc::new),
    };
    if compiled.verify == Some(false) && compiled.verify_identity.is_some() {
        let message = "invalid configuration: tls.verify_identity verifies, and tls.verify is false";
        return Err(Problem::new("tls.verify", message).with_hint("remove one of them"));
    }
    Ok(compiled)
}

fn identity(tls: &Value, keyring: &Keyring) -> Result<Option<UpstreamIdentity>, Problem> {
    let named = id(tls, "client_cert_id").map_err(|problem| problem.within("tls"))?;
    Ok(match (named, string(tls, "client_cert")) {
        (Some(id), _) => Some(UpstreamIdentity::Ssl(id)),
        (None, Some(cert)) => {
            let key = string(tls, "client_key").unwrap_or_default();
            let pair = key_pair(cert, key, ["tls.client_cert", "tls.client_key"], keyring)
                .map_err(|problem| problem.with_kind(ProblemKind::Unusable))?;
            Some(UpstreamIdentity::Inline(pair))
        }
        (None, None) => None,
    })
}

/// The certificates of all texts together, each of which may be a bundle.
fn anchors(tls: &Value) -> Result<Option<TrustAnchors>, Problem> {
    if tls.get("ca_certs").is_none() {
        return Ok(None);
    }
    let mut certificates = Vec::new();
    for (index, text) in (1..).zip(strings(tls, "ca_certs")) {
        let field = format!("tls.ca_certs[{index}]");
        forbid_private_key(&field, text)?;
        let read = certificates_from_pem(text).map_err(|error| {
            Problem::new(&field, format!("failed to parse {field}: PEM_read_bio_X509_AUX() failed"))
                .with_hint(error.to_string())
                .with_kind(cert_problem_kind(&error))
        })?;
        certificates.extend(read);
    }
    let invalid = |error: pki::PolicyError| Problem::new("tls.ca_certs", error.to_string());
    TrustAnchors::new(certificates).map(Some).map_err(invalid)
}

fn server_identity(entries: &Value) -> Result<ServerIdentity, Problem> {
    ServerIdentity::compile(entries).map_err(|problem| {
        let problem = problem.within("tls.verify_identity");
        let message = format!("invalid configuration: property \"{}\": {}", problem.field, problem.message);
        Problem { message, ..problem }
    })
}

/// Checks that each anchor can verify a server now, as [`super::check_validity_period`] does for
/// clients.
pub(super) fn check_anchors(upstream: &Upstream, now: UnixTime) -> Result<(), Problem> {
    let anchors = upstream.tls.anchors.iter().flat_map(|anchors| anchors.certificates());
    (1..).zip(anchors).try_for_each(|(position, anchor)| check_anchor(position, anchor, now))
}

fn check_anchor(position: usize, anchor: &Certificate, now: UnixTime) -> Result<(), Problem> {
    let invalid = |why: &str, hint: &str| {
        let subject = anchor.subject();
        let message = format!("failed to validate ca_certs: certificate {position} \"{subject}\" {why}");
        Err(Problem::new("tls.ca_certs", message).with_hint(hint))
    };
    if now > anchor.not_after() {
        return invalid("is expired", "replace it by its successor, or remove it");
    }
    if now < anchor.not_before() {
        return invalid("is not valid yet", "check the clock, or add it later");
    }
    if anchor.is_ca() {
        return Ok(());
    }
    // A pinned server certificate must pass the verifier itself.
    let pinned =
        TrustAnchors::new(vec![anchor.clone()]).map_err(|error| error.to_string()).and_then(|anchors| {
            verify_server_chain(&anchors, 0, anchor.der(), &[], now).map_err(|error| error.to_string())
        });
    match pinned {
        Ok(_) => Ok(()),
        Err(why) => invalid(
            &format!("is not a CA, and as a server's own certificate it fails: {why}"),
            "tls.ca_certs takes the CA certificates that sign servers, or servers' own certificates",
        ),
    }
}

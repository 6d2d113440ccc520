//! `client` of an ssl: from PEM texts, a depth and patterns to the policy that judges clients.

use pki::{Certificate, ClientAuth, ClientAuthInput, PolicyError, certificates_from_pem, crls_from_pem};
use serde_json::Value;

use super::fields::{text, texts, whole};
use crate::problem::Problem;

/// Contract 3.1.
const DEPTH: u32 = 1;

pub(super) fn check(client: &Value) -> Result<ClientAuth, Problem> {
    let anchors = certificates_from_pem(text(client, "ca").unwrap_or_default()).map_err(|error| {
        Problem::new(
            "client.ca",
            "failed to validate client_cert: failed to parse cert: PEM_read_bio_X509_AUX() failed",
        )
        .with_hint(error.to_string())
    })?;
    let depth = whole(client, "depth").map_err(|problem| problem.within("client"))?.unwrap_or(DEPTH);
    // One text may hold several lists; each remembers which text it came from.
    let (mut crls, mut origins) = (Vec::new(), Vec::new());
    for (index, pem) in (1_usize..).zip(texts(client, "crl")) {
        let read = crls_from_pem(pem).map_err(|error| crl_problem(index, &error.to_string()))?;
        origins.extend(read.iter().map(|_| index));
        crls.extend(read);
    }
    let policy = ClientAuth::new(ClientAuthInput {
        anchors: anchors.clone(),
        depth,
        skip_uri_patterns: texts(client, "skip_mtls_uri_regex").into_iter().map(str::to_owned).collect(),
        crls,
        crl_prefer: text(client, "crl_policy") == Some("prefer"),
    })
    .map_err(|error| policy_problem(&error, &origins))?;
    check_signers(&policy, &anchors, &origins)?;
    Ok(policy)
}

/// A list that nobody in the bundle signed could never be used, which under `prefer` would mean: revokes
/// nobody, silently.
fn check_signers(policy: &ClientAuth, anchors: &[Certificate], origins: &[usize]) -> Result<(), Problem> {
    for (crl, index) in policy.crls().iter().zip(origins) {
        if !anchors.iter().any(|anchor| crl.is_signed_by(anchor)) {
            let why = format!("no certificate of client.ca has signed the list of \"{}\"", crl.issuer());
            return Err(
                crl_problem(*index, &why).with_hint("add the certificate of the list's issuer to client.ca")
            );
        }
    }
    Ok(())
}

fn crl_problem(index: usize, why: &str) -> Problem {
    Problem::new(format!("client.crl[{index}]"), format!("failed to validate client.crl[{index}]: {why}"))
}

fn policy_problem(error: &PolicyError, origins: &[usize]) -> Problem {
    match error {
        PolicyError::Pattern { position, .. } => Problem::new(
            format!("client.skip_mtls_uri_regex[{position}]"),
            format!("failed to validate client.skip_mtls_uri_regex: {error}"),
        ),
        PolicyError::TooManyPatterns { .. } => Problem::new(
            "client.skip_mtls_uri_regex",
            format!("failed to validate client.skip_mtls_uri_regex: {error}"),
        ),
        PolicyError::Crl { position, error } => {
            let index = position.checked_sub(1).and_then(|at| origins.get(at)).copied().unwrap_or(*position);
            crl_problem(index, &error.to_string())
        }
        PolicyError::TooManyCrls { .. } => {
            Problem::new("client.crl", format!("failed to validate client.crl: {error}"))
        }
        PolicyError::NoAnchor => {
            Problem::new("client.ca", format!("failed to validate client_cert: {error}"))
        }
        other => Problem::new("client", format!("failed to validate client: {other}")),
    }
}

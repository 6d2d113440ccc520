//! `client` of an ssl: compiles PEM texts, depth and patterns to the policy that verifies clients.
//!
//! Invariant: a CRL that no known certificate signed is rejected in a document, dropped when it was
//! carried over to another bundle, and never used.

use pki::{
    Certificate, CertificateRevocationListDer, ClientAuth, ClientAuthInput, Crl, PolicyError,
    certificates_from_pem, crls_from_pem, verify_client,
};
use rustls_pki_types::UnixTime;
use serde_json::{Map, Value};

use super::fields::{cert_problem_kind, forbid_private_key, string, strings, unsigned};
use super::upstream_tls;
use crate::id::Kind;
use crate::problem::{Problem, ProblemKind};
use crate::resource::Resource;

/// The default depth (contract 3.1).
const DEPTH: u32 = 1;
/// Bounds the certificates beside CRLs, because each is compared with each.
const SIGNERS_MAX: usize = 64;

/// Compiles the member `client`.
pub(crate) fn compile(client: &Value) -> Result<ClientAuth, Problem> {
    let bundle = string(client, "ca").unwrap_or_default();
    forbid_private_key("client.ca", bundle)?;
    let anchors = certificates_from_pem(bundle).map_err(|error| {
        Problem::new(
            "client.ca",
            "failed to validate client_cert: failed to parse cert: PEM_read_bio_X509_AUX() failed",
        )
        .with_hint(error.to_string())
        .with_kind(cert_problem_kind(&error))
    })?;
    let depth = unsigned(client, "depth").map_err(|problem| problem.within("client"))?.unwrap_or(DEPTH);
    let CrlTexts { crls, origins, beside } = CrlTexts::read(client)?;
    let signers = signers(&anchors, beside)?;
    let policy = ClientAuth::new(ClientAuthInput {
        anchors,
        depth,
        skip_uri_patterns: strings(client, "skip_mtls_uri_regex").into_iter().map(str::to_owned).collect(),
        crls,
        crl_prefer: string(client, "crl_policy") == Some("prefer"),
    })
    .map_err(|error| policy_problem(&error, &origins))?;
    check_signers(&policy, &signers, &origins)?;
    Ok(policy)
}

/// The content of `client.crl`.
#[derive(Default)]
struct CrlTexts {
    crls: Vec<CertificateRevocationListDer<'static>>,
    /// The 1-based text of each list; a text may hold several lists.
    origins: Vec<usize>,
    /// Certificates beside the lists, with their text: intermediates that signed one.
    beside: Vec<(usize, Certificate)>,
}

impl CrlTexts {
    fn read(client: &Value) -> Result<Self, Problem> {
        let mut lists = Self::default();
        for (index, pem) in (1_usize..).zip(strings(client, "crl")) {
            forbid_private_key(&format!("client.crl[{index}]"), pem)?;
            let (read, beside) =
                crls_from_pem(pem).map_err(|error| crl_problem(index, &error.to_string()))?;
            lists.origins.extend(read.iter().map(|_| index));
            lists.crls.extend(read);
            lists.beside.extend(beside.into_iter().map(|certificate| (index, certificate)));
            if lists.beside.len() > SIGNERS_MAX {
                let why = format!("more than {SIGNERS_MAX} certificates beside the lists");
                return Err(crl_problem(index, &why).with_hint("keep those that signed one of the lists"));
            }
        }
        Ok(lists)
    }
}

/// Drops the CRLs from the `client` of an ssl that are signed neither by a certificate of the
/// bundle `ca` nor by one beside a list that the bundle issued. A carried-over list needs this,
/// because [`compile`] rejects such lists. Returns descriptions of the dropped entries. Unreadable
/// texts stay, so that [`compile`] reports them.
pub fn drop_unsigned_crls(client: &mut Map<String, Value>, ca: &str) -> Vec<String> {
    let Some((texts, dropped)) = signed_crls(client, ca) else { return Vec::new() };
    if dropped.is_empty() {
        return dropped;
    }
    if texts.is_empty() {
        client.shift_remove("crl");
        client.shift_remove("crl_policy");
    } else {
        client.insert("crl".to_owned(), Value::Array(texts));
    }
    dropped
}

/// The texts of `client.crl` without the CRLs that no known certificate signed, and descriptions of
/// those; `None` when a text is unreadable.
fn signed_crls(client: &Map<String, Value>, ca: &str) -> Option<(Vec<Value>, Vec<String>)> {
    let given = client.get("crl").and_then(Value::as_array)?;
    let anchors = certificates_from_pem(ca).ok()?;
    let mut read = Vec::with_capacity(given.len());
    for text in given {
        let text = text.as_str()?;
        let (lists, beside) = crls_from_pem(text).ok()?;
        let lists: Vec<Crl> = lists.iter().map(|der| Crl::from_der(der)).collect::<Result<_, _>>().ok()?;
        read.push((text, lists, beside));
    }
    let beside: Vec<_> =
        read.iter().flat_map(|(_, _, beside)| beside.iter().map(|one| (0, one.clone()))).collect();
    if beside.len() > SIGNERS_MAX {
        return None;
    }
    let (signers, unknown) = known_signers(&anchors, beside);
    let (mut texts, mut dropped) = (Vec::new(), Vec::new());
    for (text, lists, beside) in read {
        let (signed, unsigned): (Vec<_>, Vec<_>) =
            lists.into_iter().partition(|list| signers.iter().any(|signer| list.is_signed_by(signer)));
        let (foreign, beside): (Vec<_>, Vec<_>) =
            beside.into_iter().partition(|one| unknown.iter().any(|(_, certificate)| certificate == one));
        dropped.extend(unsigned.iter().map(|list| format!("the list of \"{}\"", list.issuer())));
        dropped.extend(foreign.iter().map(|one| format!("the certificate \"{}\"", one.subject())));
        if unsigned.is_empty() && foreign.is_empty() {
            texts.push(Value::String(text.to_owned()));
        } else if !signed.is_empty() {
            let certificates = beside.iter().map(Certificate::to_pem);
            texts.push(Value::String(signed.iter().map(Crl::to_pem).chain(certificates).collect()));
        }
    }
    Some((texts, dropped))
}

/// The certificates that may sign a CRL: those of the bundle, and those beside a list that chain to
/// the bundle.
fn signers(anchors: &[Certificate], beside: Vec<(usize, Certificate)>) -> Result<Vec<Certificate>, Problem> {
    let (known, unknown) = known_signers(anchors, beside);
    let Some((index, certificate)) = unknown.first() else { return Ok(known) };
    let subject = certificate.subject();
    let why = format!("no certificate of client.ca issued \"{subject}\", which is put beside the list");
    Err(crl_problem(*index, &why)
        .with_hint("a list may have its signer beside it when a certificate of client.ca leads to that"))
}

/// As [`signers`], but returns the certificates that do not chain to the bundle.
fn known_signers(
    anchors: &[Certificate],
    mut beside: Vec<(usize, Certificate)>,
) -> (Vec<Certificate>, Vec<(usize, Certificate)>) {
    let mut known = anchors.to_vec();
    // Each round adds the certificates whose issuer was added in the previous one.
    loop {
        let (fresh, rest): (Vec<_>, Vec<_>) = beside
            .into_iter()
            .partition(|(_, certificate)| known.iter().any(|issuer| certificate.is_issued_by(issuer)));
        beside = rest;
        if fresh.is_empty() {
            break;
        }
        known.extend(fresh.into_iter().map(|(_, certificate)| certificate));
    }
    (known, beside)
}

/// Rejects a CRL without a known signer: it would never be used, and under `prefer` it would
/// silently revoke nothing.
fn check_signers(policy: &ClientAuth, signers: &[Certificate], origins: &[usize]) -> Result<(), Problem> {
    for (crl, index) in policy.crls().iter().zip(origins) {
        if !signers.iter().any(|signer| crl.is_signed_by(signer)) {
            let why = format!("no certificate of client.ca has signed the list of \"{}\"", crl.issuer());
            return Err(crl_problem(*index, &why).with_hint(
                "add the certificate of the list's issuer to client.ca, or, when a CA of client.ca issued it, behind the list in the same text",
            ));
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
        )
        .with_kind(ProblemKind::Unsupported),
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

/// Checks that each anchor can verify a client or server now: it is within its validity period, and
/// a CA or the peer's own certificate. Only writes are checked so; `compile` has no clock, because
/// an anchor in the store that has expired since rejects its peers but must not remove the site.
///
/// # Errors
///
/// The first such anchor, by its subject.
pub fn check_validity_period(resource: &Resource, now: UnixTime) -> Result<(), Problem> {
    if let Some(upstream) = resource.own_upstream() {
        let outer = if resource.kind() == Kind::Upstream { "" } else { "upstream" };
        return upstream_tls::check_anchors(upstream, now).map_err(|problem| problem.within(outer));
    }
    let Resource::Ssl(ssl) = resource else { return Ok(()) };
    let Some(policy) = &ssl.client else { return Ok(()) };
    (1..)
        .zip(policy.anchors().certificates())
        .try_for_each(|(position, anchor)| check_anchor(position, anchor, now))
}

fn check_anchor(position: usize, anchor: &Certificate, now: UnixTime) -> Result<(), Problem> {
    let invalid = |why: String, hint: &str| {
        let message =
            format!("failed to validate client_cert: certificate {position} \"{}\" {why}", anchor.subject());
        Err(Problem::new("client.ca", message).with_hint(hint))
    };
    if now > anchor.not_after() {
        return invalid("is expired".to_owned(), "replace it by its successor, or remove it");
    }
    if now < anchor.not_before() {
        return invalid("is not valid yet".to_owned(), "check the clock, or add it later");
    }
    if anchor.is_ca() {
        return Ok(());
    }
    // A pinned client certificate must pass the verifier itself.
    let pinned = ClientAuth::new(ClientAuthInput { anchors: vec![anchor.clone()], ..Default::default() })
        .map_err(|error| error.to_string())
        .and_then(|policy| verify_client(&policy, anchor.der(), &[], now).map_err(|error| error.to_string()));
    match pinned {
        Ok(_) => Ok(()),
        Err(why) => invalid(
            format!("is not a CA, and as a client's own certificate it fails: {why}"),
            "client.ca takes the CA certificates that sign clients, or clients' own certificates",
        ),
    }
}

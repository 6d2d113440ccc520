//! Verification of a client's chain under a site's policy: the reason, the failing certificate, and
//! the fix.

use std::sync::Arc;

use model::admission::ClientVerification;
use model::{Reason, Ssl};
use pki::{Certificate, CertificateDer, ChainPosition, ClientAuth, VerifyError, VerifyReason, format_utc};
use rustls_pki_types::UnixTime;
use serde_json::{Value, json};

use super::site::certificate_json;
use super::{FailureExplanation, put};

/// A client's verified or rejected chain.
pub(super) struct ClientEvaluation {
    /// As the data plane sees it.
    pub client: ClientVerification,
    /// The result as JSON.
    pub json: Value,
    /// Message and fix of a rejected chain.
    rejection: Option<(String, String)>,
}

/// Verifies a chain as a handshake at this moment does.
pub(super) fn evaluate(
    policy: Option<&ClientAuth>,
    chain: Option<&[Certificate]>,
    now: UnixTime,
) -> ClientEvaluation {
    let Some(policy) = policy else {
        let json = json!({"requested": false, "message": "the site requests no client certificate"});
        return ClientEvaluation { client: ClientVerification::NotRequested, json, rejection: None };
    };
    let Some((leaf, intermediates)) = chain.and_then(<[_]>::split_first) else {
        let json = json!({"requested": true, "presented": false, "message": "the client sends none"});
        return ClientEvaluation { client: ClientVerification::NoCertificate, json, rejection: None };
    };
    let mut json = json!({
        "requested": true,
        "presented": true,
        "leaf": certificate_json(leaf),
        "intermediates": intermediates.len(),
    });
    let intermediates: Vec<CertificateDer<'_>> =
        intermediates.iter().map(|certificate| certificate.der().clone()).collect();
    let leaf = leaf.der();
    match pki::verify_client(policy, leaf, &intermediates, now) {
        Ok(verified) => {
            put(&mut json, "verified", true);
            put(&mut json, "anchor", verified.anchor().subject());
            put(&mut json, "valid_until", format_utc(verified.valid_until()));
            ClientEvaluation {
                client: ClientVerification::Verified(Arc::new(verified)),
                json,
                rejection: None,
            }
        }
        Err(error) => {
            let failing = pki::failing_certificate(&error, policy, leaf, &intermediates);
            let fix = suggest_fix(&error, policy, failing.as_ref(), || {
                pki::required_depth(policy, leaf, &intermediates, now)
            });
            put(&mut json, "verified", false);
            put(&mut json, "verify_reason", error.reason().as_str());
            put(&mut json, "message", error.to_string());
            put(
                &mut json,
                "failing_certificate",
                failing.as_ref().map(|(at, certificate)| failing_certificate(*at, certificate.as_ref())),
            );
            put(&mut json, "fix", fix.clone());
            ClientEvaluation {
                client: ClientVerification::Rejected(error.reason()),
                json,
                rejection: Some((error.to_string(), fix)),
            }
        }
    }
}

impl ClientEvaluation {
    /// The failure of the handshake, where the site requires a certificate.
    pub(super) fn handshake_failure(&self, ssl: &Ssl) -> Option<FailureExplanation> {
        ssl.client.as_deref().filter(|policy| policy.requires_client_cert())?;
        match &self.client {
            ClientVerification::NoCertificate => {
                Some(self.failure(Reason::NoCertificate, ssl).with_alert("certificate_required"))
            }
            ClientVerification::Rejected(reason) => {
                Some(self.failure(Reason::BadCertificate, ssl).with_alert(reason.alert()))
            }
            ClientVerification::NotRequested | ClientVerification::Verified(_) => None,
        }
    }

    /// A failure for a rejected or missing certificate.
    pub(super) fn failure(&self, reason: Reason, ssl: &Ssl) -> FailureExplanation {
        let verify_reason = self.client.rejection_for(reason);
        let failure = match &self.rejection {
            Some((message, fix)) => FailureExplanation::new(reason, message).with_fix(fix),
            None => {
                let subjects = ssl.client.iter().flat_map(|policy| policy.anchors().certificates());
                let subjects: Vec<_> = subjects.map(Certificate::subject).take(5).collect();
                let message =
                    format!("ssl {} requires a client certificate, and the client sends none", ssl.id);
                let fix = format!("send a certificate issued by one of client.ca: {}", subjects.join("; "));
                FailureExplanation::new(reason, message).with_fix(fix)
            }
        };
        FailureExplanation { verify_reason, ..failure }
    }
}

/// The failing certificate and its position.
fn failing_certificate(at: ChainPosition, certificate: Option<&Certificate>) -> Value {
    let mut json = certificate.map_or_else(|| json!({}), certificate_json);
    put(&mut json, "position", position(at));
    json
}

fn position(at: ChainPosition) -> String {
    match at {
        ChainPosition::Leaf => "client_cert[1]".to_owned(),
        ChainPosition::Intermediate(number) => format!("client_cert[{}]", number + 1),
        ChainPosition::Anchor(number) => format!("client.ca[{number}]"),
    }
}

/// One sentence that says how to fix the error.
fn suggest_fix(
    error: &VerifyError,
    policy: &ClientAuth,
    failing: Option<&(ChainPosition, Option<Certificate>)>,
    depth_needed: impl FnOnce() -> Option<(u32, Result<(), VerifyError>)>,
) -> String {
    let (at, certificate) = failing.map_or((None, None), |(at, found)| (Some(*at), found.as_ref()));
    match error {
        VerifyError::UnknownIssuer { subject, issuer } if subject == issuer => format!(
            "`{subject}` is self-signed and not in client.ca: add it there if you trust it, or send a certificate that a CA of client.ca issued"
        ),
        VerifyError::UnknownIssuer { issuer, .. } => format!(
            "the issuer {issuer} is not in client.ca and was not sent: have the client send its certificate behind its own, or add it to client.ca"
        ),
        VerifyError::DepthExceeded { .. } => match depth_needed() {
            Some((depth, Ok(()))) => {
                format!("set client.depth to {depth}, or add the last intermediate to client.ca")
            }
            Some((depth, Err(error))) => {
                format!("set client.depth to {depth}; it is then rejected because {error}")
            }
            None => "raise client.depth, or add the last intermediate to client.ca".to_owned(),
        },
        VerifyError::Revoked { .. } => {
            let list = certificate
                .and_then(|certificate| (1..).zip(policy.crls()).find(|(_, crl)| crl.revokes(certificate)));
            let list = list.map(|(number, crl)| {
                format!(
                    "list {number} of client.crl (issuer {}, of {}) revokes it: ",
                    crl.issuer(),
                    format_utc(crl.this_update())
                )
            });
            format!("{}issue a new certificate to this client", list.unwrap_or_default())
        }
        VerifyError::UnknownRevocationStatus { .. } => fix_unknown_status(policy, certificate),
        other => fix_by_reason(other.reason(), at).to_owned(),
    }
}

/// Names the CRL that is missing or too old.
fn fix_unknown_status(policy: &ClientAuth, certificate: Option<&Certificate>) -> String {
    let issuer = certificate.map(Certificate::issuer).unwrap_or_default();
    let list = (1..).zip(policy.crls()).find(|(_, crl)| crl.issuer() == issuer);
    let otherwise = "or set client.crl_policy to prefer";
    match list {
        Some((number, crl)) => format!(
            "put a new list in place of list {number} of client.crl (issuer {issuer}, nextUpdate {}), {otherwise}",
            format_utc(crl.next_update())
        ),
        None => format!("add a CRL signed by {issuer} to client.crl, {otherwise}"),
    }
}

/// Fixes that depend only on the reason and the position.
fn fix_by_reason(reason: VerifyReason, at: Option<ChainPosition>) -> &'static str {
    match (reason, at) {
        (VerifyReason::Expired, Some(ChainPosition::Leaf)) => "renew the client's certificate",
        (VerifyReason::Expired, Some(ChainPosition::Anchor(_))) => {
            "replace the expired CA in client.ca by its successor"
        }
        (VerifyReason::Expired, _) => "have the client send the renewed intermediate certificate",
        (VerifyReason::NotYetValid, _) => {
            "check the clocks of this machine and of the one that issued it; or wait"
        }
        (VerifyReason::BadSignature, _) => {
            "another CA has the same name and another key: add the CA that really signed it to client.ca, or issue a new certificate"
        }
        (VerifyReason::InvalidPurpose, Some(ChainPosition::Leaf)) => {
            "issue the client a certificate whose extKeyUsage has clientAuth (1.3.6.1.5.5.7.3.2) and whose keyUsage has digitalSignature"
        }
        (VerifyReason::InvalidPurpose, _) => {
            "use an issuing CA whose extKeyUsage is absent or has clientAuth"
        }
        (VerifyReason::WeakKey, _) => {
            "issue a new certificate with RSA of at least 2048 bits, ECDSA on P-256, P-384 or P-521, or Ed25519, signed with SHA-2"
        }
        (VerifyReason::UnsupportedCertVersion, _) => {
            "issue a v3 certificate, or have a CA of client.ca sign the v1 certificate directly"
        }
        (VerifyReason::IssuerNotCa, _) => {
            "issue the client's certificate from a CA whose own says CA:TRUE and keyCertSign; a server's or client's certificate must not issue"
        }
        (VerifyReason::PathLengthExceeded, _) => {
            "issue from a CA higher up, or renew that CA's certificate with a larger pathLenConstraint"
        }
        (VerifyReason::NameConstraintViolation, _) => {
            "issue the certificate from a CA whose name constraints permit its names, or with other names"
        }
        (VerifyReason::UnsupportedCriticalExtension, _) => {
            "issue a certificate without that extension, or with it not critical"
        }
        (VerifyReason::BudgetExceeded, _) => "have the client send only the certificates of its own path",
        _ => "issue a new certificate, and send it with its intermediates only",
    }
}

//! Findings about certificates and CA bundles that have expired or expire within 30 days, and about
//! invalid certificate files.

use std::time::Duration;

use model::lint::{Finding, Severity};
use mtls::CertificateMonitor;
use mtls::{CertificateExpiry, EXPIRY_WARNING_DAYS, days_left};
use pki::format_utc;
use rustls_pki_types::UnixTime;
use serde_json::Value;

/// Findings about the certificates of this control plane.
pub(super) fn own_certificates(certificates: &CertificateMonitor) -> Vec<Finding> {
    let mut findings = Vec::new();
    for endpoint in certificates.endpoints() {
        findings.extend(endpoint.certificate.as_ref().and_then(|expiry| {
            let hint =
                "put a new certificate and its key into the files: they are read again, without a restart";
            expiry_finding(expiry, hint)
        }));
        findings.extend(endpoint.ca.as_ref().and_then(|expiry| {
            let hint =
                "add the CA's present certificate to the file, and take this one out once nothing uses it";
            expiry_finding(expiry, hint)
        }));
        findings.extend(endpoint.problem.map(|problem| Finding {
            severity: Severity::Error,
            resource: None,
            field: endpoint.name.to_owned(),
            message: format!("{problem}; what the files held before is in use"),
            hint: "correct the files: they are read again, without a restart".to_owned(),
        }));
    }
    findings
}

fn expiry_finding(expiry: &CertificateExpiry, hint: &str) -> Option<Finding> {
    Some(Finding {
        severity: if expiry.is_expired() { Severity::Error } else { Severity::Warning },
        resource: None,
        field: expiry.setting.to_owned(),
        message: expiry.warning()?,
        hint: hint.to_owned(),
    })
}

/// Findings about the data planes in a response of `GET dataplanes`.
pub(super) fn node_certificates(view: &Value, now: UnixTime) -> Vec<Finding> {
    let nodes = view.get("list").and_then(Value::as_array).into_iter().flatten();
    nodes.filter_map(|node| node_certificate(node, now)).collect()
}

fn node_certificate(node: &Value, now: UnixTime) -> Option<Finding> {
    let not_after = node.get("certificate")?.get("not_after")?.as_u64()?;
    let days = days_left(not_after, now);
    let (name, until) =
        (node.get("name")?.as_str()?, format_utc(UnixTime::since_unix_epoch(Duration::from_secs(not_after))));
    let (severity, state) = match days {
        ..0 => (Severity::Error, format!("expired at {until}")),
        days if days < EXPIRY_WARNING_DAYS => {
            (Severity::Warning, format!("expires in {days} days, at {until}"))
        }
        _ => return None,
    };
    Some(Finding {
        severity,
        resource: None,
        field: format!("dataplanes/{name}"),
        message: format!("the certificate of data plane {name:?} {state}"),
        hint: "put a new one and its key into the files of countersign.node.cert and key: they are read again, without a \
               restart"
            .to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn expiring_node_certificates_are_findings_from_30_days() {
        let day = 86_400;
        let now = UnixTime::since_unix_epoch(Duration::from_secs(100 * day));
        let node = |not_after: u64| json!({"name": "edge-1", "certificate": {"not_after": not_after}});
        let severity = |not_after| {
            node_certificates(&json!({"list": [node(not_after)]}), now).first().map(|one| one.severity)
        };
        assert_eq!(severity(130 * day), None);
        assert_eq!(severity(130 * day - 1), Some(Severity::Warning));
        assert_eq!(severity(100 * day), Some(Severity::Warning));
        assert_eq!(severity(100 * day - 1), Some(Severity::Error));
        assert!(node_certificates(&json!({"list": [{"name": "old", "certificate": null}]}), now).is_empty());
    }
}

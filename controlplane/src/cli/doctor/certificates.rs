//! Checks chains and usages of the configured certificates, with the functions that verify peers.

use conf::{ConfigProvider, Settings};
use mtls::OPERATOR_BUNDLE_MAX;
use mtls::{CertKeyPair, CertificateExpiry, ConfiguredFileRef};
use pki::{Certificate, ClientAuth, ClientAuthInput, TrustAnchors, VerifyError};
use rustls_pki_types::{ServerName, UnixTime};

use crate::cli::check_report::CheckReport;
use crate::cli::pki_cli;

pub(super) fn check(settings: &Settings, now: UnixTime, report: &mut CheckReport) {
    for files in settings.deployment.admin.tls_settings() {
        let cert = ConfiguredFileRef { setting: conf::ADMIN_CERT, path: &files.cert };
        let key = ConfiguredFileRef { setting: conf::ADMIN_CERT_KEY, path: &files.key };
        check_pair(cert, key, CertUsage::Server(None), now, report);
        if let Some(ca) = &files.ca {
            check_authorities(ConfiguredFileRef { setting: conf::ADMIN_CA, path: ca }, now, report);
        }
    }
    let push = &settings.countersign.push;
    let cert = ConfiguredFileRef { setting: "countersign.push.cert", path: &push.cert };
    let key = ConfiguredFileRef { setting: "countersign.push.key", path: &push.key };
    check_pair(cert, key, CertUsage::Server(Some(&settings.countersign.node.server_name)), now, report);
    verify_push_as_node(settings, now, report);
    check_authorities(ConfiguredFileRef { setting: "countersign.push.ca", path: &push.ca }, now, report);
    let tls = &settings.deployment.etcd.tls;
    if settings.deployment.provider != ConfigProvider::Etcd {
        return;
    }
    if let (Some(cert), Some(key)) = (&tls.cert, &tls.key) {
        let cert = ConfiguredFileRef { setting: "deployment.etcd.tls.cert", path: cert };
        check_pair(
            cert,
            ConfiguredFileRef { setting: "deployment.etcd.tls.key", path: key },
            CertUsage::Client,
            now,
            report,
        );
    }
    if let Some(ca) = settings.apisix.ssl.trusted_certificate.as_ref().filter(|_| tls.verify) {
        check_authorities(
            ConfiguredFileRef { setting: "apisix.ssl.ssl_trusted_certificate", path: ca },
            now,
            report,
        );
    }
}

/// The usage of a certificate.
pub(super) enum CertUsage<'a> {
    /// A server with this name, or with its own first name.
    Server(Option<&'a str>),
    Client,
}

/// Checks a certificate with its key and chain. Unreadable files were reported before.
pub(super) fn check_pair(
    cert: ConfiguredFileRef<'_>,
    key: ConfiguredFileRef<'_>,
    usage: CertUsage<'_>,
    now: UnixTime,
    report: &mut CheckReport,
) {
    let Ok(CertKeyPair { leaf, chain, .. }) = CertKeyPair::read(cert, key) else { return };
    let verified = match &usage {
        CertUsage::Server(name) => verify_as_server(&leaf, *name, now),
        CertUsage::Client => verify_as_client(&leaf, now),
    };
    match verified {
        // Dates and names have checks of their own.
        Ok(())
        | Err(
            VerifyError::Expired { .. }
            | VerifyError::NotYetValid { .. }
            | VerifyError::NotValidForName { .. },
        ) => {}
        Err(error) => report.fail(cert.setting, error, "issue it anew"),
    }
    if matches!(usage, CertUsage::Server(_)) && pki_cli::subject_alt_names(&leaf).is_empty() {
        let text = "it has no names (subject alternative name), so that clients reject it";
        report.warn(cert.setting, text, "issue it for the names and addresses it is called by");
    }
    match broken_link(&chain) {
        Some(problem) => report.fail(
            cert.setting,
            format!("{}: {problem}", cert.path.display()),
            "put the certificates one below the other, ours first, each followed by its issuer",
        ),
        None => report.ok(cert.setting, describe_chain(&leaf, &chain)),
    }
}

/// Verifies the certificate like a peer that trusts exactly this certificate: usages, key, dates
/// and names.
fn verify_as_server(leaf: &Certificate, name: Option<&str>, now: UnixTime) -> Result<(), VerifyError> {
    let own_names = pki_cli::subject_alt_names(leaf);
    let names = name.map(str::to_owned).into_iter().chain(own_names);
    let name = names.into_iter().find_map(|name| ServerName::try_from(name).ok());
    let (Some(name), Ok(anchors)) = (name, TrustAnchors::new(vec![leaf.clone()])) else { return Ok(()) };
    pki::verify_server(&anchors, &name, leaf.der(), &[], now)
}

/// Verifies the push server's certificate like a data plane with this configuration. The node's CA
/// file exists only if both planes share a machine.
fn verify_push_as_node(settings: &Settings, now: UnixTime, report: &mut CheckReport) {
    const CERT: &str = "countersign.push.cert";
    let (push, node) = (&settings.countersign.push, &settings.countersign.node);
    let anchors_file =
        ConfiguredFileRef { setting: "countersign.node.ca", path: &node.ca }.read_certificates();
    let anchors = anchors_file.ok().and_then(|bundle| TrustAnchors::new(bundle).ok());
    let chain = ConfiguredFileRef { setting: CERT, path: &push.cert }.read_certificates().ok();
    let name = ServerName::try_from(node.server_name.clone());
    let (Some(anchors), Some(chain), Ok(name)) = (anchors, chain, name) else { return };
    let Some((leaf, intermediates)) = chain.split_first() else { return };
    let intermediates: Vec<_> = intermediates.iter().map(|one| one.der().clone()).collect();
    match pki::verify_server(&anchors, &name, leaf.der(), &intermediates, now) {
        Ok(()) => {
            report.ok(CERT, format!("data planes accept it by {} (countersign.node.ca)", node.ca.display()))
        }
        Err(error) => report.warn(
            CERT,
            format!("data planes reject it by {} (countersign.node.ca): {error}", node.ca.display()),
            "issue it by that CA, or give data planes the CA that issued it",
        ),
    }
}

fn verify_as_client(leaf: &Certificate, now: UnixTime) -> Result<(), VerifyError> {
    let input = ClientAuthInput { anchors: vec![leaf.clone()], ..ClientAuthInput::default() };
    let Ok(policy) = ClientAuth::new(input) else { return Ok(()) };
    pki::verify_client(&policy, leaf.der(), &[], now).map(|_| ())
}

/// The first certificate that its successor did not issue.
fn broken_link(chain: &[Certificate]) -> Option<String> {
    let pairs = chain.iter().zip(chain.iter().skip(1)).enumerate();
    let broken = pairs.into_iter().find(|(_, (one, issuer))| !one.is_issued_by(issuer));
    broken.map(|(nth, (one, issuer))| {
        format!(
            "certificate {} (`{}`) is issued by `{}`, but certificate {} is `{}`",
            nth + 1,
            one.subject(),
            one.issuer(),
            nth + 2,
            issuer.subject()
        )
    })
}

fn describe_chain(leaf: &Certificate, chain: &[Certificate]) -> String {
    let last = chain.last().unwrap_or(leaf);
    let intermediates = match chain.len() {
        0 | 1 => "sent alone".to_owned(),
        several => format!("sent with {} intermediate(s)", several - 1),
    };
    let names = pki_cli::subject_alt_names(leaf);
    let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    format!(
        "key and chain fit; its names are {names}; {intermediates}, so peers must trust `{}`",
        last.issuer()
    )
}

/// Checks that CA certificates are CAs and valid.
pub(super) fn check_authorities(file: ConfiguredFileRef<'_>, now: UnixTime, report: &mut CheckReport) {
    let Ok(bundle) = file.read_certificates() else { return };
    if bundle.len() > OPERATOR_BUNDLE_MAX {
        return;
    }
    for one in &bundle {
        if let Some(problem) = CertificateExpiry::new(file, one, now).warning() {
            report.warn(file.setting, problem, "");
        }
        if !one.is_ca() {
            report.warn(
                file.setting,
                format!(
                    "`{}` is no CA: only the holder of that very certificate is trusted by it",
                    one.subject()
                ),
                "give the CA's certificate, if that was meant",
            );
        }
    }
}

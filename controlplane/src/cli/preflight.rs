//! The checks that need no running control plane: all of `controlplane check`, and the first part
//! of `doctor`.
//!
//! Reads the configured files and tries what start-up would do, changes nothing, and reports all
//! problems at once, each with its fix.

use std::net::{SocketAddr, TcpListener};

use conf::{ConfigProvider, PushSettings, Settings};
use mtls::{CertKeyPair, CertificateExpiry, ConfiguredFileRef};
use pki::{Certificate, format_utc};
use rustls_pki_types::UnixTime;

use crate::admin::admin_key;
use crate::cli::check_report::CheckReport;
use crate::server::status;
use crate::store::etcd::dial::{ClientTls, Endpoint, VERIFY_OFF};
use crate::{inventory, server};

/// Runs all checks. A failed check would keep the control plane from starting, or all clients from
/// connecting.
pub(crate) async fn run(settings: &Settings) -> CheckReport {
    let mut found = CheckReport::default();
    check_settings(settings, &mut found);
    inventory::check(settings, false, &mut found).await;
    for (key, address) in configured_listeners(settings) {
        if let Err(error) = TcpListener::bind(address) {
            found.fail(key, server::describe_listen_error(key, address, &error), "");
        }
    }
    found
}

/// The listeners by their settings.
pub(crate) fn configured_listeners(settings: &Settings) -> Vec<(&'static str, SocketAddr)> {
    let (admin, push) = (&settings.deployment.admin, &settings.countersign.push);
    let admin = admin.enabled.then_some(("deployment.admin.admin_listen", admin.listen));
    let status = settings.countersign.control_plane.status.map(|address| (status::STATUS_KEY, address));
    admin.into_iter().chain([("countersign.push.listen", push.listen)]).chain(status).collect()
}

/// The checks whose result does not depend on a running control plane.
pub(crate) fn check_settings(settings: &Settings, found: &mut CheckReport) {
    let now = UnixTime::now();
    match server::admin_tls(settings) {
        Ok(Some(tls)) => {
            let files = tls.files.files();
            let leaf = tls.files.in_use().and_then(|held| held.credentials.leaf().cloned());
            if let (Some(file), Some(leaf)) = (files.certificate(), leaf) {
                check_expiry(file, &leaf, now, found);
            }
        }
        Ok(None) if !settings.deployment.admin.enabled => {
            found.warn("apisix.enable_admin", server::ADMIN_DISABLED, "");
        }
        Ok(None) => found.ok("deployment.admin.https_admin", "false: the Admin API is plain HTTP"),
        Err(error) => found.fail("deployment.admin.admin_api_mtls", error, ""),
    }
    match server::keyring(settings) {
        Ok(_) => found.ok("apisix.data_encryption.keyring", "can be used"),
        Err(error) => found.fail("apisix.data_encryption.keyring", error, ""),
    }
    if let Err(missing) = settings.check_control_plane_files() {
        found.fail("files", missing, "");
    }
    let admin = &settings.deployment.admin;
    if admin.enabled && admin.key_required && admin.keys.is_empty() {
        found.fail(
            "deployment.admin.admin_key",
            "no entry",
            "add one (an empty key is made at the first start), or set admin_key_required: false",
        );
    }
    if admin.enabled && admin.key_required {
        for error in admin_key::key_file_problems(&admin.keys, server::admin_key_folder(settings)) {
            found.fail("deployment.admin.admin_key", error, "");
        }
    }
    check_push(&settings.countersign.push, &settings.countersign.node.server_name, now, found);
    if settings.deployment.provider == ConfigProvider::Etcd {
        check_etcd(settings, now, found);
    }
}

/// Checks the push server's pair, its name that data planes expect, and the CA of the nodes.
fn check_push(push: &PushSettings, expected: &str, now: UnixTime, found: &mut CheckReport) {
    const CERT: &str = "countersign.push.cert";
    const CA: &str = "countersign.push.ca";
    let pair = CertKeyPair::read(
        ConfiguredFileRef { setting: CERT, path: &push.cert },
        ConfiguredFileRef { setting: "countersign.push.key", path: &push.key },
    );
    match pair {
        Err(error) => found.fail(error.setting, file_problem(&error), ""),
        Ok(CertKeyPair { leaf, .. }) => {
            check_expiry(ConfiguredFileRef { setting: CERT, path: &push.cert }, &leaf, now, found);
            let names = leaf.dns_names();
            if !names.iter().any(|name| name.eq_ignore_ascii_case(expected)) {
                let misfit = format!(
                    "{} is for the names {names:?}, but data planes expect {expected:?} (countersign.node.server_name)",
                    push.cert.display()
                );
                found.fail(CERT, misfit, "issue it for that name, or change the setting");
            }
        }
    }
    check_ca_bundle(ConfiguredFileRef { setting: CA, path: &push.ca }, found);
}

/// Checks that a CA bundle can be read, and counts its certificates.
pub(crate) fn check_ca_bundle(file: ConfiguredFileRef<'_>, found: &mut CheckReport) {
    match file.read_certificates() {
        Ok(bundle) => {
            found.ok(file.setting, format!("{} certificate(s) in {}", bundle.len(), file.path.display()))
        }
        Err(error) => found.fail(error.setting, file_problem(&error), ""),
    }
}

/// Checks URLs and files of `deployment.etcd`.
fn check_etcd(settings: &Settings, now: UnixTime, found: &mut CheckReport) {
    let etcd = &settings.deployment.etcd;
    let endpoints = match Endpoint::from_config(etcd) {
        Ok(endpoints) => endpoints,
        Err(error) => return found.fail("deployment.etcd.host", error, ""),
    };
    for endpoint in endpoints.iter().filter(|endpoint| !endpoint.https() && !endpoint.is_loopback()) {
        found.warn(
            "deployment.etcd.host",
            format!("{endpoint} is plain HTTP: the password and every document travel in clear"),
            "give etcd a certificate, and write https://",
        );
    }
    if !endpoints.iter().any(Endpoint::https) {
        return;
    }
    let security = ClientTls::of(settings);
    match security.load() {
        Err(error) => found.fail("deployment.etcd.tls", &error.problem, ""),
        Ok(loaded) => {
            let leaf = loaded.certificate.as_ref().and_then(|shown| shown.certificate());
            match security.files().files().certificate().zip(leaf) {
                Some((file, leaf)) => check_expiry(file, leaf, now, found),
                None => found.ok("deployment.etcd.tls.cert", "none: etcd must not ask for one"),
            }
            if etcd.tls.verify {
                found.ok("apisix.ssl.ssl_trusted_certificate", &loaded.trusted);
            } else {
                found.warn("deployment.etcd.tls.verify", VERIFY_OFF, "");
            }
        }
    }
}

/// The error without the setting, which is the subject of the check.
pub(crate) fn file_problem(error: &mtls::FileError) -> String {
    format!("{}: {}", error.path.display(), error.problem)
}

/// Reports subject and expiry of a certificate.
pub(crate) fn check_expiry(
    file: ConfiguredFileRef<'_>,
    leaf: &Certificate,
    now: UnixTime,
    found: &mut CheckReport,
) {
    match CertificateExpiry::new(file, leaf, now).warning() {
        Some(problem) => found.warn(file.setting, problem, ""),
        None => found
            .ok(file.setting, format!("{}, valid until {}", leaf.subject(), format_utc(leaf.not_after()))),
    }
}

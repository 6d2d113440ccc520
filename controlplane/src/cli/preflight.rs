//! The checks that need no running control plane, and accept one: all of `controlplane check`, and
//! the first part of `doctor`.
//!
//! Reads the configured files and tries what start-up would do, changes nothing, and reports all
//! problems at once, each with its fix.

use conf::{ConfigProvider, PushSettings, Settings};
use mtls::{CertKeyPair, CertificateExpiry, ConfiguredFileRef};
use pki::{Certificate, format_utc};
use rustls_pki_types::UnixTime;

use crate::admin::admin_key;
use crate::admin::tls::ListenerTls;
use crate::cli::check_report::CheckReport;
use crate::cli::listeners;
use crate::inventory::Inventory;
use crate::server;
use crate::store::etcd::dial::{ClientTls, Endpoint, VERIFY_OFF};
use crate::store::{DocumentList, EmbeddedStore, EtcdStore, Store, StoreError};

/// Runs all checks. A failed check would keep the control plane from starting, or all clients from
/// connecting.
pub(crate) async fn run(settings: &Settings) -> CheckReport {
    let mut report = CheckReport::default();
    check_settings(settings, &mut report);
    let running = listeners::is_running(settings).await;
    check_documents(settings, running, &mut report).await;
    if running {
        listeners::check(settings, true, &mut report).await;
    } else {
        listeners::check_free(settings, &mut report);
    }
    report
}

/// The checks whose result does not depend on a running control plane.
pub(crate) fn check_settings(settings: &Settings, report: &mut CheckReport) {
    let now = UnixTime::now();
    check_admin_listeners(settings, now, report);
    match server::keyring(settings) {
        Ok(_) => report.ok(settings.keyring_setting(), "can be used"),
        Err(error) => report.fail(settings.keyring_setting(), error, ""),
    }
    if let Err(error) = settings.check_control_plane_files() {
        report.fail("files", error, "");
    }
    let admin = &settings.deployment.admin;
    if admin.enabled && admin.key_required {
        for error in admin_key::key_file_problems(&admin.keys, server::admin_key_folder(settings)) {
            report.fail("deployment.admin.admin_key", error, "");
        }
    }
    check_push(&settings.countersign.push, &settings.countersign.node.server_name, now, report);
    if settings.deployment.provider == ConfigProvider::Etcd {
        check_etcd(settings, now, report);
    }
}

/// Checks the certificates of the Admin API, and names the listeners without any.
fn check_admin_listeners(settings: &Settings, now: UnixTime, report: &mut CheckReport) {
    let admin = &settings.deployment.admin;
    if !admin.enabled {
        report.warn("apisix.enable_admin", server::ADMIN_DISABLED, "");
    }
    let tls = match ListenerTls::from_settings(settings) {
        Ok(tls) => tls,
        Err(error) => return report.fail("deployment.admin.admin_api_mtls", error, ""),
    };
    for tls in tls.iter() {
        let leaf = tls.files.in_use().and_then(|summary| summary.credentials.leaf().cloned());
        if let (Some(file), Some(leaf)) = (tls.files.files().certificate(), leaf) {
            check_expiry(file, &leaf, now, report);
        }
    }
    for listener in admin.listeners.iter().filter(|listener| admin.enabled && listener.tls.is_none()) {
        let text = format!("false: the Admin API is plain HTTP on {}", listener.address);
        report.ok("deployment.admin.https_admin", text);
    }
}

/// Checks the push server's pair, its name that data planes expect, and the CA of the nodes.
fn check_push(push: &PushSettings, expected_name: &str, now: UnixTime, report: &mut CheckReport) {
    const CERT: &str = "countersign.push.cert";
    const CA: &str = "countersign.push.ca";
    let pair = CertKeyPair::read(
        ConfiguredFileRef { setting: CERT, path: &push.cert },
        ConfiguredFileRef { setting: "countersign.push.key", path: &push.key },
    );
    match pair {
        Err(error) => report.fail(error.setting, file_problem(&error), ""),
        Ok(CertKeyPair { leaf, .. }) => {
            check_expiry(ConfiguredFileRef { setting: CERT, path: &push.cert }, &leaf, now, report);
            let names = leaf.dns_names();
            if !names.iter().any(|name| name.eq_ignore_ascii_case(expected_name)) {
                let mismatch = format!(
                    "{} is for the names {names:?}, but data planes expect {expected_name:?} (countersign.node.server_name)",
                    push.cert.display()
                );
                report.fail(CERT, mismatch, "issue it for that name, or change the setting");
            }
        }
    }
    check_ca_bundle(ConfiguredFileRef { setting: CA, path: &push.ca }, report);
}

/// Checks that a CA bundle can be read, and counts its certificates.
pub(crate) fn check_ca_bundle(file: ConfiguredFileRef<'_>, report: &mut CheckReport) {
    match file.read_certificates() {
        Ok(bundle) => {
            report.ok(file.setting, format!("{} certificate(s) in {}", bundle.len(), file.path.display()))
        }
        Err(error) => report.fail(error.setting, file_problem(&error), ""),
    }
}

/// Checks URLs and files of `deployment.etcd`.
fn check_etcd(settings: &Settings, now: UnixTime, report: &mut CheckReport) {
    let etcd = &settings.deployment.etcd;
    let endpoints = match Endpoint::from_config(etcd) {
        Ok(endpoints) => endpoints,
        Err(error) => return report.fail("deployment.etcd.host", error, ""),
    };
    for endpoint in endpoints.iter().filter(|endpoint| !endpoint.https() && !endpoint.is_loopback()) {
        report.warn(
            "deployment.etcd.host",
            format!("{endpoint} is plain HTTP: the password and every document travel in clear"),
            "give etcd a certificate, and write https://",
        );
    }
    if !endpoints.iter().any(Endpoint::https) {
        return;
    }
    let client_tls = ClientTls::of(settings);
    match client_tls.load() {
        Err(error) => report.fail("deployment.etcd.tls", &error.problem, ""),
        Ok(loaded) => {
            let leaf = loaded.certificate.as_ref().and_then(|cert| cert.certificate());
            match client_tls.files().files().certificate().zip(leaf) {
                Some((file, leaf)) => check_expiry(file, leaf, now, report),
                None => report.ok("deployment.etcd.tls.cert", "none: etcd must not ask for one"),
            }
            if etcd.tls.verify {
                report.ok("apisix.ssl.ssl_trusted_certificate", &loaded.trusted);
            } else {
                report.warn("deployment.etcd.tls.verify", VERIFY_OFF, "");
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
    report: &mut CheckReport,
) {
    match CertificateExpiry::new(file, leaf, now).warning() {
        Some(problem) => report.warn(file.setting, problem, ""),
        None => report
            .ok(file.setting, format!("{}, valid until {}", leaf.subject(), format_utc(leaf.not_after()))),
    }
}

/// Counts the documents of the configured store and reports them. `running`: a control plane with
/// this configuration's certificate listens.
pub(crate) async fn check_documents(settings: &Settings, running: bool, report: &mut CheckReport) {
    let Ok(keyring) = server::keyring(settings) else { return };
    let (subject, loaded) = match settings.deployment.provider {
        ConfigProvider::Embedded => {
            ("countersign.store.path", load_embedded(settings, running, report).await)
        }
        ConfigProvider::Etcd => ("deployment.etcd.prefix", load_etcd(settings, report).await),
    };
    let Some((identity, loaded)) = loaded else { return };
    let counting = tokio::task::spawn_blocking(move || Inventory::count(&loaded.items, &keyring));
    let Ok(inventory) = counting.await else { return };
    let summary = format!("the store holds {inventory} (identity {identity})");
    if inventory.is_empty() {
        let fix = "right for a new installation; else it is not the store you mean: data planes that serve something hold it";
        report.warn(subject, format!("the store is empty (identity {identity})"), fix);
    } else {
        report.ok(subject, summary);
    }
    if let Err(error) = inventory.check_keyring(settings.keyring_setting()) {
        report.fail("stored documents", error, "");
    }
    for warning in inventory.warnings(settings.keyring_setting()) {
        report.warn("stored documents", warning, "");
    }
}

async fn load_embedded(
    settings: &Settings,
    running: bool,
    report: &mut CheckReport,
) -> Option<(String, DocumentList)> {
    const SUBJECT: &str = "countersign.store.path";
    let path = settings.countersign.store.path.clone();
    let display = path.display().to_string();
    let loaded = tokio::task::spawn_blocking(move || EmbeddedStore::load_file(&path)).await.ok()?;
    match loaded {
        Ok(Some(loaded)) => {
            report.ok(SUBJECT, format!("{display} can be used"));
            Some(loaded)
        }
        Ok(None) => {
            let fix = "right for a new installation; else look for the file, or put a backup in its place: data planes that serve \
                        something hold an empty store";
            report.warn(SUBJECT, format!("there is no file {display}: the start makes an empty store"), fix);
            None
        }
        Err(StoreError::Locked { .. }) if running => {
            report.ok(SUBJECT, format!("{display} is in use by the control plane that runs"));
            report.unknown(
                SUBJECT,
                "its documents are not counted: ask the control plane, `GET /apisix/admin/ssls`",
            );
            None
        }
        Err(error) => {
            report.fail(SUBJECT, error, "");
            None
        }
    }
}

async fn load_etcd(settings: &Settings, report: &mut CheckReport) -> Option<(String, DocumentList)> {
    let loading = async {
        let store = EtcdStore::open(settings).await?;
        Ok::<_, StoreError>((store.identity().to_owned(), store.load().await?))
    };
    let timeout = settings.deployment.etcd.timeout;
    let loaded = match tokio::time::timeout(timeout, loading).await {
        Ok(loaded) => loaded,
        Err(_) => Err(StoreError::Unavailable { what: format!("no response within {timeout:?}") }),
    };
    match loaded {
        Ok(loaded) => Some(loaded),
        Err(error) => {
            report.warn(
                "deployment.etcd.prefix",
                format!("the documents cannot be counted: {error}"),
                "the control plane does not start until etcd responds; `controlplane doctor` says which step fails",
            );
            None
        }
    }
}

//! What can be judged without starting and without asking anybody: all of `controlplane check`, and the first part of `doctor`.
//!
//! Reads what the configuration names and tries what start-up would try, changes nothing, and reports everything at once, each with what
//! to do about it.

use std::net::{SocketAddr, TcpListener};

use conf::{Provider, Push, Settings};
use pki::{Certificate, Keyring};
use rustls_pki_types::UnixTime;

use crate::boot;
use crate::date::date;
use crate::examination::Examination;
use crate::pem_files::{Named, Pair};
use crate::status;
use crate::store::Embedded;
use crate::store::etcd::dial::{Endpoint, OPEN, Security};

/// Certificates that end within this many seconds are warned about: 14 days.
const SOON: u64 = 14 * 24 * 3600;

/// Judges everything. What is wrong would keep the control plane from starting, or everybody from talking to it.
pub fn run(settings: &Settings) -> Examination {
    let mut found = Examination::default();
    standing(settings, &mut found);
    if settings.deployment.provider == Provider::Embedded
        && let Err(error) = Embedded::probe(&settings.countersign.store.path)
    {
        found.wrong("countersign.store.path", error, "");
    }
    for (key, address) in listeners(settings) {
        if let Err(error) = TcpListener::bind(address) {
            found.wrong(key, boot::listen_problem(key, address, &error), "");
        }
    }
    found
}

/// The listeners, by the settings that name them.
pub(crate) fn listeners(settings: &Settings) -> Vec<(&'static str, SocketAddr)> {
    let (admin, push) = (&settings.deployment.admin, &settings.countersign.push);
    let admin = admin.enabled.then_some(("deployment.admin.admin_listen", admin.listen));
    let status = settings.countersign.control_plane.status.map(|address| (status::SETTING, address));
    admin.into_iter().chain([("countersign.push.listen", push.listen)]).chain(status).collect()
}

/// What is the same whether a control plane runs or not.
pub(crate) fn standing(settings: &Settings, found: &mut Examination) {
    let now = UnixTime::now();
    match boot::admin_tls(settings) {
        Ok(Some(tls)) => certificate("admin_ssl_cert", &tls.certificate, now, found),
        Ok(None) if !settings.deployment.admin.enabled => {
            found.warn("apisix.enable_admin", boot::NO_ADMIN, "");
        }
        Ok(None) => found.ok("deployment.admin.https_admin", "false: the Admin API is plain HTTP"),
        Err(error) => found.wrong("deployment.admin.admin_api_mtls", error, ""),
    }
    match Keyring::new(settings.apisix.keyring_texts()) {
        Ok(_) => found.ok("apisix.data_encryption.keyring", "can be used"),
        Err(error) => found.wrong("apisix.data_encryption.keyring", error, ""),
    }
    let admin = &settings.deployment.admin;
    if admin.enabled && admin.key_required && admin.keys.is_empty() {
        found.wrong(
            "deployment.admin.admin_key",
            "no entry",
            "add one (an empty key is made at the first start), or set admin_key_required: false",
        );
    }
    push(&settings.countersign.push, &settings.countersign.node.server_name, now, found);
    if settings.deployment.provider == Provider::Etcd {
        etcd(settings, now, found);
    }
}

/// The control plane's end of the push: a pair that fits, the name data planes expect, a CA for the nodes.
fn push(push: &Push, expected: &str, now: UnixTime, found: &mut Examination) {
    const CERT: &str = "countersign.push.cert";
    const CA: &str = "countersign.push.ca";
    let pair = Pair::read(
        Named { setting: CERT, path: &push.cert },
        Named { setting: "countersign.push.key", path: &push.key },
    );
    match pair {
        Err(error) => found.wrong(error.setting, in_file(&error), ""),
        Ok(Pair { leaf, .. }) => {
            certificate(CERT, &leaf, now, found);
            let names = leaf.dns_names();
            if !names.iter().any(|name| name.eq_ignore_ascii_case(expected)) {
                let misfit = format!(
                    "{} is for the names {names:?}, but data planes expect {expected:?} (countersign.node.server_name)",
                    push.cert.display()
                );
                found.wrong(CERT, misfit, "issue it for that name, or change the setting");
            }
        }
    }
    authorities(Named { setting: CA, path: &push.ca }, found);
}

/// A bundle: that it can be read, and how many are in it.
fn authorities(file: Named<'_>, found: &mut Examination) {
    match file.certificates() {
        Ok(bundle) => {
            found.ok(file.setting, format!("{} certificate(s) in {}", bundle.len(), file.path.display()))
        }
        Err(error) => found.wrong(error.setting, in_file(&error), ""),
    }
}

/// URLs and files of `deployment.etcd`.
fn etcd(settings: &Settings, now: UnixTime, found: &mut Examination) {
    let etcd = &settings.deployment.etcd;
    let endpoints = match Endpoint::all(etcd) {
        Ok(endpoints) => endpoints,
        Err(error) => return found.wrong("deployment.etcd.host", error, ""),
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
    match Security::of(settings).load() {
        Err(error) => found.wrong("deployment.etcd.tls", &error.problem, ""),
        Ok(loaded) => {
            match loaded.certificate.as_ref().and_then(|shown| shown.certificate()) {
                Some(leaf) => certificate("deployment.etcd.tls.cert", leaf, now, found),
                None => found.ok("deployment.etcd.tls.cert", "none: etcd must not ask for one"),
            }
            if etcd.tls.verify {
                found.ok("apisix.ssl.ssl_trusted_certificate", &loaded.trusted);
            } else {
                found.warn("deployment.etcd.tls.verify", OPEN, "");
            }
        }
    }
}

/// Without the setting, which the row names.
pub(crate) fn in_file(error: &crate::pem_files::FileError) -> String {
    format!("{}: {}", error.path.display(), error.problem)
}

/// A certificate of ours: whose, and until when.
fn certificate(what: &'static str, leaf: &Certificate, now: UnixTime, found: &mut Examination) {
    match ends(leaf, now) {
        Some((problem, mend)) => found.warn(what, problem, mend),
        None => found.ok(what, format!("{}, valid until {}", leaf.subject(), date(leaf.not_after()))),
    }
}

/// What there is to say about a certificate's dates: it is served all the same.
pub(crate) fn dates(what: &str, certificate: &Certificate, now: UnixTime) -> Option<String> {
    ends(certificate, now).map(|(problem, mend)| format!("{what}: {problem}: {mend}"))
}

/// What is wrong with the dates, and what to do.
pub(crate) fn ends(certificate: &Certificate, now: UnixTime) -> Option<(String, &'static str)> {
    let subject = certificate.subject();
    let told = |state: &str| format!("the certificate {subject:?} {state}");
    if certificate.not_after() < now {
        return Some((told("is expired, so that it is refused"), "replace it"));
    }
    if certificate.not_before() > now {
        return Some((told("is not valid yet"), "check its dates and this machine's clock"));
    }
    let left = certificate.not_after().as_secs().saturating_sub(now.as_secs());
    (left < SOON).then(|| (told(&format!("expires in {} days", left / 86_400)), "renew it"))
}

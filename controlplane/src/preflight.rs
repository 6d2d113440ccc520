//! `controlplane check`: everything that can be judged without starting.
//!
//! Reads what the configuration names and tries what start-up would try, changes nothing, and reports all problems at once, each with what
//! to do about it.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;

use conf::{Provider, Push, Settings};
use pki::{Certificate, Keyring, PrivateKey};
use rustls_pki_types::UnixTime;
use zeroize::Zeroizing;

use crate::boot;
use crate::store::Embedded;

/// Certificates that end within this many seconds are warned about: 14 days.
const SOON: u64 = 14 * 24 * 3600;

/// What was found.
#[derive(Debug, Default)]
pub struct Findings {
    /// The control plane would not start, or nobody could talk to it.
    pub problems: Vec<String>,
    /// It would, but probably not as intended.
    pub warnings: Vec<String>,
}

/// Judges everything.
pub fn run(settings: &Settings) -> Findings {
    let mut found = Findings::default();
    let now = UnixTime::now();
    match boot::admin_tls(settings) {
        Ok(Some(tls)) => found.warnings.extend(dates("admin_ssl_cert", &tls.certificate, now)),
        Ok(None) => {}
        Err(error) => found.problems.push(error.to_string()),
    }
    if let Err(error) = Keyring::new(settings.apisix.keyring_texts()) {
        found.problems.push(format!("apisix.data_encryption.keyring: {error}"));
    }
    let admin = &settings.deployment.admin;
    if admin.key_required && admin.keys.is_empty() {
        found.problems.push(
            "deployment.admin.admin_key: no entry; add one (an empty key is made at the first start), or set admin_key_required: false"
                .to_owned(),
        );
    }
    if settings.deployment.provider == Provider::Embedded
        && let Err(error) = Embedded::probe(&settings.countersign.store.path)
    {
        found.problems.push(error.to_string());
    }
    push(&settings.countersign.push, &settings.countersign.node.server_name, now, &mut found);
    port("deployment.admin.admin_listen", admin.listen, &mut found);
    port("countersign.push.listen", settings.countersign.push.listen, &mut found);
    found
}

/// The control plane's end of the push: a pair that fits, the name data planes expect, a CA for the nodes.
fn push(push: &Push, expected: &str, now: UnixTime, found: &mut Findings) {
    match pair(push) {
        Err(problem) => found.problems.push(problem),
        Ok(certificate) => {
            found.warnings.extend(dates("countersign.push.cert", &certificate, now));
            let names = certificate.dns_names();
            if !names.iter().any(|name| name.eq_ignore_ascii_case(expected)) {
                found.problems.push(format!(
                    "countersign.push.cert {}: it is for the names {names:?}, but data planes expect {expected:?} \
                     (countersign.node.server_name): issue it for that name, or change the setting",
                    push.cert.display()
                ));
            }
        }
    }
    if let Err(problem) = certificates("countersign.push.ca", &push.ca) {
        found.problems.push(problem);
    }
}

fn pair(push: &Push) -> Result<Certificate, String> {
    const KEY: &str = "countersign.push.key";
    let chain = certificates("countersign.push.cert", &push.cert)?;
    let told = |error: pki::KeyError| format!("{KEY} {}: {error}", push.key.display());
    let key = PrivateKey::from_pem(&read(KEY, &push.key)?).map_err(told)?;
    let leaf = chain.into_iter().next().ok_or_else(|| format!("{}: no certificate", push.cert.display()))?;
    key.matches(&leaf).map_err(|error| {
        format!("{KEY} {}: {error}. It must be the key of {}", push.key.display(), push.cert.display())
    })?;
    Ok(leaf)
}

fn certificates(what: &str, path: &Path) -> Result<Vec<Certificate>, String> {
    pki::certificates_from_pem(&read(what, path)?)
        .map_err(|error| format!("{what} {}: {error}", path.display()))
}

fn read(what: &str, path: &Path) -> Result<Zeroizing<String>, String> {
    fs::read_to_string(path).map(Zeroizing::new).map_err(|error| {
        format!("{what} {}: {error}; check the path and that this user may read the file", path.display())
    })
}

/// What there is to say about a certificate's dates: it is served all the same.
pub(crate) fn dates(what: &str, certificate: &Certificate, now: UnixTime) -> Option<String> {
    let subject = certificate.subject();
    if certificate.not_after() < now {
        return Some(format!(
            "{what}: the certificate {subject:?} is expired: clients will refuse it; replace it"
        ));
    }
    if certificate.not_before() > now {
        return Some(format!(
            "{what}: the certificate {subject:?} is not valid yet: check its dates and this machine's clock"
        ));
    }
    let left = certificate.not_after().as_secs().saturating_sub(now.as_secs());
    (left < SOON)
        .then(|| format!("{what}: the certificate {subject:?} expires in {} days: renew it", left / 86_400))
}

fn port(key: &str, address: SocketAddr, found: &mut Findings) {
    if let Err(error) = TcpListener::bind(address) {
        found.problems.push(boot::listen_problem(key, address, &error));
    }
}

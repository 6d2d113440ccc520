//! `controlplane check`: everything that can be judged without starting.
//!
//! Reads what the configuration names and tries what start-up would try, changes nothing, and reports all problems at once, each with what
//! to do about it.

use std::net::{SocketAddr, TcpListener};

use conf::{Provider, Push, Settings};
use pki::{Certificate, Keyring};
use rustls_pki_types::UnixTime;

use crate::boot;
use crate::pem_files::{FileError, Named, Pair};
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
        Err(problem) => found.problems.push(problem.to_string()),
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
    if let Err(problem) = (Named { setting: "countersign.push.ca", path: &push.ca }).certificates() {
        found.problems.push(problem.to_string());
    }
}

fn pair(push: &Push) -> Result<Certificate, FileError> {
    let pair = Pair::read(
        Named { setting: "countersign.push.cert", path: &push.cert },
        Named { setting: "countersign.push.key", path: &push.key },
    )?;
    Ok(pair.leaf)
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

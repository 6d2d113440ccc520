//! What about a resource depends on the time: refusals when it is written, and warnings about what is
//! served all the same.
//!
//! Not part of `check`, because that also reads what was stored long ago: an anchor that expired since then
//! refuses clients, but must not take the resource away.

use pki::{Certificate, ClientAuth, ClientAuthInput, verify_client};
use rustls_pki_types::UnixTime;

use crate::pattern::SniPattern;
use crate::problem::Problem;
use crate::resource::{KeyPair, Resource, Scheme, Ssl, Upstream, UpstreamIdentity, UpstreamRef};

/// Warn about certificates that end within this many seconds: 14 days.
const SOON: u64 = 14 * 24 * 3600;

/// What the Admin API refuses now: anchors that can verify nobody, because they are expired or not yet
/// valid, or because they are neither a CA nor a client's own certificate.
///
/// # Errors
/// The first such anchor, by its subject.
pub fn check_time(resource: &Resource, now: UnixTime) -> Result<(), Problem> {
    let Resource::Ssl(ssl) = resource else { return Ok(()) };
    let Some(policy) = &ssl.client else { return Ok(()) };
    policy.anchors().certificates().iter().try_for_each(|anchor| check_anchor(anchor, now))
}

fn check_anchor(anchor: &Certificate, now: UnixTime) -> Result<(), Problem> {
    let refuse = |why: String, hint: &str| {
        let message = format!("failed to validate client_cert: \"{}\" {why}", anchor.subject());
        Err(Problem::new("client.ca", message).with_hint(hint))
    };
    match state(anchor, now) {
        State::Ended => return refuse("is expired".to_owned(), "replace it by its successor, or remove it"),
        State::NotYet => return refuse("is not valid yet".to_owned(), "check the clock, or add it later"),
        State::Fine | State::EndsSoon => {}
    }
    if anchor.is_ca() {
        return Ok(());
    }
    // Not a CA: then it can only be a client's own certificate, pinned. The verifier itself says so.
    let pinned = ClientAuth::new(ClientAuthInput { anchors: vec![anchor.clone()], ..Default::default() })
        .map_err(|error| error.to_string())
        .and_then(|policy| verify_client(&policy, anchor.der(), &[], now).map_err(|error| error.to_string()));
    match pinned {
        Ok(_) => Ok(()),
        Err(why) => refuse(
            format!("is not a CA, and as a client's own certificate it fails: {why}"),
            "client.ca takes the CA certificates that sign clients, or clients' own certificates",
        ),
    }
}

/// What is served, but probably not as intended: each a sentence for a log line.
pub fn warnings(resource: &Resource, now: UnixTime) -> Vec<String> {
    let mut found = Vec::new();
    match resource {
        Resource::Ssl(ssl) => warn_ssl(ssl, now, &mut found),
        Resource::Upstream(upstream) => warn_upstream(upstream, now, &mut found),
        Resource::Service(service) => warn_target(service.upstream.as_ref(), now, &mut found),
        Resource::Route(route) => {
            for uri in route.uris.iter().filter(|uri| !uri.as_str().starts_with(['/', '*'])) {
                found.push(format!("uri \"{uri}\" does not start with /, so no request can match it"));
            }
            warn_target(route.upstream.as_ref(), now, &mut found);
        }
    }
    found
}

fn warn_ssl(ssl: &Ssl, now: UnixTime, found: &mut Vec<String>) {
    for pair in &ssl.pairs {
        warn_pair(pair, now, found);
        warn_names(pair, &ssl.names, found);
    }
    let Some(policy) = &ssl.client else { return };
    for anchor in policy.anchors().certificates() {
        warn_certificate("client.ca: anchor", anchor, now, found);
    }
    for pattern in policy.skip_patterns().iter().filter(|pattern| !pattern.starts_with('^')) {
        found.push(format!(
            "client.skip_mtls_uri_regex \"{pattern}\" is not anchored: it also exempts paths that contain it anywhere; start it with ^"
        ));
    }
    for crl in policy.crls().iter().filter(|crl| crl.next_update().as_secs() <= now.as_secs()) {
        let effect =
            if policy.crl_prefer() { "its revocations still count" } else { "its clients are refused" };
        found.push(format!("client.crl of \"{}\" is past its nextUpdate: {effect}", crl.issuer()));
    }
}

fn warn_upstream(upstream: &Upstream, now: UnixTime, found: &mut Vec<String>) {
    if let Some(UpstreamIdentity::Inline(pair)) = &upstream.tls.identity {
        warn_pair(pair, now, found);
    }
    if upstream.scheme == Scheme::Http && (upstream.tls.identity.is_some() || upstream.tls.verify) {
        found.push("upstream tls is configured, but the scheme is http: nothing is encrypted".to_owned());
    }
}

fn warn_target(target: Option<&UpstreamRef>, now: UnixTime, found: &mut Vec<String>) {
    if let Some(UpstreamRef::Inline(upstream)) = target {
        warn_upstream(upstream, now, found);
    }
}

fn warn_pair(pair: &KeyPair, now: UnixTime, found: &mut Vec<String>) {
    for certificate in &pair.chain {
        warn_certificate("certificate", certificate, now, found);
    }
}

/// Clients compare the name they asked for with the certificate's own.
fn warn_names(pair: &KeyPair, names: &[SniPattern], found: &mut Vec<String>) {
    let Some(leaf) = pair.leaf() else { return };
    let written = leaf.dns_names();
    let covers = |name: &SniPattern, own: &SniPattern| match (name, own) {
        (SniPattern::Exact(name), SniPattern::Suffix(suffix)) => {
            name.as_bytes().strip_suffix(suffix.as_bytes()).is_some_and(|star| !star.contains(&b'.'))
        }
        (name, own) => name == own,
    };
    let own: Vec<_> = written.iter().filter_map(|name| SniPattern::parse(name).ok()).collect();
    for name in names.iter().filter(|name| **name != SniPattern::Any) {
        if !own.iter().any(|own| covers(name, own)) {
            let subject = leaf.subject();
            found.push(format!(
                "certificate \"{subject}\" is not for {name}: clients that ask for it will refuse it"
            ));
        }
    }
}

fn warn_certificate(role: &str, certificate: &Certificate, now: UnixTime, found: &mut Vec<String>) {
    let subject = certificate.subject();
    match state(certificate, now) {
        State::Fine => {}
        State::Ended => found.push(format!("{role} \"{subject}\" is expired")),
        State::NotYet => found.push(format!("{role} \"{subject}\" is not valid yet")),
        State::EndsSoon => {
            let days = (certificate.not_after().as_secs().saturating_sub(now.as_secs())) / (24 * 3600);
            found.push(format!("{role} \"{subject}\" expires in {days} days"));
        }
    }
}

enum State {
    NotYet,
    Fine,
    EndsSoon,
    Ended,
}

fn state(certificate: &Certificate, now: UnixTime) -> State {
    let now = now.as_secs();
    let end = certificate.not_after().as_secs();
    if now < certificate.not_before().as_secs() {
        State::NotYet
    } else if now > end {
        State::Ended
    } else if end - now < SOON {
        State::EndsSoon
    } else {
        State::Fine
    }
}

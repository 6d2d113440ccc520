//! Findings about one resource alone: dates, names, patterns, and contradictory settings.

use pki::ClientAuth;
use rustls_pki_types::UnixTime;

use super::certificate::{check_dates, check_key_pair};
use super::upstream::{check_upstream, check_upstream_ref};
use super::{Findings, Severity};
use crate::pattern::SniPattern;
use crate::resource::{KeyPair, Resource, Ssl};

/// CRLs are reported this many seconds before they become stale.
const CRL_SOON: u64 = 24 * 3600;
/// A path that no rule names: a pattern that exempts it exempts all.
const ANY_PATH: &str = "/6f1c/countersign-lint";

pub(super) fn check(resource: &Resource, now: UnixTime, notes: &mut Findings) {
    if resource.blocked().is_some() {
        // A blocked resource is empty, and its compilation has already reported it.
        return;
    }
    match resource {
        Resource::PluginConfig(_) | Resource::GlobalRule(_) => {}
        Resource::Ssl(ssl) => check_ssl(ssl, now, notes),
        Resource::Upstream(upstream) => check_upstream("", upstream, now, notes),
        Resource::Service(service) => check_upstream_ref(service.upstream.as_ref(), now, notes),
        Resource::Route(route) => {
            for uri in route.uris.iter().filter(|uri| !uri.as_str().starts_with(['/', '*'])) {
                let what = format!("uri \"{uri}\" does not start with /, so no request can match it");
                notes.add(Severity::Error, "uri", what, "write /... or *");
            }
            check_upstream_ref(route.upstream.as_ref(), now, notes);
        }
        Resource::StreamRoute(route) => {
            if route.upstream.is_none() && route.service.is_none() {
                let what =
                    "it names neither an upstream nor a service: its connections are closed".to_owned();
                notes.add(
                    Severity::Error,
                    "upstream",
                    what,
                    "give it an upstream, upstream_id or service_id",
                );
            }
            check_upstream_ref(route.upstream.as_ref(), now, notes);
        }
    }
}

fn check_ssl(ssl: &Ssl, now: UnixTime, notes: &mut Findings) {
    for (place, pair) in ssl.pairs.iter().enumerate() {
        let field = if place == 0 { "cert".to_owned() } else { format!("certs[{place}]") };
        check_key_pair(&field, pair, now, notes);
        check_certificate_names(&field, pair, &ssl.names, notes);
    }
    if let Some(policy) = &ssl.client {
        check_policy(policy, now, notes);
    }
}

fn check_policy(policy: &ClientAuth, now: UnixTime, notes: &mut Findings) {
    for (place, anchor) in (1..).zip(policy.anchors().certificates()) {
        let hint = "replace it by its successor: clients below it are rejected once it has ended";
        check_dates(&format!("client.ca[{place}]"), "anchor", anchor, now, hint, notes);
    }
    for (place, pattern) in (1..).zip(policy.skip_patterns()) {
        let field = format!("client.skip_mtls_uri_regex[{place}]");
        if !pattern.starts_with('^') {
            let what =
                format!("\"{pattern}\" is not anchored: it also exempts paths that contain it anywhere");
            notes.add(Severity::Warning, field, what, "start it with ^");
        }
    }
    if let Some(pattern) = policy.skip_pattern_for(ANY_PATH) {
        let what =
            format!("\"{pattern}\" exempts every path: no client certificate is demanded on this site");
        notes.add(
            Severity::Warning,
            "client.skip_mtls_uri_regex",
            what,
            "name the paths that need no certificate",
        );
    }
    for (place, crl) in (1..).zip(policy.crls()) {
        let (end, now) = (crl.next_update().as_secs(), now.as_secs());
        let field = format!("client.crl[{place}]");
        let hint = "put the issuer's newest list there";
        if end <= now {
            let (severity, effect) = if policy.crl_prefer() {
                (Severity::Warning, "its revocations still count, newer ones are not known")
            } else {
                (Severity::Error, "its clients are rejected")
            };
            let what = format!("the list of \"{}\" is past its nextUpdate: {effect}", crl.issuer());
            notes.add(severity, field, what, hint);
        } else if end - now < CRL_SOON {
            let what = format!("the list of \"{}\" is stale in {} hours", crl.issuer(), (end - now) / 3600);
            notes.add(Severity::Warning, field, what, hint);
        }
    }
}

/// Clients compare the requested name with those of the certificate.
fn check_certificate_names(field: &str, pair: &KeyPair, names: &[SniPattern], notes: &mut Findings) {
    let Some(leaf) = pair.leaf() else { return };
    let covers = |name: &SniPattern, own: &SniPattern| match (name, own) {
        (SniPattern::Exact(name), SniPattern::Suffix(suffix)) => {
            name.as_bytes().strip_suffix(suffix.as_bytes()).is_some_and(|star| !star.contains(&b'.'))
        }
        (name, own) => name == own,
    };
    let own: Vec<_> = leaf.dns_names().iter().filter_map(|name| SniPattern::parse(name).ok()).collect();
    for name in names.iter().filter(|name| **name != SniPattern::Any) {
        if !own.iter().any(|own| covers(name, own)) {
            let subject = leaf.subject();
            let what = format!(
                "certificate \"{subject}\" is not for {name}: clients that request it will reject it"
            );
            notes.add(Severity::Warning, field, what, "use a certificate whose subjectAltName has the name");
        }
    }
}

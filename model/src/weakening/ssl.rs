//! Weakenings of sites: clients that they accept, verification, and names.
//!
//! Invariant: a policy replaces another one without a weakening only if it certainly rejects what
//! that one rejects. Names of authorities are not unique, so certificates and keys are compared.

use pki::{ClientAuth, Crl};

use super::Weakenings;
use crate::pattern::SniPattern;
use crate::resource::{Ssl, TlsVersion};

/// The default of listeners.
const OLDEST: TlsVersion = TlsVersion::V12;

pub(super) fn compare(old: &Ssl, new: &Ssl, found: &mut Weakenings) {
    if old.client_side {
        return;
    }
    if restricts_clients(old) {
        compare_names(old, new, found);
    }
    settings(old, new, found);
}

/// Everything but the names.
pub(super) fn settings(old: &Ssl, new: &Ssl, found: &mut Weakenings) {
    // An ssl of type client has no names, and a blocked site accepts no client.
    if old.client_side || new.client_side || new.blocked.is_some() {
        return;
    }
    match (&old.client, &new.client) {
        (Some(_), None) => found.add("client", "client certificates are not requested any more"),
        (Some(old), Some(new)) => compare_policies(old, new, found),
        (None, None) => found.add_if(
            old.blocked.is_some(),
            "client",
            "opens without requesting client certificates; before, it was unsupported and blocked",
        ),
        (None, Some(_)) => {}
    }
    compare_versions(old, new, found);
}

pub(super) fn removal(old: &Ssl, found: &mut Weakenings) {
    found.add_if(restricts_clients(old), "snis", &format!("its names are given up: {ELSEWHERE}"));
}

/// Whether the site rejects clients on its names.
pub(super) fn restricts_clients(site: &Ssl) -> bool {
    !site.client_side && site.enabled && (site.client.is_some() || site.blocked.is_some())
}

const ELSEWHERE: &str = "another site may serve them, without requesting client certificates";

/// Names that the site gives up, which a wildcard site without a client policy may have.
fn compare_names(old: &Ssl, new: &Ssl, found: &mut Weakenings) {
    if new.client_side {
        found.add("type", format!("its names are given up: {ELSEWHERE}"));
    } else if !new.enabled {
        found.add("status", format!("its names are given up: {ELSEWHERE}"));
    } else {
        let gone = |name: &&SniPattern| !new.names.iter().any(|now| covers(now, name));
        let gone: Vec<String> = old.names.iter().filter(gone).map(ToString::to_string).collect();
        if !gone.is_empty() {
            found.add("snis", format!("{} given up: {ELSEWHERE}", gone.join(", ")));
        }
    }
}

/// Whether the pattern `now` matches every name of `before`; a wildcard of an ssl covers one label.
pub(super) fn covers(now: &SniPattern, before: &SniPattern) -> bool {
    match (now, before) {
        (SniPattern::Any, _) => true,
        (SniPattern::Suffix(suffix), SniPattern::Exact(name)) => {
            let label = name.as_bytes().strip_suffix(suffix.as_bytes());
            label.is_some_and(|label| !label.contains(&b'.'))
        }
        _ => now == before,
    }
}

/// Whether `new` verifies clients of `old` and is no weaker: one anchor stays, as in a rotation,
/// and nothing else weakens.
pub(super) fn can_replace(old: &ClientAuth, new: &ClientAuth) -> bool {
    let known = old.anchors().certificates();
    let mut found = Weakenings::default();
    compare_verification(old, new, &mut found);
    found.0.is_empty() && new.anchors().certificates().iter().any(|anchor| known.contains(anchor))
}

/// Whether a site with the policy `new` may accept clients that one with `old` rejects.
pub(super) fn policy_weakens(old: &ClientAuth, new: &ClientAuth) -> bool {
    let mut found = Weakenings::default();
    if old.digest() != new.digest() {
        compare_policies(old, new, &mut found);
    }
    !found.0.is_empty()
}

fn compare_policies(old: &ClientAuth, new: &ClientAuth, found: &mut Weakenings) {
    let known = old.anchors().certificates();
    let added = new.anchors().certificates().iter().filter(|anchor| !known.contains(anchor));
    let added: Vec<String> = added.map(|anchor| format!("\"{}\"", anchor.subject())).collect();
    if !added.is_empty() {
        found.add("client.ca", format!("trusts certificates that it did not before: {}", added.join(", ")));
    }
    compare_verification(old, new, found);
}

/// Everything but the anchors.
fn compare_verification(old: &ClientAuth, new: &ClientAuth, found: &mut Weakenings) {
    if new.depth() > old.depth() {
        let what = format!("raised from {} to {}: longer chains are accepted", old.depth(), new.depth());
        found.add("client.depth", what);
    }
    let freed = new.skip_patterns().iter().filter(|pattern| !old.skip_patterns().contains(pattern));
    let freed: Vec<String> = freed.map(|pattern| format!("{pattern:?}")).collect();
    if !freed.is_empty() {
        let what = format!("more paths need no client certificate: {}", freed.join(", "));
        found.add("client.skip_mtls_uri_regex", what);
    }
    compare_crls(old, new, found);
}

fn compare_crls(old: &ClientAuth, new: &ClientAuth, found: &mut Weakenings) {
    if new.crls().is_empty() {
        if !old.crls().is_empty() {
            found.add("client.crl", "the revocation lists are gone: revoked certificates are accepted");
        }
        return;
    }
    let prefers = new.crl_prefer();
    if prefers && !old.crl_prefer() && !old.crls().is_empty() {
        found.add("client.crl_policy", "\"prefer\" accepts certificates whose status is unknown");
    }
    for list in old.crls() {
        let issuer = list.issuer();
        match revocation_loss(list, old, new) {
            Some(RevocationLoss::FewerSerials) => {
                let what =
                    format!("the list of \"{issuer}\" revokes fewer certificates, and is no newer one");
                found.add("client.crl", what);
            }
            // "require" rejects certificates without a list.
            Some(RevocationLoss::NoList) if prefers => {
                let what =
                    format!("the list of \"{issuer}\" is gone: certificates that it revokes are accepted");
                found.add("client.crl", what);
            }
            _ => {}
        }
    }
}

/// How certificates are not revoked any more, the worse one last.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum RevocationLoss {
    /// There is no list of the same key for the same certificates.
    NoList,
    /// There is one, which is no newer and revokes fewer certificates.
    FewerSerials,
}

/// What is lost of a list. Another one takes its place only if the same key has signed it and it
/// is about the same kind of certificates: names of authorities are not unique.
fn revocation_loss(list: &Crl, old: &ClientAuth, new: &ClientAuth) -> Option<RevocationLoss> {
    if new.crls().iter().any(|now| now.der() == list.der()) {
        return None;
    }
    let anchors = old.anchors().certificates();
    let mut signers: Vec<_> = anchors.iter().filter(|anchor| list.is_signed_by(anchor)).map(Some).collect();
    if signers.is_empty() {
        // An intermediate has signed it, whose certificate was beside it or comes from the client.
        signers.push(None);
    }
    let kinds = [false, true].into_iter().filter(|are_cas| list.covers(*are_cas));
    let parts = kinds.flat_map(|are_cas| signers.iter().map(move |signer| (are_cas, *signer)));
    let losses = parts.filter_map(|(are_cas, signer)| {
        let is_successor = |now: &&Crl| {
            now.covers(are_cas)
                && match signer {
                    Some(signer) => now.is_signed_by(signer),
                    None => now.issuer() == list.issuer() && (!new.crl_prefer() || now.shares_signer(list)),
                }
        };
        let lists: Vec<&Crl> = new.crls().iter().filter(is_successor).collect();
        let is_newer = lists.iter().any(|now| now.this_update() > list.this_update());
        let revokes = |serial| lists.iter().any(|now| now.contains_serial(serial));
        match lists.is_empty() {
            true => Some(RevocationLoss::NoList),
            false => (!is_newer && !list.revoked().all(revokes)).then_some(RevocationLoss::FewerSerials),
        }
    });
    losses.max()
}

fn compare_versions(old: &Ssl, new: &Ssl, found: &mut Weakenings) {
    let oldest = |ssl: &Ssl| ssl.versions.iter().flatten().min().copied().unwrap_or(OLDEST);
    let (before, now) = (oldest(old), oldest(new));
    if now < before {
        let what = format!("{} is accepted; before it was {} and newer", now.as_str(), before.as_str());
        found.add("ssl_protocols", what);
    }
}

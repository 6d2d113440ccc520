//! Authorization of a request's host and path, which a TLS handshake alone cannot decide.
//!
//! The data plane enforces [`admit`] and the explain API reports it. The site of the Host is found
//! by the same lookup as the site of the SNI (invariant 1), so a client cannot bypass client
//! verification by sending one site's name in TLS and another in HTTP. Contract section 5.2, with
//! 421 instead of 400.

use std::sync::Arc;

use pki::{ClientAuth, Identity, VerifiedClient, VerifyReason};

use crate::host_name::HostName;
use crate::reason::Reason;
use crate::request_target::RequestTarget;
use crate::resource::Ssl;
use crate::snapshot::Snapshot;

/// The client verification result of a TLS connection: of its handshake, or of a later
/// revalidation.
#[derive(Debug, Clone)]
pub enum ClientVerification {
    /// The site does not request a client certificate.
    NotRequested,
    /// The site requested a certificate and the client sent none.
    NoCertificate,
    /// The client's certificate chain was verified.
    Verified(Arc<VerifiedClient>),
    /// The client's certificate was rejected, on a site that does not require one for every path.
    Rejected(VerifyReason),
}

impl ClientVerification {
    /// The verified identity, if there is one.
    pub fn identity(&self) -> Option<&Identity> {
        match self {
            ClientVerification::Verified(verified) => Some(verified.identity()),
            ClientVerification::NotRequested
            | ClientVerification::NoCertificate
            | ClientVerification::Rejected(_) => None,
        }
    }

    /// The certificate rule that a denied request failed, for logs and metrics.
    pub fn rejection_for(&self, reason: Reason) -> Option<VerifyReason> {
        match (self, reason) {
            (ClientVerification::Rejected(rule), Reason::BadCertificate | Reason::PolicyChanged) => {
                Some(*rule)
            }
            _ => None,
        }
    }
}

/// The authentication state of a TLS connection, shared by all its requests.
#[derive(Debug)]
pub struct ConnectionAuth<'a> {
    /// The SNI that selected the site.
    pub sni: &'a HostName,
    /// The site in the newest snapshot; `None` once it is deleted.
    pub ssl: Option<&'a Ssl>,
    /// The client, verified under the newest policy.
    pub client: &'a ClientVerification,
}

/// Authorizes one request on a TLS connection and returns the client that counts for it. Requests
/// on plain connections are not checked (contract 5.2).
///
/// An identity counts only on the site that verified it: a request for the Host of another site
/// without a client policy is anonymous, because otherwise a CA trusted by one site could name the
/// clients of another. A Host without a site falls under the site of the connection.
///
/// # Errors
///
/// The reason, whose status is sent to the client.
pub fn admit<'a>(
    site: &ConnectionAuth<'a>,
    snapshot: &Snapshot,
    target: &RequestTarget,
) -> Result<&'a ClientVerification, Reason> {
    // A deleted site denies even the connections that it accepted before.
    let own = site.ssl.ok_or(Reason::Misdirected)?;
    if own.blocked.is_some() {
        return Err(Reason::BlockedSite);
    }
    check_own_policy(own.client.as_deref(), site.client, &target.path)?;
    match target.host.as_ref().filter(|host| *host != site.sni).and_then(|host| snapshot.site(host)) {
        // The policy of a blocked site is unknown.
        Some(requested) if requested.blocked.is_some() => Err(Reason::BlockedSite),
        Some(requested) if !may_reuse_connection(site.ssl, requested) => Err(Reason::Misdirected),
        Some(requested) if requested.id != own.id => Ok(&ANONYMOUS),
        Some(_) | None => Ok(site.client),
    }
}

/// The client of a request to a site without a client policy.
static ANONYMOUS: ClientVerification = ClientVerification::NotRequested;

/// Applies the policy of the connection's own site.
fn check_own_policy(
    policy: Option<&ClientAuth>,
    client: &ClientVerification,
    path: &str,
) -> Result<(), Reason> {
    let Some(policy) = policy else { return Ok(()) };
    match client {
        ClientVerification::Verified(_) => Ok(()),
        // The handshake of a site that requires a certificate rejects everybody else, so the policy
        // has changed since.
        _ if policy.requires_client_cert() => Err(Reason::PolicyChanged),
        _ if policy.skips_path(path) => Ok(()),
        ClientVerification::Rejected(_) => Err(Reason::BadCertificate),
        ClientVerification::NoCertificate | ClientVerification::NotRequested => Err(Reason::NoCertificate),
    }
}

/// Whether a connection to the site `own` may carry requests for the site `asked`. A site with a
/// client policy accepts only its own connections.
pub fn may_reuse_connection(own: Option<&Ssl>, requested: &Ssl) -> bool {
    let Some(wanted) = requested.client.as_deref() else { return true };
    own.is_some_and(|own| {
        own.id == requested.id
            && own.client.as_deref().is_some_and(|policy| policy.digest() == wanted.digest())
    })
}

#[cfg(test)]
mod tests {
    use pki::ca::{Authority, AuthoritySpec, LeafSpec};
    use pki::{Certificate, ClientAuthInput, UnixTime};

    use super::*;
    use crate::{Delta, Id, PathOptions, Resource, SniPattern, Versioned};

    fn site(id: &str, name: &str, client: Option<ClientAuth>) -> Arc<Ssl> {
        Arc::new(Ssl {
            names: vec![SniPattern::parse(name).unwrap()],
            client: client.map(Arc::new),
            ..Ssl::new(Id::parse(id).unwrap())
        })
    }

    fn policy(anchor: &Certificate, skip: &[&str]) -> ClientAuth {
        ClientAuth::new(ClientAuthInput {
            anchors: vec![anchor.clone()],
            depth: 1,
            skip_uri_patterns: skip.iter().map(|&s| s.to_owned()).collect(),
            crls: vec![],
            crl_prefer: false,
        })
        .unwrap()
    }

    fn snapshot(sites: &[Arc<Ssl>]) -> Snapshot {
        let upserts = sites
            .iter()
            .map(|ssl| Versioned { version: 1, resource: Resource::Ssl(Arc::clone(ssl)) })
            .collect();
        Snapshot::empty().apply(&Delta { from: 0, to: 1, upserts, removals: vec![] })
    }

    fn target(host: &str, path: &str) -> RequestTarget {
        RequestTarget::new(None, Some(host), path, PathOptions::default()).unwrap()
    }

    /// Authorizes a request of a client without a certificate.
    fn anonymous(snapshot: &Snapshot, sni: &str, host: &str, path: &str) -> Result<(), Reason> {
        let sni = HostName::from_sni(sni).unwrap();
        let ssl = snapshot.site(&sni).map(Arc::as_ref);
        admit(
            &ConnectionAuth { sni: &sni, ssl, client: &ClientVerification::NoCertificate },
            snapshot,
            &target(host, path),
        )
        .map(drop)
    }

    #[test]
    fn a_host_with_a_client_policy_needs_its_own_handshake() {
        let ca = Authority::root(&AuthoritySpec::new("CA")).unwrap();
        let sites = snapshot(&[
            site("open", "open.example", None),
            site("shut", "shut.example", Some(policy(ca.certificate(), &[]))),
            site("wild", "*.wild.example", Some(policy(ca.certificate(), &["^/free"]))),
        ]);
        assert_eq!(anonymous(&sites, "open.example", "open.example", "/"), Ok(()));
        assert_eq!(anonymous(&sites, "open.example", "no-site.example", "/"), Ok(()), "contract 5.2, rule 2");
        for host in ["shut.example", "SHUT.example.", "shut.example:9443", "a.wild.example"] {
            assert_eq!(anonymous(&sites, "open.example", host, "/"), Err(Reason::Misdirected), "{host}");
        }
        // Two names of one wildcard site share one policy.
        assert_eq!(anonymous(&sites, "a.wild.example", "b.wild.example", "/free"), Ok(()));
        assert_eq!(anonymous(&sites, "a.wild.example", "shut.example", "/free"), Err(Reason::Misdirected));
    }

    #[test]
    fn skip_rules_exempt_their_paths_only() {
        let ca = Authority::root(&AuthoritySpec::new("CA")).unwrap();
        let sites = snapshot(&[site("1", "a.example", Some(policy(ca.certificate(), &["^/free/"])))]);
        assert_eq!(anonymous(&sites, "a.example", "a.example", "/free/x"), Ok(()));
        assert_eq!(anonymous(&sites, "a.example", "a.example", "/x/free/"), Err(Reason::NoCertificate));
    }

    #[test]
    fn a_newer_policy_and_a_deleted_site_deny_requests() {
        let ca = Authority::root(&AuthoritySpec::new("CA")).unwrap();
        let strict = snapshot(&[site("1", "a.example", Some(policy(ca.certificate(), &[])))]);
        assert_eq!(anonymous(&strict, "a.example", "a.example", "/"), Err(Reason::PolicyChanged));
        assert_eq!(anonymous(&Snapshot::empty(), "a.example", "a.example", "/"), Err(Reason::Misdirected));
    }
    #[test]
    fn an_identity_counts_only_on_the_site_that_verified_it() {
        let ca = Authority::root(&AuthoritySpec::new("CA")).unwrap();
        let client = ca.issue(&LeafSpec::client("a")).unwrap().certificate;
        let own = policy(ca.certificate(), &[]);
        let verified = pki::verify_client(&own, client.der(), &[], UnixTime::now()).unwrap();
        let sites =
            snapshot(&[site("wild", "*.wild.example", Some(own)), site("open", "open.example", None)]);
        let sni = HostName::from_sni("a.wild.example").unwrap();
        let (ssl, client) =
            (sites.site(&sni).map(Arc::as_ref), ClientVerification::Verified(Arc::new(verified)));
        let has_identity = |host| {
            let connection = ConnectionAuth { sni: &sni, ssl, client: &client };
            admit(&connection, &sites, &target(host, "/")).unwrap().identity().is_some()
        };
        assert!(
            has_identity("a.wild.example")
                && has_identity("b.wild.example")
                && has_identity("no-site.example")
        );
        assert!(!has_identity("open.example"), "this CA names no client of that site");
    }
}

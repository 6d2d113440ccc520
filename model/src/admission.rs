//! Whether this client may ask for this host and path: the decisions that a handshake alone cannot
//! make.
//!
//! The data plane decides by [`admit`], and the control plane explains by it. The Host's site is
//! looked up by the same function as the SNI's (invariant 1), so there is no way round the client
//! check by naming one site in TLS and another in HTTP. Contract section 5.2, with 421 instead of
//! 400.

use std::sync::Arc;

use pki::{ClientAuth, Identity, VerifiedClient, VerifyReason};

use crate::host_name::HostName;
use crate::reason::Reason;
use crate::request_target::RequestTarget;
use crate::resource::Ssl;
use crate::snapshot::Snapshot;

/// What the handshake or a later look found out about the client.
#[derive(Debug, Clone)]
pub enum ClientVerification {
    /// The site asks for no certificate.
    NotRequested,
    /// It was asked and showed none.
    NoCertificate,
    /// It showed one, and this is who it is.
    Verified(Arc<VerifiedClient>),
    /// It showed one that is not good enough; only where the site does not insist.
    Rejected(VerifyReason),
}

impl ClientVerification {
    /// Who it is, when that was verified.
    pub fn identity(&self) -> Option<&Identity> {
        match self {
            ClientVerification::Verified(verified) => Some(verified.identity()),
            ClientVerification::NotRequested
            | ClientVerification::NoCertificate
            | ClientVerification::Rejected(_) => None,
        }
    }

    /// Which rule the client's certificate breaks, when a request is refused for that.
    pub fn rejection_for(&self, reason: Reason) -> Option<VerifyReason> {
        match (self, reason) {
            (ClientVerification::Rejected(rule), Reason::BadCertificate | Reason::PolicyMoved) => Some(*rule),
            _ => None,
        }
    }
}

/// What a connection established by TLS is, for every request on it.
#[derive(Debug)]
pub struct ConnectionAuth<'a> {
    /// The name the site was chosen by.
    pub sni: &'a HostName,
    /// The site as the newest snapshot has it; `None` when it is gone.
    pub ssl: Option<&'a Ssl>,
    /// The client under the newest policy.
    pub client: &'a ClientVerification,
}

/// Judges one request on a TLS connection, and says who its client is for this request. Plain
/// connections are not judged (contract 5.2).
///
/// An identity counts where it was verified: a request for another site's Host, which that site's
/// policy allows to anybody, comes from nobody in particular. Otherwise a CA that one site trusts
/// could name the clients of another. A Host that no site answers to stands on the connection's own
/// site.
///
/// # Errors
/// The reason; its status is the answer.
pub fn admit<'a>(
    site: &ConnectionAuth<'a>,
    snapshot: &Snapshot,
    target: &RequestTarget,
) -> Result<&'a ClientVerification, Reason> {
    // A site that was taken away serves nobody, whoever was let in before.
    let own = site.ssl.ok_or(Reason::Misdirected)?;
    if own.blocked.is_some() {
        return Err(Reason::BlockedSite);
    }
    check_own_policy(own.client.as_deref(), site.client, &target.path)?;
    match target.host.as_ref().filter(|host| *host != site.sni).and_then(|host| snapshot.site(host)) {
        // Whom it was to let in, nobody can say.
        Some(asked) if asked.blocked.is_some() => Err(Reason::BlockedSite),
        Some(asked) if !may_reuse_connection(site.ssl, asked) => Err(Reason::Misdirected),
        Some(asked) if asked.id != own.id => Ok(&ANONYMOUS),
        Some(_) | None => Ok(site.client),
    }
}

/// The client of a request to a site that asks for no certificate.
static ANONYMOUS: ClientVerification = ClientVerification::NotRequested;

/// The connection's own policy.
fn check_own_policy(
    policy: Option<&ClientAuth>,
    client: &ClientVerification,
    path: &str,
) -> Result<(), Reason> {
    let Some(policy) = policy else { return Ok(()) };
    match client {
        ClientVerification::Verified(_) => Ok(()),
        // A site that insists let nobody else through its handshake: the policy is another one now.
        _ if policy.requires_client_cert() => Err(Reason::PolicyMoved),
        _ if policy.skips_path(path) => Ok(()),
        ClientVerification::Rejected(_) => Err(Reason::BadCertificate),
        ClientVerification::NoCertificate | ClientVerification::NotRequested => Err(Reason::NoCertificate),
    }
}

/// Whether a connection made for `own` may be asked for `asked`: a Host whose site wants client
/// certificates needs the connection to be that very site's.
pub fn may_reuse_connection(own: Option<&Ssl>, asked: &Ssl) -> bool {
    let Some(wanted) = asked.client.as_deref() else { return true };
    own.is_some_and(|own| {
        own.id == asked.id && own.client.as_deref().is_some_and(|policy| policy.digest() == wanted.digest())
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
            id: Id::parse(id).unwrap(),
            client_side: false,
            names: vec![SniPattern::parse(name).unwrap()],
            pairs: vec![],
            client: client.map(Arc::new),
            versions: None,
            enabled: true,
            prepared: crate::CacheSlot::new(),
            blocked: None,
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

    /// The verdict for a connection made as `sni` whose client showed nothing.
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
    fn a_host_that_demands_certificates_cannot_be_reached_through_another_sites_handshake() {
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
        // One wildcard site, two of its names: one policy, so one handshake is as good as the other.
        assert_eq!(anonymous(&sites, "a.wild.example", "b.wild.example", "/free"), Ok(()));
        assert_eq!(anonymous(&sites, "a.wild.example", "shut.example", "/free"), Err(Reason::Misdirected));
    }

    #[test]
    fn skip_rules_free_their_paths_only() {
        let ca = Authority::root(&AuthoritySpec::new("CA")).unwrap();
        let sites = snapshot(&[site("1", "a.example", Some(policy(ca.certificate(), &["^/free/"])))]);
        assert_eq!(anonymous(&sites, "a.example", "a.example", "/free/x"), Ok(()));
        assert_eq!(anonymous(&sites, "a.example", "a.example", "/x/free/"), Err(Reason::NoCertificate));
    }

    #[test]
    fn a_policy_that_came_later_and_a_site_that_went_both_refuse() {
        let ca = Authority::root(&AuthoritySpec::new("CA")).unwrap();
        let insists = snapshot(&[site("1", "a.example", Some(policy(ca.certificate(), &[])))]);
        assert_eq!(anonymous(&insists, "a.example", "a.example", "/"), Err(Reason::PolicyMoved));
        assert_eq!(anonymous(&Snapshot::empty(), "a.example", "a.example", "/"), Err(Reason::Misdirected));
    }
    #[test]
    fn an_identity_counts_where_it_was_verified() {
        let ca = Authority::root(&AuthoritySpec::new("CA")).unwrap();
        let client = ca.issue(&LeafSpec::client("a")).unwrap().certificate;
        let own = policy(ca.certificate(), &[]);
        let verified = pki::verify_client(&own, client.der(), &[], UnixTime::now()).unwrap();
        let sites =
            snapshot(&[site("wild", "*.wild.example", Some(own)), site("open", "open.example", None)]);
        let sni = HostName::from_sni("a.wild.example").unwrap();
        let (ssl, client) =
            (sites.site(&sni).map(Arc::as_ref), ClientVerification::Verified(Arc::new(verified)));
        let known = |host| {
            let connection = ConnectionAuth { sni: &sni, ssl, client: &client };
            admit(&connection, &sites, &target(host, "/")).unwrap().identity().is_some()
        };
        assert!(known("a.wild.example") && known("b.wild.example") && known("no-site.example"));
        assert!(!known("open.example"), "whoever that site's routes name, this CA does not say");
    }
}

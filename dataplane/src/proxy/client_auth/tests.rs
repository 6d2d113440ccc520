use std::time::Duration;

use model::{Delta, Id, Resource, SniPattern, Versioned};
use pki::ClientAuthInput;
use pki::ca::{Authority, AuthoritySpec, CrlSpec, IssuedCertificate, LeafSpec};

use super::*;

/// A snapshot with one site, whose policy changes.
struct TestSite {
    authority: Authority,
    client: IssuedCertificate,
    snapshot: Snapshot,
}

impl TestSite {
    fn new() -> Self {
        let authority = Authority::root(&AuthoritySpec::new("CA")).unwrap();
        let client = authority.issue(&LeafSpec::client("a")).unwrap();
        Self { authority, client, snapshot: Snapshot::empty() }
    }

    fn policy(&self, input: ClientAuthInput) -> Option<ClientAuth> {
        let anchors = match input.anchors.is_empty() {
            true => vec![self.authority.certificate().clone()],
            false => input.anchors.clone(),
        };
        Some(ClientAuth::new(ClientAuthInput { anchors, ..input }).unwrap())
    }

    /// A policy that revokes the client.
    fn revoking(&self, input: ClientAuthInput) -> Option<ClientAuth> {
        let list = self.authority.crl(&CrlSpec::new().revoke(&self.client.certificate)).unwrap();
        self.policy(ClientAuthInput { crls: vec![list], ..input })
    }

    /// Stores the site with this policy.
    fn store(&mut self, client: Option<ClientAuth>, enabled: bool) -> Arc<Ssl> {
        let ssl = Arc::new(Ssl {
            names: vec![SniPattern::parse("a.example").unwrap()],
            client: client.map(Arc::new),
            enabled,
            ..Ssl::new(Id::parse("1").unwrap())
        });
        let (from, to) = (self.snapshot.revision(), self.snapshot.revision() + 1);
        let upserts = vec![Versioned { version: to, resource: Resource::Ssl(Arc::clone(&ssl)) }];
        self.snapshot = self.snapshot.apply(&Delta { from, to, upserts, removals: vec![] });
        ssl
    }

    fn remove(&mut self) {
        let key = Resource::Ssl(self.store(None, true)).key();
        let (from, to) = (self.snapshot.revision(), self.snapshot.revision() + 1);
        let delta = Delta { from, to, upserts: vec![], removals: vec![key] };
        self.snapshot = self.snapshot.apply(&delta);
    }

    /// An HTTP connection of the site, with a client certificate or without.
    fn connect(&self, ssl: &Ssl, leaf: Option<&Certificate>) -> ClientAuthState {
        self.connect_to(Subsystem::Http, ssl, leaf)
    }

    fn connect_to(&self, subsystem: Subsystem, ssl: &Ssl, leaf: Option<&Certificate>) -> ClientAuthState {
        let chain: Vec<_> = leaf.iter().map(|certificate| certificate.der().clone()).collect();
        let sni = HostName::from_sni("a.example").unwrap();
        let peer = "192.0.2.1:1".parse().unwrap();
        let generation = self.snapshot.site_generation();
        ClientAuthState::evaluate(sni, peer, chain.into(), ssl, generation, subsystem)
    }

    fn revalidate(&self, connection: &ClientAuthState) -> Option<CloseMode> {
        connection.revalidate(&self.snapshot)
    }
}

/// A policy with skip rules.
fn skipping() -> ClientAuthInput {
    ClientAuthInput { skip_uri_patterns: vec!["^/open".to_owned()], ..Default::default() }
}

/// A client certificate of another CA.
fn unknown_client() -> Certificate {
    let authority = Authority::root(&AuthoritySpec::new("Other")).unwrap();
    authority.issue(&LeafSpec::client("b")).unwrap().certificate
}

const POLICY_CHANGED: Option<CloseMode> = Some(CloseMode::Immediate(Reason::PolicyChanged));

#[test]
fn a_client_stays_while_every_policy_verifies_it() {
    let mut site = TestSite::new();
    let ssl = site.store(site.policy(ClientAuthInput::default()), true);
    let good = site.connect(&ssl, Some(&site.client.certificate.clone()));
    assert_eq!(site.revalidate(&good), None);
    let clean = site.authority.crl(&CrlSpec::new()).unwrap();
    site.store(site.policy(ClientAuthInput { crls: vec![clean], depth: 3, ..Default::default() }), true);
    assert_eq!(site.revalidate(&good), None);
    assert!(matches!(*good.verification(), ClientVerification::Verified(_)));
    site.store(None, true);
    assert_eq!(site.revalidate(&good), None, "no certificate is requested any more");
    site.store(site.policy(ClientAuthInput::default()), true);
    assert_eq!(site.revalidate(&good), None, "the presented chain is kept");
}

#[test]
fn a_revoked_client_or_a_missing_ca_or_site_closes() {
    type Change = fn(&mut TestSite);
    let no_site = Some(CloseMode::Immediate(Reason::NoSite));
    let changes: [(Change, Option<CloseMode>); 4] = [
        (|site| drop(site.store(site.revoking(ClientAuthInput::default()), true)), POLICY_CHANGED),
        (
            |site| {
                let other = Authority::root(&AuthoritySpec::new("CA")).unwrap().certificate().clone();
                let input = ClientAuthInput { anchors: vec![other], ..Default::default() };
                drop(site.store(site.policy(input), true));
            },
            POLICY_CHANGED,
        ),
        (|site| drop(site.store(site.policy(ClientAuthInput::default()), false)), no_site),
        (TestSite::remove, no_site),
    ];
    for (change, mode) in changes {
        let mut site = TestSite::new();
        let ssl = site.store(site.policy(ClientAuthInput::default()), true);
        let good = site.connect(&ssl, Some(&site.client.certificate.clone()));
        change(&mut site);
        assert_eq!(site.revalidate(&good), mode);
    }
}

#[test]
fn without_a_policy_a_removed_site_closes_gracefully() {
    for disabled in [true, false] {
        let mut site = TestSite::new();
        let ssl = site.store(None, true);
        let (http, tcp) = (site.connect(&ssl, None), site.connect_to(Subsystem::Stream, &ssl, None));
        if disabled {
            drop(site.store(None, false))
        } else {
            site.remove()
        }
        for connection in [&http, &tcp] {
            assert_eq!(site.revalidate(connection), Some(CloseMode::Graceful));
        }
        // The name is back, and its site requires certificates.
        site.store(site.policy(ClientAuthInput::default()), true);
        assert_eq!(site.revalidate(&http), POLICY_CHANGED);
    }
}

#[test]
fn a_policy_of_the_past_closes_a_connection_with_its_site() {
    let mut site = TestSite::new();
    let ssl = site.store(site.policy(skipping()), true);
    let before = site.connect(&ssl, None);
    let open = site.store(None, true);
    let meanwhile = site.connect(&open, None);
    assert_eq!((site.revalidate(&before), site.revalidate(&meanwhile)), (None, None));
    site.store(site.policy(skipping()), true);
    assert_eq!((site.revalidate(&before), site.revalidate(&meanwhile)), (None, None));
    let open = site.store(None, true);
    let after = site.connect(&open, None);
    for connection in [&before, &meanwhile, &after] {
        assert_eq!(site.revalidate(connection), None);
    }
    site.remove();
    let no_site = Some(CloseMode::Immediate(Reason::NoSite));
    assert_eq!((site.revalidate(&before), site.revalidate(&meanwhile)), (no_site, no_site));
    assert_eq!(site.revalidate(&after), Some(CloseMode::Graceful));
}

#[test]
fn an_anonymous_client_closes_when_certificates_are_required() {
    let mut site = TestSite::new();
    let ssl = site.store(None, true);
    let anonymous = site.connect(&ssl, None);
    site.store(site.policy(skipping()), true);
    assert_eq!(site.revalidate(&anonymous), None, "each of its requests is checked");
    site.store(site.policy(ClientAuthInput::default()), true);
    assert_eq!(site.revalidate(&anonymous), POLICY_CHANGED);
}

#[test]
fn with_skip_rules_only_clients_that_were_verified_close() {
    let mut site = TestSite::new();
    let ssl = site.store(site.policy(skipping()), true);
    let good = site.connect(&ssl, Some(&site.client.certificate.clone()));
    let anonymous = site.connect(&ssl, None);
    let unknown = site.connect(&ssl, Some(&unknown_client()));
    let revoking = site.store(site.revoking(skipping()), true);
    // A request may be the first to notice.
    good.update_verdict(&revoking);
    assert!(matches!(*good.verification(), ClientVerification::Rejected(_)));
    assert_eq!(site.revalidate(&good), POLICY_CHANGED);
    assert_eq!(site.revalidate(&anonymous), None);
    assert_eq!(site.revalidate(&unknown), None);
}

#[test]
fn an_expired_certificate_closes_once() {
    let mut site = TestSite::new();
    let ssl = site.store(site.policy(ClientAuthInput::default()), true);
    let good = site.connect(&ssl, Some(&site.client.certificate.clone()));
    let at = |seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds));
    assert_eq!(good.revalidate_expiry(&site.snapshot, UnixTime::now()), None);
    let end = site.client.certificate.not_after().as_secs();
    assert_eq!(good.revalidate_expiry(&site.snapshot, at(end)), None);
    assert_eq!(good.revalidate_expiry(&site.snapshot, at(end + 1)), POLICY_CHANGED);
    assert_eq!(good.revalidate_expiry(&site.snapshot, at(end + 2)), None, "reported once");
}

#[test]
fn skip_rules_never_apply_to_a_tcp_connection() {
    let mut site = TestSite::new();
    let open = site.store(None, true);
    let (http, tcp) = (site.connect(&open, None), site.connect_to(Subsystem::Stream, &open, None));
    assert_eq!(tcp.check_tcp_client(), Ok(()), "the site requests no certificate");
    let ssl = site.store(site.policy(skipping()), true);
    assert_eq!(site.revalidate(&http), None);
    assert_eq!(site.revalidate(&tcp), POLICY_CHANGED);

    let anonymous = site.connect_to(Subsystem::Stream, &ssl, None);
    assert_eq!(anonymous.check_tcp_client(), Err(Reason::NoCertificate));
    let unknown = site.connect_to(Subsystem::Stream, &ssl, Some(&unknown_client()));
    assert_eq!(unknown.check_tcp_client(), Err(Reason::BadCertificate));
    let good = site.connect_to(Subsystem::Stream, &ssl, Some(&site.client.certificate));
    assert_eq!(good.check_tcp_client(), Ok(()));
    assert_eq!(site.revalidate(&good), None);
    site.store(site.revoking(skipping()), true);
    assert_eq!(site.revalidate(&good), POLICY_CHANGED);
}

#[test]
fn only_a_verified_client_satisfies_a_required_certificate() {
    let mut site = TestSite::new();
    let (unknown, good) = (unknown_client(), site.client.certificate.clone());
    let open = site.store(None, true);
    let requiring = site.store(site.policy(ClientAuthInput::default()), true);
    let skips = site.store(site.policy(skipping()), true);
    for (subsystem, ssl, is_required) in [
        (Subsystem::Http, &open, false),
        (Subsystem::Stream, &open, false),
        (Subsystem::Http, &requiring, true),
        (Subsystem::Stream, &requiring, true),
        (Subsystem::Http, &skips, false),
        (Subsystem::Stream, &skips, true),
    ] {
        for leaf in [None, Some(&unknown)] {
            let connection = site.connect_to(subsystem, ssl, leaf);
            assert_eq!(connection.satisfies(ssl), !is_required, "{subsystem:?}");
        }
        assert!(site.connect_to(subsystem, ssl, Some(&good)).satisfies(ssl), "{subsystem:?}");
    }
}

#[test]
fn the_presented_chain_is_kept_once_and_for_good() {
    let mut site = TestSite::new();
    let ssl = site.store(site.policy(ClientAuthInput::default()), true);
    let leaf = site.client.certificate.der().clone();
    let other = Authority::root(&AuthoritySpec::new("other")).unwrap().certificate().der().clone();
    let sni = HostName::from_sni("a.example").unwrap();
    for chain in [vec![leaf.clone()], vec![leaf.clone(), other]] {
        let (peer, generation) = ("192.0.2.1:1".parse().unwrap(), site.snapshot.site_generation());
        let presented = Cow::Borrowed(&chain[..]);
        let connection =
            ClientAuthState::evaluate(sni.clone(), peer, presented, &ssl, generation, Subsystem::Http);
        let presented = || connection.verdict.borrow().presented_chain().into_owned();
        let is_kept_apart = || connection.verdict.borrow().presented_chain.is_some();
        assert_eq!(is_kept_apart(), chain.len() > 1, "a verified chain has its own certificates");
        let other = Authority::root(&AuthoritySpec::new("CA")).unwrap().certificate().clone();
        let other = ClientAuthInput { anchors: vec![other], ..Default::default() };
        for policy in [None, site.policy(other), site.policy(ClientAuthInput::default())] {
            connection.reverify(policy.as_ref(), UnixTime::now());
            assert_eq!((presented(), connection.leaf()), (chain.clone(), Some(leaf.clone())));
        }
        assert!(matches!(*connection.verification(), ClientVerification::Verified(_)));
        assert_eq!(is_kept_apart(), chain.len() > 1);
    }
}

use model::{Delta, Id, Resource, SniPattern, Versioned};
use pki::ca::{Authority, AuthoritySpec, CrlSpec, IssuedCertificate, LeafSpec};
use pki::{Certificate, ClientAuthInput};

use super::*;

/// One site, in all its versions.
struct Stage {
    authority: Authority,
    client: IssuedCertificate,
    snapshot: Snapshot,
}

impl Stage {
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

    /// Puts the site with this policy.
    fn site(&mut self, client: Option<ClientAuth>, enabled: bool) -> Arc<Ssl> {
        let ssl = Arc::new(Ssl {
            id: Id::parse("1").unwrap(),
            client_side: false,
            names: vec![SniPattern::parse("a.example").unwrap()],
            pairs: vec![],
            client: client.map(Arc::new),
            versions: None,
            enabled,
            cache: model::CacheSlot::new(),
            blocked: None,
        });
        let (from, to) = (self.snapshot.revision(), self.snapshot.revision() + 1);
        let upserts = vec![Versioned { version: to, resource: Resource::Ssl(Arc::clone(&ssl)) }];
        self.snapshot = self.snapshot.apply(&Delta { from, to, upserts, removals: vec![] });
        ssl
    }

    /// A connection of the site, with the client's certificate or without.
    fn connect(&self, ssl: &Ssl, shown: Option<&Certificate>) -> ClientAuthState {
        self.connect_for(Subsystem::Http, ssl, shown)
    }

    fn connect_for(&self, purpose: Subsystem, ssl: &Ssl, shown: Option<&Certificate>) -> ClientAuthState {
        let chain: Vec<_> = shown.iter().map(|certificate| certificate.der().clone()).collect();
        let sni = HostName::from_sni("a.example").unwrap();
        let as_of = self.snapshot.site_generation();
        ClientAuthState::new(sni, "192.0.2.1:1".parse().unwrap(), chain.into(), ssl, as_of, purpose)
    }

    fn revoking(&self, input: ClientAuthInput) -> Option<ClientAuth> {
        let list = self.authority.crl(&CrlSpec::new().revoke(&self.client.certificate)).unwrap();
        self.policy(ClientAuthInput { crls: vec![list], ..input })
    }
}

fn skipping() -> ClientAuthInput {
    ClientAuthInput { skip_uri_patterns: vec!["^/open".to_owned()], ..Default::default() }
}

#[test]
fn a_client_stays_while_its_policy_lets_it_in() {
    let mut stage = Stage::new();
    let ssl = stage.site(stage.policy(ClientAuthInput::default()), true);
    let good = stage.connect(&ssl, Some(&stage.client.certificate.clone()));
    assert_eq!(good.revalidate(&stage.snapshot), None);
    let clean = stage.authority.crl(&CrlSpec::new()).unwrap();
    stage.site(stage.policy(ClientAuthInput { crls: vec![clean], depth: 3, ..Default::default() }), true);
    assert_eq!(good.revalidate(&stage.snapshot), None);
    assert!(matches!(*good.client(), ClientVerification::Verified(_)));
    stage.site(None, true);
    assert_eq!(good.revalidate(&stage.snapshot), None, "nobody is asked any more");
    stage.site(stage.policy(ClientAuthInput::default()), true);
    assert_eq!(good.revalidate(&stage.snapshot), None, "it can still show who it is");
}

#[test]
fn a_client_goes_when_it_is_revoked_or_its_ca_or_site_is_gone() {
    type Change = fn(&mut Stage);
    let changes: [(Change, Reason); 4] = [
        (|stage| drop(stage.site(stage.revoking(ClientAuthInput::default()), true)), Reason::PolicyChanged),
        (
            |stage| {
                let other = Authority::root(&AuthoritySpec::new("CA")).unwrap().certificate().clone();
                let input = ClientAuthInput { anchors: vec![other], ..Default::default() };
                drop(stage.site(stage.policy(input), true));
            },
            Reason::PolicyChanged,
        ),
        (|stage| drop(stage.site(stage.policy(ClientAuthInput::default()), false)), Reason::NoSite),
        (removed, Reason::NoSite),
    ];
    for (change, reason) in changes {
        let mut stage = Stage::new();
        let ssl = stage.site(stage.policy(ClientAuthInput::default()), true);
        let good = stage.connect(&ssl, Some(&stage.client.certificate.clone()));
        change(&mut stage);
        assert_eq!(good.revalidate(&stage.snapshot), Some(CloseMode::Immediate(reason)));
    }
}

/// A change that takes the site away.
fn removed(stage: &mut Stage) {
    let key = Resource::Ssl(stage.site(None, true)).key();
    let (from, to) = (stage.snapshot.revision(), stage.snapshot.revision() + 1);
    let delta = Delta { from, to, upserts: vec![], removals: vec![key] };
    stage.snapshot = stage.snapshot.apply(&delta);
}

#[test]
fn without_any_policy_a_connection_finishes_when_its_site_is_gone() {
    for disabled in [true, false] {
        let mut stage = Stage::new();
        let ssl = stage.site(None, true);
        let (request, stream) = (stage.connect(&ssl, None), stage.connect_for(Subsystem::Stream, &ssl, None));
        if disabled {
            drop(stage.site(None, false))
        } else {
            removed(&mut stage)
        }
        for connection in [&request, &stream] {
            assert_eq!(connection.revalidate(&stage.snapshot), Some(CloseMode::Graceful));
        }
        // The name comes back, and its site asks for certificates.
        stage.site(stage.policy(ClientAuthInput::default()), true);
        assert_eq!(request.revalidate(&stage.snapshot), Some(CloseMode::Immediate(Reason::PolicyChanged)));
    }
}

#[test]
fn a_policy_that_was_there_once_ends_a_connection_with_its_site() {
    let mut stage = Stage::new();
    let ssl = stage.site(stage.policy(skipping()), true);
    let from_the_start = stage.connect(&ssl, None);
    let open = stage.site(None, true);
    let meanwhile = stage.connect(&open, None);
    assert_eq!(
        (from_the_start.revalidate(&stage.snapshot), meanwhile.revalidate(&stage.snapshot)),
        (None, None)
    );
    stage.site(stage.policy(skipping()), true);
    assert_eq!(
        (from_the_start.revalidate(&stage.snapshot), meanwhile.revalidate(&stage.snapshot)),
        (None, None)
    );
    let open = stage.site(None, true);
    let after = stage.connect(&open, None);
    for connection in [&from_the_start, &meanwhile, &after] {
        assert_eq!(connection.revalidate(&stage.snapshot), None);
    }
    removed(&mut stage);
    let gone = Some(CloseMode::Immediate(Reason::NoSite));
    assert_eq!(
        (from_the_start.revalidate(&stage.snapshot), meanwhile.revalidate(&stage.snapshot)),
        (gone, gone)
    );
    assert_eq!(after.revalidate(&stage.snapshot), Some(CloseMode::Graceful));
}

#[test]
fn who_showed_nothing_goes_when_the_site_begins_to_insist() {
    let mut stage = Stage::new();
    let ssl = stage.site(None, true);
    let anonymous = stage.connect(&ssl, None);
    stage.site(stage.policy(skipping()), true);
    assert_eq!(anonymous.revalidate(&stage.snapshot), None, "each of its requests is judged");
    stage.site(stage.policy(ClientAuthInput::default()), true);
    assert_eq!(anonymous.revalidate(&stage.snapshot), Some(CloseMode::Immediate(Reason::PolicyChanged)));
}

#[test]
fn with_skip_rules_only_who_was_somebody_has_to_go() {
    let mut stage = Stage::new();
    let ssl = stage.site(stage.policy(skipping()), true);
    let known = stage.connect(&ssl, Some(&stage.client.certificate.clone()));
    let anonymous = stage.connect(&ssl, None);
    let stranger = Authority::root(&AuthoritySpec::new("Other")).unwrap();
    let stranger = stranger.issue(&LeafSpec::client("b")).unwrap();
    let stranger = stage.connect(&ssl, Some(&stranger.certificate));
    let revoking = stage.site(stage.revoking(skipping()), true);
    // A request may be first to notice.
    known.update_verdict(&revoking);
    assert!(matches!(*known.client(), ClientVerification::Rejected(_)));
    assert_eq!(known.revalidate(&stage.snapshot), Some(CloseMode::Immediate(Reason::PolicyChanged)));
    assert_eq!(anonymous.revalidate(&stage.snapshot), None);
    assert_eq!(stranger.revalidate(&stage.snapshot), None);
}

#[test]
fn time_ends_what_it_must_and_nothing_else() {
    let mut stage = Stage::new();
    let ssl = stage.site(stage.policy(ClientAuthInput::default()), true);
    let good = stage.connect(&ssl, Some(&stage.client.certificate.clone()));
    let at = |seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds));
    assert_eq!(good.revalidate_expiry(&stage.snapshot, UnixTime::now()), None);
    let end = stage.client.certificate.not_after().as_secs();
    assert_eq!(good.revalidate_expiry(&stage.snapshot, at(end)), None);
    assert_eq!(
        good.revalidate_expiry(&stage.snapshot, at(end + 1)),
        Some(CloseMode::Immediate(Reason::PolicyChanged))
    );
    assert_eq!(good.revalidate_expiry(&stage.snapshot, at(end + 2)), None, "said once");
}

#[test]
fn a_stream_is_not_let_off_by_skip_rules_neither_at_its_beginning_nor_later() {
    let mut stage = Stage::new();
    let open = stage.site(None, true);
    let (requests, stream) = (stage.connect(&open, None), stage.connect_for(Subsystem::Stream, &open, None));
    assert_eq!(stream.check_tcp_client(), Ok(()), "the site asks nobody");
    let site = stage.site(stage.policy(skipping()), true);
    assert_eq!(requests.revalidate(&stage.snapshot), None);
    assert_eq!(stream.revalidate(&stage.snapshot), Some(CloseMode::Immediate(Reason::PolicyChanged)));

    let absent = stage.connect_for(Subsystem::Stream, &site, None);
    assert_eq!(absent.check_tcp_client(), Err(Reason::NoCertificate));
    let stranger = Stage::new().client.certificate.clone();
    let refused = stage.connect_for(Subsystem::Stream, &site, Some(&stranger));
    assert_eq!(refused.check_tcp_client(), Err(Reason::BadCertificate));
    let good = stage.connect_for(Subsystem::Stream, &site, Some(&stage.client.certificate));
    assert_eq!(good.check_tcp_client(), Ok(()));
    assert_eq!(good.revalidate(&stage.snapshot), None);
    stage.site(stage.revoking(skipping()), true);
    assert_eq!(good.revalidate(&stage.snapshot), Some(CloseMode::Immediate(Reason::PolicyChanged)));
}

#[test]
fn only_a_verified_client_satisfies_a_handshake_that_insists() {
    let mut stage = Stage::new();
    let stranger = Authority::root(&AuthoritySpec::new("Other")).unwrap();
    let stranger = stranger.issue(&LeafSpec::client("b")).unwrap().certificate;
    let good = stage.client.certificate.clone();
    let open = stage.site(None, true);
    let insisting = stage.site(stage.policy(ClientAuthInput::default()), true);
    let skips = stage.site(stage.policy(skipping()), true);
    for (purpose, ssl, insists) in [
        (Subsystem::Http, &open, false),
        (Subsystem::Stream, &open, false),
        (Subsystem::Http, &insisting, true),
        (Subsystem::Stream, &insisting, true),
        (Subsystem::Http, &skips, false),
        (Subsystem::Stream, &skips, true),
    ] {
        for shown in [None, Some(&stranger)] {
            let established = stage.connect_for(purpose, ssl, shown);
            assert_eq!(established.satisfies(ssl), !insists, "{purpose:?}");
        }
        assert!(stage.connect_for(purpose, ssl, Some(&good)).satisfies(ssl), "{purpose:?}");
    }
}

#[test]
fn what_a_client_showed_is_kept_once_and_outlives_every_verdict() {
    let mut stage = Stage::new();
    let ssl = stage.site(stage.policy(ClientAuthInput::default()), true);
    let leaf = stage.client.certificate.der().clone();
    let other = Authority::root(&AuthoritySpec::new("other")).unwrap().certificate().der().clone();
    let sni = HostName::from_sni("a.example").unwrap();
    for chain in [vec![leaf.clone()], vec![leaf.clone(), other]] {
        let (peer, as_of) = ("192.0.2.1:1".parse().unwrap(), stage.snapshot.site_generation());
        let shown = Cow::Borrowed(&chain[..]);
        let established = ClientAuthState::new(sni.clone(), peer, shown, &ssl, as_of, Subsystem::Http);
        let now = |established: &ClientAuthState| established.verdict.borrow().presented_chain().into_owned();
        let kept = |established: &ClientAuthState| established.verdict.borrow().presented_chain.is_some();
        assert_eq!(kept(&established), chain.len() > 1, "a verdict holds the certificates of its path");
        let stranger = Authority::root(&AuthoritySpec::new("CA")).unwrap().certificate().clone();
        let strangers = ClientAuthInput { anchors: vec![stranger], ..Default::default() };
        for policy in [None, stage.policy(strangers), stage.policy(ClientAuthInput::default())] {
            established.reverify(policy.as_ref(), UnixTime::now());
            assert_eq!((now(&established), established.leaf()), (chain.clone(), Some(leaf.clone())));
        }
        assert!(matches!(*established.client(), ClientVerification::Verified(_)));
        assert_eq!(kept(&established), chain.len() > 1);
    }
}

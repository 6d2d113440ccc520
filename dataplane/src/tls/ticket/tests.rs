//! A ticket opens for the site, policy, secret and moment it was made for, and for nothing else.

use model::{TicketRing, TicketSecret};
use pki::ca::{Authority, AuthoritySpec};
use pki::{Certificate, ClientAuthInput};
use rustls::version::{TLS12, TLS13};

use super::keys::KeyName;
use super::*;

const NOW: u64 = 1_800_000_000;
const WINDOW: ValidityPeriod = ValidityPeriod { from: NOW - 100, until: NOW + 1000 };
const SESSION: &[u8] = b"what rustls wants to remember";

fn secret(from: u64, byte: u8) -> TicketSecret {
    TicketSecret::new(from, Zeroizing::new([byte; 32]))
}

fn secrets(ring: &[(u64, u8)]) -> Arc<TicketRingHandle> {
    let secrets = Arc::new(TicketRingHandle::default());
    store(&secrets, ring);
    secrets
}

fn store(secrets: &TicketRingHandle, ring: &[(u64, u8)]) {
    let ring = ring.iter().map(|(from, byte)| secret(*from, *byte)).collect();
    secrets.store(Arc::new(TicketRing { lifetime: 600, secrets: ring }));
}

fn id(text: &str) -> Id {
    Id::parse(text).unwrap()
}

fn tickets(ring: &[(u64, u8)]) -> SiteTicketer {
    SiteTicketer::new(TicketBinding::new(&id("app"), None, &[&TLS13]), secrets(ring))
}

fn authority(name: &str) -> Certificate {
    Authority::root(&AuthoritySpec::new(name)).unwrap().certificate().clone()
}

#[test]
fn what_was_sealed_comes_back_with_its_window() {
    let tickets = tickets(&[(0, 1)]);
    let ticket = tickets.seal(SESSION, WINDOW, NOW).unwrap();
    assert_eq!(tickets.open(&ticket, NOW), Ok((SESSION.to_vec(), WINDOW)));
    assert!(!ticket.windows(8).any(|part| SESSION.windows(8).any(|clear| clear == part)));
    assert_ne!(tickets.seal(SESSION, WINDOW, NOW).unwrap(), ticket, "no two are alike");
}

#[test]
fn the_window_is_kept_to_the_second() {
    let tickets = tickets(&[(0, 1)]);
    let ticket = tickets.seal(SESSION, WINDOW, NOW).unwrap();
    for (now, good) in
        [(WINDOW.from - 1, false), (WINDOW.from, true), (WINDOW.until, true), (WINDOW.until + 1, false)]
    {
        let opened = tickets.open(&ticket, now);
        assert_eq!(opened.is_ok(), good, "{now}");
        assert!(good || opened == Err(TicketRejection::Expired));
        // Nor is one sealed that could not be opened.
        assert_eq!(tickets.seal(SESSION, WINDOW, now).is_some(), good, "{now}");
    }
}

#[test]
fn a_ticket_that_is_cut_or_changed_anywhere_opens_nothing() {
    let tickets = tickets(&[(0, 1)]);
    let ticket = tickets.seal(SESSION, WINDOW, NOW).unwrap();
    for at in 0..ticket.len() {
        let name = at < size_of::<KeyName>();
        let expected = if name { TicketRejection::UnknownKey } else { TicketRejection::Malformed };
        assert_eq!(tickets.open(&ticket[..at], NOW), Err(expected), "cut to {at}");
        for bit in 0..8 {
            let mut changed = ticket.clone();
            changed[at] ^= 1 << bit;
            assert_eq!(tickets.open(&changed, NOW), Err(expected), "bit {bit} of byte {at}");
        }
    }
    let longer = [ticket.as_slice(), b"x"].concat();
    assert_eq!(tickets.open(&longer, NOW), Err(TicketRejection::Malformed));
}

#[test]
fn every_part_of_the_binding_makes_another_key() {
    let (one, two) = (authority("One"), authority("Two"));
    let policy = |change: fn(&mut ClientAuthInput)| {
        let mut input =
            ClientAuthInput { anchors: vec![one.clone()], depth: 1, ..ClientAuthInput::default() };
        change(&mut input);
        ClientAuth::new(input).unwrap()
    };
    let plain = policy(|_| {});
    let deeper = policy(|input| input.depth = 2);
    let skipping = policy(|input| input.skip_uri_patterns = vec!["^/open".to_owned()]);
    let other =
        ClientAuth::new(ClientAuthInput { anchors: vec![two], depth: 1, ..Default::default() }).unwrap();
    let bindings = [
        TicketBinding::new(&id("app"), Some(&plain), &[&TLS12, &TLS13]),
        TicketBinding::new(&id("app"), Some(&deeper), &[&TLS12, &TLS13]),
        TicketBinding::new(&id("app"), Some(&skipping), &[&TLS12, &TLS13]),
        TicketBinding::new(&id("app"), Some(&other), &[&TLS12, &TLS13]),
        TicketBinding::new(&id("app"), None, &[&TLS12, &TLS13]),
        TicketBinding::new(&id("app"), Some(&plain), &[&TLS13]),
        TicketBinding::new(&id("app"), Some(&plain), &[&TLS12]),
        TicketBinding::new(&id("app2"), Some(&plain), &[&TLS12, &TLS13]),
        TicketBinding::new(&id("ap"), Some(&plain), &[&TLS12, &TLS13]),
    ];
    let secrets = secrets(&[(0, 1)]);
    let all = bindings.map(|binding| SiteTicketer::new(binding, Arc::clone(&secrets)));
    for (at, sealing) in all.iter().enumerate() {
        let ticket = sealing.seal(SESSION, WINDOW, NOW).unwrap();
        for (other, opening) in all.iter().enumerate() {
            let opened = opening.open(&ticket, NOW).map(|(session, _)| session);
            let expected = if at == other { Ok(SESSION.to_vec()) } else { Err(TicketRejection::UnknownKey) };
            assert_eq!(opened, expected, "sealed by {at}, opened by {other}");
        }
    }
    // The order of the versions is nothing.
    let turned = SiteTicketer::new(TicketBinding::new(&id("app"), Some(&plain), &[&TLS13, &TLS12]), secrets);
    let ticket = all[0].seal(SESSION, WINDOW, NOW).unwrap();
    assert!(turned.open(&ticket, NOW).is_ok());
}

#[test]
fn any_secret_of_the_ring_opens_and_the_newest_begun_seals() {
    let secrets = secrets(&[(NOW - 20, 1), (NOW - 10, 2), (NOW + 10, 3)]);
    let tickets = SiteTicketer::new(TicketBinding::new(&id("app"), None, &[&TLS13]), Arc::clone(&secrets));
    let old = tickets.seal(SESSION, WINDOW, NOW - 15).unwrap();
    let ticket = tickets.seal(SESSION, WINDOW, NOW).unwrap();
    let early = tickets.seal(SESSION, WINDOW, NOW + 15).unwrap();
    let lost = tickets.seal(SESSION, WINDOW, NOW - 99).unwrap();
    for ticket in [&old, &ticket, &early, &lost] {
        assert!(tickets.open(ticket, NOW).is_ok());
    }
    assert_eq!(old[..16], lost[..16], "before all of them the oldest seals");
    assert!(old[..16] != ticket[..16] && ticket[..16] != early[..16]);

    // The oldest is dropped from the ring: its tickets open nothing any more, the others' still do.
    store(&secrets, &[(NOW - 10, 2), (NOW + 10, 3)]);
    assert_eq!(tickets.open(&old, NOW), Err(TicketRejection::UnknownKey));
    assert!(tickets.open(&ticket, NOW).is_ok() && tickets.open(&early, NOW).is_ok());
    // All are replaced.
    store(&secrets, &[(NOW - 10, 9)]);
    assert_eq!(tickets.open(&ticket, NOW), Err(TicketRejection::UnknownKey));
}

/// Far more than a core keeps ready: many share the place where their keys would be kept.
#[test]
fn many_sites_in_turn_open_their_own_tickets_and_no_other_site_s() {
    let secrets = secrets(&[(0, 1), (NOW - 10, 2)]);
    let site = |nth: usize| {
        let binding = TicketBinding::new(&id(&format!("app-{nth}")), None, &[&TLS13]);
        SiteTicketer::new(binding, Arc::clone(&secrets))
    };
    let sites: Vec<_> = (0..1000).map(site).collect();
    let sealed: Vec<_> = sites.iter().map(|site| site.seal(SESSION, WINDOW, NOW).unwrap()).collect();
    let older: Vec<_> = sites.iter().map(|site| site.seal(SESSION, WINDOW, NOW - 50).unwrap()).collect();
    for (nth, site) in sites.iter().enumerate() {
        assert_eq!(site.open(&sealed[nth], NOW), Ok((SESSION.to_vec(), WINDOW)));
        assert_eq!(site.open(&older[nth], NOW), Ok((SESSION.to_vec(), WINDOW)));
        // Its key was used a moment ago, and is no key of this site.
        let neighbour = &sealed[nth.checked_sub(1).unwrap_or(999)];
        assert_eq!(site.open(neighbour, NOW), Err(TicketRejection::UnknownKey));
        // Named like one of ours, sealed by another.
        let forged = [&sealed[nth][..16], &neighbour[16..]].concat();
        assert_eq!(site.open(&forged, NOW), Err(TicketRejection::Malformed));
    }
    store(&secrets, &[(NOW - 10, 3)]);
    for (site, ticket) in sites.iter().zip(&sealed) {
        assert_eq!(
            site.open(ticket, NOW),
            Err(TicketRejection::UnknownKey),
            "ready or not, it is no key now"
        );
    }
}

#[test]
fn without_secrets_there_are_no_tickets() {
    let secrets = secrets(&[(0, 1)]);
    let tickets = SiteTicketer::new(TicketBinding::new(&id("app"), None, &[&TLS13]), Arc::clone(&secrets));
    let ticket = tickets.seal(SESSION, WINDOW, NOW).unwrap();
    assert!(tickets.enabled());
    store(&secrets, &[]);
    assert!(!tickets.enabled());
    assert!(tickets.seal(SESSION, WINDOW, NOW).is_none());
    assert_eq!(tickets.open(&ticket, NOW), Err(TicketRejection::UnknownKey));
}

#[test]
fn a_session_with_an_endless_chain_gets_no_ticket() {
    let tickets = tickets(&[(0, 1)]);
    assert!(tickets.seal(&vec![0; SESSION_BYTES_MAX], WINDOW, NOW).is_some());
    assert!(tickets.seal(&vec![0; SESSION_BYTES_MAX + 1], WINDOW, NOW).is_none());
}

/// The window in which a ticket of this handshake would hold.
fn sealed_in(resumption: &mut HandshakeState, insists: bool) -> Option<ValidityPeriod> {
    resumption.in_scope(|| HandshakeState::ticket_validity(insists, NOW, 600))
}

#[test]
fn a_ticket_is_bounded_by_what_the_handshake_knows_of_its_client() {
    let lasting = ValidityPeriod { from: 7, until: NOW + 9000 };
    let ending = ValidityPeriod { from: 7, until: NOW + 50 };
    // Asked for no certificate, or showed none where none is insisted on.
    let mut nobody = HandshakeState::default();
    assert_eq!(sealed_in(&mut nobody, false), Some(ValidityPeriod { from: 0, until: NOW + 600 }));
    assert_eq!(sealed_in(&mut nobody, true), None, "there nobody gets that far, and if so gets no ticket");
    // Showed a good one.
    for (window, until) in [(lasting, NOW + 600), (ending, NOW + 50)] {
        let mut known = HandshakeState::default();
        known.in_scope(|| HandshakeState::client_verified(window));
        for insists in [true, false] {
            assert_eq!(sealed_in(&mut known, insists), Some(ValidityPeriod { from: 7, until }));
            assert_eq!(u64::from(known.in_scope(HandshakeState::ticket_lifetime)), until - NOW);
        }
    }
    // Showed one that has no whole second left.
    let mut last = HandshakeState::default();
    last.in_scope(|| HandshakeState::client_verified(ValidityPeriod { from: 7, until: NOW }));
    assert_eq!(sealed_in(&mut last, true), None);
    // Resumed: the new ticket ends with the old one, so that a chain of them ends too.
    let mut resumed = HandshakeState::default();
    assert!(resumed.in_scope(|| HandshakeState::ticket_accepted(ending)));
    assert_eq!(sealed_in(&mut resumed, true), Some(ending));
    // A ticket opened, but the handshake went on in full.
    resumed.in_scope(|| HandshakeState::client_verified(lasting));
    assert_eq!(sealed_in(&mut resumed, true), Some(ValidityPeriod { from: 7, until: NOW + 600 }));
    // Showed a bad one: whatever else it showed.
    resumed.in_scope(HandshakeState::client_rejected);
    assert_eq!(sealed_in(&mut resumed, false), None);
}

#[test]
fn handshakes_that_take_turns_on_a_core_do_not_mix() {
    let (mut one, mut other) = (HandshakeState::default(), HandshakeState::default());
    let verified = ValidityPeriod { from: 1, until: NOW + 5 };
    one.in_scope(|| HandshakeState::client_verified(verified));
    other.in_scope(|| HandshakeState::ticket_rejected(TicketRejection::Expired));
    assert_eq!(sealed_in(&mut other, true), None);
    assert_eq!(sealed_in(&mut one, true), Some(verified));
    assert_eq!(
        (one.ticket_rejections(), other.ticket_rejections()),
        (&[][..], &[TicketRejection::Expired][..])
    );
}

#[test]
fn outside_of_a_handshake_nothing_is_sealed_or_opened() {
    let tickets = tickets(&[(0, 1)]);
    let now = UnixTime::now().as_secs();
    let ticket = tickets.seal(SESSION, ValidityPeriod { from: 0, until: now + 60 }, now).unwrap();
    assert_eq!(tickets.encrypt(SESSION), None);
    assert_eq!(tickets.decrypt(&ticket), None);
    let mut handshake = HandshakeState::default();
    assert_eq!(handshake.in_scope(|| tickets.decrypt(&ticket)).as_deref(), Some(SESSION));
    let again = handshake.in_scope(|| tickets.encrypt(SESSION)).unwrap();
    let (_, window) = tickets.open(&again, now).unwrap();
    assert_eq!(window.until, now + 60, "bounded by the one it came from");
    // What cannot be opened is counted by why, an empty wish is not.
    let mut handshake = HandshakeState::default();
    for offered in [&b""[..], b"x", &[7; 200], &ticket[..50]] {
        assert_eq!(handshake.in_scope(|| tickets.decrypt(offered)), None);
    }
    let refused = [TicketRejection::UnknownKey, TicketRejection::UnknownKey, TicketRejection::Malformed];
    assert_eq!(handshake.ticket_rejections(), refused);
}

#[test]
fn debug_shows_no_key() {
    assert_eq!(format!("{:?}", tickets(&[(0, 1)])), "Tickets(1 keys, not shown)");
    for (at, refusal) in TicketRejection::ALL.into_iter().enumerate() {
        assert_eq!(refusal.index(), at);
    }
}

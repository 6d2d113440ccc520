//! A ticket opens only for the site, the policy, the secret and the time that it was sealed for.

use model::{TicketRing, TicketSecret};
use pki::ca::{Authority, AuthoritySpec};
use pki::{Certificate, ClientAuthInput};
use rustls::version::{TLS12, TLS13};

use super::keys::KeyName;
use super::*;

const NOW: u64 = 1_800_000_000;
const PERIOD: ValidityPeriod = ValidityPeriod { from: NOW - 100, until: NOW + 1000 };
const SESSION: &[u8] = b"the session that rustls stores";

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
fn a_sealed_session_opens_with_its_period() {
    let tickets = tickets(&[(0, 1)]);
    let ticket = tickets.seal(SESSION, PERIOD, NOW).unwrap();
    assert_eq!(tickets.open(&ticket, NOW), Ok((SESSION.to_vec(), PERIOD)));
    assert!(!ticket.windows(8).any(|part| SESSION.windows(8).any(|clear| clear == part)));
    assert_ne!(tickets.seal(SESSION, PERIOD, NOW).unwrap(), ticket, "each ticket has its own nonce");
}

#[test]
fn the_validity_period_is_exact_to_the_second() {
    let tickets = tickets(&[(0, 1)]);
    let ticket = tickets.seal(SESSION, PERIOD, NOW).unwrap();
    for (now, good) in
        [(PERIOD.from - 1, false), (PERIOD.from, true), (PERIOD.until, true), (PERIOD.until + 1, false)]
    {
        let opened = tickets.open(&ticket, now);
        assert_eq!(opened.is_ok(), good, "{now}");
        assert!(good || opened == Err(TicketRejection::Expired));
        // A ticket that could not be opened is not sealed, either.
        assert_eq!(tickets.seal(SESSION, PERIOD, now).is_some(), good, "{now}");
    }
}

#[test]
fn a_truncated_or_changed_ticket_is_rejected() {
    let tickets = tickets(&[(0, 1)]);
    let ticket = tickets.seal(SESSION, PERIOD, NOW).unwrap();
    for at in 0..ticket.len() {
        let name = at < size_of::<KeyName>();
        let expected = if name { TicketRejection::UnknownKey } else { TicketRejection::Malformed };
        assert_eq!(tickets.open(&ticket[..at], NOW), Err(expected), "truncated to {at}");
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
fn every_part_of_the_binding_changes_the_key() {
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
        let ticket = sealing.seal(SESSION, PERIOD, NOW).unwrap();
        for (other, opening) in all.iter().enumerate() {
            let opened = opening.open(&ticket, NOW).map(|(session, _)| session);
            let expected = if at == other { Ok(SESSION.to_vec()) } else { Err(TicketRejection::UnknownKey) };
            assert_eq!(opened, expected, "sealed by {at}, opened by {other}");
        }
    }
    // The order of the versions has no effect.
    let reversed =
        SiteTicketer::new(TicketBinding::new(&id("app"), Some(&plain), &[&TLS13, &TLS12]), secrets);
    let ticket = all[0].seal(SESSION, PERIOD, NOW).unwrap();
    assert!(reversed.open(&ticket, NOW).is_ok());
}

#[test]
fn all_secrets_of_the_ring_open_and_the_newest_seals() {
    let secrets = secrets(&[(NOW - 20, 1), (NOW - 10, 2), (NOW + 10, 3)]);
    let tickets = SiteTicketer::new(TicketBinding::new(&id("app"), None, &[&TLS13]), Arc::clone(&secrets));
    let old = tickets.seal(SESSION, PERIOD, NOW - 15).unwrap();
    let ticket = tickets.seal(SESSION, PERIOD, NOW).unwrap();
    let early = tickets.seal(SESSION, PERIOD, NOW + 15).unwrap();
    let lost = tickets.seal(SESSION, PERIOD, NOW - 99).unwrap();
    for ticket in [&old, &ticket, &early, &lost] {
        assert!(tickets.open(ticket, NOW).is_ok());
    }
    assert_eq!(old[..16], lost[..16], "with a clock behind all secrets the oldest seals");
    assert!(old[..16] != ticket[..16] && ticket[..16] != early[..16]);

    // Only tickets of the removed secret are rejected.
    store(&secrets, &[(NOW - 10, 2), (NOW + 10, 3)]);
    assert_eq!(tickets.open(&old, NOW), Err(TicketRejection::UnknownKey));
    assert!(tickets.open(&ticket, NOW).is_ok() && tickets.open(&early, NOW).is_ok());
    // Another ring rejects all.
    store(&secrets, &[(NOW - 10, 9)]);
    assert_eq!(tickets.open(&ticket, NOW), Err(TicketRejection::UnknownKey));
}

/// Many more sites than a worker's cache has slots.
#[test]
fn sites_that_share_cache_slots_open_only_their_own_tickets() {
    let secrets = secrets(&[(0, 1), (NOW - 10, 2)]);
    let site = |nth: usize| {
        let binding = TicketBinding::new(&id(&format!("app-{nth}")), None, &[&TLS13]);
        SiteTicketer::new(binding, Arc::clone(&secrets))
    };
    let sites: Vec<_> = (0..1000).map(site).collect();
    let sealed: Vec<_> = sites.iter().map(|site| site.seal(SESSION, PERIOD, NOW).unwrap()).collect();
    let older: Vec<_> = sites.iter().map(|site| site.seal(SESSION, PERIOD, NOW - 50).unwrap()).collect();
    for (nth, site) in sites.iter().enumerate() {
        assert_eq!(site.open(&sealed[nth], NOW), Ok((SESSION.to_vec(), PERIOD)));
        assert_eq!(site.open(&older[nth], NOW), Ok((SESSION.to_vec(), PERIOD)));
        // The key of the neighbour was used last, but belongs to another site.
        let neighbour = &sealed[nth.checked_sub(1).unwrap_or(999)];
        assert_eq!(site.open(neighbour, NOW), Err(TicketRejection::UnknownKey));
        // The name of our key, and a ticket of another.
        let forged = [&sealed[nth][..16], &neighbour[16..]].concat();
        assert_eq!(site.open(&forged, NOW), Err(TicketRejection::Malformed));
    }
    store(&secrets, &[(NOW - 10, 3)]);
    for (site, ticket) in sites.iter().zip(&sealed) {
        assert_eq!(
            site.open(ticket, NOW),
            Err(TicketRejection::UnknownKey),
            "a cached key is not in the new ring"
        );
    }
}

#[test]
fn an_empty_ring_seals_and_opens_no_ticket() {
    let secrets = secrets(&[(0, 1)]);
    let tickets = SiteTicketer::new(TicketBinding::new(&id("app"), None, &[&TLS13]), Arc::clone(&secrets));
    let ticket = tickets.seal(SESSION, PERIOD, NOW).unwrap();
    assert!(tickets.enabled());
    store(&secrets, &[]);
    assert!(!tickets.enabled());
    assert!(tickets.seal(SESSION, PERIOD, NOW).is_none());
    assert_eq!(tickets.open(&ticket, NOW), Err(TicketRejection::UnknownKey));
}

#[test]
fn an_oversized_session_gets_no_ticket() {
    let tickets = tickets(&[(0, 1)]);
    assert!(tickets.seal(&vec![0; SESSION_BYTES_MAX], PERIOD, NOW).is_some());
    assert!(tickets.seal(&vec![0; SESSION_BYTES_MAX + 1], PERIOD, NOW).is_none());
}

#[test]
fn no_ticket_is_sealed_or_opened_outside_of_a_handshake() {
    let tickets = tickets(&[(0, 1)]);
    let now = UnixTime::now().as_secs();
    let ticket = tickets.seal(SESSION, ValidityPeriod { from: 0, until: now + 60 }, now).unwrap();
    assert_eq!(tickets.encrypt(SESSION), None);
    assert_eq!(tickets.decrypt(&ticket), None);
    let mut handshake = HandshakeState::default();
    assert_eq!(handshake.in_scope(|| tickets.decrypt(&ticket)).as_deref(), Some(SESSION));
    let renewed = handshake.in_scope(|| tickets.encrypt(SESSION)).unwrap();
    let (_, period) = tickets.open(&renewed, now).unwrap();
    assert_eq!(period.until, now + 60, "the first ticket bounds the second");
    // Rejections are recorded; an empty ticket is none.
    let mut handshake = HandshakeState::default();
    for offered in [&b""[..], b"x", &[7; 200], &ticket[..50]] {
        assert_eq!(handshake.in_scope(|| tickets.decrypt(offered)), None);
    }
    let expected = [TicketRejection::UnknownKey, TicketRejection::UnknownKey, TicketRejection::Malformed];
    assert_eq!(handshake.ticket_rejections(), expected);
}

#[test]
fn debug_output_has_no_key() {
    assert_eq!(format!("{:?}", tickets(&[(0, 1)])), "SiteTicketer(1 keys, not shown)");
    for (at, rejection) in TicketRejection::ALL.into_iter().enumerate() {
        assert_eq!(rejection.index(), at);
    }
}

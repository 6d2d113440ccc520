//! Where keys were renewed while rustls had the connection: what goes on without it goes on with
//! those that are in use, with every answer that rustls still owed, and never with a key and a
//! number that were there before.

use proptest::prelude::*;
use rustls::Side;

use super::super::*;
use super::SUITES;
use super::duo::Duo;
use crate::tls::record::traffic_keys::KEY_UPDATES_MAX;
use crate::tls::transport::{PlaintextState, TlsTransport};

const SIDES: [Side; 2] = [Side::Server, Side::Client];
const REQUESTS: [u8; 2] = [UPDATE_NOT_REQUESTED, UPDATE_REQUESTED];

/// NewSessionTicket with so many bytes of a ticket.
fn ticket(bytes: u16) -> Vec<u8> {
    let ([high, low], [long, short]) = ((bytes + 14).to_be_bytes(), bytes.to_be_bytes());
    let head = [4, 0, high, low, 0, 0, 1, 0, 0, 0, 0, 7, 1, 5, long, short];
    [head.as_slice(), &vec![9; usize::from(bytes)], &[0, 0]].concat()
}

fn taken_over(duo: &mut Duo) {
    duo.ours.detach_from_rustls();
    assert!(matches!(duo.ours, TlsTransport::RecordLayer(_)));
}

fn stays(duo: &mut Duo) {
    duo.ours.detach_from_rustls();
    assert!(matches!(duo.ours, TlsTransport::Rustls(_)));
}

/// Whatever is renewed later is renewed for the first time.
fn goes_on(mut duo: Duo) {
    duo.both_ways();
    for request in REQUESTS {
        duo.forge_key_update(&[], request);
        assert_eq!(duo.deliver().as_deref(), Ok(b"".as_slice()));
        duo.both_ways();
    }
    let TlsTransport::RecordLayer(records) = &mut duo.ours else { panic!("rustls has left") };
    records.confidentiality_limit = records.write.sequence() + 1;
    duo.both_ways();
}

#[test]
fn a_ticket_and_a_key_update_in_one_record() {
    for suite in SUITES {
        for request in REQUESTS {
            let mut duo = Duo::new(Side::Client, suite);
            duo.say(b"the first answer");
            duo.forge_key_update(&ticket(32), request);
            assert_eq!(duo.deliver().unwrap(), b"");
            duo.say(b"under the new key");
            taken_over(&mut duo);
            goes_on(duo);
        }
    }
}

#[test]
fn many_tickets_and_a_key_update_in_one_record() {
    let mut duo = Duo::new(Side::Client, SUITES[0]);
    duo.forge_key_update(&[ticket(32), ticket(1), ticket(9000)].concat(), UPDATE_REQUESTED);
    duo.forge(HANDSHAKE, &ticket(5));
    assert_eq!(duo.deliver().unwrap(), b"");
    duo.say(b"the first answer");
    taken_over(&mut duo);
    goes_on(duo);
}

#[test]
fn a_key_update_before_the_first_data() {
    for (side, request) in SIDES.into_iter().flat_map(|side| REQUESTS.map(|request| (side, request))) {
        let mut duo = Duo::new(side, SUITES[0]);
        duo.forge_key_update(&[], request);
        assert_eq!(duo.deliver().unwrap(), b"");
        duo.say(b"under the new key");
        // The answer that rustls owes has not been written by anything yet.
        taken_over(&mut duo);
        goes_on(duo);
    }
}

#[test]
fn an_answer_that_rustls_owes_goes_first() {
    for side in SIDES {
        let mut duo = Duo::new(side, SUITES[0]);
        duo.forge_key_update(&[], UPDATE_REQUESTED);
        duo.deliver().unwrap();
        duo.say(b"under the new key");
        taken_over(&mut duo);
        let mut out = Vec::new();
        duo.ours.write_tls(&mut out).unwrap();
        assert_eq!(out.len(), HEADER + KEY_UPDATE.len() + 1 + 1 + traffic_keys::TAG, "it is there at once");
        duo.hear(&out).unwrap();
        goes_on(duo);
    }
}

#[test]
fn key_updates_between_data_in_either_direction() {
    for side in SIDES {
        let mut duo = Duo::new(side, SUITES[1]);
        for round in 0..KEY_UPDATES_MAX {
            duo.forge_key_update(&[], round % 2);
            assert_eq!(duo.deliver().unwrap(), b"");
            duo.both_ways();
        }
        taken_over(&mut duo);
        goes_on(duo);
    }
}

#[test]
fn more_key_updates_than_are_followed_stay_with_rustls() {
    for side in SIDES {
        let mut duo = Duo::new(side, SUITES[2]);
        for _ in 0..=KEY_UPDATES_MAX {
            duo.forge_key_update(&[], UPDATE_REQUESTED);
            assert_eq!(duo.deliver().unwrap(), b"");
            duo.both_ways();
        }
        stays(&mut duo);
        duo.both_ways();
    }
}

#[test]
fn many_requests_before_an_answer_are_answered_once() {
    for side in SIDES {
        let mut duo = Duo::new(side, SUITES[0]);
        // Half of them with rustls, and half of them without.
        for round in 0..10 {
            duo.forge_key_update(&[], UPDATE_REQUESTED);
            assert_eq!(duo.deliver().unwrap(), b"");
            if round == 5 {
                duo.say(b"data");
                taken_over(&mut duo);
            }
        }
        goes_on(duo);
    }
}

#[test]
fn half_a_message_stays_with_rustls() {
    let key_update = [KEY_UPDATE.as_slice(), &[UPDATE_NOT_REQUESTED]].concat();
    for (side, message) in [(Side::Server, key_update), (Side::Client, ticket(300))] {
        for cut in [1, 3, message.len() - 1] {
            let mut duo = Duo::new(side, SUITES[0]);
            duo.say(b"data");
            duo.forge(HANDSHAKE, &message[..cut]);
            duo.deliver().unwrap();
            stays(&mut duo);
            duo.forge(HANDSHAKE, &message[cut..]);
            if side == Side::Server {
                duo.renew_peer();
            }
            duo.deliver().unwrap();
            duo.say(b"data again");
            taken_over(&mut duo);
            goes_on(duo);
        }
    }
}

#[test]
fn what_ends_stays_with_rustls() {
    for side in SIDES {
        let mut closed = Duo::new(side, SUITES[0]);
        closed.ours.send_close_notify();
        closed.say(b"data");
        stays(&mut closed);

        let mut failed = Duo::new(side, SUITES[0]);
        failed.forge(HANDSHAKE, &[1, 0, 0, 1, 0]);
        failed.deliver().unwrap_err();
        stays(&mut failed);
        let mut out = Vec::new();
        failed.ours.write_tls(&mut out).unwrap();
        assert!(!out.is_empty(), "the alert is not lost");
    }
}

#[test]
fn keys_of_no_known_secret_end_the_connection_with_an_alert() {
    for side in SIDES {
        for suite in SUITES {
            let mut duo = Duo::new(side, suite);
            let stranger = Duo::new(side, suite).traffic();
            duo.say(b"data");
            duo.with_traffic(stranger);
            duo.ours.detach_from_rustls();
            assert!(matches!(duo.ours, TlsTransport::Failed(_)));
            assert!(duo.ours.plaintext_state().is_err());
            assert!(duo.ours.write(b"more", &mut Vec::new()).is_err());
            let mut out = Vec::new();
            duo.ours.write_tls(&mut out).unwrap();
            assert_eq!(out.len(), HEADER + 2 + 1 + traffic_keys::TAG, "an alert, and nothing in the clear");
            assert_eq!(duo.hear(&out), Err(RecordError::AlertReceived(INTERNAL_ERROR).to_string()));
            out.clear();
            duo.ours.write_tls(&mut out).unwrap();
            assert!(out.is_empty(), "once");
        }
    }
}

/// What may happen to a connection, in any order.
#[derive(Debug, Clone)]
enum Event {
    Heard(usize),
    Said(usize),
    KeyUpdate { tickets: usize, request: u8 },
    Ticket,
    Flushed,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        (1_usize..40_000).prop_map(Event::Heard),
        (1_usize..40_000).prop_map(Event::Said),
        (0_usize..3, 0_u8..2).prop_map(|(tickets, request)| Event::KeyUpdate { tickets, request }),
        Just(Event::Ticket),
        Just(Event::Flushed),
    ];
    prop::collection::vec(event, 0..24)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    /// The peer reads no record under a key or a number that is not the next one, so it would see one that comes back.
    #[test]
    fn wherever_it_is_taken_over_every_record_is_the_next(
        events in events(), at in 0_usize..24, server in any::<bool>(), suite in 0..SUITES.len(),
    ) {
        let side = if server { Side::Server } else { Side::Client };
        let mut duo = Duo::new(side, SUITES[suite]);
        for (number, event) in events.into_iter().enumerate() {
            if number >= at {
                duo.ours.detach_from_rustls();
            }
            match event {
                Event::Heard(length) => super::data(length).chunks(FRAGMENT_MAX).for_each(|piece| duo.say(piece)),
                Event::Said(length) => duo.reply(&super::data(length)),
                Event::KeyUpdate { tickets, request } => {
                    let tickets = if server { Vec::new() } else { ticket(40).repeat(tickets) };
                    duo.forge_key_update(&tickets, request);
                    prop_assert_eq!(duo.deliver().unwrap(), b"");
                }
                Event::Ticket if server => {}
                Event::Ticket => {
                    duo.forge(HANDSHAKE, &ticket(40));
                    prop_assert_eq!(duo.deliver().unwrap(), b"");
                }
                Event::Flushed => prop_assert_eq!(duo.answer().unwrap(), b""),
            }
            prop_assert_eq!(duo.ours.plaintext_state().unwrap(), PlaintextState::NeedMoreData);
        }
        duo.say(b"data");
        taken_over(&mut duo);
        goes_on(duo);
    }
}

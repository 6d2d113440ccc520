//! Detaching after key updates: the record layer continues with the keys in use, sends the
//! KeyUpdates that rustls has not sent, and never repeats a key and a number.

use proptest::prelude::*;
use rustls::Side;

use super::super::*;
use super::SUITES;
use super::own_pair::OwnPair;
use crate::tls::PlaintextState;
use crate::tls::transport::TlsTransport;

const SIDES: [Side; 2] = [Side::Server, Side::Client];
const REQUESTS: [u8; 2] = [UPDATE_NOT_REQUESTED, UPDATE_REQUESTED];

/// A NewSessionTicket with a ticket of this length.
fn ticket(bytes: u16) -> Vec<u8> {
    let ([high, low], [long, short]) = ((bytes + 14).to_be_bytes(), bytes.to_be_bytes());
    let head = [4, 0, high, low, 0, 0, 1, 0, 0, 0, 0, 7, 1, 5, long, short];
    [head.as_slice(), &vec![9; usize::from(bytes)], &[0, 0]].concat()
}

fn detach(pair: &mut OwnPair) {
    pair.ours.detach_from_rustls();
    assert!(matches!(pair.ours, TlsTransport::RecordLayer(_)));
}

fn assert_stays(pair: &mut OwnPair) {
    pair.ours.detach_from_rustls();
    assert!(matches!(pair.ours, TlsTransport::Rustls(_)));
}

/// Data and key updates go both ways.
fn assert_continues(mut pair: OwnPair) {
    pair.exchange_data();
    for request in REQUESTS {
        pair.forge_key_update(&[], request);
        assert_eq!(pair.deliver().as_deref(), Ok(b"".as_slice()));
        pair.exchange_data();
    }
    let TlsTransport::RecordLayer(records) = &mut pair.ours else { panic!("not detached") };
    records.confidentiality_limit = records.write.sequence() + 1;
    pair.exchange_data();
}

#[test]
fn a_ticket_and_a_key_update_in_one_record() {
    for suite in SUITES {
        for request in REQUESTS {
            let mut pair = OwnPair::new(Side::Client, suite);
            pair.peer_send(b"the first answer");
            pair.forge_key_update(&ticket(32), request);
            assert_eq!(pair.deliver().unwrap(), b"");
            pair.peer_send(b"under the new key");
            detach(&mut pair);
            assert_continues(pair);
        }
    }
}

#[test]
fn several_tickets_and_a_key_update_in_one_record() {
    let mut pair = OwnPair::new(Side::Client, SUITES[0]);
    pair.forge_key_update(&[ticket(32), ticket(1), ticket(9000)].concat(), UPDATE_REQUESTED);
    pair.forge(HANDSHAKE, &ticket(5));
    assert_eq!(pair.deliver().unwrap(), b"");
    pair.peer_send(b"the first answer");
    detach(&mut pair);
    assert_continues(pair);
}

#[test]
fn a_key_update_before_the_first_data() {
    for (side, request) in SIDES.into_iter().flat_map(|side| REQUESTS.map(|request| (side, request))) {
        let mut pair = OwnPair::new(side, SUITES[0]);
        pair.forge_key_update(&[], request);
        assert_eq!(pair.deliver().unwrap(), b"");
        pair.peer_send(b"under the new key");
        // rustls has not sent the requested KeyUpdate yet.
        detach(&mut pair);
        assert_continues(pair);
    }
}

#[test]
fn a_requested_key_update_of_rustls_is_sent_first() {
    for side in SIDES {
        let mut pair = OwnPair::new(side, SUITES[0]);
        pair.forge_key_update(&[], UPDATE_REQUESTED);
        pair.deliver().unwrap();
        pair.peer_send(b"under the new key");
        detach(&mut pair);
        let mut out = Vec::new();
        pair.ours.write_tls(&mut out);
        assert_eq!(out.len(), HEADER + KEY_UPDATE.len() + 1 + 1 + traffic_keys::TAG, "it is queued at once");
        pair.peer_receive(&out).unwrap();
        assert_continues(pair);
    }
}

#[test]
fn key_updates_between_data_in_either_direction() {
    for side in SIDES {
        let mut pair = OwnPair::new(side, SUITES[1]);
        for round in 0..KEY_UPDATES_MAX {
            pair.forge_key_update(&[], round % 2);
            assert_eq!(pair.deliver().unwrap(), b"");
            pair.exchange_data();
        }
        detach(&mut pair);
        assert_continues(pair);
    }
}

#[test]
fn too_many_key_updates_stay_with_rustls() {
    for side in SIDES {
        let mut pair = OwnPair::new(side, SUITES[2]);
        for _ in 0..=KEY_UPDATES_MAX {
            pair.forge_key_update(&[], UPDATE_REQUESTED);
            assert_eq!(pair.deliver().unwrap(), b"");
            pair.exchange_data();
        }
        assert_stays(&mut pair);
        pair.exchange_data();
    }
}

#[test]
fn several_update_requests_get_one_key_update() {
    for side in SIDES {
        let mut pair = OwnPair::new(side, SUITES[0]);
        // The first half with rustls, the second half without.
        for round in 0..10 {
            pair.forge_key_update(&[], UPDATE_REQUESTED);
            assert_eq!(pair.deliver().unwrap(), b"");
            if round == 5 {
                pair.peer_send(b"data");
                detach(&mut pair);
            }
        }
        assert_continues(pair);
    }
}

#[test]
fn a_partial_message_stays_with_rustls() {
    let key_update = [KEY_UPDATE.as_slice(), &[UPDATE_NOT_REQUESTED]].concat();
    for (side, message) in [(Side::Server, key_update), (Side::Client, ticket(300))] {
        for cut in [1, 3, message.len() - 1] {
            let mut pair = OwnPair::new(side, SUITES[0]);
            pair.peer_send(b"data");
            pair.forge(HANDSHAKE, &message[..cut]);
            pair.deliver().unwrap();
            assert_stays(&mut pair);
            pair.forge(HANDSHAKE, &message[cut..]);
            if side == Side::Server {
                pair.update_peer_key();
            }
            pair.deliver().unwrap();
            pair.peer_send(b"data again");
            detach(&mut pair);
            assert_continues(pair);
        }
    }
}

#[test]
fn a_closed_or_failed_connection_stays_with_rustls() {
    for side in SIDES {
        let mut closed = OwnPair::new(side, SUITES[0]);
        closed.ours.send_close_notify();
        closed.peer_send(b"data");
        assert_stays(&mut closed);

        let mut failed = OwnPair::new(side, SUITES[0]);
        failed.forge(HANDSHAKE, &[1, 0, 0, 1, 0]);
        failed.deliver().unwrap_err();
        assert_stays(&mut failed);
        let mut out = Vec::new();
        failed.ours.write_tls(&mut out);
        assert!(!out.is_empty(), "the alert is not lost");
    }
}

#[test]
fn keys_of_another_secret_fail_with_an_alert() {
    for side in SIDES {
        for suite in SUITES {
            let mut pair = OwnPair::new(side, suite);
            let other = OwnPair::new(side, suite).into_secrets();
            pair.peer_send(b"data");
            pair.set_secrets(other);
            pair.ours.detach_from_rustls();
            assert!(matches!(pair.ours, TlsTransport::Failed(_)));
            assert!(pair.ours.plaintext_state().is_err());
            assert!(pair.ours.write(b"more", &mut Vec::new()).is_err());
            let mut out = Vec::new();
            pair.ours.write_tls(&mut out);
            assert_eq!(out.len(), HEADER + 2 + 1 + traffic_keys::TAG, "an encrypted alert");
            assert_eq!(pair.peer_receive(&out), Err(RecordError::AlertReceived(INTERNAL_ERROR).to_string()));
            out.clear();
            pair.ours.write_tls(&mut out);
            assert!(out.is_empty(), "once");
        }
    }
}

/// The events of a connection, in any order.
#[derive(Debug, Clone)]
enum Event {
    Received(usize),
    Sent(usize),
    KeyUpdate { tickets: usize, request: u8 },
    Ticket,
    Flush,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        (1_usize..40_000).prop_map(Event::Received),
        (1_usize..40_000).prop_map(Event::Sent),
        (0_usize..3, 0_u8..2).prop_map(|(tickets, request)| Event::KeyUpdate { tickets, request }),
        Just(Event::Ticket),
        Just(Event::Flush),
    ];
    prop::collection::vec(event, 0..24)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    /// The peer reads only a record with the next key and number, so it would detect a repeated
    /// one.
    #[test]
    fn no_key_and_number_repeat_wherever_it_detaches(
        events in events(), at in 0_usize..24, server in any::<bool>(), suite in 0..SUITES.len(),
    ) {
        let side = if server { Side::Server } else { Side::Client };
        let mut pair = OwnPair::new(side, SUITES[suite]);
        for (number, event) in events.into_iter().enumerate() {
            if number >= at {
                pair.ours.detach_from_rustls();
            }
            match event {
                Event::Received(length) => super::data(length).chunks(FRAGMENT_MAX).for_each(|piece| pair.peer_send(piece)),
                Event::Sent(length) => pair.send(&super::data(length)),
                Event::KeyUpdate { tickets, request } => {
                    let tickets = if server { Vec::new() } else { ticket(40).repeat(tickets) };
                    pair.forge_key_update(&tickets, request);
                    prop_assert_eq!(pair.deliver().unwrap(), b"");
                }
                Event::Ticket if server => {}
                Event::Ticket => {
                    pair.forge(HANDSHAKE, &ticket(40));
                    prop_assert_eq!(pair.deliver().unwrap(), b"");
                }
                Event::Flush => prop_assert_eq!(pair.flush().unwrap(), b""),
            }
            prop_assert_eq!(pair.ours.plaintext_state().unwrap(), PlaintextState::NeedMoreData);
        }
        pair.peer_send(b"data");
        detach(&mut pair);
        assert_continues(pair);
    }
}

//! The other side is rustls: what we say it understands, and what it says we do; and whatever it
//! would not say ends the connection.

use std::io;

use proptest::prelude::*;
use rustls::CipherSuite;

use self::pair::{Pair, SUITES};
use super::traffic_keys::TAG;
use super::*;
use crate::tls::transport::{PlaintextState, TlsTransport};

mod duo;
mod pair;
mod take_over;

/// Ours is the server, and ours is the client.
fn both(suite: CipherSuite) -> [Pair; 2] {
    [Pair::server(suite), Pair::client(suite)]
}

fn data(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at % 251) as u8).collect()
}

#[test]
fn what_one_says_the_other_hears_in_every_suite() {
    for mut pair in SUITES.into_iter().flat_map(both).map(Pair::taken_over) {
        pair.both_ways();
        for length in [0, 1, 1000, FRAGMENT_MAX - 1, FRAGMENT_MAX, FRAGMENT_MAX + 1, WRITE_MAX] {
            let said = data(length);
            for piece in said.chunks(FRAGMENT_MAX) {
                pair.say(piece);
            }
            assert_eq!(pair.deliver().unwrap(), said);
            assert_eq!(pair.reply(&said), said);
        }
    }
}

#[test]
fn keys_are_taken_over_wherever_the_connection_is() {
    for mut pair in SUITES.into_iter().flat_map(both) {
        for _ in 0..300 {
            pair.both_ways();
        }
        pair.ours.detach_from_rustls();
        assert!(matches!(pair.ours, TlsTransport::RecordLayer(_)));
        pair.both_ways();
        pair.ours.detach_from_rustls();
        pair.both_ways();
    }
}

#[test]
fn rustls_stays_where_something_is_under_way() {
    let stays = |mut pair: Pair| {
        pair.ours.detach_from_rustls();
        assert!(matches!(pair.ours, TlsTransport::Rustls(_)));
        pair
    };
    let mut half = Pair::server(SUITES[0]);
    half.say(b"cut in two");
    let sent = std::mem::take(&mut half.sent);
    let (first, second) = sent.split_at(sent.len() / 2);
    assert!(half.deliver_in(first, usize::MAX).unwrap().is_empty());
    let mut half = stays(half);
    assert_eq!(half.deliver_in(second, usize::MAX).unwrap(), b"cut in two");
    half.both_ways();

    let mut unread = Pair::server(SUITES[0]);
    unread.say(b"unread");
    let sent = std::mem::take(&mut unread.sent);
    assert_eq!(unread.ours.read_tls(&sent).unwrap(), sent.len());
    unread.ours.process_new_packets().unwrap();
    let mut unread = stays(unread);
    assert_eq!(unread.ours.plaintext().unwrap(), b"unread");
}

#[test]
fn a_record_is_fed_to_rustls_by_itself() {
    let mut pair = Pair::server(SUITES[0]);
    pair.say(b"first");
    let end = pair.sent.len();
    pair.say(b"second");
    assert_eq!(pair.ours.read_tls(&pair.sent).unwrap(), end, "the second one stays outside");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn records_may_come_in_any_pieces(
        lengths in prop::collection::vec(1_usize..40_000, 1..5),
        piece in 1_usize..5_000,
    ) {
        let mut pair = Pair::server(SUITES[0]).taken_over();
        let mut said = Vec::new();
        for length in lengths {
            said.extend_from_slice(&data(length));
            pair.say(&data(length));
        }
        let sent = std::mem::take(&mut pair.sent);
        prop_assert_eq!(pair.deliver_in(&sent, piece).unwrap(), said);
        pair.both_ways();
    }

    #[test]
    fn pieces_to_be_sent_share_records(pieces in prop::collection::vec(0_usize..9_000, 0..12)) {
        let mut pair = Pair::server(SUITES[0]).taken_over();
        let said: Vec<Vec<u8>> = pieces.into_iter().map(data).collect();
        let all = said.concat();
        let slices: Vec<_> = said.iter().map(|piece| io::IoSlice::new(piece)).collect();
        let mut out = Vec::new();
        let written = pair.ours.write_vectored(&slices, &mut out).unwrap();
        prop_assert_eq!(written, all.len().min(WRITE_MAX));
        let records = written.div_ceil(FRAGMENT_MAX);
        prop_assert_eq!(out.len(), written + records * (HEADER + 1 + TAG));
        prop_assert_eq!(pair.hear(&out).unwrap(), &all[..written]);
    }

    /// Whoever holds the keys may say what it likes in any order: only data is heard, and after an error nothing.
    #[test]
    fn whatever_is_sealed_only_data_is_heard(
        records in prop::collection::vec(
            (prop::sample::select(vec![ALERT, HANDSHAKE, APPLICATION_DATA, 0, 20, 99]), prop::sample::select(vec![
                vec![], vec![0], vec![WARNING, CLOSE_NOTIFY], vec![WARNING, USER_CANCELED], vec![24, 0], vec![0, 1, 0],
                vec![24, 0, 0, 1, 1], b"data".to_vec(),
            ])),
            0..50,
        ),
    ) {
        let mut pair = Pair::server(SUITES[0]).taken_over();
        let mut over = false;
        for (kind, content) in records {
            pair.forge(kind, &content);
            let before = pair.ours.plaintext_state().is_ok_and(|ready| ready == PlaintextState::NeedMoreData);
            match pair.deliver() {
                Ok(heard) if over || !before => prop_assert!(heard.is_empty()),
                Ok(heard) if kind == APPLICATION_DATA => prop_assert_eq!(heard, content),
                Ok(heard) => prop_assert!(heard.is_empty()),
                Err(_) => over = true,
            }
        }
        pair.ours.send_close_notify();
        let mut out = Vec::new();
        prop_assert!(pair.ours.write(b"more", &mut out).is_err());
    }

    #[test]
    fn a_changed_bit_anywhere_is_found(at in 0_usize..1_000, bit in 0_u32..8) {
        let mut pair = Pair::server(SUITES[0]).taken_over();
        pair.say(b"as it was said");
        let at = at % pair.sent.len();
        pair.sent[at] ^= 1_u8 << bit;
        // The length says how much there is, and another one waits for what never comes, or is too long.
        if let Ok(heard) = pair.deliver() {
            prop_assert!(heard.is_empty());
            prop_assert!((3..5).contains(&at));
            pair.ours.read_tls(&[]).unwrap();
            prop_assert_eq!(pair.ours.plaintext_state().unwrap(), PlaintextState::Truncated);
        }
    }
}

#[test]
fn either_side_may_ask_for_new_keys() {
    for mut pair in SUITES.into_iter().flat_map(both).map(Pair::taken_over) {
        for _ in 0..3 * usize::from(EMPTY_RECORDS_MAX) {
            pair.peer.refresh_traffic_keys().unwrap();
            pair.send();
            pair.both_ways();
        }
    }
}

#[test]
fn a_key_update_may_ask_for_nothing_and_come_in_parts() {
    let mut pair = Pair::server(SUITES[0]).taken_over();
    pair.forge(HANDSHAKE, &[24, 0]);
    pair.deliver().unwrap();
    pair.forge(HANDSHAKE, &[0, 1, UPDATE_NOT_REQUESTED]);
    // Both are numbered: the second comes after the first.
    assert_eq!(pair.deliver().unwrap(), b"");
    let records = pair.records();
    assert_eq!(records.read.sequence(), 0, "the client's key is new");
    assert!(!records.key_update_requested, "ours is not");
    pair.forge(APPLICATION_DATA, b"under the new key");
    assert_eq!(pair.deliver().unwrap(), b"under the new key");
    assert_eq!(pair.reply(b"under the old one"), b"under the old one");
}

#[test]
fn the_last_record_of_a_key_says_that_another_follows() {
    for mut pair in SUITES.into_iter().flat_map(both).map(Pair::taken_over) {
        let records = pair.records();
        records.confidentiality_limit = 5;
        for round in 0_u32..40 {
            assert_eq!(pair.reply(&round.to_be_bytes()), round.to_be_bytes());
            let records = pair.records();
            assert!(records.write.sequence() < 5);
        }
        pair.both_ways();
    }
}

#[test]
fn goodbyes_are_told_from_cuts() {
    let mut pair = Pair::server(SUITES[0]).taken_over();
    pair.say(b"last words");
    pair.peer.send_close_notify();
    pair.send();
    assert_eq!(pair.deliver().unwrap(), b"last words");
    assert_eq!(pair.ours.plaintext_state().unwrap(), PlaintextState::CloseNotify);
    assert_eq!(pair.reply(b"may be answered"), b"may be answered");
    pair.ours.send_close_notify();
    pair.ours.send_close_notify();
    let mut out = Vec::new();
    assert!(pair.ours.write(b"after it", &mut out).is_err());
    pair.ours.write_tls(&mut out).unwrap();
    assert_eq!(out.len(), HEADER + 2 + 1 + TAG, "once");
    pair.peer.read_tls(&mut out.as_slice()).unwrap();
    assert!(pair.peer.process_new_packets().unwrap().peer_has_closed());

    let mut pair = Pair::server(SUITES[0]).taken_over();
    assert_eq!(pair.ours.read_tls(&[]).unwrap(), 0);
    pair.ours.process_new_packets().unwrap();
    assert_eq!(pair.ours.plaintext_state().unwrap(), PlaintextState::Truncated);
}

#[test]
fn what_belongs_into_no_established_connection_ends_it() {
    let cases: [(u8, Vec<u8>, RecordError, Option<u8>); 17] = [
        (ALERT, vec![FATAL, 48], RecordError::AlertReceived(48), None),
        (ALERT, vec![WARNING, 112], RecordError::AlertReceived(112), None),
        (ALERT, vec![FATAL], RecordError::Malformed(ALERT), Some(50)),
        (ALERT, vec![WARNING, 0, WARNING, 0], RecordError::Malformed(ALERT), Some(50)),
        (ALERT, vec![], RecordError::Unexpected(ALERT), Some(10)),
        (HANDSHAKE, vec![], RecordError::Unexpected(HANDSHAKE), Some(10)),
        // A CertificateRequest and a HelloRequest.
        (HANDSHAKE, vec![13, 0, 0, 3, 0, 0, 0], RecordError::Unexpected(13), Some(10)),
        (HANDSHAKE, vec![0, 0, 0, 0], RecordError::Unexpected(0), Some(10)),
        // A ClientHello: there is no renegotiation.
        (HANDSHAKE, vec![1, 0, 0, 1, 0], RecordError::Unexpected(1), Some(10)),
        // A Finished, a second time.
        (HANDSHAKE, vec![20, 0, 0, 32], RecordError::Unexpected(20), Some(10)),
        (HANDSHAKE, vec![24, 0, 0, 2, 0, 0], RecordError::Malformed(HANDSHAKE), Some(50)),
        (HANDSHAKE, vec![24, 0, 0, 1, 2], RecordError::KeyUpdate(2), Some(47)),
        // Two in one record: the second would be under another key.
        (HANDSHAKE, vec![24, 0, 0, 1, 0, 24, 0, 0, 1, 0], RecordError::Unexpected(HANDSHAKE), Some(10)),
        (20, vec![1], RecordError::Unexpected(20), Some(10)),
        (24, vec![1, 0, 1, 0], RecordError::Unexpected(24), Some(10)),
        // Nothing but padding.
        (0, vec![0; 20], RecordError::Unexpected(0), Some(10)),
        (0, vec![0; FRAGMENT_MAX], RecordError::Unexpected(0), Some(10)),
    ];
    for (kind, content, error, alert) in cases {
        let mut pair = Pair::server(SUITES[0]).taken_over();
        pair.forge(kind, &content);
        pair.refuses(error, alert);
    }
}

#[test]
fn tickets_are_for_clients_and_passed_over() {
    let [server, client] = both(SUITES[0]).map(Pair::taken_over);
    let mut server = server;
    let ticket = [&[4, 0, 1, 44], data(300).as_slice()].concat();
    server.forge(HANDSHAKE, &ticket);
    server.refuses(RecordError::Unexpected(4), Some(10));

    let mut pair = client;
    pair.forge(HANDSHAKE, &ticket);
    assert_eq!(pair.deliver().unwrap(), b"");
    // Two in one record, the second in three; a KeyUpdate at the end of the last one.
    let many = [ticket.as_slice(), &ticket, &KEY_UPDATE, &[UPDATE_NOT_REQUESTED]].concat();
    for piece in [&many[..310], &many[310..500], &many[500..]] {
        pair.forge(HANDSHAKE, piece);
        assert_eq!(pair.deliver().unwrap(), b"");
    }
    assert_eq!(pair.records().read.sequence(), 0);
    pair.forge(APPLICATION_DATA, b"under the new key");
    assert_eq!(pair.deliver().unwrap(), b"under the new key");

    for length in [[0, 0, 0], [2, 0, 1], [255, 255, 255]] {
        let mut pair = Pair::client(SUITES[0]).taken_over();
        let [high, middle, low] = length;
        pair.forge(HANDSHAKE, &[4, high, middle, low, 0]);
        pair.refuses(RecordError::Malformed(HANDSHAKE), Some(50));
    }
    let mut amid = Pair::client(SUITES[0]).taken_over();
    amid.forge(HANDSHAKE, &ticket[..100]);
    amid.deliver().unwrap();
    amid.forge(APPLICATION_DATA, b"data");
    amid.refuses(RecordError::Unexpected(APPLICATION_DATA), Some(10));
}

/// RFC 8446 section 5.4: content, type and padding are 2^14 + 1 bytes at most, however they share
/// them.
#[test]
fn content_type_and_padding_have_one_bound() {
    for content in [0, 4, 1000, FRAGMENT_MAX - 1, FRAGMENT_MAX, FRAGMENT_MAX + 1, BODY_MAX - TAG - 1] {
        for whole in [FRAGMENT_MAX + 1, FRAGMENT_MAX + 2, BODY_MAX - TAG] {
            let Some(padding) = whole.checked_sub(content + 1) else { continue };
            for mut pair in both(SUITES[0]).map(Pair::taken_over) {
                let inner = [data(content), vec![APPLICATION_DATA], vec![0; padding]].concat();
                let (last, first) = inner.split_last().unwrap();
                pair.forge(*last, first);
                if whole == FRAGMENT_MAX + 1 {
                    assert_eq!(pair.deliver().unwrap(), data(content));
                } else {
                    pair.refuses(RecordError::Oversized, Some(22));
                }
            }
        }
    }
}

/// Section 5.2: the length alone is enough.
#[test]
fn a_longer_record_is_refused_by_its_header() {
    for length in [BODY_MAX + 1, usize::from(u16::MAX)] {
        let mut pair = Pair::server(SUITES[0]).taken_over();
        let [high, low] = (length as u16).to_be_bytes();
        pair.sent.extend([23, 3, 3, high, low]);
        pair.refuses(RecordError::Oversized, Some(22));
    }
    for version in [[3, 1], [3, 4], [2, 0]] {
        let mut pair = Pair::server(SUITES[0]).taken_over();
        pair.say(b"of which version?");
        pair.sent.splice(1..3, version);
        pair.refuses_quietly(RecordError::Malformed(APPLICATION_DATA));
    }
}

#[test]
fn any_number_of_requests_gets_one_key_update() {
    for mut pair in SUITES.into_iter().flat_map(both).map(Pair::taken_over) {
        for _ in 0..EMPTY_RECORDS_MAX {
            pair.peer.refresh_traffic_keys().unwrap();
        }
        pair.send();
        assert_eq!(pair.deliver().unwrap(), b"");
        let mut out = Vec::new();
        pair.ours.write_tls(&mut out).unwrap();
        assert!(out.is_empty(), "it is owed before the next data");
        pair.ours.write(b"data", &mut out).unwrap();
        let key_update = HEADER + KEY_UPDATE.len() + 1 + 1 + TAG;
        assert_eq!(out.len(), key_update + HEADER + b"data".len() + 1 + TAG, "one, and the data");
        assert_eq!(pair.hear(&out).unwrap(), b"data");
        pair.both_ways();
    }
}

#[test]
fn what_is_over_answers_no_key_update() {
    let mut pair = Pair::server(SUITES[0]).taken_over();
    pair.ours.send_close_notify();
    pair.peer.refresh_traffic_keys().unwrap();
    pair.say(b"more of a request");
    assert_eq!(pair.deliver().unwrap(), b"more of a request");
    let mut out = Vec::new();
    pair.ours.write_tls(&mut out).unwrap();
    assert_eq!(out.len(), HEADER + 2 + 1 + TAG, "close_notify alone");
    assert!(pair.ours.write(b"after it", &mut out).is_err());
    assert_eq!(out.len(), HEADER + 2 + 1 + TAG);
}

#[test]
fn nothing_passes_in_the_clear_twice_or_out_of_turn() {
    // An alert, a message of the handshake and data as they were before there were keys.
    for record in [[21, 3, 3, 0, 2, 1, 0], [22, 3, 3, 0, 2, 1, 0], [20, 3, 3, 0, 2, 1, 0]] {
        let mut pair = Pair::server(SUITES[0]).taken_over();
        pair.sent.extend(record);
        pair.refuses(RecordError::Unexpected(record[0]), Some(10));
    }
    for clear in [
        vec![23, 3, 3, 0, 0],
        vec![23, 3, 3, 0, 2, b'h', b'i'],
        [&[23, 3, 3, 0, 40], [0; 40].as_slice()].concat(),
    ] {
        let mut pair = Pair::server(SUITES[0]).taken_over();
        pair.sent.extend(clear);
        pair.refuses(RecordError::Decrypt, Some(20));
    }
    let mut repeated = Pair::server(SUITES[0]).taken_over();
    repeated.say(b"once");
    repeated.sent.extend(repeated.sent.clone());
    repeated.refuses(RecordError::Decrypt, Some(20));

    let mut swapped = Pair::server(SUITES[0]).taken_over();
    swapped.say(b"first");
    swapped.sent.clear();
    swapped.say(b"second");
    swapped.refuses(RecordError::Decrypt, Some(20));

    let mut reflected = Pair::server(SUITES[0]).taken_over();
    let mut ours = Vec::new();
    reflected.ours.write(b"ours", &mut ours).unwrap();
    reflected.sent = ours;
    reflected.refuses_quietly(RecordError::Decrypt);
}

#[test]
fn data_does_not_come_between_the_parts_of_a_message() {
    let mut pair = Pair::server(SUITES[0]).taken_over();
    pair.forge(HANDSHAKE, &[24, 0]);
    pair.deliver().unwrap();
    pair.forge(APPLICATION_DATA, b"data");
    pair.refuses(RecordError::Unexpected(APPLICATION_DATA), Some(10));
}

#[test]
fn a_client_that_says_nothing_at_length_is_not_listened_to() {
    for (kind, content) in [
        (APPLICATION_DATA, [].as_slice()),
        (ALERT, &[WARNING, USER_CANCELED]),
        (HANDSHAKE, &[24, 0, 0, 1, 1]),
    ] {
        let mut pair = Pair::server(SUITES[0]).taken_over();
        for _ in 0..EMPTY_RECORDS_MAX {
            pair.forge(kind, content);
            pair.deliver().unwrap();
        }
        assert!(pair.records().pending.is_empty(), "it gets no answer");
        pair.forge(kind, content);
        pair.refuses(RecordError::TooManyEmptyRecords, Some(10));
    }
}

#[test]
fn a_connection_at_rest_holds_no_buffer() {
    let mut pair = Pair::server(SUITES[0]).taken_over();
    pair.say(&data(FRAGMENT_MAX));
    pair.deliver().unwrap();
    pair.peer.refresh_traffic_keys().unwrap();
    pair.send();
    pair.deliver().unwrap();
    pair.answer();
    pair.ours.shrink_buffers();
    let records = pair.records();
    assert_eq!((records.record.capacity(), records.pending.capacity()), (0, 0));
    pair.both_ways();
}

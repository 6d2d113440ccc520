//! Our record layer against rustls: each reads what the other sends, and what rustls would not send
//! ends the connection.

use std::io;

use proptest::prelude::*;
use rustls::CipherSuite;

use self::rustls_pair::{RustlsPair, SUITES};
use super::traffic_keys::TAG;
use super::*;
use crate::tls::PlaintextState;
use crate::tls::transport::TlsTransport;

mod detach;
mod own_pair;
mod rustls_pair;

/// Our side as the server, and as the client.
fn both(suite: CipherSuite) -> [RustlsPair; 2] {
    [RustlsPair::server(suite), RustlsPair::client(suite)]
}

fn data(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at % 251) as u8).collect()
}

#[test]
fn data_arrives_in_every_suite() {
    for mut pair in SUITES.into_iter().flat_map(both).map(RustlsPair::detached) {
        pair.exchange_data();
        for length in [0, 1, 1000, FRAGMENT_MAX - 1, FRAGMENT_MAX, FRAGMENT_MAX + 1, WRITE_MAX] {
            let sent = data(length);
            for piece in sent.chunks(FRAGMENT_MAX) {
                pair.peer_send(piece);
            }
            assert_eq!(pair.deliver().unwrap(), sent);
            assert_eq!(pair.send(&sent), sent);
        }
    }
}

#[test]
fn keys_are_extracted_at_any_sequence_number() {
    for mut pair in SUITES.into_iter().flat_map(both) {
        for _ in 0..300 {
            pair.exchange_data();
        }
        pair.ours.detach_from_rustls();
        assert!(matches!(pair.ours, TlsTransport::RecordLayer(_)));
        pair.exchange_data();
        pair.ours.detach_from_rustls();
        pair.exchange_data();
    }
}

#[test]
fn a_connection_with_partial_or_unread_data_stays_with_rustls() {
    let assert_stays = |mut pair: RustlsPair| {
        pair.ours.detach_from_rustls();
        assert!(matches!(pair.ours, TlsTransport::Rustls(_)));
        pair
    };
    let mut partial = RustlsPair::server(SUITES[0]);
    partial.peer_send(b"in two parts");
    let sent = std::mem::take(&mut partial.sent);
    let (first, second) = sent.split_at(sent.len() / 2);
    assert!(partial.deliver_in(first, usize::MAX).unwrap().is_empty());
    let mut partial = assert_stays(partial);
    assert_eq!(partial.deliver_in(second, usize::MAX).unwrap(), b"in two parts");
    partial.exchange_data();

    let mut unread = RustlsPair::server(SUITES[0]);
    unread.peer_send(b"unread");
    let sent = std::mem::take(&mut unread.sent);
    assert_eq!(unread.ours.read_tls(&sent).unwrap(), sent.len());
    unread.ours.process_new_packets().unwrap();
    let mut unread = assert_stays(unread);
    assert_eq!(unread.ours.plaintext().unwrap(), b"unread");
}

#[test]
fn rustls_is_fed_one_record_at_a_time() {
    let mut pair = RustlsPair::server(SUITES[0]);
    pair.peer_send(b"first");
    let end = pair.sent.len();
    pair.peer_send(b"second");
    assert_eq!(pair.ours.read_tls(&pair.sent).unwrap(), end, "the second record is not read yet");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn records_arrive_in_any_fragmentation(
        lengths in prop::collection::vec(1_usize..40_000, 1..5),
        piece in 1_usize..5_000,
    ) {
        let mut pair = RustlsPair::server(SUITES[0]).detached();
        let mut all = Vec::new();
        for length in lengths {
            all.extend_from_slice(&data(length));
            pair.peer_send(&data(length));
        }
        let sent = std::mem::take(&mut pair.sent);
        prop_assert_eq!(pair.deliver_in(&sent, piece).unwrap(), all);
        pair.exchange_data();
    }

    #[test]
    fn small_buffers_share_records(pieces in prop::collection::vec(0_usize..9_000, 0..12)) {
        let mut pair = RustlsPair::server(SUITES[0]).detached();
        let pieces: Vec<Vec<u8>> = pieces.into_iter().map(data).collect();
        let all = pieces.concat();
        let slices: Vec<_> = pieces.iter().map(|piece| io::IoSlice::new(piece)).collect();
        let mut out = Vec::new();
        let written = pair.ours.write_vectored(&slices, &mut out).unwrap();
        prop_assert_eq!(written, all.len().min(WRITE_MAX));
        let records = written.div_ceil(FRAGMENT_MAX);
        prop_assert_eq!(out.len(), written + records * (HEADER + 1 + TAG));
        prop_assert_eq!(pair.peer_receive(&out).unwrap(), &all[..written]);
    }

    /// A peer with the keys may send any records: only data is read, and after an error nothing.
    #[test]
    fn only_application_data_is_read_in_any_order(
        records in prop::collection::vec(
            (prop::sample::select(vec![ALERT, HANDSHAKE, APPLICATION_DATA, 0, 20, 99]), prop::sample::select(vec![
                vec![], vec![0], vec![WARNING, CLOSE_NOTIFY], vec![WARNING, USER_CANCELED], vec![24, 0], vec![0, 1, 0],
                vec![24, 0, 0, 1, 1], b"data".to_vec(),
            ])),
            0..50,
        ),
    ) {
        let mut pair = RustlsPair::server(SUITES[0]).detached();
        let mut failed = false;
        for (kind, content) in records {
            pair.forge(kind, &content);
            let open = pair.ours.plaintext_state().is_ok_and(|state| state == PlaintextState::NeedMoreData);
            match pair.deliver() {
                Ok(received) if failed || !open => prop_assert!(received.is_empty()),
                Ok(received) if kind == APPLICATION_DATA => prop_assert_eq!(received, content),
                Ok(received) => prop_assert!(received.is_empty()),
                Err(_) => failed = true,
            }
        }
        pair.ours.send_close_notify();
        let mut out = Vec::new();
        prop_assert!(pair.ours.write(b"more", &mut out).is_err());
    }

    #[test]
    fn a_changed_bit_is_detected(at in 0_usize..1_000, bit in 0_u32..8) {
        let mut pair = RustlsPair::server(SUITES[0]).detached();
        pair.peer_send(b"unchanged data");
        let at = at % pair.sent.len();
        pair.sent[at] ^= 1_u8 << bit;
        // With another length, the record is oversized or never completes.
        if let Ok(received) = pair.deliver() {
            prop_assert!(received.is_empty());
            prop_assert!((3..5).contains(&at));
            pair.ours.read_tls(&[]).unwrap();
            prop_assert_eq!(pair.ours.plaintext_state().unwrap(), PlaintextState::Truncated);
        }
    }
}

#[test]
fn either_side_may_request_key_updates() {
    for mut pair in SUITES.into_iter().flat_map(both).map(RustlsPair::detached) {
        for _ in 0..3 * usize::from(EMPTY_RECORDS_MAX) {
            pair.peer.refresh_traffic_keys().unwrap();
            pair.peer_flush();
            pair.exchange_data();
        }
    }
}

#[test]
fn a_fragmented_key_update_without_a_request_is_read() {
    let mut pair = RustlsPair::server(SUITES[0]).detached();
    pair.forge(HANDSHAKE, &[24, 0]);
    pair.deliver().unwrap();
    pair.forge(HANDSHAKE, &[0, 1, UPDATE_NOT_REQUESTED]);
    assert_eq!(pair.deliver().unwrap(), b"");
    let records = pair.record_layer();
    assert_eq!(records.read.sequence(), 0, "the read key is new");
    assert!(!records.key_update_requested, "the write key is not");
    pair.forge(APPLICATION_DATA, b"under the new key");
    assert_eq!(pair.deliver().unwrap(), b"under the new key");
    assert_eq!(pair.send(b"under the old one"), b"under the old one");
}

#[test]
fn the_last_record_of_a_key_is_a_key_update() {
    for mut pair in SUITES.into_iter().flat_map(both).map(RustlsPair::detached) {
        let records = pair.record_layer();
        records.confidentiality_limit = 5;
        for round in 0_u32..40 {
            assert_eq!(pair.send(&round.to_be_bytes()), round.to_be_bytes());
            let records = pair.record_layer();
            assert!(records.write.sequence() < 5);
        }
        pair.exchange_data();
    }
}

#[test]
fn close_notify_is_distinguished_from_truncation() {
    let mut pair = RustlsPair::server(SUITES[0]).detached();
    pair.peer_send(b"the last data");
    pair.peer.send_close_notify();
    pair.peer_flush();
    assert_eq!(pair.deliver().unwrap(), b"the last data");
    assert_eq!(pair.ours.plaintext_state().unwrap(), PlaintextState::CloseNotify);
    assert_eq!(pair.send(b"a response"), b"a response");
    pair.ours.send_close_notify();
    pair.ours.send_close_notify();
    let mut out = Vec::new();
    assert!(pair.ours.write(b"after it", &mut out).is_err());
    pair.ours.write_tls(&mut out);
    assert_eq!(out.len(), HEADER + 2 + 1 + TAG, "once");
    pair.peer.read_tls(&mut out.as_slice()).unwrap();
    assert!(pair.peer.process_new_packets().unwrap().peer_has_closed());

    let mut pair = RustlsPair::server(SUITES[0]).detached();
    assert_eq!(pair.ours.read_tls(&[]).unwrap(), 0);
    pair.ours.process_new_packets().unwrap();
    assert_eq!(pair.ours.plaintext_state().unwrap(), PlaintextState::Truncated);
}

#[test]
fn unexpected_records_end_the_connection_with_an_alert() {
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
        // Two in one record: the second would need another key.
        (HANDSHAKE, vec![24, 0, 0, 1, 0, 24, 0, 0, 1, 0], RecordError::Unexpected(HANDSHAKE), Some(10)),
        (20, vec![1], RecordError::Unexpected(20), Some(10)),
        (24, vec![1, 0, 1, 0], RecordError::Unexpected(24), Some(10)),
        // Only padding.
        (0, vec![0; 20], RecordError::Unexpected(0), Some(10)),
        (0, vec![0; FRAGMENT_MAX], RecordError::Unexpected(0), Some(10)),
    ];
    for (kind, content, error, alert) in cases {
        let mut pair = RustlsPair::server(SUITES[0]).detached();
        pair.forge(kind, &content);
        pair.assert_fails(error, alert);
    }
}

#[test]
fn clients_ignore_tickets_and_servers_reject_them() {
    let [server, client] = both(SUITES[0]).map(RustlsPair::detached);
    let mut server = server;
    let ticket = [&[4, 0, 1, 44], data(300).as_slice()].concat();
    server.forge(HANDSHAKE, &ticket);
    server.assert_fails(RecordError::Unexpected(4), Some(10));

    let mut pair = client;
    pair.forge(HANDSHAKE, &ticket);
    assert_eq!(pair.deliver().unwrap(), b"");
    // Two tickets in three records, with a KeyUpdate at the end of the last one.
    let many = [ticket.as_slice(), &ticket, &KEY_UPDATE, &[UPDATE_NOT_REQUESTED]].concat();
    for piece in [&many[..310], &many[310..500], &many[500..]] {
        pair.forge(HANDSHAKE, piece);
        assert_eq!(pair.deliver().unwrap(), b"");
    }
    assert_eq!(pair.record_layer().read.sequence(), 0);
    pair.forge(APPLICATION_DATA, b"under the new key");
    assert_eq!(pair.deliver().unwrap(), b"under the new key");

    for length in [[0, 0, 0], [2, 0, 1], [255, 255, 255]] {
        let mut pair = RustlsPair::client(SUITES[0]).detached();
        let [high, middle, low] = length;
        pair.forge(HANDSHAKE, &[4, high, middle, low, 0]);
        pair.assert_fails(RecordError::Malformed(HANDSHAKE), Some(50));
    }
    let mut partial = RustlsPair::client(SUITES[0]).detached();
    partial.forge(HANDSHAKE, &ticket[..100]);
    partial.deliver().unwrap();
    partial.forge(APPLICATION_DATA, b"data");
    partial.assert_fails(RecordError::Unexpected(APPLICATION_DATA), Some(10));
}

/// RFC 8446 section 5.4: content, type and padding together are at most 2^14 + 1 bytes.
#[test]
fn content_type_and_padding_share_one_limit() {
    for content in [0, 4, 1000, FRAGMENT_MAX - 1, FRAGMENT_MAX, FRAGMENT_MAX + 1, BODY_MAX - TAG - 1] {
        for whole in [FRAGMENT_MAX + 1, FRAGMENT_MAX + 2, BODY_MAX - TAG] {
            let Some(padding) = whole.checked_sub(content + 1) else { continue };
            for mut pair in both(SUITES[0]).map(RustlsPair::detached) {
                let inner = [data(content), vec![APPLICATION_DATA], vec![0; padding]].concat();
                let (last, first) = inner.split_last().unwrap();
                pair.forge(*last, first);
                if whole == FRAGMENT_MAX + 1 {
                    assert_eq!(pair.deliver().unwrap(), data(content));
                } else {
                    pair.assert_fails(RecordError::Oversized, Some(22));
                }
            }
        }
    }
}

/// RFC 8446 section 5.2: the length in the header is enough.
#[test]
fn an_oversized_record_is_rejected_by_its_header() {
    for length in [BODY_MAX + 1, usize::from(u16::MAX)] {
        let mut pair = RustlsPair::server(SUITES[0]).detached();
        let [high, low] = (length as u16).to_be_bytes();
        pair.sent.extend([23, 3, 3, high, low]);
        pair.assert_fails(RecordError::Oversized, Some(22));
    }
    for version in [[3, 1], [3, 4], [2, 0]] {
        let mut pair = RustlsPair::server(SUITES[0]).detached();
        pair.peer_send(b"another version");
        pair.sent.splice(1..3, version);
        pair.assert_fails_without_alert(RecordError::Malformed(APPLICATION_DATA));
    }
}

#[test]
fn several_update_requests_get_one_key_update() {
    for mut pair in SUITES.into_iter().flat_map(both).map(RustlsPair::detached) {
        for _ in 0..EMPTY_RECORDS_MAX {
            pair.peer.refresh_traffic_keys().unwrap();
        }
        pair.peer_flush();
        assert_eq!(pair.deliver().unwrap(), b"");
        let mut out = Vec::new();
        pair.ours.write_tls(&mut out);
        assert!(out.is_empty(), "it precedes the next data");
        pair.ours.write(b"data", &mut out).unwrap();
        let key_update = HEADER + KEY_UPDATE.len() + 1 + 1 + TAG;
        assert_eq!(out.len(), key_update + HEADER + b"data".len() + 1 + TAG, "one KeyUpdate, and the data");
        assert_eq!(pair.peer_receive(&out).unwrap(), b"data");
        pair.exchange_data();
    }
}

#[test]
fn a_closed_connection_answers_no_key_update() {
    let mut pair = RustlsPair::server(SUITES[0]).detached();
    pair.ours.send_close_notify();
    pair.peer.refresh_traffic_keys().unwrap();
    pair.peer_send(b"more of a request");
    assert_eq!(pair.deliver().unwrap(), b"more of a request");
    let mut out = Vec::new();
    pair.ours.write_tls(&mut out);
    assert_eq!(out.len(), HEADER + 2 + 1 + TAG, "close_notify alone");
    assert!(pair.ours.write(b"after it", &mut out).is_err());
    assert_eq!(out.len(), HEADER + 2 + 1 + TAG);
}

#[test]
fn plaintext_replayed_or_reordered_records_are_rejected() {
    // Plaintext records of the handshake: alert, message, ChangeCipherSpec.
    for record in [[21, 3, 3, 0, 2, 1, 0], [22, 3, 3, 0, 2, 1, 0], [20, 3, 3, 0, 2, 1, 0]] {
        let mut pair = RustlsPair::server(SUITES[0]).detached();
        pair.sent.extend(record);
        pair.assert_fails(RecordError::Unexpected(record[0]), Some(10));
    }
    for plaintext in [
        vec![23, 3, 3, 0, 0],
        vec![23, 3, 3, 0, 2, b'h', b'i'],
        [&[23, 3, 3, 0, 40], [0; 40].as_slice()].concat(),
    ] {
        let mut pair = RustlsPair::server(SUITES[0]).detached();
        pair.sent.extend(plaintext);
        pair.assert_fails(RecordError::Decrypt, Some(20));
    }
    let mut replayed = RustlsPair::server(SUITES[0]).detached();
    replayed.peer_send(b"once");
    replayed.sent.extend(replayed.sent.clone());
    replayed.assert_fails(RecordError::Decrypt, Some(20));

    let mut reordered = RustlsPair::server(SUITES[0]).detached();
    reordered.peer_send(b"first");
    reordered.sent.clear();
    reordered.peer_send(b"second");
    reordered.assert_fails(RecordError::Decrypt, Some(20));

    let mut reflected = RustlsPair::server(SUITES[0]).detached();
    let mut ours = Vec::new();
    reflected.ours.write(b"ours", &mut ours).unwrap();
    reflected.sent = ours;
    reflected.assert_fails_without_alert(RecordError::Decrypt);
}

#[test]
fn data_within_a_handshake_message_is_rejected() {
    let mut pair = RustlsPair::server(SUITES[0]).detached();
    pair.forge(HANDSHAKE, &[24, 0]);
    pair.deliver().unwrap();
    pair.forge(APPLICATION_DATA, b"data");
    pair.assert_fails(RecordError::Unexpected(APPLICATION_DATA), Some(10));
}

#[test]
fn too_many_empty_records_end_the_connection() {
    for (kind, content) in [
        (APPLICATION_DATA, [].as_slice()),
        (ALERT, &[WARNING, USER_CANCELED]),
        (HANDSHAKE, &[24, 0, 0, 1, 1]),
    ] {
        let mut pair = RustlsPair::server(SUITES[0]).detached();
        for _ in 0..EMPTY_RECORDS_MAX {
            pair.forge(kind, content);
            pair.deliver().unwrap();
        }
        assert!(pair.record_layer().pending.is_empty(), "the peer gets no answer");
        pair.forge(kind, content);
        pair.assert_fails(RecordError::TooManyEmptyRecords, Some(10));
    }
}

#[test]
fn an_idle_connection_holds_no_buffer() {
    let mut pair = RustlsPair::server(SUITES[0]).detached();
    pair.peer_send(&data(FRAGMENT_MAX));
    pair.deliver().unwrap();
    pair.peer.refresh_traffic_keys().unwrap();
    pair.peer_flush();
    pair.deliver().unwrap();
    pair.flush();
    pair.ours.shrink_buffers();
    let records = pair.record_layer();
    assert_eq!((records.record.capacity(), records.pending.capacity()), (0, 0));
    pair.exchange_data();
}

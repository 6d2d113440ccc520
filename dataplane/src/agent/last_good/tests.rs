//! A file is taken whole or not at all: every way it can be wrong is told apart and gives nothing.

use std::sync::Arc;

use model::{Id, Kind, Versioned};
use pki::mint::{Authority, AuthoritySpec};
use serde_json::json;

use super::*;

fn key() -> pki::PrivateKey {
    pki::PrivateKey::from_pem(&Authority::root(&AuthoritySpec::new("x")).unwrap().key_pem()).unwrap()
}

fn snapshot() -> Snapshot {
    let document = json!({"type": "roundrobin", "nodes": {"10.0.0.1:80": 1}});
    let resources = (1..=3).map(|nth| {
        let id = Id::parse(&nth.to_string()).unwrap();
        let resource = model::check(Kind::Upstream, &id, &document, &pki::Keyring::none()).unwrap();
        Versioned { revision: nth, resource }
    });
    Snapshot::from_resources(9, resources)
}

fn to_save() -> ToSave {
    let secret = model::TicketSecret::new(7, Zeroizing::new([5; 32]));
    let tickets = Some(Arc::new(TicketRing { lifetime: 60, secrets: vec![secret] }));
    ToSave { store: "store".to_owned(), snapshot: Arc::new(snapshot()), tickets }
}

fn file(folder: &tempfile::TempDir, key: &pki::PrivateKey) -> File {
    File::new(folder.path().join("last_good"), key)
}

/// Reads the file after its bytes were changed.
fn read_changed(change: impl FnOnce(&mut Vec<u8>)) -> Result<Option<Saved>, LastGoodError> {
    let folder = tempfile::tempdir().unwrap();
    let file = file(&folder, &key());
    let mut bytes = file.seal(&to_save()).unwrap();
    change(&mut bytes);
    fs::write(file.path(), bytes).unwrap();
    file.read()
}

#[test]
fn what_was_saved_comes_back() {
    let saved = read_changed(|_| {}).unwrap().unwrap();
    assert_eq!(saved.store, "store");
    assert_eq!(saved.snapshot.revision(), 9);
    assert!(saved.snapshot.resources().eq(snapshot().resources()));
    let ring = saved.tickets.unwrap();
    assert_eq!((ring.lifetime, ring.secrets.len()), (60, 1));
    assert_eq!((ring.secrets[0].from(), ring.secrets[0].expose()), (7, &[5; 32]));
}

#[test]
fn a_file_from_before_there_were_tickets_is_read() {
    use proto::push::Welcome;
    let item = ToSave { tickets: None, ..to_save() };
    let with = encode(&item);
    // What stood there then, byte for byte.
    let whose = Welcome { store: "store".into(), version: env!("CARGO_PKG_VERSION").into(), revision: 9 };
    assert!(with.starts_with(&whose.encode_length_delimited_to_vec()));
    assert!(decode(&with).unwrap().tickets.is_none());
}

#[test]
fn no_file_is_no_error() {
    let folder = tempfile::tempdir().unwrap();
    assert!(file(&folder, &key()).read().unwrap().is_none());
}

#[test]
fn a_flipped_bit_anywhere_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let length = file(&folder, &key()).seal(&to_save()).unwrap().len();
    for at in 0..length {
        assert!(read_changed(|bytes| bytes[at] ^= 1).is_err(), "byte {at}");
    }
}

#[test]
fn a_file_cut_short_anywhere_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let length = file(&folder, &key()).seal(&to_save()).unwrap().len();
    for at in 0..length {
        assert!(read_changed(|bytes| bytes.truncate(at)).is_err(), "cut to {at}");
    }
}

#[test]
fn each_kind_of_wrong_file_has_its_words() {
    let told = |change: fn(&mut Vec<u8>)| read_changed(change).unwrap_err().to_string();
    assert!(told(Vec::clear).contains("it is empty"));
    assert!(
        told(|bytes| *bytes = b"hello, this is something else".to_vec()).contains("it starts differently")
    );
    assert!(told(|bytes| bytes.truncate(30)).contains("cut short"));
    assert!(told(|bytes| bytes[MAGIC.len()] = 7).contains("format version 7"));
    assert!(told(|bytes| *bytes.last_mut().unwrap() ^= 1).contains("damaged"));
}

#[test]
fn another_key_does_not_open_it() {
    let folder = tempfile::tempdir().unwrap();
    let writer = file(&folder, &key());
    fs::write(writer.path(), writer.seal(&to_save()).unwrap()).unwrap();
    let told = file(&folder, &key()).read().unwrap_err().to_string();
    assert!(told.contains("another countersign.node.key"), "{told}");
}

#[test]
fn two_writes_of_one_snapshot_differ() {
    let folder = tempfile::tempdir().unwrap();
    let file = file(&folder, &key());
    assert_ne!(file.seal(&to_save()).unwrap(), file.seal(&to_save()).unwrap());
}

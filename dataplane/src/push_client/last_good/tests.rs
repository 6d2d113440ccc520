//! A file is taken whole or not at all: every way it can be wrong is told apart and gives nothing.

use std::sync::Arc;

use model::{Id, Kind, Versioned};
use pki::ca::{Authority, AuthoritySpec};
use serde_json::json;

use super::*;

fn key() -> pki::PrivateKey {
    pki::PrivateKey::from_pem(&Authority::root(&AuthoritySpec::new("x")).unwrap().key_pem()).unwrap()
}

fn snapshot() -> Snapshot {
    let document = json!({"type": "roundrobin", "nodes": {"10.0.0.1:80": 1}});
    let resources = (1..=3).map(|nth| {
        let id = Id::parse(&nth.to_string()).unwrap();
        let resource = model::compile(Kind::Upstream, &id, &document, &pki::Keyring::empty()).unwrap();
        Versioned { version: nth, resource }
    });
    Snapshot::from_resources(9, resources)
}

fn to_save() -> SavedState {
    let secret = model::TicketSecret::new(7, Zeroizing::new([5; 32]));
    let tickets = Some(Arc::new(TicketRing { lifetime: 60, secrets: vec![secret] }));
    SavedState { store: "store".to_owned(), snapshot: Arc::new(snapshot()), tickets, confirmed: 4711 }
}

fn file(folder: &tempfile::TempDir, key: &pki::PrivateKey) -> LastGoodFile {
    LastGoodFile::new(folder.path().join("last_good"), key)
}

/// Reads the file in the way of a new process.
fn read(folder: &tempfile::TempDir, key: &pki::PrivateKey) -> Result<Option<LoadedState>, LastGoodError> {
    file(folder, key).read()
}

fn write(file: &mut LastGoodFile, item: &SavedState) {
    let bytes = file.seal(item).unwrap();
    // A new file each time: the generation before may be another name of the old one.
    let _absent = fs::remove_file(file.path());
    fs::write(file.path(), &bytes).unwrap();
    file.record_written(*bytes.first_chunk().unwrap());
}

/// Reads the file after its bytes were changed.
fn read_changed(change: impl FnOnce(&mut Vec<u8>)) -> Result<Option<LoadedState>, LastGoodError> {
    let folder = tempfile::tempdir().unwrap();
    let mut bytes = file(&folder, &key()).seal(&to_save()).unwrap();
    change(&mut bytes);
    fs::write(file(&folder, &key()).path(), bytes).unwrap();
    read(&folder, &key())
}

/// As a program of format version 1 wrote it: sealed with the node's push key, without the time.
fn write_version_1(folder: &tempfile::TempDir, key: &pki::PrivateKey) {
    let mut header = [&MAGIC[..], &VERSION_NODE_KEY.to_le_bytes(), &[5; SALT], &[6; NONCE_LEN]].concat();
    let sealing = sealing_key(key.der().secret_der(), &[5; SALT], INFO_NODE_KEY).unwrap();
    let mut body = encode(&SavedState { confirmed: 0, ..to_save() });
    sealing
        .seal_in_place_append_tag(
            Nonce::assume_unique_for_key([6; NONCE_LEN]),
            Aad::from(&header),
            &mut *body,
        )
        .unwrap();
    header.extend_from_slice(&body);
    fs::write(folder.path().join("last_good"), header).unwrap();
}

#[test]
fn what_was_saved_comes_back() {
    let saved = read_changed(|_| {}).unwrap().unwrap();
    assert_eq!(saved.store, "store");
    assert_eq!(saved.snapshot.revision(), 9);
    assert!(saved.snapshot.resources().eq(snapshot().resources()));
    let ring = saved.tickets.unwrap();
    assert_eq!((ring.lifetime, ring.secrets.len()), (60, 1));
    assert_eq!((ring.secrets[0].active_from(), ring.secrets[0].expose()), (7, &[5; 32]));
    assert_eq!((saved.confirmed, saved.old_format), (4711, false));
}

#[test]
fn a_file_from_before_there_were_tickets_is_read() {
    use proto::push::Welcome;
    let item = SavedState { tickets: None, confirmed: 0, ..to_save() };
    let with = encode(&item);
    // What stood there then, byte for byte.
    let version = env!("CARGO_PKG_VERSION").into();
    let whose = Welcome { store: "store".into(), version, revision: 9, hold: false, store_state: None };
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
fn a_replaced_node_key_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    write(&mut file(&folder, &key()), &to_save());
    assert_eq!(read(&folder, &key()).unwrap().unwrap().snapshot.revision(), 9);
}

#[test]
fn a_file_of_format_version_1_is_opened_by_the_node_key_alone() {
    let folder = tempfile::tempdir().unwrap();
    let node = key();
    write_version_1(&folder, &node);
    let saved = read(&folder, &node).unwrap().unwrap();
    assert!(saved.old_format && saved.snapshot.revision() == 9);
    let written = fs::metadata(folder.path().join("last_good")).unwrap().modified().unwrap();
    assert_eq!(saved.confirmed, unix_seconds(written));
    let told = read(&folder, &key()).unwrap_err().to_string();
    assert!(told.contains("countersign.node.key"), "{told}");
}

#[test]
fn a_lost_or_foreign_key_has_its_words() {
    let folder = tempfile::tempdir().unwrap();
    write(&mut file(&folder, &key()), &to_save());
    let key_path = key::path_of(&folder.path().join("last_good"));
    fs::write(&key_path, [7; 32]).unwrap();
    let told = read(&folder, &key()).unwrap_err().to_string();
    assert!(told.contains("another key") && told.contains("last_good.key"), "{told}");
    fs::remove_file(&key_path).unwrap();
    let told = read(&folder, &key()).unwrap_err().to_string();
    assert!(told.contains("there is none in") && told.contains("last_good.key"), "{told}");
    // The next write makes a key, and the file is read again.
    write(&mut file(&folder, &key()), &to_save());
    assert!(read(&folder, &key()).unwrap().is_some());
}

#[test]
fn a_key_that_was_made_before_a_crash_seals_the_next_file() {
    let folder = tempfile::tempdir().unwrap();
    // The process ended between the key and the file.
    file(&folder, &key()).seal(&to_save()).unwrap();
    assert!(read(&folder, &key()).unwrap().is_none());
    write(&mut file(&folder, &key()), &to_save());
    assert!(read(&folder, &key()).unwrap().is_some());
}

#[test]
fn the_time_of_confirmation_belongs_to_the_very_file() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = file(&folder, &key());
    write(&mut writer, &to_save());
    writer.keep_as_previous().unwrap();
    write(&mut writer, &SavedState { confirmed: 5000, ..to_save() });
    writer.write_confirmation(UNIX_EPOCH + std::time::Duration::from_secs(6000)).unwrap();
    assert_eq!(read(&folder, &key()).unwrap().unwrap().confirmed, 6000);
    fs::copy(writer.previous(), writer.path()).unwrap();
    assert_eq!(read(&folder, &key()).unwrap().unwrap().confirmed, 4711, "the generation before is older");
}

#[test]
fn two_writes_of_one_snapshot_differ() {
    let folder = tempfile::tempdir().unwrap();
    let mut file = file(&folder, &key());
    assert_ne!(file.seal(&to_save()).unwrap(), file.seal(&to_save()).unwrap());
}

#[test]
fn a_fifo_in_the_place_of_a_file_is_not_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let key = key();
    let mut writer = file(&folder, &key);
    write(&mut writer, &to_save());
    for ending in [CONFIRMED, HELD] {
        let path = sibling(writer.path(), ending);
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(read(&folder, &key).unwrap().unwrap().confirmed, 4711);
    }
    assert!(writer.read_held_stores().is_empty());
    fs::remove_file(writer.path()).unwrap();
    nix::unistd::mkfifo(writer.path(), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let problem = read(&folder, &key).unwrap_err().to_string();
    assert!(problem.contains("a FIFO"), "{problem}");
    assert!(writer.keep_as_previous().is_err());
}

#[test]
fn what_is_written_after_the_key_was_lost_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let key = key();
    let mut writer = file(&folder, &key);
    write(&mut writer, &to_save());
    fs::remove_file(key::path_of(writer.path())).unwrap();
    writer.write_confirmation(UNIX_EPOCH + std::time::Duration::from_secs(5000)).unwrap();
    assert_eq!(read(&folder, &key).unwrap().unwrap().confirmed, 5000);
    fs::remove_file(key::path_of(writer.path())).unwrap();
    write(&mut writer, &to_save());
    assert!(read(&folder, &key).unwrap().is_some());
}

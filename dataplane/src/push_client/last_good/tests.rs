//! A file is read whole or not at all: each way to be invalid has an error of its own.

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

fn state() -> SavedState {
    let secret = model::TicketSecret::new(7, Zeroizing::new([5; 32]));
    let tickets = Some(Arc::new(TicketRing { lifetime: 60, secrets: vec![secret] }));
    SavedState { store: "store".to_owned(), snapshot: Arc::new(snapshot()), tickets, confirmed_at: 4711 }
}

fn file(folder: &tempfile::TempDir, key: &pki::PrivateKey) -> LastGoodFile {
    LastGoodFile::new(folder.path().join("last_good"), key)
}

/// Reads the file as a new process does.
fn read(folder: &tempfile::TempDir, key: &pki::PrivateKey) -> Result<Option<LoadedState>, LastGoodError> {
    file(folder, key).read()
}

fn write(file: &mut LastGoodFile, state: &SavedState) {
    let bytes = file.seal(state).unwrap();
    // A new file each time, since the generation before may be a hard link to the old one.
    let _absent = fs::remove_file(file.path());
    fs::write(file.path(), &bytes).unwrap();
    file.record_written(*bytes.first_chunk().unwrap());
}

/// Reads a file whose bytes `change` has altered.
fn read_changed(change: impl FnOnce(&mut Vec<u8>)) -> Result<Option<LoadedState>, LastGoodError> {
    let folder = tempfile::tempdir().unwrap();
    let mut bytes = file(&folder, &key()).seal(&state()).unwrap();
    change(&mut bytes);
    fs::write(file(&folder, &key()).path(), bytes).unwrap();
    read(&folder, &key())
}

/// Writes a file of format version 1: sealed with the node's push key, without a time.
fn write_version_1(folder: &tempfile::TempDir, key: &pki::PrivateKey) {
    let mut header =
        [&MAGIC[..], &FORMAT_VERSION_1.to_le_bytes(), &[5; SALT_BYTES], &[6; NONCE_LEN]].concat();
    let sealing_key = sealing_key(key.der().secret_der(), &[5; SALT_BYTES], HKDF_INFO_VERSION_1).unwrap();
    let mut body = encode(&SavedState { confirmed_at: 0, ..state() });
    sealing_key
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
fn a_sealed_state_is_read_back() {
    let LoadedState { state: saved, old_format } = read_changed(|_| {}).unwrap().unwrap();
    assert_eq!(saved.store, "store");
    assert_eq!(saved.snapshot.revision(), 9);
    assert!(saved.snapshot.resources().eq(snapshot().resources()));
    let ring = saved.tickets.unwrap();
    assert_eq!((ring.lifetime, ring.secrets.len()), (60, 1));
    assert_eq!((ring.secrets[0].active_from(), ring.secrets[0].expose()), (7, &[5; 32]));
    assert_eq!((saved.confirmed_at, old_format), (4711, false));
}

#[test]
fn a_file_without_tickets_is_read() {
    use proto::push::Welcome;
    let encoded = encode(&SavedState { tickets: None, confirmed_at: 0, ..state() });
    // Files of the first version have a Welcome here, which is the same byte for byte.
    let version = env!("CARGO_PKG_VERSION").into();
    let head = Welcome { store: "store".into(), version, revision: 9, hold: false, store_state: None };
    assert!(encoded.starts_with(&head.encode_length_delimited_to_vec()));
    assert!(decode(&encoded).unwrap().tickets.is_none());
}

#[test]
fn no_file_is_no_error() {
    let folder = tempfile::tempdir().unwrap();
    assert!(file(&folder, &key()).read().unwrap().is_none());
}

#[test]
fn a_flipped_bit_anywhere_is_detected() {
    let folder = tempfile::tempdir().unwrap();
    let length = file(&folder, &key()).seal(&state()).unwrap().len();
    for at in 0..length {
        assert!(read_changed(|bytes| bytes[at] ^= 1).is_err(), "byte {at}");
    }
}

#[test]
fn a_file_cut_short_anywhere_is_detected() {
    let folder = tempfile::tempdir().unwrap();
    let length = file(&folder, &key()).seal(&state()).unwrap().len();
    for at in 0..length {
        assert!(read_changed(|bytes| bytes.truncate(at)).is_err(), "cut to {at}");
    }
}

#[test]
fn each_kind_of_invalid_file_has_its_message() {
    let message = |change: fn(&mut Vec<u8>)| read_changed(change).unwrap_err().to_string();
    assert!(message(Vec::clear).contains("it is empty"));
    assert!(
        message(|bytes| *bytes = b"hello, this is something else".to_vec()).contains("it starts differently")
    );
    assert!(message(|bytes| bytes.truncate(30)).contains("cut short"));
    assert!(message(|bytes| bytes[MAGIC.len()] = 7).contains("format version 7"));
    assert!(message(|bytes| *bytes.last_mut().unwrap() ^= 1).contains("damaged"));
}

#[test]
fn a_replaced_node_key_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    write(&mut file(&folder, &key()), &state());
    assert_eq!(read(&folder, &key()).unwrap().unwrap().state.snapshot.revision(), 9);
}

#[test]
fn format_version_1_is_opened_with_the_node_key_alone() {
    let folder = tempfile::tempdir().unwrap();
    let node = key();
    write_version_1(&folder, &node);
    let loaded = read(&folder, &node).unwrap().unwrap();
    assert!(loaded.old_format && loaded.state.snapshot.revision() == 9);
    let written = fs::metadata(folder.path().join("last_good")).unwrap().modified().unwrap();
    assert_eq!(loaded.state.confirmed_at, unix_seconds(written));
    let message = read(&folder, &key()).unwrap_err().to_string();
    assert!(message.contains("countersign.node.key"), "{message}");
}

#[test]
fn a_lost_or_other_key_has_its_message() {
    let folder = tempfile::tempdir().unwrap();
    write(&mut file(&folder, &key()), &state());
    let key_path = key::path_of(&folder.path().join("last_good"));
    fs::write(&key_path, [7; 32]).unwrap();
    let message = read(&folder, &key()).unwrap_err().to_string();
    assert!(message.contains("another key") && message.contains("last_good.key"), "{message}");
    fs::remove_file(&key_path).unwrap();
    let message = read(&folder, &key()).unwrap_err().to_string();
    assert!(message.contains("there is none in") && message.contains("last_good.key"), "{message}");
    // The next write creates a key.
    write(&mut file(&folder, &key()), &state());
    assert!(read(&folder, &key()).unwrap().is_some());
}

#[test]
fn a_key_created_before_a_crash_seals_the_next_file() {
    let folder = tempfile::tempdir().unwrap();
    // The process ended after it wrote the key and before it wrote the file.
    file(&folder, &key()).seal(&state()).unwrap();
    assert!(read(&folder, &key()).unwrap().is_none());
    write(&mut file(&folder, &key()), &state());
    assert!(read(&folder, &key()).unwrap().is_some());
}

#[test]
fn the_confirmation_belongs_to_one_generation() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = file(&folder, &key());
    write(&mut writer, &state());
    writer.keep_as_previous().unwrap();
    write(&mut writer, &SavedState { confirmed_at: 5000, ..state() });
    writer.write_confirmation(UNIX_EPOCH + std::time::Duration::from_secs(6000)).unwrap();
    assert_eq!(read(&folder, &key()).unwrap().unwrap().state.confirmed_at, 6000);
    fs::copy(writer.previous(), writer.path()).unwrap();
    assert_eq!(
        read(&folder, &key()).unwrap().unwrap().state.confirmed_at,
        4711,
        "the generation before is older"
    );
}

#[test]
fn two_writes_of_one_state_differ() {
    let folder = tempfile::tempdir().unwrap();
    let mut file = file(&folder, &key());
    assert_ne!(file.seal(&state()).unwrap(), file.seal(&state()).unwrap());
}

#[test]
fn a_fifo_in_the_place_of_a_file_does_not_block() {
    let folder = tempfile::tempdir().unwrap();
    let key = key();
    let mut writer = file(&folder, &key);
    write(&mut writer, &state());
    for suffix in [CONFIRMATION, HELD_STORES] {
        let path = sibling(writer.path(), suffix);
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(read(&folder, &key).unwrap().unwrap().state.confirmed_at, 4711);
    }
    assert!(writer.read_held_stores().is_empty());
    fs::remove_file(writer.path()).unwrap();
    nix::unistd::mkfifo(writer.path(), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let problem = read(&folder, &key).unwrap_err().to_string();
    assert!(problem.contains("a FIFO"), "{problem}");
    assert!(writer.keep_as_previous().is_err());
}

#[test]
fn a_file_written_after_the_key_was_lost_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let key = key();
    let mut writer = file(&folder, &key);
    write(&mut writer, &state());
    fs::remove_file(key::path_of(writer.path())).unwrap();
    writer.write_confirmation(UNIX_EPOCH + std::time::Duration::from_secs(5000)).unwrap();
    assert_eq!(read(&folder, &key).unwrap().unwrap().state.confirmed_at, 5000);
    fs::remove_file(key::path_of(writer.path())).unwrap();
    write(&mut writer, &state());
    assert!(read(&folder, &key).unwrap().is_some());
}

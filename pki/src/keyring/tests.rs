use std::io::Write as _;
use std::process::{Command, Stdio};

use data_encoding::HEXLOWER;
use proptest::prelude::*;

use super::*;
use crate::ca::{Authority, AuthoritySpec, LeafSpec};

const KEY_16: &str = "qeddd145sfvddff3";
const OLD_16: &str = "edd1c9f0985e76a2";
const KEY_32: &str = "0123456789abcdefFEDCBA9876543210";
const TEXT: &str = "---short text of a key---";

fn ring(entries: &[&str]) -> Keyring {
    Keyring::new(entries.iter().map(|entry| (*entry).to_owned()).collect()).unwrap()
}

/// Encrypts with the openssl command line: the key, and as IV its first 16 bytes. A missing openssl
/// fails the test.
fn openssl_encrypts(cipher: &str, key: &str, text: &str) -> String {
    let mut child = Command::new("openssl")
        .args([
            "enc",
            cipher,
            "-A",
            "-base64",
            "-K",
            &HEXLOWER.encode(key.as_bytes()),
            "-iv",
            &HEXLOWER.encode(&key.as_bytes()[..16]),
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the openssl command line is needed for this test");
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn openssl_encrypts_to_the_same_bytes() {
    let root = Authority::root(&AuthoritySpec::new("Root")).unwrap();
    let pem = root.issue(&LeafSpec::client("a")).unwrap().key_pem;
    for text in [TEXT, pem.as_str(), "---", "---exactly 16 ---"] {
        for (cipher, key) in [("-aes-128-cbc", KEY_16), ("-aes-256-cbc", KEY_32)] {
            let sealed = ring(&[key]).seal(text);
            assert_eq!(sealed, openssl_encrypts(cipher, key, text), "{cipher}");
            assert_eq!(ring(&[key]).open(&sealed).unwrap().as_str(), text);
        }
    }
}

/// Computed once with `openssl enc`: independent of an installed openssl.
#[test]
fn fixed_ciphertexts() {
    let fixed = [
        (KEY_16, "bZNitlEMOcqOCBAsUTQYiEEDkoAaUMMl50ptvqgJQSw="),
        (KEY_32, "omguADkTWLjMLSQzvT0tbLbvUmZxG0+5t5fZPi1aPAI="),
    ];
    for (key, sealed) in fixed {
        assert_eq!(ring(&[key]).seal(TEXT), sealed);
        assert_eq!(ring(&[key]).open(sealed).unwrap().as_str(), TEXT);
    }
}

#[test]
fn the_first_key_encrypts_and_all_decrypt() {
    let sealed_by_old = ring(&[OLD_16]).seal(TEXT);
    let rotated = ring(&[KEY_32, KEY_16, OLD_16]);
    assert_eq!(rotated.open(&sealed_by_old).unwrap().as_str(), TEXT);
    assert_eq!(rotated.seal(TEXT), ring(&[KEY_32]).seal(TEXT));
    assert_eq!(ring(&[KEY_16]).open(&sealed_by_old), Err(KeyringError::Decrypt));
}

/// Among 4,000 texts encrypted with another key about 16 pass the padding check: the `---` rule
/// must reject all of them.
#[test]
fn a_wrong_key_that_passes_the_padding_check_fails() {
    let (wrong, right) = (ring(&[KEY_16]), ring(&[OLD_16]));
    let both = ring(&[KEY_16, OLD_16]);
    let mut passed_padding = 0;
    for number in 0..4_000 {
        let text = format!("---{number}");
        let sealed = right.seal(&text);
        let bytes = STANDARD.decode(&sealed).unwrap();
        let mut buffer = bytes.clone();
        let key: &[u8; 16] = KEY_16.as_bytes().try_into().unwrap();
        let padding =
            cbc::Decryptor::<Aes128>::new(key.into(), key.into()).decrypt_padded::<Pkcs7>(&mut buffer);
        passed_padding += usize::from(padding.is_ok());
        assert_eq!(wrong.open(&sealed), Err(KeyringError::Decrypt));
        assert_eq!(both.open(&sealed).unwrap().as_str(), text);
    }
    assert!(passed_padding > 0, "the case this test is about occurred");
}

#[test]
fn text_without_pem_prefix_is_unchanged() {
    let ring = ring(&[KEY_16]);
    assert_eq!(ring.seal("$env://KEY"), "$env://KEY");
    let sealed = ring.seal(TEXT);
    assert_eq!(ring.seal(&sealed), sealed, "sealing twice is sealing once");
    assert_eq!(ring.open(TEXT).unwrap().as_str(), TEXT, "clear text in the store is read");
    assert_eq!(ring.open("not base64!"), Err(KeyringError::Base64));
    assert_eq!(ring.open("AAEC"), Err(KeyringError::Decrypt), "not whole blocks");
    assert_eq!(ring.open(""), Err(KeyringError::Decrypt));
}

#[test]
fn an_empty_keyring_changes_nothing() {
    let none = Keyring::empty();
    assert_eq!(none.seal(TEXT), TEXT);
    assert_eq!(none.open("anything").unwrap().as_str(), "anything");
}

#[test]
fn keyring_entries_of_other_lengths_are_rejected() {
    let result = Keyring::new(vec![KEY_16.to_owned(), "short".to_owned()]);
    assert_eq!(result.unwrap_err(), KeyringError::Length { position: 2, found: 5 });
    assert_eq!(format!("{:?}", ring(&[KEY_16])), "Keyring(1 entries, not shown)");
}

proptest! {
    #[test]
    fn encrypted_text_decrypts(text in "---(?s).{0,200}", long in any::<bool>()) {
        let ring = ring(&[if long { KEY_32 } else { KEY_16 }]);
        let sealed = ring.seal(&text);
        prop_assert!(!sealed.starts_with("---"));
        let opened = ring.open(&sealed).unwrap();
        prop_assert_eq!(opened.as_str(), text.as_str());
    }

    #[test]
    fn any_stored_text_terminates(text in "(?s).{0,100}") {
        let _ = ring(&[KEY_16, KEY_32]).open(&text);
    }
}

use std::sync::Arc;

use proptest::prelude::*;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::server::Acceptor;
use rustls::{ClientConfig, ClientConnection, RootCertStore};

use super::*;

/// A ClientHello of rustls, with its post-quantum key share of more than a kilobyte.
fn rustls_hello(name: &'static str) -> Vec<u8> {
    let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    let mut client = ClientConnection::new(Arc::new(config), name.try_into().unwrap()).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}

fn with_u16_length(bytes: &[u8]) -> Vec<u8> {
    [&u16::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat()
}

fn extension(kind: u16, data: &[u8]) -> Vec<u8> {
    [&kind.to_be_bytes()[..], &with_u16_length(data)].concat()
}

/// The extension with these names, each with its type.
fn names(entries: &[(u8, &str)]) -> Vec<u8> {
    let entry = |(kind, name): &(u8, &str)| [&[*kind][..], &with_u16_length(name.as_bytes())].concat();
    extension(SERVER_NAME, &with_u16_length(&entries.iter().map(entry).collect::<Vec<_>>().concat()))
}

/// The body of a ClientHello with these extensions; `None`: it ends before them.
fn body(extensions: Option<&[Vec<u8>]>) -> Vec<u8> {
    let mut body = [&[3, 3][..], &[7; 32], &[0], &[0, 2, 0x13, 0x01], &[1, 0]].concat();
    if let Some(extensions) = extensions {
        body.extend(with_u16_length(&extensions.concat()));
    }
    body
}

fn message(body: &[u8]) -> Vec<u8> {
    let [_, high, middle, low] = u32::try_from(body.len()).unwrap().to_be_bytes();
    [&[CLIENT_HELLO, high, middle, low], body].concat()
}

/// The message in records of `fragment` bytes.
fn records(message: &[u8], fragment: usize) -> Vec<u8> {
    let record = |part: &[u8]| [&[HANDSHAKE_RECORD, 3, 1][..], &with_u16_length(part)].concat();
    message.chunks(fragment).map(record).collect::<Vec<_>>().concat()
}

fn hello_with(extensions: &[Vec<u8>]) -> Vec<u8> {
    records(&message(&body(Some(extensions))), FRAGMENT_MAX)
}

/// The outcome of bytes that arrive in pieces: `None` while the ClientHello is incomplete.
fn read_in_pieces(bytes: &[u8], piece: usize) -> Result<Option<Option<String>>, String> {
    let mut partial = PartialHello::default();
    for piece in bytes.chunks(piece) {
        if let Some(name) = partial.push(piece).map_err(|error| error.to_string())? {
            return Ok(Some(name.map(|name| name.to_string())));
        }
    }
    Ok(None)
}

/// The outcome, which must be the same however the bytes arrive.
fn read_all(bytes: &[u8]) -> Result<Option<Option<String>>, String> {
    let whole = read_in_pieces(bytes, usize::MAX);
    for piece in [1, 2, 5, 100] {
        assert_eq!(read_in_pieces(bytes, piece), whole, "{piece} bytes at a time");
    }
    whole
}

fn name(bytes: &[u8]) -> Option<String> {
    read_all(bytes).unwrap().expect("a complete ClientHello")
}

#[test]
fn a_clients_name_is_read_however_it_arrives() {
    let hello = rustls_hello("www.example.com");
    assert!(hello.len() > 1_200, "without a post-quantum share: {} bytes", hello.len());
    assert_eq!(name(&hello).as_deref(), Some("www.example.com"));
    for length in 0..hello.len() {
        assert_eq!(read_in_pieces(&hello[..length], usize::MAX), Ok(None), "{length}");
    }
    // Several records, down to one byte each, and the client's next bytes behind them.
    let message = &hello[RECORD_HEADER..];
    for fragment in [1, 3, 4, 5, 600] {
        let bytes = [records(message, fragment), b"\x17\x03\x03early data".to_vec()].concat();
        assert_eq!(name(&bytes).as_deref(), Some("www.example.com"), "{fragment}");
    }
}

#[test]
fn names_are_normalised_and_may_be_absent() {
    let grease = extension(0x3a3a, &[]);
    let ech = extension(0xfe0d, &[0; 200]);
    let sni = |sni: &str| name(&hello_with(&[grease.clone(), names(&[(HOST_NAME, sni)]), ech.clone()]));
    assert_eq!(sni("WWW.Example.com").as_deref(), Some("www.example.com"));
    assert_eq!(sni("www.example.com.").as_deref(), Some("www.example.com"));
    // As in rustls: no address is a name.
    assert_eq!(sni("192.0.2.1"), None);
    assert_eq!(sni("2001:db8::1"), None);
    assert_eq!(name(&hello_with(&[grease])), None);
    assert_eq!(name(&hello_with(&[])), None);
    let oldest = records(&message(&body(None)), FRAGMENT_MAX);
    assert_eq!(name(&oldest), None);
}

#[test]
fn a_hello_with_two_readings_is_rejected() {
    let (one, two) = (names(&[(HOST_NAME, "a.com")]), names(&[(HOST_NAME, "b.com")]));
    let list = |entries: &[u8]| extension(SERVER_NAME, entries);
    for (hello, expected) in [
        (hello_with(&[one.clone(), two.clone()]), "exactly one"),
        (hello_with(&[one.clone(), one.clone()]), "exactly one"),
        (hello_with(&[names(&[(HOST_NAME, "a.com"), (HOST_NAME, "b.com")])]), "exactly one"),
        (hello_with(&[names(&[(1, "a.com")])]), "exactly one"),
        (hello_with(&[names(&[(1, "a.com"), (HOST_NAME, "b.com")])]), "exactly one"),
        (hello_with(&[names(&[])]), "malformed"),
        (hello_with(&[list(&[])]), "malformed"),
        // Bytes behind the list, behind the name, behind the extensions.
        (hello_with(&[list(b"\0\x08\0\0\x05a.com!")]), "malformed"),
        (hello_with(&[list(b"\0\x09\0\0\x05a.com!")]), "exactly one"),
        (hello_with(&[list(b"\0\x08\0\0\x06a.com")]), "malformed"),
        (records(&message(&[body(Some(std::slice::from_ref(&one))), vec![0]].concat()), 600), "malformed"),
        (hello_with(&[names(&[(HOST_NAME, "")])]), "no host name"),
        (hello_with(&[names(&[(HOST_NAME, "a..com")])]), "no host name"),
        (hello_with(&[names(&[(HOST_NAME, "a.com\0.b.com")])]), "no host name"),
        (hello_with(&[names(&[(HOST_NAME, "*.a.com")])]), "no host name"),
        (hello_with(&[names(&[(HOST_NAME, "b\u{fc}cher.example")])]), "no host name"),
    ] {
        let error = read_all(&hello).unwrap_err();
        assert!(error.contains(expected), "{hello:?}: {error}");
    }
}

/// The name that rustls reads; `None`: it reads no ClientHello.
fn rustls_name(bytes: &[u8]) -> Option<Option<String>> {
    let (mut acceptor, mut rest) = (Acceptor::default(), bytes);
    while !rest.is_empty() {
        acceptor.read_tls(&mut rest).ok()?;
        if let Some(accepted) = acceptor.accept().ok()? {
            return Some(accepted.client_hello().server_name().map(str::to_owned));
        }
    }
    None
}

/// The site of a connection goes by rustls' name, its route by ours. A changed byte may make
/// another name, but never two.
#[test]
fn rustls_reads_the_same_name() {
    let hello = hello_with(&[
        extension(0x0a, &[0, 2, 0, 0x1d]),
        extension(0x0d, &[0, 2, 4, 3]),
        names(&[(HOST_NAME, "www.example.com")]),
        extension(0x2b, &[2, 3, 4]),
        extension(0x33, &[&[0, 36, 0, 0x1d, 0, 32][..], &[9; 32]].concat()),
    ]);
    let mut both = 0;
    for index in 0..hello.len() {
        for byte in [0, 1, 2, 3, 5, b'.', b'b', 0x7f, 0xff] {
            let mut changed = hello.clone();
            changed[index] = byte;
            if let (Ok(Some(ours)), Some(theirs)) =
                (read_in_pieces(&changed, usize::MAX), rustls_name(&changed))
            {
                both += 1;
                assert_eq!(ours, theirs.map(|name| name.to_ascii_lowercase()), "{index} {byte}");
            }
        }
    }
    assert!(both > 500, "rustls reads few of them: {both}");
}

#[test]
fn other_bytes_are_rejected_at_once() {
    for (bytes, expected) in [
        (&b"GET / HTTP/1.1\r\n"[..], "plain HTTP"),
        (b"\x80\x2e\x01\x03\x01", "does not speak TLS"),
        (b"\x15\x03\x01\0\x02\x02\x28", "does not speak TLS"),
        (b"\x16\x02\0\0\x05", "does not speak TLS"),
        (b"\x16\x03\x01\0\0", "malformed"),
        (b"\x16\x03\x01\x40\x01", "malformed"),
        (b"\x16\x03\x01\0\x04\x02\0\0\0", "no ClientHello"),
        (b"\x16\x03\x01\0\x04\x01\x01\0\x01", "longer than"),
        // Another record before the ClientHello is complete.
        (b"\x16\x03\x01\0\x04\x01\0\0\x40\x17\x03\x03\0\x01", "does not speak TLS"),
        (b"\x16\x03\x01\0\x05\x01\0\0\x01\x03", "malformed"),
    ] {
        let error = read_all(bytes).unwrap_err();
        assert!(error.contains(expected), "{bytes:?}: {error}");
    }
}

#[test]
fn the_headers_of_records_count_against_the_bound() {
    // A third of the bound, in records of one byte each, and of several.
    let large =
        message(&body(Some(&[extension(21, &vec![0; BYTES_MAX / 3]), names(&[(HOST_NAME, "a.com")])])));
    assert_eq!(name(&records(&large, 1000)).as_deref(), Some("a.com"));
    assert!(read_all(&records(&large, 1)).unwrap_err().contains("longer than"));
}

proptest! {
    /// The outcome does not depend on how the bytes arrive, and no input panics.
    #[test]
    fn pieces_do_not_matter(at in 0_usize..120, byte: u8, cut in 0_usize..200, fragment in 1_usize..80) {
        let mut message = message(&body(Some(&[names(&[(HOST_NAME, "a.example")]), extension(16, &[1])])));
        let index = at % message.len();
        message[index] = byte;
        let mut bytes = records(&message, fragment);
        bytes.truncate(cut.max(1));
        let _outcome = read_all(&bytes);
    }
}

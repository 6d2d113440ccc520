//! Creates the first inputs of every target in `corpus/`. The fuzzer mutates them; nothing is
//! checked in.

// This program is instrumented like the targets, and libFuzzer provides the counters.
use std::path::Path;
use std::sync::Arc;
use std::{fs, io};

use libfuzzer_sys as _;
use pki::ca::{Authority, AuthoritySpec, CrlSpec, IssueError, KeyAlgorithm, LeafSpec};
use rustls::crypto::aws_lc_rs::{default_provider, kx_group};
use rustls::{ClientConfig, ClientConnection, RootCertStore};

const PATHS: [&str; 10] = [
    "/a/b\nexample.com",
    "//a/./b/../c\nEXAMPLE.com.",
    "/%61/%2e%2e/b%2Fc\nexample.com:8443",
    "/a;x=1/b?q=/../c\n[::1]:80",
    "https://example.com/a\nexample.com",
    "/%ff/%c3%a9/\u{e9}\nxn--bcher-kva.example",
    "*\n127.0.0.1",
    "/..\na.b",
    "/%00\na",
    "/%2541\n*.example.com",
];

const DOCUMENTS: [&str; 4] = [
    "{\"cert\": \"-----BEGIN X-----\r\nAA==\n\", \"snis\": [\"a\\u0000\\n\"], \"a\": {\"b\": null}}",
    "[\"\\\\\n\", \"\\\"\t\", 1e9, -0.5, true, \"\u{e9}\"]",
    "{\"a\": 1, \"\\u0061\": 2}",
    "\"\u{0}\u{1f}\"\n",
];

/// Data, tickets and KeyUpdates around the event at which ours leaves rustls: suite and side, that
/// event, and the events.
const SCRIPTS: [&[u8]; 8] = [
    &[0, 1, 0, 4, 10, 4, 2, 0, 1, 0, 4, 10, 4, 11],
    &[3, 2, 2, 2, 1, 0, 4, 3, 10, 5, 2, 3, 1, 2, 0, 0, 10, 4, 0, 4],
    &[4, 0, 3, 0, 6, 2, 1, 1, 2, 1, 1, 10, 7, 0, 4, 4, 0, 0, 0],
    &[5, 1, 0, 1, 7, 1, 8, 0, 4, 7, 0, 2, 10, 9, 6, 5, 4, 0, 4],
    &[1, 0, 0, 4, 6, 3, 7, 6, 6, 1, 6, 4, 9],
    &[2, 0, 0, 4, 4, 0, 90, 0, 0, 4, 4, 1, 48, 0],
    &[0, 0, 0, 4, 5, 13, 3, 0, 0, 0],
    &[3, 3, 0, 4, 0, 0, 0, 4, 1, 22, 0, 0],
];

/// The size of the pieces, then a header of either version and what follows it.
const PROXY_HEADERS: [&[u8]; 6] = [
    b"\x05PROXY TCP4 198.51.100.7 192.0.2.1 56324 443\r\nGET / HTTP/1.1\r\n",
    b"\x01PROXY TCP6 2001:db8::7 2001:db8::1 1 65535\r\n",
    b"\x10PROXY UNKNOWN anything\r\n\x16\x03\x01",
    b"\x07\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x11\xc6\x33\x64\x07\xc0\0\x02\x01\xdc\x04\x01\xbb\x04\0\x02\0\0ab",
    b"\x08\r\n\r\n\0\r\nQUIT\n\x20\0\0\0\x16\x03\x01",
    b"\x20\r\n\r\n\0\r\nQUIT\n\x21\x21\0\x24aaaaaaaaaaaaaaaabbbbbbbbbbbbbbbb1234",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    for (number, path) in PATHS.iter().enumerate() {
        put(&corpus, "uri", number, path.as_bytes())?;
    }
    for (number, document) in DOCUMENTS.iter().enumerate() {
        put(&corpus, "json", number, document.as_bytes())?;
    }
    for (number, script) in SCRIPTS.iter().enumerate() {
        put(&corpus, "records", number, script)?;
    }
    for (number, header) in PROXY_HEADERS.iter().enumerate() {
        put(&corpus, "proxy_protocol", number, header)?;
    }
    for (number, der) in certificates()?.iter().enumerate() {
        put(&corpus, "certificate", number, der)?;
    }
    for (number, list) in lists()?.iter().enumerate() {
        put(&corpus, "crl", number, list)?;
    }
    for (number, hello) in hellos()?.iter().enumerate() {
        put(&corpus, "client_hello", number, hello)?;
        put(&corpus, "sni", number, hello)?;
    }
    Ok(())
}

fn put(corpus: &Path, target: &str, number: usize, bytes: &[u8]) -> io::Result<()> {
    let folder = corpus.join(target);
    fs::create_dir_all(&folder)?;
    fs::write(folder.join(format!("seed-{number}")), bytes)
}

fn certificates() -> Result<Vec<Vec<u8>>, IssueError> {
    let root = Authority::root(&AuthoritySpec::new("Fuzz Root").organization("Seeds").path_length(3))?;
    let narrow = root.intermediate(&AuthoritySpec::new("Fuzz Intermediate").permit_dns("example.com"))?;
    let rich = LeafSpec::client("fuzz").dns("a.example.com").uri("spiffe://td/a").email("a@example.com");
    let mut seeds = vec![
        root.certificate().der().to_vec(),
        Authority::root_v1(&AuthoritySpec::new("Old"))?.certificate().der().to_vec(),
    ];
    for spec in [
        rich.ip("10.0.0.1".parse().unwrap_or(std::net::Ipv4Addr::LOCALHOST.into())),
        LeafSpec::client("old").v1(),
        LeafSpec::server("a.example.com").algorithm(KeyAlgorithm::Ed25519),
        LeafSpec::client("rsa").algorithm(KeyAlgorithm::Rsa2048),
    ] {
        let issued = narrow.issue(&spec)?;
        seeds.push(issued.chain.iter().flat_map(|one| one.der().to_vec()).collect());
        seeds.push(issued.chain_pem.into_bytes());
    }
    Ok(seeds)
}

fn lists() -> Result<Vec<Vec<u8>>, IssueError> {
    let root = Authority::root(&AuthoritySpec::new("Fuzz Root"))?;
    let many = (0..50_u8).fold(CrlSpec::new().number(7), |spec, serial| spec.revoke_serial(vec![1, serial]));
    [CrlSpec::new(), CrlSpec::new().revoke_serial(vec![1; 20]), many]
        .iter()
        .map(|spec| root.crl(spec).map(|der| der.to_vec()))
        .collect()
}

fn hellos() -> Result<Vec<Vec<u8>>, Box<dyn std::error::Error>> {
    let mut seeds = vec![b"\x01GET / HTTP/1.1\r\n\r\n".to_vec()];
    for versions in [&[&rustls::version::TLS13][..], &[&rustls::version::TLS12]] {
        for group in [kx_group::X25519, kx_group::SECP256R1, kx_group::X25519MLKEM768] {
            let mut provider = default_provider();
            provider.kx_groups = vec![group];
            let builder =
                ClientConfig::builder_with_provider(Arc::new(provider)).with_protocol_versions(versions);
            let Ok(builder) = builder else { continue }; // the hybrid group is of TLS 1.3 only
            let mut config = builder.with_root_certificates(RootCertStore::empty()).with_no_client_auth();
            config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
            let mut client = ClientConnection::new(Arc::new(config), "a.example".try_into()?)?;
            let mut seed = vec![7]; // arrives in pieces of seven bytes
            client.write_tls(&mut seed)?;
            seeds.push(seed);
        }
    }
    Ok(seeds)
}

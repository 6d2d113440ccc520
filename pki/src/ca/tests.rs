use std::time::Duration;

use x509_parser::prelude::*;

use rustls_pki_types::UnixTime;

use super::spec::SECONDS_A_DAY;
use super::*;

fn day(number: u64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(number * SECONDS_A_DAY))
}

#[test]
fn every_key_algorithm_matches_its_certificate() {
    for algorithm in [KeyAlgorithm::P256, KeyAlgorithm::P384, KeyAlgorithm::Ed25519, KeyAlgorithm::Rsa2048] {
        let root = Authority::root(&AuthoritySpec::new("Root").algorithm(algorithm)).unwrap();
        let leaf = root.issue(&LeafSpec::client("a").algorithm(algorithm)).unwrap();
        leaf.key().unwrap().matches(&leaf.certificate).unwrap();
        let other = root.issue(&LeafSpec::client("b").algorithm(algorithm)).unwrap();
        assert!(matches!(leaf.key().unwrap().matches(&other.certificate), Err(KeyError::Mismatch { .. })));
        let again = Authority::from_pem(&root.certificate_pem(), &root.key_pem()).unwrap();
        assert_eq!(again.certificate(), root.certificate());
        again.issue(&LeafSpec::client("c")).unwrap();
    }
}

#[test]
fn x509_parser_reads_the_specification() {
    let root = Authority::root(&AuthoritySpec::new("Root").path_length(1)).unwrap();
    let middle = root.intermediate(&AuthoritySpec::new("Middle").organization("Acme")).unwrap();
    let spec = LeafSpec::server("a.example")
        .ip("10.0.0.1".parse().unwrap())
        .uri("spiffe://td/a")
        .usages(Usages::BOTH);
    let leaf = middle.issue(&spec.valid(day(20_000), 30)).unwrap();
    assert_eq!(leaf.chain.len(), 2, "the root is not sent");

    let (rest, read) = X509Certificate::from_der(leaf.certificate.der()).unwrap();
    assert!(rest.is_empty());
    assert_eq!(read.version(), X509Version::V3);
    assert_eq!(read.validity().not_before.timestamp(), 20_000 * 86_400);
    assert_eq!(read.validity().not_after.timestamp(), 20_030 * 86_400);
    assert!(read.raw_serial().len() == 16 && read.raw_serial()[0] & 0x80 == 0);
    let usages = read.extended_key_usage().unwrap().unwrap().value;
    assert!(usages.server_auth && usages.client_auth && !usages.any);
    assert!(read.key_usage().unwrap().unwrap().value.digital_signature());
    assert!(!read.basic_constraints().unwrap().unwrap().value.ca);
    assert_eq!(read.subject_alternative_name().unwrap().unwrap().value.general_names.len(), 3);
    let (_, issuer) = X509Certificate::from_der(middle.certificate().der()).unwrap();
    assert_eq!(read.issuer(), issuer.subject());
    let id = issuer.iter_extensions().find_map(|ext| match ext.parsed_extension() {
        ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
        _ => None,
    });
    let named = read.iter_extensions().find_map(|ext| match ext.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(aki) => aki.key_identifier.as_ref().map(|id| id.0.to_vec()),
        _ => None,
    });
    assert!(id.is_some() && id == named, "AKI names the issuer's SKI");
    let constraints = X509Certificate::from_der(root.certificate().der()).unwrap().1;
    assert_eq!(constraints.basic_constraints().unwrap().unwrap().value.path_len_constraint, Some(1));
}

#[test]
fn version_1_has_no_extensions() {
    let root = Authority::root(&AuthoritySpec::new("Root")).unwrap();
    let leaf = root.issue(&LeafSpec::client("old").v1()).unwrap();
    assert!(leaf.certificate.is_v1() && !leaf.certificate.is_ca());
    let (_, read) = X509Certificate::from_der(leaf.certificate.der()).unwrap();
    assert_eq!(read.version(), X509Version::V1);
    let (_, issuer) = X509Certificate::from_der(root.certificate().der()).unwrap();
    read.verify_signature(Some(issuer.public_key())).unwrap();
}

#[test]
fn a_leaf_cannot_be_loaded_as_a_ca() {
    let root = Authority::root(&AuthoritySpec::new("Root")).unwrap();
    let leaf = root.issue(&LeafSpec::client("a")).unwrap();
    assert!(matches!(
        Authority::from_pem(&leaf.certificate_pem, &leaf.key_pem),
        Err(IssueError::NotAnAuthority { subject }) if subject == "CN=a"
    ));
}

#[test]
fn names_that_cannot_be_encoded_are_rejected() {
    let root = Authority::root(&AuthoritySpec::new("Root")).unwrap();
    assert!(matches!(
        root.issue(&LeafSpec::server("h\u{f6}st")),
        Err(IssueError::Name { place: "DNS name", .. })
    ));
    let never = UnixTime::since_unix_epoch(Duration::from_secs(u64::MAX));
    assert!(matches!(
        root.issue(&LeafSpec::client("a").between(day(0), never)),
        Err(IssueError::InvalidValidity { .. })
    ));
}

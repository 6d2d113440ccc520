//! Certificates: parsing and verification of `pki`, from PEM and DER, as leaf, intermediate and
//! anchor.

use std::sync::LazyLock;
use std::time::Duration;

use pki::ca::{Authority, AuthoritySpec, LeafSpec};
use pki::{
    Certificate, CertificateDer, ClientAuth, ClientAuthInput, UnixTime, VerifyReason, certificates_from_pem,
    verify_client,
};

/// 2025-01-01, within the default validity of issued certificates.
const NOW: UnixTime = UnixTime::since_unix_epoch(Duration::from_secs(1_735_689_600));

/// A policy with one anchor, and a valid client chain.
struct CertificateWorld {
    policy: ClientAuth,
    chain: Vec<Certificate>,
}

static WORLD: LazyLock<CertificateWorld> = LazyLock::new(|| {
    let root = Authority::root(&AuthoritySpec::new("Fuzz Root")).expect("a root");
    let spec = AuthoritySpec::new("Fuzz Intermediate").permit_dns("example.com");
    let middle = root.intermediate(&spec).expect("an intermediate");
    let chain = middle.issue(&LeafSpec::client("fuzz").dns("a.example.com")).expect("a leaf").chain;
    let input = ClientAuthInput { anchors: vec![root.certificate().clone()], depth: 5, ..Default::default() };
    CertificateWorld { policy: ClientAuth::new(input).expect("a policy"), chain }
});

/// PEM when it is text with a block, otherwise concatenated DER.
pub fn check(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data)
        && let Ok(certificates) = certificates_from_pem(text)
    {
        certificates.iter().for_each(check_reading);
        let again: String = certificates.iter().map(Certificate::to_pem).collect();
        assert_eq!(certificates_from_pem(&again).as_ref(), Ok(&certificates));
        return;
    }
    let ders = split(data);
    for der in &ders {
        if let Ok(certificate) = Certificate::from_der(der) {
            assert_eq!(certificate.der().as_ref(), *der, "what is read is kept");
            check_reading(&certificate);
            check_as_anchor(certificate);
        }
    }
    check_verdicts(&ders);
}

/// Splits at the DER lengths; data without a length is one value.
fn split(mut data: &[u8]) -> Vec<&[u8]> {
    let mut found = Vec::new();
    while !data.is_empty() && found.len() < 16 {
        let length = match data {
            [_, short @ ..=0x7f, ..] => 2 + usize::from(*short),
            [_, 0x81, one, ..] => 3 + usize::from(*one),
            [_, 0x82, high, low, ..] => 4 + usize::from(u16::from_be_bytes([*high, *low])),
            _ => data.len(),
        };
        let (one, rest) = data.split_at(length.min(data.len()));
        found.push(one);
        data = rest;
    }
    found
}

/// Every accessor returns, and the PEM parses to the same certificate.
fn check_reading(certificate: &Certificate) {
    let pem = certificate.to_pem();
    assert_eq!(certificates_from_pem(&pem).as_deref(), Ok(std::slice::from_ref(certificate)));
    for text in [certificate.subject(), certificate.issuer(), &certificate.serial_hex()] {
        assert!(text.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "a log line stays one: {text:?}");
    }
    let _ = (certificate.dns_names(), certificate.is_ca(), certificate.is_v1(), certificate.is_self_issued());
    let identity = pki::subject_public_key_info(certificate.der());
    assert!(identity.is_ok());
}

fn check_as_anchor(certificate: Certificate) {
    let input = ClientAuthInput { anchors: vec![certificate.clone()], ..ClientAuthInput::default() };
    let policy = ClientAuth::new(input).expect("one anchor is enough");
    // Its own policy pins it: it is accepted when valid, until its notAfter.
    if let Ok(verified) = verify_client(&policy, certificate.der(), &[], NOW) {
        assert_eq!(verified.anchor(), &certificate);
        assert_eq!(verified.valid_until(), certificate.not_after());
    }
    let leaf = WORLD.chain[0].der();
    assert!(verify_client(&policy, leaf, &[], NOW).is_err(), "its issuer's key is not ours to give away");
}

/// Unknown certificates are never accepted, and never lead to the rejection of a valid client.
fn check_verdicts(ders: &[&[u8]]) {
    let sent: Vec<CertificateDer<'_>> = ders.iter().map(|der| CertificateDer::from(*der)).collect();
    let good: Vec<CertificateDer<'_>> = WORLD.chain.iter().map(|one| one.der().clone()).collect();
    if let Some((leaf, others)) = sent.split_first() {
        for sent in [others, &good[1..]] {
            let known = leaf == &good[0];
            assert!(verify_client(&WORLD.policy, leaf, sent, NOW).is_err() || known, "a forged client");
        }
    }
    let among: Vec<CertificateDer<'_>> = sent.iter().chain(&good[1..]).chain(&sent).cloned().collect();
    match verify_client(&WORLD.policy, &good[0], &among, NOW) {
        Ok(verified) => assert_eq!(verified.identity().certificate(), &WORLD.chain[0]),
        // A peer that sends many certificates of one name exhausts the budget.
        Err(error) => assert_eq!(
            error.reason(),
            VerifyReason::BudgetExceeded,
            "a good client among unrelated certificates"
        ),
    }
}

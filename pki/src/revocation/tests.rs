use std::sync::LazyLock;

use proptest::prelude::*;

use super::*;
use crate::ca::{Authority, AuthoritySpec, CrlSpec, KeyAlgorithm, LeafSpec};
use crate::pem;

/// 2025-01-01, within the default validity of issued certificates.
const NOW: i64 = 1_735_689_600;

static ROOT: LazyLock<Authority> = LazyLock::new(|| Authority::root(&AuthoritySpec::new("Root")).unwrap());

/// The parts of a CRL that tests vary; everything else as a CA would write it.
struct Parts {
    version: &'static [u8],
    next_update: Option<&'static str>,
    entry_extension: Option<(&'static [u8], bool, &'static [u8])>,
    extensions: Vec<(&'static [u8], bool, &'static [u8])>,
}

const NUMBER: &[u8] = &[0x55, 0x1d, 20];
const ISSUING_DISTRIBUTION_POINT: &[u8] = &[0x55, 0x1d, 28];
const DELTA: &[u8] = &[0x55, 0x1d, 27];
const ONE: &[u8] = &[0x02, 0x01, 0x01];

impl Default for Parts {
    fn default() -> Self {
        Self {
            version: &[1],
            next_update: Some("491231235959Z"),
            entry_extension: None,
            extensions: vec![(NUMBER, false, ONE)],
        }
    }
}

fn wrap(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::new();
    der::write(&mut out, tag, &parts.concat());
    out
}

fn extension((oid, critical, value): &(&[u8], bool, &[u8])) -> Vec<u8> {
    let flag = if *critical { wrap(der::BOOLEAN, &[&[0xff]]) } else { Vec::new() };
    wrap(der::SEQUENCE, &[&wrap(der::OID, &[oid]), &flag, &wrap(der::OCTET_STRING, &[value])])
}

impl Parts {
    /// The signature is invalid, because parsing does not check it.
    fn read(&self) -> Result<Crl, CrlError> {
        let algorithm = wrap(der::SEQUENCE, &[&wrap(der::OID, &[&[0x2a, 0x03]])]);
        let issuer = wrap(der::SEQUENCE, &[ROOT.certificate().subject_der()]);
        let next_update =
            self.next_update.map(|time| wrap(der::UTC_TIME, &[time.as_bytes()])).unwrap_or_default();
        let entry_extensions =
            self.entry_extension.iter().map(|one| wrap(der::SEQUENCE, &[&extension(one)])).next();
        let entry = wrap(
            der::SEQUENCE,
            &[
                &wrap(der::INTEGER, &[&[7]]),
                &wrap(der::UTC_TIME, &[b"240101000000Z"]),
                &entry_extensions.unwrap_or_default(),
            ],
        );
        let extensions: Vec<u8> = self.extensions.iter().flat_map(extension).collect();
        let extensions = if extensions.is_empty() {
            Vec::new()
        } else {
            wrap(der::context_constructed(0), &[&wrap(der::SEQUENCE, &[&extensions])])
        };
        let tbs = wrap(
            der::SEQUENCE,
            &[
                &wrap(der::INTEGER, &[self.version]),
                &algorithm,
                &issuer,
                &wrap(der::UTC_TIME, &[b"240101000000Z"]),
                &next_update,
                &wrap(der::SEQUENCE, &[&entry]),
                &extensions,
            ],
        );
        Crl::from_der(&wrap(der::SEQUENCE, &[&tbs, &algorithm, &wrap(der::BIT_STRING, &[&[0, 1]])]))
    }
}

#[test]
fn an_issued_crl_parses_back() {
    let client = ROOT.issue(&LeafSpec::client("a")).unwrap().certificate;
    let der = ROOT.crl(&CrlSpec::new().revoke(&client).revoke_serial(vec![1, 2]).number(9)).unwrap();
    let crl = Crl::from_der(&der).unwrap();
    assert_eq!((crl.issuer().as_str(), crl.entries()), ("CN=Root", 2));
    assert!(crl.this_update() < crl.next_update());
    assert!(
        crl.contains_serial(client.fields().serial.slice(client.der()))
            && crl.contains_serial(&[1, 2])
            && !crl.contains_serial(&[1])
    );
    assert_eq!(format!("{crl:?}"), "Crl(CN=Root, 2 entries)");
    let text = format!("text\n{}", *pem::encode("X509 CRL", &der));
    let issuer = ROOT.certificate();
    let with_issuer = format!("{text}{}", issuer.to_pem());
    assert_eq!(crls_from_pem(&text).unwrap(), (vec![der.clone()], vec![]));
    assert_eq!(crls_from_pem(&with_issuer).unwrap(), (vec![der.clone()], vec![issuer.clone()]));
    for label in ["PKCS7", "CRL DISTRIBUTION", "x509 crl", "X509 CRL "] {
        let other = format!("{text}{}", text.replace("X509 CRL", label));
        let message = crls_from_pem(&other).unwrap_err().to_string();
        assert!(message.contains(&format!("the block `{label}` is among")), "{message}");
    }
    let indented = format!("{text}{}", text.replace("-----BEGIN", " -----BEGIN"));
    assert!(crls_from_pem(&indented).unwrap_err().to_string().contains("has no `-----BEGIN X509 CRL-----`"));
    assert_eq!(crls_from_pem("").unwrap_err(), CrlError::NoCrl);
}

#[test]
fn crl_signature_checks_are_cached_per_signer() {
    let crl = Crl::from_der(&ROOT.crl(&CrlSpec::new()).unwrap()).unwrap();
    for algorithm in [KeyAlgorithm::P256, KeyAlgorithm::Ed25519] {
        let imposter = Authority::root(&AuthoritySpec::new("Root").algorithm(algorithm)).unwrap();
        for _ in 0..2 {
            assert!(crl.is_signed_by(ROOT.certificate()));
            assert!(!crl.is_signed_by(imposter.certificate()));
        }
    }
    let other_name = Authority::root(&AuthoritySpec::new("Other")).unwrap();
    assert!(!crl.is_signed_by(other_name.certificate()));
    let leaf = ROOT.issue(&LeafSpec::client("Root")).unwrap().certificate;
    assert!(!crl.is_signed_by(&leaf), "keyUsage without cRLSign");
    assert_eq!(
        crl.signers.iter().filter(|slot| slot.get().is_some()).count(),
        3,
        "the root and two imposters"
    );
}

#[test]
fn crl_rules_of_rfc_5280_are_checked() {
    Parts::default().read().unwrap();
    assert!(matches!(Parts { version: &[0], ..Parts::default() }.read(), Err(CrlError::Malformed { .. })));
    assert!(matches!(
        Parts { next_update: None, ..Parts::default() }.read(),
        Err(CrlError::NoNextUpdate { .. })
    ));
    let with = |extensions: &[(&'static [u8], bool, &'static [u8])]| {
        Parts { extensions: extensions.to_vec(), ..Parts::default() }.read()
    };
    let number = (NUMBER, false, ONE);
    assert!(matches!(with(&[]), Err(CrlError::Number { problem: "has no CRLNumber", .. })));
    assert!(matches!(
        with(&[(NUMBER, true, ONE)]),
        Err(CrlError::Number { problem: "has a critical CRLNumber", .. })
    ));
    assert!(matches!(with(&[(NUMBER, false, &[4, 0])]), Err(CrlError::Malformed { part: "CRLNumber", .. })));
    assert!(
        matches!(with(&[number, number]), Err(CrlError::RepeatedExtension { oid }) if oid == "2.5.29.20")
    );
    assert!(
        matches!(with(&[number, (DELTA, true, ONE)]), Err(CrlError::CriticalExtension { oid, .. }) if oid == "2.5.29.27")
    );
    with(&[number, (&[0x2a, 0x03], false, &[])]).unwrap();
    let entry =
        |oid, critical| Parts { entry_extension: Some((oid, critical, ONE)), ..Parts::default() }.read();
    entry(&[0x55, 0x1d, 21], false).unwrap(); // reasonCode
    entry(&[0x55, 0x1d, 21], true).unwrap();
    entry(&[0x2a, 0x03], false).unwrap();
    let indirect = entry(&[0x55, 0x1d, 29], true);
    assert!(matches!(indirect, Err(CrlError::CriticalExtension { oid, .. }) if oid == "2.5.29.29"));
}

#[test]
fn crl_scopes_are_distinguished() {
    let with = |value: &'static [u8]| {
        let extensions = vec![(NUMBER, false, ONE), (ISSUING_DISTRIBUTION_POINT, true, value)];
        Parts { extensions, ..Parts::default() }.read()
    };
    assert_eq!(with(&[0x30, 0x00]).unwrap().scope, Scope::All);
    let covers = |value: &'static [u8]| [false, true].map(|are_cas| with(value).unwrap().covers(are_cas));
    assert_eq!(covers(&[0x30, 0x00]), [true, true]);
    assert_eq!(covers(&[0x30, 0x03, 0x81, 0x01, 0xff]), [true, false]);
    assert_eq!(covers(&[0x30, 0x03, 0x82, 0x01, 0xff]), [false, true]);
    assert_eq!(with(&[0x30, 0x03, 0x81, 0x01, 0xff]).unwrap().scope, Scope::UserCertificates);
    assert_eq!(with(&[0x30, 0x03, 0x82, 0x01, 0xff]).unwrap().scope, Scope::CaCertificates);
    for bad in [
        &[0x30, 0x06, 0x81, 0x01, 0xff, 0x82, 0x01, 0xff][..], // both
        &[0x30, 0x02, 0xa0, 0x00],                             // one distribution point
        &[0x30, 0x04, 0x83, 0x02, 0x07, 0x80],                 // some reasons
        &[0x30, 0x03, 0x84, 0x01, 0xff],                       // indirect
        &[0x30, 0x03, 0x85, 0x01, 0xff],                       // attribute certificates
    ] {
        let result = with(Box::leak(bad.into()));
        assert!(matches!(result, Err(CrlError::Scope { .. })), "{bad:02x?}: {result:?}");
    }
    assert!(matches!(with(&[0x30, 0x01, 0x00]), Err(CrlError::Malformed { .. })));
}

/// 10,000 entries are sorted once; a query is a binary search.
#[test]
fn a_long_crl_is_verified_once() {
    let mut spec = CrlSpec::new();
    for number in 0..10_000u32 {
        let scattered = number.wrapping_mul(2_654_435_761) | 0x0100_0000;
        spec = spec.revoke_serial(scattered.to_be_bytes()[..].to_vec());
    }
    let crls = CrlSet(vec![Crl::from_der(&ROOT.crl(&spec).unwrap()).unwrap()]);
    let issuer = ROOT.certificate();
    let status = |serial: &[u8]| {
        let signer = issuer.key();
        let query = RevocationQuery {
            serial,
            is_ca: false,
            issuer: issuer.subject_der(),
            signer,
            issuer_may_sign_crls: true,
        };
        crls.status(&query, NOW)
    };
    assert!(matches!(status(&[0x55; 16]), RevocationStatus::Good { .. }));
    let first = crls.0[0].revoked[0].slice(crls.0[0].der()).to_vec();
    assert_eq!(status(&first), RevocationStatus::Revoked);
    let checked = crls.0[0].signers.iter().filter_map(OnceLock::get).count();
    assert_eq!(checked, 1, "the signature is checked once, not with each question");
}

#[test]
fn an_oversized_crl_is_rejected() {
    let result = Crl::from_der(&vec![0; CRL_BYTES_MAX + 1]);
    assert!(matches!(result, Err(CrlError::TooLarge { .. })));
}

proptest! {
    #[test]
    fn any_bytes_terminate(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = Crl::from_der(&bytes);
    }

    #[test]
    fn damaged_crls_terminate(changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)) {
        static GOOD: LazyLock<Vec<u8>> = LazyLock::new(|| {
            ROOT.crl(&CrlSpec::new().revoke_serial(vec![1, 2, 3])).unwrap().to_vec()
        });
        let mut der = GOOD.clone();
        for (place, byte) in changes {
            let place = place.index(der.len());
            der[place] = byte;
        }
        let altered = der != *GOOD;
        if let Ok(crl) = Crl::from_der(&der) {
            // An ECDSA signature has two forms of s, but no single byte turns one into the other.
            prop_assert!(!altered || !crl.is_signed_by(ROOT.certificate()));
        }
    }
}

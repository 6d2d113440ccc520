use std::io::Write as _;
use std::process::{Command, Stdio};

use data_encoding::HEXUPPER;
use proptest::prelude::*;
use x509_parser::prelude::*;

use super::*;
use crate::ca::{Authority, AuthoritySpec, KeyAlgorithm, LeafSpec, Usages};

/// Runs the openssl command line on `input`, as the reference for the text of names. A missing
/// openssl fails the test.
fn openssl(args: &[&str], input: &str) -> String {
    let mut child = Command::new("openssl")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the openssl command line is needed for this test");
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

fn leaf() -> Certificate {
    let root = Authority::root(&AuthoritySpec::new("Root").organization("Acme, Inc. + Sons")).unwrap();
    let spec = LeafSpec::client(" #\u{e9}t\u{e9} <a;b>\\ ")
        .organization("#\"Q\"")
        .dns("a.example")
        .dns("*.b.example");
    root.issue(&spec.usages(Usages::BOTH)).unwrap().certificate
}

#[test]
fn names_serial_and_fingerprint_match_openssl() {
    let leaf = leaf();
    let args = [
        "x509",
        "-noout",
        "-nameopt",
        "RFC2253",
        "-subject",
        "-issuer",
        "-serial",
        "-fingerprint",
        "-sha256",
    ];
    let printed = openssl(&args, &leaf.to_pem());
    let expected: Vec<&str> = printed.lines().map(|line| line.split_once('=').unwrap().1).collect();
    assert_eq!(leaf.subject(), expected[0]);
    assert_eq!(leaf.issuer(), expected[1]);
    assert_eq!(leaf.serial_hex(), expected[2]);
    let fingerprint: Vec<String> =
        leaf.fingerprint_sha256().iter().map(|byte| HEXUPPER.encode(&[*byte])).collect();
    assert_eq!(fingerprint.join(":"), expected[3]);
}

#[test]
fn openssl_certificates_are_parsed() {
    let args = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "/dev/null", "-days", "7"];
    let subject =
        ["-subj", "/C=DE/ST=Bayern/L=M\u{fc}nchen/O=Acme/OU=a+OU=b/CN=x/emailAddress=x@y.z/UID=7", "-utf8"];
    let pem = openssl(&[&args[..], &subject, &["-multivalue-rdn"]].concat(), "");
    let read = &certificates_from_pem(&pem).unwrap()[0];
    let printed = openssl(&["x509", "-noout", "-nameopt", "RFC2253", "-subject"], &pem);
    assert_eq!(read.subject(), printed.trim_end().strip_prefix("subject=").unwrap());
    assert!(read.is_ca() && read.is_self_issued() && !read.is_v1());
}

#[test]
fn serial_numbers_are_whole_bytes_with_a_sign() {
    for (content, text) in [
        (&[0x00][..], "00"),
        (&[0x0a], "0A"),
        (&[0x00, 0x80], "80"),
        (&[0xff], "-01"),
        (&[0x80], "-80"),
        (&[0xff, 0x00], "-0100"),
        (&[0x01, 0x00], "0100"),
    ] {
        assert_eq!(fields::serial_hex(content), text, "{content:?}");
    }
}

#[test]
fn a_bundle_is_read_completely_or_not_at_all() {
    let root = Authority::root(&AuthoritySpec::new("Root")).unwrap();
    let pem = root.certificate_pem();
    let other_labels =
        pem.replace("CERTIFICATE", "X509 CERTIFICATE") + &pem.replace("CERTIFICATE", "TRUSTED CERTIFICATE");
    let read = certificates_from_pem(&format!("text\n{pem}{}{other_labels}", *root.key_pem())).unwrap();
    assert_eq!(read, vec![root.certificate().clone(); 3]);
    assert_eq!(certificates_from_pem("").unwrap_err(), CertError::NoCertificate { found: None });
    assert_eq!(
        certificates_from_pem(&root.key_pem()).unwrap_err().to_string(),
        "no certificate found, only a block `PRIVATE KEY`: expected a block `-----BEGIN CERTIFICATE-----`"
    );
    let damaged = format!("{pem}-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n");
    assert!(matches!(certificates_from_pem(&damaged), Err(CertError::InBundle { position: 2, .. })));
    let cut = &pem[..pem.len() - 10];
    assert_eq!(
        certificates_from_pem(&format!("{pem}{cut}")).unwrap_err().to_string(),
        "certificate 2 of the text (the one after `CN=Root`): damaged PEM: the block `CERTIFICATE` has no \
         `-----END CERTIFICATE-----` line"
    );
}

/// `openssl x509` writes trust settings behind the certificate, in a block of another label.
#[test]
fn openssl_trust_settings_are_rejected() {
    let root = Authority::root(&AuthoritySpec::new("Root")).unwrap();
    let pem = root.certificate_pem();
    for (arguments, settings) in [
        (&["-addtrust", "clientAuth"][..], "uses it is trusted for"),
        (&["-addreject", "clientAuth"], "uses it is rejected for"),
        (
            &["-addtrust", "serverAuth", "-addreject", "anyExtendedKeyUsage", "-setalias", "a"],
            "trusted for and",
        ),
    ] {
        let written = openssl(&[&["x509", "-trustout"], arguments].concat(), &pem);
        assert!(written.contains("TRUSTED CERTIFICATE"), "{written}");
        for text in [written.clone(), format!("{pem}{written}")] {
            let message = certificates_from_pem(&text).unwrap_err().to_string();
            assert!(message.contains(settings) && message.contains("-clrtrust -clrreject"), "{message}");
        }
    }
    // An alias is no trust setting, and the advice of the message works.
    let named = openssl(&["x509", "-trustout", "-setalias", "a name"], &pem);
    assert_eq!(&certificates_from_pem(&named).unwrap()[0], root.certificate());
    let rejected = openssl(&["x509", "-trustout", "-addreject", "clientAuth"], &pem);
    let cleared = openssl(&["x509", "-clrtrust", "-clrreject"], &rejected);
    assert_eq!(&certificates_from_pem(&cleared).unwrap()[0], root.certificate());
}

#[test]
fn malformed_auxiliary_data_is_rejected() {
    let root = Authority::root(&AuthoritySpec::new("Root")).unwrap();
    for (auxiliary, good) in [
        (&b""[..], true),
        (b"\x30\x00", true),
        (b"\x30\x02\x30\x00", false),
        (b"\x30\x02\xa0\x00", false),
        (b"\x30\x02\xa1\x00", false),
        (b"\x30\x02\xa2\x00", false),
        (b"\x30\x00\x00", false),
        (b"\x30", false),
        (b"\x05\x00", false),
    ] {
        let text = crate::pem::encode("TRUSTED CERTIFICATE", &[root.certificate().der(), auxiliary].concat());
        assert_eq!(certificates_from_pem(&text).is_ok(), good, "{auxiliary:?}");
    }
}

#[test]
fn blocks_that_may_change_trust_are_rejected() {
    let root = Authority::root(&AuthoritySpec::new("Root")).unwrap();
    let pem = root.certificate_pem();
    for label in [
        "X509 CRL",
        "CRL",
        "PKCS7",
        "CMS",
        "ATTRIBUTE CERTIFICATE",
        "certificate",
        "CERTIFICATE ",
        "PUBLIC KEY",
    ] {
        let other = pem.replace("CERTIFICATE", label);
        for text in [format!("{pem}{other}"), format!("{other}{pem}"), other.clone()] {
            let message = certificates_from_pem(&text).unwrap_err().to_string();
            assert!(message.contains(&format!("the block `{label}` is among")), "{message}");
        }
    }
    for label in ["CERTIFICATE REQUEST", "RSA PRIVATE KEY", "EC PARAMETERS", "DH PARAMETERS"] {
        let other = pem.replace("CERTIFICATE", label);
        assert_eq!(certificates_from_pem(&format!("{other}{pem}{other}")).unwrap().len(), 1, "{label}");
    }
}

/// The text that `openssl x509 -text` and distributions put between the blocks.
#[test]
fn text_between_pem_blocks_is_ignored() {
    let root = Authority::root(&AuthoritySpec::new("Root")).unwrap();
    let printed = openssl(&["x509", "-text"], &root.certificate_pem());
    assert!(printed.contains("Subject Public Key Info"));
    assert_eq!(certificates_from_pem(&format!("# Root\n{printed}\n{printed}")).unwrap().len(), 2);
    for bundle in ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt"] {
        if let Ok(text) = std::fs::read_to_string(bundle) {
            assert!(certificates_from_pem(&text).unwrap().len() > 1, "{bundle}");
        }
    }
}

#[test]
fn trailing_bytes_are_rejected() {
    let mut der = leaf().der().to_vec();
    der.push(0);
    assert!(matches!(Certificate::from_der(&der), Err(CertError::Malformed { .. })));
    assert!(matches!(
        Certificate::from_der(&vec![0; CERTIFICATE_BYTES_MAX + 1]),
        Err(CertError::TooLarge { found }) if found == CERTIFICATE_BYTES_MAX + 1
    ));
}

#[test]
fn equality_is_by_bytes_and_debug_is_the_subject() {
    let one = leaf();
    assert_eq!(one, Certificate::from_der(one.der()).unwrap());
    assert_ne!(one, leaf());
    let root = Authority::root(&AuthoritySpec::new("Root")).unwrap();
    assert_eq!(format!("{:?}", root.certificate()), "Certificate(\"CN=Root\")");
    assert_eq!(one.dns_names(), ["a.example", "*.b.example"]);
}

#[test]
fn unknown_critical_extensions_are_recorded() {
    let unknown = |last: u64| {
        let mut params = rcgen::CertificateParams::default();
        let mut extension = rcgen::CustomExtension::from_oid_content(&[2, 5, 29, last], vec![0x30, 0x00]);
        extension.set_criticality(true);
        params.custom_extensions.push(extension);
        let certificate = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
        Certificate::from_der(certificate.der()).unwrap().fields().unknown_critical.is_some()
    };
    assert!(!unknown(31) && !unknown(32), "cRLDistributionPoints, certificatePolicies");
    assert!(unknown(33) && unknown(36) && unknown(54), "policyMappings, policyConstraints, inhibitAnyPolicy");
}

/// Compares every field with x509-parser.
fn compare(der: &[u8]) {
    let ours = Certificate::from_der(der).unwrap();
    let fields = ours.fields();
    let (_, theirs) = X509Certificate::from_der(der).unwrap();
    assert_eq!(u32::from(fields.version), theirs.version().0 + 1);
    assert_eq!(fields.serial.slice(der), theirs.raw_serial());
    assert_eq!(fields.not_before, theirs.validity().not_before.timestamp());
    assert_eq!(fields.not_after, theirs.validity().not_after.timestamp());
    assert_eq!(fields.spki.slice(der), theirs.public_key().raw);
    assert_eq!(fields.key(der).key, &*theirs.public_key().subject_public_key.data);
    assert_eq!(fields.signature.slice(der), &*theirs.signature_value.data);
    assert_eq!(fields.tbs.slice(der), theirs.tbs_certificate.as_ref());
    let constraints = theirs.basic_constraints().unwrap().map(|extension| extension.value.clone());
    assert_eq!(
        fields.basic_constraints.map(|own| (own.ca, own.path_length.map(u32::from))),
        constraints.map(|own| (own.ca, own.path_len_constraint))
    );
    let usage = theirs.key_usage().unwrap().map(|extension| *extension.value);
    assert_eq!(
        fields.key_usage.map(|own| own.key_cert_sign()),
        usage.as_ref().map(|own| own.key_cert_sign())
    );
    assert_eq!(fields.key_usage.map(|own| own.crl_sign()), usage.as_ref().map(|own| own.crl_sign()));
    let agrees = usage.as_ref().map(|own| own.digital_signature() || own.key_agreement());
    assert_eq!(fields.key_usage.map(|own| own.signs_or_agrees_keys()), agrees);
    assert_eq!(ours.is_self_issued(), theirs.subject() == theirs.issuer());
}

#[test]
fn x509_parser_reads_the_same_fields() {
    for algorithm in [KeyAlgorithm::P256, KeyAlgorithm::P384, KeyAlgorithm::Ed25519, KeyAlgorithm::Rsa2048] {
        let root = Authority::root(&AuthoritySpec::new("Root").algorithm(algorithm).path_length(3)).unwrap();
        let middle = root.intermediate(&AuthoritySpec::new("CA").permit_dns("example.com")).unwrap();
        compare(root.certificate().der());
        compare(middle.certificate().der());
        compare(middle.issue(&LeafSpec::client("a").algorithm(algorithm)).unwrap().certificate.der());
        compare(middle.issue(&LeafSpec::client("a").v1()).unwrap().certificate.der());
    }
}

proptest! {
    #[test]
    fn any_bytes_terminate(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = Certificate::from_der(&bytes);
    }

    #[test]
    fn any_text_terminates(text in "(?s).{0,200}") {
        let _ = certificates_from_pem(&text);
    }

    /// Every accessor of a damaged certificate that still parses returns.
    #[test]
    fn damaged_certificates_terminate(changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)) {
        use std::sync::LazyLock;
        static GOOD: LazyLock<Vec<u8>> = LazyLock::new(|| leaf().der().to_vec());
        let mut der = GOOD.clone();
        for (place, byte) in changes {
            let place = place.index(der.len());
            der[place] = byte;
        }
        if let Ok(read) = Certificate::from_der(&der) {
            let _ = (read.subject(), read.issuer(), read.serial_hex(), read.dns_names(), read.is_ca(), read.is_self_issued());
            let _ = crate::identity::Identity::of(read);
        }
    }
}

#[test]
fn is_issued_by_checks_name_and_signature() {
    let root = Authority::root(&AuthoritySpec::new("Root")).unwrap();
    let namesake = Authority::root(&AuthoritySpec::new("Root")).unwrap();
    let between = root.intermediate(&AuthoritySpec::new("Between")).unwrap();
    let leaf = between.issue(&LeafSpec::client("alice")).unwrap().certificate;
    assert!(between.certificate().is_issued_by(root.certificate()));
    assert!(leaf.is_issued_by(between.certificate()));
    assert!(!leaf.is_issued_by(root.certificate()));
    assert!(!between.certificate().is_issued_by(namesake.certificate()), "the name alone is not enough");
    assert!(!leaf.is_issued_by(&leaf));
}

#[test]
fn parsed_certificates_are_small() {
    assert!(size_of::<CertificateInner>() <= 176, "{}", size_of::<CertificateInner>());
}

use proptest::prelude::*;

use super::*;

fn within(name: GeneralName<'_>, base: GeneralName<'_>) -> Option<bool> {
    is_within(name, base).ok()
}

#[test]
fn dns_subtrees() {
    use GeneralName::Dns;
    for (name, base, expected) in [
        ("example.com", "example.com", Some(true)),
        ("A.Example.com", "eXample.com", Some(true)),
        ("a.b.example.com", "example.com", Some(true)),
        ("badexample.com", "example.com", Some(false)),
        ("com", "example.com", Some(false)),
        ("anything", "", Some(true)),
        ("*.example.com", "example.com", Some(true)),
        ("*.com", "example.com", Some(false)),
        (".example.com", "example.com", None),
        ("example.com.", "example.com", None),
        ("a..example.com", "example.com", None),
        ("a.*.example.com", "example.com", None),
        ("a b.example.com", "example.com", None),
        ("", "example.com", None),
    ] {
        assert_eq!(within(Dns(name.as_bytes()), Dns(base.as_bytes())), expected, "{name} in {base}");
    }
}

#[test]
fn a_wildcard_that_may_match_is_excluded() {
    use GeneralName::Dns;
    for (name, base, expected) in [
        ("*.example.com", "bar.example.com", true),
        ("*.example.com", "example.com", true),
        ("*.example.com", "a.bar.example.com", false),
        ("*.example.com", "bar.example.org", false),
        ("example.com", "bar.example.com", false),
    ] {
        assert_eq!(
            wildcard_may_match(Dns(name.as_bytes()), Dns(base.as_bytes())),
            expected,
            "{name} for {base}"
        );
    }
}

#[test]
fn email_subtrees() {
    use GeneralName::Email;
    for (name, base, expected) in [
        ("a@example.com", "a@EXAMPLE.com", Some(true)),
        ("A@example.com", "a@example.com", Some(false)),
        ("a@example.com", "example.com", Some(true)),
        ("a@sub.example.com", "example.com", Some(false)),
        ("a@sub.example.com", ".example.com", Some(true)),
        ("a@example.com", ".example.com", Some(false)),
        ("*@example.com", "a@example.com", Some(false)),
        ("a@b@example.com", "example.com", None),
        ("example.com", "example.com", None),
        ("@example.com", "example.com", None),
        ("a@", "example.com", None),
    ] {
        assert_eq!(within(Email(name.as_bytes()), Email(base.as_bytes())), expected, "{name} in {base}");
    }
}

#[test]
fn uri_subtrees() {
    use GeneralName::Uri;
    for (name, base, expected) in [
        ("spiffe://example.com/a", "example.com", Some(true)),
        ("spiffe://sub.example.com/a", "example.com", Some(false)),
        ("https://u:p@sub.example.com:8443/x?y", ".example.com", Some(true)),
        ("https://example.com", ".example.com", Some(false)),
        ("https://example.org/@example.com", "example.com", Some(false)),
        ("https://example.com@example.org/", "example.com", Some(false)),
        ("https://example.org\\@example.com", "example.com", Some(false)),
        ("https://example.org?@example.com", "example.com", Some(false)),
        ("https://10.0.0.1/", "example.com", None),
        ("https://[::1]/", "example.com", None),
        ("urn:a:b", "example.com", None),
        ("//example.com", "example.com", None),
    ] {
        assert_eq!(within(Uri(name.as_bytes()), Uri(base.as_bytes())), expected, "{name} in {base}");
    }
}

#[test]
fn address_subtrees() {
    use GeneralName::Ip;
    let v4 = [10, 1, 0, 0, 255, 255, 0, 0];
    assert_eq!(within(Ip(&[10, 1, 2, 3]), Ip(&v4)), Some(true));
    assert_eq!(within(Ip(&[10, 2, 2, 3]), Ip(&v4)), Some(false));
    assert_eq!(within(Ip(&[0; 16]), Ip(&v4)), Some(false), "the other family is not permitted");
    assert_eq!(within(Ip(&v4), Ip(&v4)), None, "a range is no address");
}

#[test]
fn malformed_constraints_are_rejected() {
    use GeneralName::{Dns, Email, Ip, Uri};
    let good = [
        Dns(b""),
        Dns(b"example.com"),
        Email(b"a@example.com"),
        Email(b".example.com"),
        Uri(b".example.com"),
        Ip(&[10, 0, 0, 0, 255, 128, 0, 0]),
        Ip(&[0; 8]),
        Ip(&[255; 32]),
    ];
    let bad = [
        Dns(b".example.com"),
        Dns(b"*.example.com"),
        Dns(b"example.com."),
        Email(b"a@b@example.com"),
        Email(b"a@"),
        Uri(b"https://example.com"),
        Ip(&[10, 0, 0, 1]),
        Ip(&[10, 0, 0, 0, 255, 0, 255, 0]),
        Ip(&[10, 0, 0, 0, 255, 1, 0, 0]),
        Ip(&[0; 16]),
    ];
    for base in good {
        assert_eq!(check_base(base), Ok(()));
    }
    for base in bad {
        assert_eq!(check_base(base), Err(NameConstraintError::BadConstraint(base)));
    }
}

#[test]
fn names_are_escaped_in_messages() {
    let shown = NameConstraintError::NotPermitted(GeneralName::Dns(b"a\nb\x1b[31m")).to_string();
    assert_eq!(shown, "the name DNS:a\\nb\\x1b[31m is not permitted");
}

proptest! {
    /// Parsing and checking any bytes ends within the budget.
    #[test]
    fn any_name_constraints_terminate(
        value in proptest::collection::vec(any::<u8>(), 0..200),
        name in proptest::collection::vec(any::<u8>(), 0..40),
    ) {
        let mut work = ComparisonBudget::default();
        if let Ok(constraints) = Constraints::read(&value, &mut work) {
            for name in [GeneralName::Dns(&name), GeneralName::Email(&name), GeneralName::Uri(&name), GeneralName::Ip(&name)] {
                let _ = constraints.check_name(name, &mut work);
            }
        }
    }

    /// Exactly the names below a name are within its subtree.
    #[test]
    fn dns_subtrees_are_label_suffixes(labels in proptest::collection::vec("[a-z0-9]{1,5}", 1..5), cut in 0usize..5, other in "[a-z]{1,6}") {
        let name = labels.join(".");
        let base = labels[cut.min(labels.len() - 1)..].join(".");
        prop_assert_eq!(within(GeneralName::Dns(name.as_bytes()), GeneralName::Dns(base.as_bytes())), Some(true));
        let glued = format!("{other}{base}");
        let below = glued == base || glued.ends_with(&format!(".{base}"));
        prop_assert_eq!(within(GeneralName::Dns(glued.as_bytes()), GeneralName::Dns(base.as_bytes())), Some(below));
    }
}

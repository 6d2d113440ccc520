//! Distinguished names: their text (RFC 2253, in OpenSSL's spelling) and their comparison.
//!
//! Two names match when their bytes are equal, or when they differ only in the string type, the
//! case of ASCII letters and runs of white space (RFC 5280 7.1). Invariant: a comparison never
//! allocates.

use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use data_encoding::HEXUPPER;

use crate::der::{self, DerError, Reader};

mod parse;

pub use parse::NameError;

/// A subject name, as in the certificate_authorities list of a TLS CertificateRequest.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct DistinguishedName {
    content: Box<[u8]>,
}

impl DistinguishedName {
    /// `content` is the content of a well-formed `Name`.
    pub(crate) fn new(content: &[u8]) -> Self {
        Self { content: content.into() }
    }

    /// Parses the whole DER of a `Name`, as in a CertificateRequest. `None` when it is malformed.
    pub fn from_der(der: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(der);
        let name = reader.expect(der::SEQUENCE).ok()?;
        check(name.content).ok()?;
        reader.finish().ok()?;
        Some(Self::new(name.content))
    }

    /// The DER without the outer SEQUENCE header, as rustls' `DistinguishedName::in_sequence` takes
    /// it.
    pub fn content(&self) -> &[u8] {
        &self.content
    }

    /// Equal for matching names; other names may collide. As [`crate::Certificate::subject_hash`].
    pub fn folded_hash(&self) -> u64 {
        folded_hash(&self.content)
    }

    /// RFC 2253 text, in OpenSSL's spelling.
    pub fn to_text(&self) -> String {
        to_rfc2253(&self.content)
    }

    /// The whole DER.
    pub fn to_der(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.content.len() + 4);
        der::write(&mut out, der::SEQUENCE, &self.content);
        out
    }
}

impl std::fmt::Debug for DistinguishedName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&to_rfc2253(&self.content))
    }
}

/// One attribute of a name.
#[derive(Clone, Copy)]
struct Attribute<'a> {
    oid: &'a [u8],
    tag: u8,
    value: &'a [u8],
}

fn attributes(rdn: Reader<'_>) -> impl Iterator<Item = Result<Attribute<'_>, DerError>> + Clone {
    let mut rdn = rdn;
    std::iter::from_fn(move || (!rdn.is_empty()).then(|| read_attribute(&mut rdn)))
}

fn read_attribute<'a>(rdn: &mut Reader<'a>) -> Result<Attribute<'a>, DerError> {
    let mut fields = rdn.nested(der::SEQUENCE)?;
    let oid = fields.expect(der::OID)?.content;
    let value = fields.next()?;
    fields.finish()?;
    Ok(Attribute { oid, tag: value.tag, value: value.content })
}

/// Checks that the content of a `Name` is a list of non-empty sets of attributes.
pub(crate) fn check(name: &[u8]) -> Result<(), DerError> {
    let mut rdns = Reader::new(name);
    while !rdns.is_empty() {
        let mut rdn = rdns.nested(der::SET)?;
        if rdn.is_empty() {
            return Err(DerError::Value);
        }
        while !rdn.is_empty() {
            read_attribute(&mut rdn)?;
        }
    }
    Ok(())
}

/// Whether two names match. A malformed name matches only its own bytes.
pub(crate) fn names_match(a: &[u8], b: &[u8]) -> bool {
    a == b || prefix_length(a, b).is_some_and(|rest| rest == 0)
}

/// Whether `name` lies in the subtree of `base`: its first RDNs are those of `base` (RFC 5280 7.1).
pub(crate) fn is_within(name: &[u8], base: &[u8]) -> bool {
    base.is_empty() || name == base || prefix_length(base, name).is_some()
}

/// Equal for names that match ([`names_match`]); other names may collide.
pub(crate) fn folded_hash(name: &[u8]) -> u64 {
    let mut rdns = Reader::new(name);
    let mut hash = 0u64;
    while let Ok(rdn) = rdns.nested(der::SET) {
        // Attributes of one RDN have no order, so their hashes are added.
        let sum = attributes(rdn)
            .map_while(Result::ok)
            .fold(0u64, |sum, one| sum.wrapping_add(attribute_hash(&one)));
        hash = hash.rotate_left(5).wrapping_add(sum).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
    hash
}

fn attribute_hash(attribute: &Attribute<'_>) -> u64 {
    let mut hasher = DefaultHasher::new();
    attribute.oid.hash(&mut hasher);
    match Characters::of(attribute.tag, attribute.value) {
        Some(characters) => {
            CaseFolded::new(characters).for_each(|character| hasher.write_u32(u32::from(character)))
        }
        None => attribute.value.hash(&mut hasher),
    }
    hasher.finish()
}

/// The bytes of `name` that follow `base`; `None` when `base` is not a prefix.
fn prefix_length(base: &[u8], name: &[u8]) -> Option<usize> {
    let (mut base, mut rest) = (Reader::new(base), Reader::new(name));
    let mut left = name.len();
    while !base.is_empty() {
        let a = base.expect(der::SET).ok()?;
        let b = rest.expect(der::SET).ok()?;
        left = left.checked_sub(b.outer.slice(name).len())?;
        if a.content != b.content && !same_rdn(Reader::new(a.content), Reader::new(b.content)) {
            return None;
        }
    }
    Some(left)
}

/// Attributes of a multi-valued RDN have no order.
fn same_rdn(a: Reader<'_>, b: Reader<'_>) -> bool {
    /// RDNs with more attributes are only compared byte by byte: the pairing below is quadratic.
    const ATTRIBUTES: usize = 8;
    let (a, b) = (attributes(a), attributes(b));
    let count = a.clone().count();
    if count != b.clone().count() || count > ATTRIBUTES {
        return false;
    }
    a.clone().all(|x| x.is_ok_and(|x| b.clone().any(|y| y.is_ok_and(|y| same_attribute(&x, &y)))))
        && b.clone().all(|y| y.is_ok_and(|y| a.clone().any(|x| x.is_ok_and(|x| same_attribute(&x, &y)))))
}

fn same_attribute(a: &Attribute<'_>, b: &Attribute<'_>) -> bool {
    if a.oid != b.oid {
        return false;
    }
    if a.tag == b.tag && a.value == b.value {
        return true;
    }
    match (Characters::of(a.tag, a.value), Characters::of(b.tag, b.value)) {
        (Some(a), Some(b)) => CaseFolded::new(a).eq(CaseFolded::new(b)),
        _ => false,
    }
}

/// The characters of a directory string of any ASN.1 type.
#[derive(Clone)]
enum Characters<'a> {
    Utf8(std::str::Chars<'a>),
    Latin1(std::slice::Iter<'a, u8>),
    Wide { width: usize, rest: &'a [u8] },
}

impl<'a> Characters<'a> {
    fn of(tag: u8, value: &'a [u8]) -> Option<Self> {
        match tag {
            // UTF8String; and the ASCII types, of which UTF-8 is a superset: Numeric, Printable,
            // IA5, Visible
            0x0c | 0x12 | 0x13 | 0x16 | 0x1a => Some(Self::Utf8(std::str::from_utf8(value).ok()?.chars())),
            // TeletexString holds Latin-1 in practice
            0x14 => Some(Self::Latin1(value.iter())),
            // UniversalString and BMPString
            0x1c if value.len().is_multiple_of(4) => Some(Self::Wide { width: 4, rest: value }),
            0x1e if value.len().is_multiple_of(2) => Some(Self::Wide { width: 2, rest: value }),
            _ => None,
        }
    }
}

impl Iterator for Characters<'_> {
    type Item = char;

    fn next(&mut self) -> Option<char> {
        match self {
            Self::Utf8(chars) => chars.next(),
            Self::Latin1(bytes) => bytes.next().map(|byte| char::from(*byte)),
            Self::Wide { width, rest } => {
                let (one, after) = rest.split_at_checked(*width)?;
                *rest = after;
                let code = one.iter().fold(0u32, |code, byte| (code << 8) | u32::from(*byte));
                Some(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER))
            }
        }
    }
}

/// Characters with ASCII letters in lower case, without white space at the ends, with single spaces
/// within.
struct CaseFolded<'a> {
    inner: Characters<'a>,
    started: bool,
    pending: Option<char>,
}

impl<'a> CaseFolded<'a> {
    fn new(inner: Characters<'a>) -> Self {
        Self { inner, started: false, pending: None }
    }
}

impl Iterator for CaseFolded<'_> {
    type Item = char;

    fn next(&mut self) -> Option<char> {
        if let Some(held) = self.pending.take() {
            return Some(held);
        }
        let mut space = false;
        loop {
            let character = self.inner.next()?;
            if character.is_ascii_whitespace() {
                space = self.started;
                continue;
            }
            self.started = true;
            let character = character.to_ascii_lowercase();
            if space {
                self.pending = Some(character);
                return Some(' ');
            }
            return Some(character);
        }
    }
}

/// Values of the emailAddress attributes of a name.
pub(crate) fn email_addresses(name: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rdns = Reader::new(name);
    std::iter::from_fn(move || rdns.nested(der::SET).ok())
        .flat_map(|rdn| attributes(rdn).map_while(Result::ok))
        .filter(|attribute| attribute.oid == EMAIL_ADDRESS)
        .map(|attribute| attribute.value)
}

/// The text that `openssl x509 -nameopt RFC2253` prints: last RDN first, `+` within an RDN,
/// everything but plain ASCII escaped.
pub(crate) fn to_rfc2253(name: &[u8]) -> String {
    let mut parts: Vec<(bool, Attribute<'_>)> = Vec::new();
    let mut rdns = Reader::new(name);
    while let Ok(rdn) = rdns.nested(der::SET) {
        let mut joined = false;
        for attribute in attributes(rdn).map_while(Result::ok) {
            parts.push((joined, attribute));
            joined = true;
        }
    }
    let mut text = String::with_capacity(name.len());
    let mut separator = "";
    for (joined, attribute) in parts.iter().rev() {
        text.push_str(separator);
        write_attribute(&mut text, attribute);
        separator = if *joined { "+" } else { "," };
    }
    text
}

fn write_attribute(text: &mut String, attribute: &Attribute<'_>) {
    let known = short_name(attribute.oid);
    match known {
        Some(name) => text.push_str(name),
        None => write_oid(text, attribute.oid),
    }
    text.push('=');
    match (known, Characters::of(attribute.tag, attribute.value)) {
        (Some(_), Some(characters)) => write_escaped(text, characters),
        _ => {
            let mut der = Vec::new();
            der::write(&mut der, attribute.tag, attribute.value);
            text.push('#');
            HEXUPPER.encode_append(&der, text);
        }
    }
}

fn write_escaped(text: &mut String, characters: Characters<'_>) {
    let mut characters = characters.peekable();
    let mut first = true;
    while let Some(character) = characters.next() {
        let last = characters.peek().is_none();
        match character {
            ',' | '+' | '"' | '\\' | '<' | '>' | ';' => text.extend(['\\', character]),
            '#' if first => text.push_str("\\#"),
            ' ' if first || last => text.push_str("\\ "),
            ' '..='~' => text.push(character),
            _ => {
                let mut buffer = [0; 4];
                for byte in character.encode_utf8(&mut buffer).bytes() {
                    text.push('\\');
                    HEXUPPER.encode_append(&[byte], text);
                }
            }
        }
        first = false;
    }
}

/// The dotted form of an OBJECT IDENTIFIER's content.
pub(crate) fn write_oid(text: &mut String, oid: &[u8]) {
    let mut arc: u64 = 0;
    let mut first = true;
    for byte in oid {
        arc = (arc << 7) | u64::from(byte & 0x7f);
        if byte & 0x80 != 0 {
            continue;
        }
        if first {
            let top = (arc / 40).min(2);
            let _ = write!(text, "{top}.{}", arc - top * 40); // writing to a String cannot fail
            first = false;
        } else {
            let _ = write!(text, ".{arc}");
        }
        arc = 0;
    }
}

const EMAIL_ADDRESS: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x01];

/// OpenSSL's short names of the attributes that occur in subjects.
const NAMES: &[(&[u8], &str)] = &[
    (&[0x55, 0x04, 3], "CN"),
    (&[0x55, 0x04, 4], "SN"),
    (&[0x55, 0x04, 5], "serialNumber"),
    (&[0x55, 0x04, 6], "C"),
    (&[0x55, 0x04, 7], "L"),
    (&[0x55, 0x04, 8], "ST"),
    (&[0x55, 0x04, 9], "street"),
    (&[0x55, 0x04, 10], "O"),
    (&[0x55, 0x04, 11], "OU"),
    (&[0x55, 0x04, 12], "title"),
    (&[0x55, 0x04, 13], "description"),
    (&[0x55, 0x04, 15], "businessCategory"),
    (&[0x55, 0x04, 17], "postalCode"),
    (&[0x55, 0x04, 20], "telephoneNumber"),
    (&[0x55, 0x04, 41], "name"),
    (&[0x55, 0x04, 42], "GN"),
    (&[0x55, 0x04, 43], "initials"),
    (&[0x55, 0x04, 44], "generationQualifier"),
    (&[0x55, 0x04, 45], "x500UniqueIdentifier"),
    (&[0x55, 0x04, 46], "dnQualifier"),
    (&[0x55, 0x04, 65], "pseudonym"),
    (&[0x55, 0x04, 97], "organizationIdentifier"),
    (EMAIL_ADDRESS, "emailAddress"),
    (&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x02], "unstructuredName"),
    (&[0x09, 0x92, 0x26, 0x89, 0x93, 0xf2, 0x2c, 0x64, 0x01, 0x01], "UID"),
    (&[0x09, 0x92, 0x26, 0x89, 0x93, 0xf2, 0x2c, 0x64, 0x01, 0x19], "DC"),
    (&[0x2b, 0x06, 0x01, 0x04, 0x01, 0x82, 0x37, 0x3c, 0x02, 0x01, 0x01], "jurisdictionL"),
    (&[0x2b, 0x06, 0x01, 0x04, 0x01, 0x82, 0x37, 0x3c, 0x02, 0x01, 0x02], "jurisdictionST"),
    (&[0x2b, 0x06, 0x01, 0x04, 0x01, 0x82, 0x37, 0x3c, 0x02, 0x01, 0x03], "jurisdictionC"),
];

fn short_name(oid: &[u8]) -> Option<&'static str> {
    NAMES.iter().find(|(known, _)| *known == oid).map(|(_, name)| *name)
}

/// The text that OpenSSL's legacy `X509_NAME_oneline` prints: `/C=US/O=Acme/CN=client`, in the
/// order of the certificate. Everything but printable ASCII is escaped; a `/` within a value is
/// not, so no decision may depend on this text.
pub(crate) fn to_legacy(name: &[u8]) -> String {
    let mut text = String::with_capacity(name.len());
    let mut rdns = Reader::new(name);
    while let Ok(rdn) = rdns.nested(der::SET) {
        for attribute in attributes(rdn).map_while(Result::ok) {
            text.push('/');
            match short_name(attribute.oid) {
                Some(name) => text.push_str(name),
                None => write_oid(&mut text, attribute.oid),
            }
            text.push('=');
            for byte in attribute.value {
                match byte {
                    b' '..=b'~' => text.push(char::from(*byte)),
                    _ => {
                        text.push_str("\\x");
                        HEXUPPER.encode_append(&[*byte], &mut text);
                    }
                }
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const CN: &[u8] = &[0x55, 0x04, 0x03];
    const O: &[u8] = &[0x55, 0x04, 0x0a];

    /// OID, tag, value.
    type Part<'a> = (&'a [u8], u8, &'a [u8]);

    /// A name: one RDN an item.
    fn name(rdns: &[&[Part<'_>]]) -> Vec<u8> {
        let mut out = Vec::new();
        for rdn in rdns {
            let mut set = Vec::new();
            for (oid, tag, value) in *rdn {
                let mut attribute = Vec::new();
                der::write(&mut attribute, der::OID, oid);
                der::write(&mut attribute, *tag, value);
                der::write(&mut set, der::SEQUENCE, &attribute);
            }
            der::write(&mut out, der::SET, &set);
        }
        out
    }

    #[test]
    fn type_case_and_white_space_are_ignored() {
        let a = name(&[&[(O, 0x13, b"Acme  Inc")], &[(CN, 0x0c, b" Root CA ")]]);
        let b = name(&[&[(O, 0x0c, b"acme inc")], &[(CN, 0x1e, b"\0r\0o\0o\0t\0 \0C\0A")]]);
        assert!(names_match(&a, &b) && names_match(&b, &a));
        assert_eq!(folded_hash(&a), folded_hash(&b));
        assert!(!names_match(&a, &name(&[&[(O, 0x13, b"AcmeInc")], &[(CN, 0x0c, b"Root CA")]])));
        assert!(
            !names_match(&a, &name(&[&[(CN, 0x0c, b"Root CA")], &[(O, 0x13, b"Acme Inc")]])),
            "RDNs have an order"
        );
        assert!(!names_match(&a, &name(&[&[(O, 0x13, b"Acme Inc")]])), "a prefix is not the name");
    }

    #[test]
    fn attributes_of_one_rdn_have_no_order() {
        let a = name(&[&[(O, 0x13, b"x"), (CN, 0x0c, b"y")]]);
        assert!(names_match(&a, &name(&[&[(CN, 0x13, b"Y"), (O, 0x0c, b"X")]])));
        assert!(!names_match(&a, &name(&[&[(CN, 0x13, b"Y"), (CN, 0x0c, b"y")]])));
    }

    #[test]
    fn subtree_is_a_prefix_of_rdns() {
        let base = name(&[&[(O, 0x13, b"acme")]]);
        assert!(is_within(&name(&[&[(O, 0x0c, b"ACME")], &[(CN, 0x0c, b"a")]]), &base));
        assert!(is_within(&base, &base) && is_within(&base, &[]));
        assert!(!is_within(&[], &base));
        assert!(!is_within(&name(&[&[(CN, 0x0c, b"a")], &[(O, 0x0c, b"ACME")]]), &base));
    }

    #[test]
    fn the_legacy_form_keeps_the_order_of_rdns() {
        let odd =
            name(&[&[(O, 0x13, b"a/b")], &[(CN, 0x0c, "\u{e9}\n".as_bytes()), (&[0x2a, 0x03], 0x0c, b"x")]]);
        assert_eq!(to_legacy(&odd), "/O=a/b/CN=\\xC3\\xA9\\x0A/1.2.3=x");
    }

    #[test]
    fn text_is_escaped_as_rfc_2253_says() {
        let odd = name(&[
            &[(O, 0x0c, b"#a,b+c\"d\\e<f>g; ")],
            &[(&[0x2a, 0x03, 0x04], 0x0c, b"x"), (CN, 0x0c, " \u{e9}\n".as_bytes())],
        ]);
        let expected = "CN=\\ \\C3\\A9\\0A+1.2.3.4=#0C0178,O=\\#a\\,b\\+c\\\"d\\\\e\\<f\\>g\\;\\ ";
        assert_eq!(to_rfc2253(&odd), expected);
        assert_eq!(to_rfc2253(&[]), "");
    }
}

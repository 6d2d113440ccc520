//! Parses a distinguished name from RFC 2253 text, for names in the configuration.
//!
//! The text of `name::to_rfc2253` parses to the same name. Stricter than the RFC where leniency
//! would hide a mistake: an unknown attribute, an unescaped special character or a stray quotation
//! mark is an error.

use thiserror::Error;

use super::{DistinguishedName, NAMES, check};
use crate::der::{self, Reader};

/// Longest text, in bytes.
const TEXT_MAX: usize = 4096;

/// Why a text is not a distinguished name.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum NameError {
    /// The text is empty.
    #[error("the name is empty: expected a text like `CN=client,O=Acme`")]
    Empty,
    /// The text is too long.
    #[error("a name of {found} bytes is over the limit of {TEXT_MAX}")]
    TooLong {
        /// Its length.
        found: usize,
    },
    /// OpenSSL's legacy form.
    #[error(
        "`/CN=.../O=...` is OpenSSL's old form: expected RFC 2253, as `openssl x509 -noout -subject -nameopt RFC2253` prints it"
    )]
    SlashForm,
    /// A part without `=`.
    #[error("`{part}` is no attribute: expected a type, `=` and a value, like `CN=client`")]
    NoValue {
        /// The part.
        part: String,
    },
    /// An unknown attribute type.
    #[error("`{kind}` is no attribute type: expected a short name like CN, O, OU, or dotted numbers")]
    Type {
        /// As written.
        kind: String,
    },
    /// A malformed value.
    #[error("the value of `{kind}` cannot be read: {why}")]
    Value {
        /// Its type.
        kind: String,
        /// The problem.
        why: &'static str,
    },
}

impl DistinguishedName {
    /// Parses RFC 2253 text: last RDN first.
    ///
    /// # Errors
    /// [`NameError`], which names the malformed part.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        if text.trim().is_empty() {
            return Err(NameError::Empty);
        }
        if text.len() > TEXT_MAX {
            return Err(NameError::TooLong { found: text.len() });
        }
        if text.starts_with('/') {
            return Err(NameError::SlashForm);
        }
        let mut rdns = Vec::new();
        for rdn in split_unescaped(text, b',') {
            let mut set = Vec::new();
            // In reverse order, like the RDNs.
            let mut parts: Vec<&str> = split_unescaped(rdn, b'+').collect();
            parts.reverse();
            for part in parts {
                attribute(&mut set, part)?;
            }
            let mut whole = Vec::new();
            der::write(&mut whole, der::SET, &set);
            rdns.push(whole);
        }
        rdns.reverse();
        let content = rdns.concat();
        // Checked again, so that no caller has to trust this encoder.
        check(&content).map_err(|_| NameError::Empty)?;
        Ok(Self::new(&content))
    }
}

/// Splits at unescaped separators.
fn split_unescaped(text: &str, separator: u8) -> impl Iterator<Item = &str> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let whole = rest?;
        let mut escaped = false;
        let end = whole.bytes().position(|byte| {
            let ends = byte == separator && !escaped;
            escaped = byte == b'\\' && !escaped;
            ends
        });
        match end {
            Some(end) => {
                rest = whole.get(end + 1..);
                whole.get(..end)
            }
            None => rest.take(),
        }
    })
}

fn attribute(out: &mut Vec<u8>, part: &str) -> Result<(), NameError> {
    let (kind, value) =
        part.split_once('=').ok_or_else(|| NameError::NoValue { part: part.trim().to_owned() })?;
    let kind = kind.trim();
    let oid = object_identifier(kind).ok_or_else(|| NameError::Type { kind: kind.to_owned() })?;
    let mut fields = Vec::new();
    der::write(&mut fields, der::OID, &oid);
    value_of(&mut fields, value).map_err(|why| NameError::Value { kind: kind.to_owned(), why })?;
    der::write(out, der::SEQUENCE, &fields);
    Ok(())
}

fn object_identifier(kind: &str) -> Option<Vec<u8>> {
    if let Some((oid, _)) = NAMES.iter().find(|(_, name)| name.eq_ignore_ascii_case(kind)) {
        return Some(oid.to_vec());
    }
    let arcs: Vec<u64> = kind.split('.').map(|arc| arc.parse().ok()).collect::<Option<_>>()?;
    let [first, second, rest @ ..] = arcs.as_slice() else { return None };
    if *first > 2 || *first < 2 && *second > 39 {
        return None;
    }
    let mut out = Vec::new();
    for arc in std::iter::once(first.checked_mul(40)?.checked_add(*second)?).chain(rest.iter().copied()) {
        let groups = (u64::BITS - arc.leading_zeros()).div_ceil(7).max(1);
        for group in (0..groups).rev() {
            let bits = (arc >> (7 * group)) as u8 & 0x7f;
            out.push(if group == 0 { bits } else { bits | 0x80 });
        }
    }
    Some(out)
}

fn value_of(out: &mut Vec<u8>, value: &str) -> Result<(), &'static str> {
    let trimmed = value.trim();
    if let Some(hex) = trimmed.strip_prefix('#') {
        let der = hexadecimal(hex.as_bytes()).ok_or("after `#` come pairs of hexadecimal digits")?;
        let mut reader = Reader::new(&der);
        reader.next().and_then(|_| reader.finish()).map_err(|_| "after `#` comes one DER value")?;
        out.extend_from_slice(&der);
        return Ok(());
    }
    let text = unescaped(value)?;
    der::write(out, der::UTF8_STRING, text.as_bytes());
    Ok(())
}

fn unescaped(value: &str) -> Result<String, &'static str> {
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.as_bytes();
    while let [byte, after @ ..] = rest {
        rest = after;
        match (byte, after) {
            (b'\\', [high, low, ..]) if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                bytes.extend(hexadecimal(&[*high, *low]).unwrap_or_default());
                rest = after.get(2..).unwrap_or_default();
            }
            (b'\\', [special, ..]) if b",+\"\\<>;=# ".contains(special) => {
                bytes.push(*special);
                rest = after.get(1..).unwrap_or_default();
            }
            (b'\\', _) => {
                return Err("`\\` escapes a special character or comes before two hexadecimal digits");
            }
            (b'"' | b'<' | b'>' | b';', _) => return Err("one of \" < > ; without a `\\` before it"),
            _ => bytes.push(*byte),
        }
    }
    String::from_utf8(bytes).map_err(|_| "not UTF-8")
}

fn hexadecimal(digits: &[u8]) -> Option<Vec<u8>> {
    let (pairs, []) = digits.as_chunks::<2>() else { return None };
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::{names_match, to_rfc2253};

    fn read(text: &str) -> DistinguishedName {
        DistinguishedName::parse(text).unwrap()
    }

    #[test]
    fn printed_names_parse_back() {
        for text in [
            "CN=client,O=Acme",
            "CN=a\\,b\\+c\\\"d\\\\e\\<f\\>g\\;",
            "CN=\\ \\C3\\A9\\0A+1.2.3.4=#0C0178,O=\\#a\\ ",
            "emailAddress=a@b.example,UID=x,DC=example,DC=org",
            "2.999.1=#1303612062",
        ] {
            assert_eq!(to_rfc2253(read(text).content()), text);
        }
        assert!(names_match(read("cn = Client , o=acme").content(), read("CN=client,O=Acme").content()));
        assert!(!names_match(read("O=Acme,CN=client").content(), read("CN=client,O=Acme").content()));
        assert!(!names_match(read("CN=client").content(), read("CN=client,O=Acme").content()));
    }

    #[test]
    fn invalid_names_are_rejected() {
        for text in [
            "",
            " ",
            "CN",
            "CN=a,",
            "CN=a,,O=b",
            "XX=a",
            "CN=a\"b",
            "CN=a\\",
            "CN=a\\q",
            "CN=\\FF",
            "CN=#0",
            "CN=#0C02aa",
            "/CN=a",
            "3.1=a",
            "1.40=a",
            "=a",
            "1=a",
        ] {
            assert!(DistinguishedName::parse(text).is_err(), "{text}");
        }
        assert!(DistinguishedName::parse(&format!("CN={}", "a".repeat(5000))).is_err());
    }
}

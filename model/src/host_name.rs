//! Normalizes host names: SNI, Host headers, `:authority` and configured names become a
//! [`HostName`] here, so that the site lookups of SNI and Host cannot disagree.
//!
//! Names are lower-cased, and one trailing dot and the port of a host are removed. An invalid name
//! (empty labels, over 253 bytes, characters outside the contract's host pattern) is `None`, never
//! repaired. Names of up to 38 bytes are stored inline, so that a lookup reads no memory but the
//! map's.

use std::borrow::Borrow;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use crate::dots;

/// The longest name in bytes [RFC 1035, 2.3.4, as text without the root dot].
const NAME_BYTES_MAX: usize = 253;
const INLINE: usize = 38;

/// A normalized host name or address literal (`[::1]` keeps its brackets).
#[derive(Clone)]
pub struct HostName(Repr);

#[derive(Clone)]
enum Repr {
    Inline { length: u8, bytes: [u8; INLINE] },
    Shared(Arc<[u8]>),
}

impl HostName {
    /// Parses the server_name of a ClientHello, or a configured name without wildcard.
    pub fn from_sni(text: &str) -> Option<HostName> {
        let text = text.strip_suffix('.').unwrap_or(text);
        let fine = !text.is_empty()
            && text.len() <= NAME_BYTES_MAX
            && text.bytes().all(is_name_byte)
            && !text.starts_with('.')
            && !text.ends_with('.')
            && !text.contains("..");
        fine.then(|| HostName::from_bytes(text.as_bytes()))
    }

    /// Parses a Host header or `:authority`, like [`HostName::from_sni`] but without the port [RFC
    /// 9110, 7.2]. A bare IPv6 address is invalid, because its port would be ambiguous.
    pub fn from_host(text: &str) -> Option<HostName> {
        let host = if text.starts_with('[') {
            let end = text.find(']')? + 1;
            without_port(text.get(end..)?)?;
            text.get(..end)?
        } else {
            match text.split_once(':') {
                Some((host, port)) if is_port(port) => host,
                Some(_) => return None,
                None => text,
            }
        };
        HostName::from_sni(host)
    }

    /// Lower-cases bytes that were checked before (names, and suffixes of patterns).
    pub(crate) fn from_bytes(text: &[u8]) -> HostName {
        let mut bytes = [0_u8; INLINE];
        match (bytes.get_mut(..text.len()), u8::try_from(text.len())) {
            (Some(room), Ok(length)) => {
                room.copy_from_slice(text);
                room.make_ascii_lowercase();
                HostName(Repr::Inline { length, bytes })
            }
            _ => HostName(Repr::Shared(text.to_ascii_lowercase().into())),
        }
    }

    /// The bytes of the name: ASCII, lower case.
    #[inline]
    pub fn as_bytes(&self) -> &[u8] {
        match &self.0 {
            Repr::Inline { length, bytes } => bytes.get(..usize::from(*length)).unwrap_or_default(),
            Repr::Shared(bytes) => bytes,
        }
    }

    /// The number of dots.
    #[inline]
    pub(crate) fn dot_count(&self) -> usize {
        match &self.0 {
            // The bytes behind the name are zero, and counting a constant length needs no loop.
            Repr::Inline { bytes, .. } => dots::count(bytes),
            Repr::Shared(bytes) => dots::count(bytes),
        }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        // The bytes are ASCII, so the conversion succeeds.
        std::str::from_utf8(self.as_bytes()).unwrap_or_default()
    }
}

/// The characters of the contract's host pattern, without the wildcard.
fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'[' | b']' | b':')
}

fn is_port(text: &str) -> bool {
    text.len() <= 5 && text.bytes().all(|b| b.is_ascii_digit())
}

fn without_port(rest: &str) -> Option<()> {
    match rest.strip_prefix(':') {
        Some(port) => is_port(port).then_some(()),
        None => rest.is_empty().then_some(()),
    }
}

impl PartialEq for HostName {
    fn eq(&self, other: &HostName) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for HostName {}

impl PartialOrd for HostName {
    fn partial_cmp(&self, other: &HostName) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for HostName {
    fn cmp(&self, other: &HostName) -> std::cmp::Ordering {
        self.as_bytes().cmp(other.as_bytes())
    }
}

/// Hashes like `[u8]`, so that maps keyed by names accept slices of names.
impl Hash for HostName {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_bytes().hash(state);
    }
}

impl Borrow<[u8]> for HostName {
    fn borrow(&self) -> &[u8] {
        self.as_bytes()
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn host(text: &str) -> Option<String> {
        HostName::from_host(text).map(|name| name.to_string())
    }

    #[test]
    fn case_and_one_trailing_dot_do_not_matter() {
        assert_eq!(HostName::from_sni("WWW.Test.COM."), HostName::from_sni("www.test.com"));
        assert_eq!(HostName::from_sni("www.test.com.."), None);
        assert_eq!(HostName::from_sni("."), None);
        assert_eq!(HostName::from_sni(""), None);
        assert_eq!(HostName::from_sni(".a.com"), None);
        assert_eq!(HostName::from_sni("a..com"), None);
        assert_eq!(HostName::from_sni("a b"), None);
        assert_eq!(HostName::from_sni("a\0.com"), None);
        assert_eq!(HostName::from_sni("*.a.com"), None);
        assert_eq!(HostName::from_sni(&"a".repeat(254)), None);
    }

    #[test]
    fn host_ports_are_removed() {
        assert_eq!(host("A.com:8443").as_deref(), Some("a.com"));
        assert_eq!(host("a.com.:443").as_deref(), Some("a.com"));
        assert_eq!(host("a.com:").as_deref(), Some("a.com"));
        assert_eq!(host("[::1]:8443").as_deref(), Some("[::1]"));
        assert_eq!(host("[::1]").as_deref(), Some("[::1]"));
        for bad in ["::1", "a.com:80:80", "a.com:x", "[::1", "[::1]x", "[::1]:x", ":80", "", "a.com:123456"] {
            assert_eq!(host(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn long_and_short_names_keep_their_text(text in "[a-z0-9]{1,60}(\\.[a-z0-9]{1,30}){0,5}") {
            let name = HostName::from_sni(&text).unwrap();
            prop_assert_eq!(name.as_str(), text.as_str());
            prop_assert_eq!(&name, &HostName::from_host(&format!("{}:443", text.to_uppercase())).unwrap());
        }

        #[test]
        fn normalization_is_idempotent(text in "\\PC{0,40}") {
            if let Some(name) = HostName::from_host(&text) {
                prop_assert_eq!(HostName::from_host(name.as_str()), Some(name.clone()));
                prop_assert_eq!(HostName::from_sni(name.as_str()), Some(name));
            }
        }
    }
}

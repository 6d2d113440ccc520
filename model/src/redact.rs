//! Texts of others in messages: without private keys, and no longer than a line may be.
//!
//! Error messages quote values (a host, a pattern, a member name), any of which may be a misplaced
//! private key. Each output of such a message (response, log line, finding) passes it through
//! [`redact`].

use std::borrow::Cow;

/// Replaces the redacted part.
const REPLACEMENT: &str = "... (the rest is not repeated: it may be a private key)";

/// The shortest base64 run that counts as key material. An Ed25519 key has 64 characters in PKCS#8
/// and 43 as bare bytes.
const BASE64_RUN_MIN: usize = 40;

/// Cuts the text at the first value that may contain a private key: one with PEM armor, with
/// several lines, or with a long base64 run. Names, paths and fingerprints have none of these.
pub fn redact(text: &str) -> Cow<'_, str> {
    let Some(found) = find_secret(text) else { return Cow::Borrowed(text) };
    let before = text.get(..found).unwrap_or_default();
    // The whole quoted value is cut, including the part before the suspicious one.
    let start = before.rfind(['"', '`', '\'']).or_else(|| before.rfind(' ')).map_or(0, |at| at + 1);
    Cow::Owned(format!("{}{REPLACEMENT}", before.get(..start).unwrap_or_default()))
}

/// At most `max` bytes of a text, with `...` in place of the rest.
pub fn truncated(text: &str, max: usize) -> Cow<'_, str> {
    if text.len() <= max {
        return Cow::Borrowed(text);
    }
    let end = text.floor_char_boundary(max);
    Cow::Owned(format!("{}...", text.get(..end).unwrap_or_default()))
}

/// Whether the text contains the armor of a private key.
pub fn has_private_key_armor(text: &str) -> bool {
    text.contains(ARMOR)
}

/// Part of the first and last line of every PEM private key (RFC 7468 10, RFC 5958, and the forms
/// of OpenSSL and OpenSSH).
const ARMOR: &str = "PRIVATE KEY-----";

fn find_secret(text: &str) -> Option<usize> {
    let line_end = text.find(|c: char| c.is_control());
    [armor_with_body(text), line_end, base64_run(text)].into_iter().flatten().min()
}

/// Finds armor that is followed by a key. Hints that quote only the armor are kept.
fn armor_with_body(text: &str) -> Option<usize> {
    let with_body = |(at, _): &(usize, &str)| {
        let (before, after) = text.split_at_checked(at + ARMOR.len()).unwrap_or_default();
        before.rfind("-----END ") > before.rfind("-----BEGIN ")
            || !(after.is_empty() || after.starts_with(['"', '`', '\'']))
    };
    let (found, _) = text.match_indices(ARMOR).find(with_body)?;
    // The PEM label has spaces, so the value begins before the dashes.
    text.get(..found).and_then(|before| before.rfind(DASHES))
}

/// Surrounds PEM labels.
const DASHES: &str = "-----";

/// The first base64 run (of either alphabet) that is long enough. Words and hexadecimal texts do
/// not mix upper case, lower case and digits as keys do; a path may, but not within one segment of
/// that length.
fn base64_run(text: &str) -> Option<usize> {
    let mut start = 0;
    for run in text.split_inclusive(|c: char| !is_base64(c)) {
        let body = run.trim_end_matches(|c| !is_base64(c));
        if body.len() >= BASE64_RUN_MIN
            && body.split('/').any(|segment| segment.len() >= SEGMENT_MIN && is_mixed(segment))
        {
            return Some(start);
        }
        start += run.len();
    }
    None
}

/// The shortest segment between two slashes that distinguishes a key from a path: 64 random
/// characters contain one slash on average.
const SEGMENT_MIN: usize = 12;

fn is_base64(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '+' | '/' | '-' | '_' | '=')
}

fn is_mixed(text: &str) -> bool {
    let has = |kind: fn(&char) -> bool| text.chars().any(|c| kind(&c));
    has(char::is_ascii_uppercase) && has(char::is_ascii_lowercase) && has(char::is_ascii_digit)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g\nZGVm\n-----END PRIVATE KEY-----\n";

    /// Quoted parts of a key in many forms.
    fn pieces() -> Vec<String> {
        let body = KEY.lines().nth(1).unwrap();
        let mut pieces = vec![body.to_owned(), format!("{body}{body}"), body[..BASE64_RUN_MIN].to_owned()];
        for whole in [KEY.to_owned(), KEY.replace('\n', "\r\n"), KEY.replace("PRIVATE", "ENCRYPTED PRIVATE")]
        {
            // Cut at either end, at any place.
            for at in (0..whole.len()).step_by(7) {
                pieces.push(whole[at..].to_owned());
                pieces.push(whole[..at].to_owned());
            }
            pieces.push(format!("a.test{whole}"));
        }
        pieces.extend(pieces.clone().into_iter().map(|piece| piece.escape_debug().to_string()));
        pieces.retain(|piece| ["MC4CAQAw", "ZGVm"].iter().any(|secret| piece.contains(secret)));
        pieces
    }

    #[test]
    fn no_part_of_a_key_is_quoted() {
        for piece in pieces() {
            // A single line below the limit reveals too little.
            let long = piece.len() > BASE64_RUN_MIN;
            for text in [
                format!("failed to match pattern \"^a$\" with \"{piece}\""),
                format!("additional properties forbidden, found {piece}"),
                format!("uri: {piece:?} is not a request target"),
                piece.clone(),
            ] {
                let shown = redact(&text);
                let leaks = |secret: &str| shown.contains(secret);
                assert!(!(long && leaks("MC4CAQAw")), "{text} -> {shown}");
                assert!(!(piece.contains("KEY") && leaks("ZGVm")), "{text} -> {shown}");
            }
        }
    }

    #[test]
    fn long_texts_are_truncated_between_characters() {
        assert_eq!(truncated("short", 5), "short");
        assert_eq!(truncated("longer", 5), "longe...");
        assert_eq!(truncated("aéé", 2), "a...");
    }

    #[test]
    fn ordinary_texts_are_unchanged() {
        for text in [
            "invalid configuration: property \"snis\" validation failed: failed to match pattern \"^\\*?[0-9a-zA-Z-._\\[\\]:]+$\" with \"a b\"",
            "failed to parse key: PEM_read_bio_PrivateKey() failed",
            "no private key found: expected a block `-----BEGIN PRIVATE KEY-----`, or `RSA PRIVATE KEY`",
            "begins with -----BEGIN EC PRIVATE KEY-----",
            "fingerprint 0cd9057515f933aa1ee5c5f235a4ba65991f76cfb12f7d24f6cf4200466dd081",
            "expected PEM: \"-----BEGIN CERTIFICATE-----...\"",
            "/api/v2/customers/orders/items/positions/and-so-on/42",
            "/home/User1/deployments/countersign-prod/Release7/data/store",
            "schlüssel für größere äöü-Anlagen",
        ] {
            assert_eq!(redact(text), text);
        }
    }
}

//! The values of a line, escaped, so that whatever a client sends stays within its value.
//!
//! Invariant: what is appended has no line break, no control character and, but for
//! [`LogEscape::None`], no quotation mark that is not escaped; in JSON it is the content of a
//! string, for any bytes.

use conf::LogEscape;

/// The longest value, in bytes; more is cut off, and `...` put in its place.
pub(super) const VALUE_MAX: usize = 2048;
/// Marks a value that was cut off.
const CUT: &[u8] = b"...";
const UPPER_HEX: &[u8; 16] = b"0123456789ABCDEF";

/// Appends a value.
pub(super) fn escape(line: &mut Vec<u8>, value: &[u8], mode: LogEscape) {
    let (value, rest) = value.split_at(value.len().min(VALUE_MAX));
    let (eights, last) = value.as_chunks();
    if eights.iter().all(|eight| are_surely_plain(*eight)) && last.iter().all(|byte| is_plain(*byte)) {
        line.extend_from_slice(value);
    } else {
        escape_special(line, value, mode);
    }
    if !rest.is_empty() {
        line.extend_from_slice(CUT);
    }
}

fn escape_special(line: &mut Vec<u8>, value: &[u8], mode: LogEscape) {
    match mode {
        LogEscape::Default => escape_default(line, value),
        LogEscape::Json => escape_json(line, value),
        LogEscape::None => escape_controls(line, value),
    }
}

/// Whether a byte is printable ASCII, and neither `"` nor `\`.
fn is_plain(byte: u8) -> bool {
    matches!(byte, 0x20..=0x7e) && byte != b'"' && byte != b'\\'
}

/// Whether all of eight bytes are plain by [`is_plain`], or perhaps not: for most bytes of a line
/// one question is enough.
fn are_surely_plain(eight: [u8; 8]) -> bool {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = 0x8080_8080_8080_8080;
    let bytes = u64::from_ne_bytes(eight);
    // The high bit of each byte that is below `n`, or above it by 0x80 and more.
    let below = |bytes: u64, n: u8| bytes.wrapping_sub(ONES * u64::from(n));
    let is = |byte: u8| below(bytes ^ (ONES * u64::from(byte)), 1);
    (bytes | below(bytes, 0x20) | is(b'"') | is(b'\\') | is(0x7f)) & HIGH == 0
}

/// nginx's escaping: `\xXX` for what is not printable ASCII, and for `"` and `\`.
fn escape_default(line: &mut Vec<u8>, value: &[u8]) {
    by_runs(line, value, is_plain, |line, rest| {
        let (byte, rest) = rest.split_first()?;
        push_byte(line, *byte);
        Some(rest)
    });
}

/// The content of a JSON string. Bytes that are not UTF-8 become U+FFFD.
pub(super) fn escape_json(line: &mut Vec<u8>, value: &[u8]) {
    by_runs(line, value, is_plain, |line, rest| {
        let (next, rest) = next_char(rest)?;
        match next {
            Ok('"') => line.extend_from_slice(b"\\\""),
            Ok('\\') => line.extend_from_slice(b"\\\\"),
            Ok('\n') => line.extend_from_slice(b"\\n"),
            Ok('\r') => line.extend_from_slice(b"\\r"),
            Ok('\t') => line.extend_from_slice(b"\\t"),
            Ok(other) if ends_or_hides_lines(other) => {
                line.extend_from_slice(b"\\u");
                let code = u32::from(other);
                for shift in [12, 8, 4, 0] {
                    line.push(hex_digit(code >> shift, b"0123456789abcdef"));
                }
            }
            Ok(other) => line.extend_from_slice(other.encode_utf8(&mut [0; 4]).as_bytes()),
            Err(_) => line.extend_from_slice("\u{fffd}".as_bytes()),
        }
        Some(rest)
    });
}

/// As it is, but for what ends or hides a line, and what is not UTF-8: `\xXX`.
fn escape_controls(line: &mut Vec<u8>, value: &[u8]) {
    by_runs(
        line,
        value,
        |byte| matches!(byte, 0x20..=0x7e),
        |line, rest| {
            let (next, after) = next_char(rest)?;
            match next {
                Ok(other) if !ends_or_hides_lines(other) => {
                    line.extend_from_slice(other.encode_utf8(&mut [0; 4]).as_bytes());
                }
                _ => {
                    let bytes = rest.get(..rest.len() - after.len()).unwrap_or_default();
                    bytes.iter().for_each(|byte| push_byte(line, *byte));
                }
            }
            Some(after)
        },
    );
}

/// Copies runs of plain bytes, and gives the rest from each other byte on to `other`, which returns
/// what is behind that.
fn by_runs(
    line: &mut Vec<u8>,
    mut value: &[u8],
    is_plain: impl Fn(u8) -> bool,
    mut other: impl for<'r> FnMut(&mut Vec<u8>, &'r [u8]) -> Option<&'r [u8]>,
) {
    while !value.is_empty() {
        let plain = value.iter().position(|byte| !is_plain(*byte)).unwrap_or(value.len());
        let (run, rest) = value.split_at(plain);
        line.extend_from_slice(run);
        let Some(rest) = other(line, rest) else { return };
        value = rest;
    }
}

/// The next character, or a piece that is not UTF-8; and the rest.
fn next_char(bytes: &[u8]) -> Option<(Result<char, ()>, &[u8])> {
    let longest = bytes.get(..bytes.len().min(4))?;
    let chunk = longest.utf8_chunks().next()?;
    let (next, length) = match chunk.valid().chars().next() {
        Some(character) => (Ok(character), character.len_utf8()),
        None => (Err(()), chunk.invalid().len()),
    };
    bytes.get(length..).map(|rest| (next, rest))
}

/// Control characters, and Unicode's separators of lines and paragraphs.
fn ends_or_hides_lines(character: char) -> bool {
    character.is_control() || matches!(character, '\u{2028}' | '\u{2029}')
}

fn push_byte(line: &mut Vec<u8>, byte: u8) {
    line.extend_from_slice(b"\\x");
    line.push(hex_digit(u32::from(byte) >> 4, UPPER_HEX));
    line.push(hex_digit(u32::from(byte), UPPER_HEX));
}

fn hex_digit(number: u32, digits: &[u8; 16]) -> u8 {
    digits.get((number & 15) as usize).copied().unwrap_or(b'0')
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn escaped(value: impl AsRef<[u8]>, mode: LogEscape) -> String {
        let mut line = Vec::new();
        escape(&mut line, value.as_ref(), mode);
        String::from_utf8(line).unwrap()
    }

    #[test]
    fn nginx_escapes_the_same() {
        let value = b"a \"b\" \\ \r\n\x1b[2J\x7f \xc3\xa9 ~";
        let default = r"a \x22b\x22 \x5C \x0D\x0A\x1B[2J\x7F \xC3\xA9 ~";
        assert_eq!(escaped(value, LogEscape::Default), default);
        assert_eq!(escaped(value, LogEscape::Json), "a \\\"b\\\" \\\\ \\r\\n\\u001b[2J\\u007f \u{e9} ~");
        assert_eq!(escaped(value, LogEscape::None), "a \"b\" \\ \\x0D\\x0A\\x1B[2J\\x7F \u{e9} ~");
    }

    #[test]
    fn other_line_breaks_and_bytes_are_escaped() {
        let value = b"\xc2\x85 \xe2\x80\xa8 \xff\xe2\x82 \xc2";
        assert_eq!(escaped(value, LogEscape::Json), "\\u0085 \\u2028 \u{fffd}\u{fffd} \u{fffd}");
        assert_eq!(escaped(value, LogEscape::None), "\\xC2\\x85 \\xE2\\x80\\xA8 \\xFF\\xE2\\x82 \\xC2");
    }

    #[test]
    fn long_values_are_cut() {
        for mode in [LogEscape::Default, LogEscape::Json, LogEscape::None] {
            assert_eq!(escaped("a".repeat(VALUE_MAX), mode).len(), VALUE_MAX);
            assert_eq!(escaped("a".repeat(VALUE_MAX + 1), mode), format!("{}...", "a".repeat(VALUE_MAX)));
        }
        // In the middle of a character.
        let value = format!("{}\u{e9}", "a".repeat(VALUE_MAX - 1));
        assert!(escaped(&value, LogEscape::Json).ends_with("a\u{fffd}..."));
    }

    proptest! {
        /// Eight bytes are only taken for plain where each of them is.
        #[test]
        fn eight_bytes_are_plain_as_each_is(eight in any::<[u8; 8]>(), plain in "[ -~]{8}") {
            let all = |bytes: [u8; 8]| bytes.iter().all(|byte| is_plain(*byte));
            let plain: [u8; 8] = plain.as_bytes().try_into().unwrap();
            prop_assert_eq!(are_surely_plain(eight), all(eight));
            prop_assert_eq!(are_surely_plain(plain), all(plain));
        }

        /// Whatever bytes a client sends are one string to a JSON parser, and the same text.
        #[test]
        fn json_reads_back_any_bytes(value in vec(any::<u8>(), 0..60)) {
            let text = escaped(&value, LogEscape::Json);
            prop_assert!(!text.chars().any(ends_or_hides_lines), "{}", text);
            let read: String = serde_json::from_str(&format!("\"{text}\"")).unwrap();
            prop_assert_eq!(read, String::from_utf8_lossy(&value));
        }

        /// The values of other formats stay on their line, and `default` is ASCII without `"`.
        #[test]
        fn no_bytes_leave_their_line(value in vec(any::<u8>(), 0..60)) {
            let text = escaped(&value, LogEscape::Default);
            prop_assert!(text.bytes().all(|byte| matches!(byte, 0x20..=0x7e) && byte != b'"'));
            // nginx's escaping can be undone.
            let mut read = Vec::new();
            let mut parts = text.split("\\x");
            read.extend_from_slice(parts.next().unwrap().as_bytes());
            for part in parts {
                read.push(u8::from_str_radix(&part[..2], 16).unwrap());
                read.extend_from_slice(&part.as_bytes()[2..]);
            }
            prop_assert_eq!(read, value.clone());
            prop_assert!(!escaped(&value, LogEscape::None).chars().any(ends_or_hides_lines));
        }
    }
}

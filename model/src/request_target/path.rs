//! Normalizes request paths: the text that rules match, and the path that the upstream receives.
//!
//! A raw path is decoded once and its dot segments are removed. Rules match the result, and the
//! same bytes, encoded once, are forwarded. Invariants: normalizing the forwarded path gives the
//! same normalized path, and encoding that again changes nothing; an upstream that decodes it,
//! treats `\` as `/` or cuts `;parameters` off finds no dot segment. RFC 3986 sections 3.3 and
//! 6.2.2, nginx's `$uri`, decision 29.

use std::borrow::Cow;

use percent_encoding::percent_encode_byte;

use super::RequestTargetError;

/// Options of `apisix` in the settings file that change normalization. All are off by default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PathOptions {
    /// `%2F` is part of a segment and stays encoded, as `%2F`, in the normalized and the forwarded
    /// path. As in APISIX, the option does not apply to a path that needs normalization after its
    /// `%2F` are decoded.
    pub match_uri_encoded_slash: bool,
    /// `;parameters` are cut off the segments of the normalized path only, and a dot segment with
    /// parameters is resolved like any other.
    pub normalize_uri_like_servlet: bool,
    /// The final `/` of a path other than `/` is cut off.
    pub delete_uri_tail_slash: bool,
}

/// A normalized path.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NormalizedPath {
    /// Decoded.
    pub path: String,
    /// Encoded; `None` if it equals `path`.
    pub forwarded: Option<Box<str>>,
}

/// Represents an encoded slash among decoded bytes, where NUL cannot occur, because an encoded NUL
/// is malformed.
const KEPT_SLASH: u8 = 0;

/// The normalized text represents an invalid byte (0x80 to 0xFF) by this value plus the byte, which
/// gives the last code points of the private use plane. Such a code point in a client's path is
/// represented by its four bytes, so that different paths stay different and the bytes can be
/// restored.
const NON_UTF8_BASE: u32 = 0x10_FF00;

/// Normalizes a raw path without query.
///
/// # Errors
///
/// The variants of [`RequestTargetError`] about paths.
pub(super) fn normalize(raw: &str, options: PathOptions) -> Result<NormalizedPath, RequestTargetError> {
    if is_canonical(raw, options) {
        return Ok(NormalizedPath { path: raw.to_owned(), forwarded: None });
    }
    if !raw.starts_with('/') {
        return Err(RequestTargetError::InvalidPath);
    }
    let decoded = decode(raw, options.match_uri_encoded_slash)?;
    let decoded = if decoded.contains(&KEPT_SLASH) { keep_slashes(decoded, options)? } else { decoded };
    let mut full = remove_dot_segments(&decoded, options)?;
    let mut normalized = if options.normalize_uri_like_servlet { without_parameters(&full) } else { None };
    if options.delete_uri_tail_slash {
        strip_tail_slash(&mut full);
        normalized.as_mut().map(strip_tail_slash);
    }
    let path = text(normalized.as_deref().unwrap_or(&full), options);
    let forwarded = encode_bytes(&full, options.match_uri_encoded_slash);
    let forwarded = (forwarded != path).then(|| forwarded.into_boxed_str());
    Ok(NormalizedPath { path, forwarded })
}

/// Whether [`normalize`] would change nothing. This check is the whole cost of nearly every
/// request.
fn is_canonical(raw: &str, options: PathOptions) -> bool {
    if options.normalize_uri_like_servlet && raw.contains(';')
        || options.delete_uri_tail_slash && raw.len() > 1 && raw.ends_with('/')
    {
        return false;
    }
    let mut before = 0;
    for byte in raw.bytes() {
        if !is_plain(byte) || before == b'/' && matches!(byte, b'/' | b'.') {
            return false;
        }
        before = byte;
    }
    raw.starts_with('/')
}

/// Bytes that need no encoding: `pchar` of RFC 3986 without `pct-encoded`, and `/`.
const fn is_plain(byte: u8) -> bool {
    matches!(byte, b'a'..=b'z' | b'A'..=b'Z' | b'&'..=b';' | b'!' | b'$' | b'=' | b'@' | b'_' | b'~')
}

/// Decodes the escapes once. With `keep_slash`, an encoded slash becomes [`KEPT_SLASH`].
fn decode(raw: &str, keep_slash: bool) -> Result<Vec<u8>, RequestTargetError> {
    let mut bytes = Vec::with_capacity(raw.len());
    let mut rest = raw.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            if byte.is_ascii_control() || matches!(byte, b'\\' | b'"') {
                return Err(RequestTargetError::InvalidByte);
            }
            bytes.push(byte);
            continue;
        }
        let high = rest.next().and_then(hex).ok_or(RequestTargetError::InvalidEscape)?;
        let low = rest.next().and_then(hex).ok_or(RequestTargetError::InvalidEscape)?;
        match high << 4 | low {
            byte if byte.is_ascii_control() => return Err(RequestTargetError::InvalidByte),
            b'/' if keep_slash => bytes.push(KEPT_SLASH),
            byte => bytes.push(byte),
        }
    }
    Ok(bytes)
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|d| u8::try_from(d).ok())
}

/// Keeps encoded slashes only if the path needs no normalization without them: otherwise
/// `a%2F..%2Fb` would be one segment here and three for an upstream that decodes it.
fn keep_slashes(decoded: Vec<u8>, options: PathOptions) -> Result<Vec<u8>, RequestTargetError> {
    let slash = |byte: &u8| if *byte == KEPT_SLASH { b'/' } else { *byte };
    let plain: Vec<u8> = decoded.iter().map(slash).collect();
    let rewritten = options.normalize_uri_like_servlet && plain.contains(&b';')
        || options.delete_uri_tail_slash && plain.ends_with(b"/")
        || remove_dot_segments(&plain, options)? != plain;
    Ok(if rewritten { plain } else { decoded })
}

/// Removes dot segments and merges slashes.
fn remove_dot_segments(decoded: &[u8], options: PathOptions) -> Result<Vec<u8>, RequestTargetError> {
    let mut kept: Vec<&[u8]> = Vec::new();
    let mut ends_in_folder = false;
    let mut segments = decoded.split(|byte| *byte == b'/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let name = before_parameters(segment);
        ends_in_folder = segment.is_empty() || is_dot_segment(name);
        if segment != name && is_dot_segment(name) && !options.normalize_uri_like_servlet {
            return Err(RequestTargetError::AmbiguousDotSegment);
        }
        // Windows treats `\` as a separator.
        if segment.contains(&b'\\') && has_dot_segment(segment) {
            return Err(RequestTargetError::AmbiguousDotSegment);
        }
        match name {
            b"" if segment.is_empty() => {}
            b"" if options.normalize_uri_like_servlet && segments.peek().is_some() => {
                return Err(RequestTargetError::EmptySegmentParameters);
            }
            b"." => {}
            b".." => {
                kept.pop().ok_or(RequestTargetError::AboveRoot)?;
            }
            _ => kept.push(segment),
        }
    }
    let mut path = Vec::with_capacity(decoded.len());
    for segment in kept {
        path.push(b'/');
        path.extend_from_slice(segment);
    }
    if ends_in_folder || path.is_empty() {
        path.push(b'/');
    }
    Ok(path)
}

fn before_parameters(segment: &[u8]) -> &[u8] {
    segment.split(|byte| *byte == b';').next().unwrap_or_default()
}

fn is_dot_segment(name: &[u8]) -> bool {
    matches!(name, b"." | b"..")
}

/// Whether an upstream that treats `\` as `/` and cuts parameters off finds a dot segment.
fn has_dot_segment(path: &[u8]) -> bool {
    path.split(|byte| matches!(byte, b'/' | b'\\')).any(|piece| is_dot_segment(before_parameters(piece)))
}

/// `None` if there are none.
fn without_parameters(path: &[u8]) -> Option<Vec<u8>> {
    if !path.contains(&b';') {
        return None;
    }
    let mut cut = Vec::with_capacity(path.len());
    for segment in path.split(|byte| *byte == b'/').skip(1) {
        cut.push(b'/');
        cut.extend_from_slice(before_parameters(segment));
    }
    Some(cut)
}

fn strip_tail_slash(path: &mut Vec<u8>) {
    if path.len() > 1 && path.ends_with(b"/") {
        path.pop();
    }
}

/// Converts decoded bytes to the normalized text. With kept slashes, a literal `%` that could start
/// the escape of a slash, or of this escape, is written `%25`.
fn text(decoded: &[u8], options: PathOptions) -> String {
    let mut bytes = Cow::Borrowed(decoded);
    if options.match_uri_encoded_slash && decoded.iter().any(|byte| matches!(*byte, KEPT_SLASH | b'%')) {
        let mut escaped = Vec::with_capacity(decoded.len() + 8);
        for (at, byte) in decoded.iter().enumerate() {
            match *byte {
                KEPT_SLASH => escaped.extend_from_slice(b"%2F"),
                b'%' if matches!(decoded.get(at + 1..at + 3), Some(b"2F" | b"2f" | b"25")) => {
                    escaped.extend_from_slice(b"%25");
                }
                other => escaped.push(other),
            }
        }
        bytes = Cow::Owned(escaped);
    }
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            if u32::from(character) < NON_UTF8_BASE + 0x80 {
                text.push(character);
            } else {
                let mut own = [0; 4];
                text.extend(character.encode_utf8(&mut own).bytes().filter_map(stand_in));
            }
        }
        text.extend(chunk.invalid().iter().copied().filter_map(stand_in));
    }
    text
}

fn stand_in(byte: u8) -> Option<char> {
    char::from_u32(NON_UTF8_BASE + u32::from(byte))
}

/// The bytes of a normalized path or a part of one, for example for a header, with invalid UTF-8
/// restored.
pub fn path_bytes(text: &str) -> Cow<'_, [u8]> {
    // Every representation of a byte begins with these two bytes.
    if !text.as_bytes().windows(2).any(|two| two == [0xF4, 0x8F]) {
        return Cow::Borrowed(text.as_bytes());
    }
    let mut bytes = Vec::with_capacity(text.len());
    for character in text.chars() {
        match u32::from(character).checked_sub(NON_UTF8_BASE).and_then(|byte| u8::try_from(byte).ok()) {
            Some(byte) if byte >= 0x80 => bytes.push(byte),
            _ => bytes.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    Cow::Owned(bytes)
}

/// Encodes a part of a normalized path for the forwarded path.
pub(super) fn encode(text: &str, options: PathOptions) -> String {
    encode_bytes(&unescape(text, options), options.match_uri_encoded_slash)
}

/// Decodes a part of a normalized path, with slashes as plain bytes.
pub(super) fn decoded(text: &str, options: PathOptions) -> Vec<u8> {
    let slash = |byte| if byte == KEPT_SLASH { b'/' } else { byte };
    unescape(text, options).iter().copied().map(slash).collect()
}

/// The inverse of [`text`].
fn unescape(text: &str, options: PathOptions) -> Cow<'_, [u8]> {
    let bytes = path_bytes(text);
    if !options.match_uri_encoded_slash || !bytes.contains(&b'%') {
        return bytes;
    }
    let mut plain = Vec::with_capacity(bytes.len());
    let mut rest = &*bytes;
    while let Some((first, after)) = rest.split_first() {
        (rest, _) = match rest {
            [b'%', b'2', b'F', after @ ..] => (after, plain.push(KEPT_SLASH)),
            [b'%', b'2', b'5', after @ ..] => (after, plain.push(b'%')),
            _ => (after, plain.push(*first)),
        };
    }
    Cow::Owned(plain)
}

/// Encodes any text for a path: every byte but `pchar` and `/`.
pub fn encode_text(text: &str) -> String {
    encode_bytes(text.as_bytes(), false)
}

/// With `kept`, [`KEPT_SLASH`] is encoded, too.
fn encode_bytes(bytes: &[u8], kept: bool) -> String {
    let mut encoded = String::with_capacity(bytes.len() + 8);
    for byte in bytes {
        match *byte {
            KEPT_SLASH if kept => encoded.push_str(percent_encode_byte(b'/')),
            byte if is_plain(byte) => encoded.push(char::from(byte)),
            byte => encoded.push_str(percent_encode_byte(byte)),
        }
    }
    encoded
}

/// Encodes configured text for a path and keeps its escapes.
pub fn encode_literal(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for (at, character) in text.char_indices() {
        let escape =
            || text.as_bytes().get(at + 1..at + 3).is_some_and(|two| two.iter().all(u8::is_ascii_hexdigit));
        match character {
            '%' if escape() => encoded.push('%'),
            other => encoded.push_str(&encode_text(other.encode_utf8(&mut [0; 4]))),
        }
    }
    encoded
}

/// Checks a generated path, such as that of `proxy-rewrite`: it decodes, and an upstream finds
/// neither a dot segment nor a control character, whether it decodes `%2F`, treats `\` as `/` or
/// cuts parameters off.
///
/// # Errors
///
/// The defect.
pub fn check_generated(path: &str) -> Result<(), RequestTargetError> {
    if has_dot_segment(&decode(path, false)?) { Err(RequestTargetError::AmbiguousDotSegment) } else { Ok(()) }
}

#[cfg(test)]
mod tests;

//! The path of a request: what the rules judge, and what the upstream gets.
//!
//! A raw path is decoded once and its dot segments are removed; that text is judged, and the same
//! bytes, encoded once, are forwarded. Invariants: reading the forwarded path gives the judged one,
//! and encoding it again changes nothing; an upstream that decodes it, takes `\` for `/` or cuts
//! `;parameters` off finds no dot segment in it. RFC 3986 sections 3.3 and 6.2.2, nginx's `$uri`,
//! decision 29.

use std::borrow::Cow;

use percent_encoding::percent_encode_byte;

use super::RequestTargetError;

/// The switches of `apisix` in the settings file that change how a path is read. All are off by
/// default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PathOptions {
    /// `%2F` is part of a segment: it stays encoded in the judged path, as `%2F`, and in the
    /// forwarded one. A path that needs any normalisation once its `%2F` are decoded is read
    /// without this switch, as APISIX does.
    pub match_uri_encoded_slash: bool,
    /// The `;parameters` of segments are cut off the judged path and stay in the forwarded one, and
    /// a dot segment with parameters is resolved like any other.
    pub normalize_uri_like_servlet: bool,
    /// A `/` at the end is cut off, unless it is all there is.
    pub delete_uri_tail_slash: bool,
}

/// A path that was read.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NormalizedPath {
    /// Decoded.
    pub path: String,
    /// Encoded; `None`: it is `path`.
    pub forwarded: Option<Box<str>>,
}

/// Stands for a `%2F` that is kept, among decoded bytes. A decoded NUL is refused, so nothing else
/// does.
const KEPT_SLASH: u8 = 0;

/// A byte that is no UTF-8 stands in the judged text as this plus the byte (0x80 to 0xFF), the last
/// code points of the private use plane. A client's own such code point is taken apart into its
/// four bytes: different paths stay different texts, and the text gives the bytes back.
const NON_UTF8_BASE: u32 = 0x10_FF00;

/// Reads a raw path, without query.
///
/// # Errors
/// Every variant of [`TargetError`] that speaks of the path.
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
    let mut judged = if options.normalize_uri_like_servlet { without_parameters(&full) } else { None };
    if options.delete_uri_tail_slash {
        strip_tail_slash(&mut full);
        judged.as_mut().map(strip_tail_slash);
    }
    let path = text(judged.as_deref().unwrap_or(&full), options);
    let forwarded = encode_bytes(&full, options.match_uri_encoded_slash);
    let forwarded = (forwarded != path).then(|| forwarded.into_boxed_str());
    Ok(NormalizedPath { path, forwarded })
}

/// Whether a raw path is what [`read`] would make of it: nearly every request's is, and this is all
/// it costs.
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

/// What stands in a path as it is: `pchar` of RFC 3986 without `pct-encoded`, and `/`.
const fn is_plain(byte: u8) -> bool {
    matches!(byte, b'a'..=b'z' | b'A'..=b'Z' | b'&'..=b';' | b'!' | b'$' | b'=' | b'@' | b'_' | b'~')
}

/// Decodes the escapes, once. With `keep_slash`, an encoded slash becomes [`KEPT_SLASH`].
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

/// Keeps the encoded slashes only where the path needs no normalisation without them: else
/// `a%2F..%2Fb` would be one segment here and three to an upstream that decodes it.
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
        // To Windows a `\` is a separator.
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

/// Whether an upstream may find a dot segment, when it takes `\` for `/` and cuts parameters off.
fn has_dot_segment(path: &[u8]) -> bool {
    path.split(|byte| matches!(byte, b'/' | b'\\')).any(|piece| is_dot_segment(before_parameters(piece)))
}

/// `None`: there are none.
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

/// Decoded bytes as the text that is judged. Where `%2F` may be kept, a literal `%` that could be
/// taken for the escape of a kept slash, or of this escape itself, is written `%25`.
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

/// The bytes of a judged path, or of a piece of one, for a place that takes bytes, such as a
/// header: what is no UTF-8 is itself again.
pub fn path_bytes(text: &str) -> Cow<'_, [u8]> {
    // All stand-ins begin with these two bytes.
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

/// A piece of a judged path as it is forwarded.
pub(super) fn encode(text: &str, options: PathOptions) -> String {
    encode_bytes(&unescape(text, options), options.match_uri_encoded_slash)
}

/// A piece of a judged path as plain bytes, for a place where a `/` separates nothing.
pub(super) fn decoded(text: &str, options: PathOptions) -> Vec<u8> {
    let slash = |byte| if byte == KEPT_SLASH { b'/' } else { byte };
    unescape(text, options).iter().copied().map(slash).collect()
}

/// What [`text`] was made from.
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

/// Text that is no judged path, as part of a path: every byte but `pchar` and `/` is encoded.
pub fn encode_text(text: &str) -> String {
    encode_bytes(text.as_bytes(), false)
}

/// With `kept`, [`KEPT_SLASH`] is one.
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

/// Configured text as part of a path: its escapes stay as they are.
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

/// Judges a path that was made here, as by `proxy-rewrite`: it decodes, and an upstream finds no
/// dot segment and no control character in it, whether it decodes `%2F`, takes `\` for `/` or cuts
/// parameters off.
///
/// # Errors
/// What is wrong with it.
pub fn check_generated(made: &str) -> Result<(), RequestTargetError> {
    if has_dot_segment(&decode(made, false)?) { Err(RequestTargetError::AmbiguousDotSegment) } else { Ok(()) }
}

#[cfg(test)]
mod tests;

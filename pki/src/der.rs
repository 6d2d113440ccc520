//! A strict DER reader: the only ASN.1 parser of the workspace.
//!
//! `cert`, `chain` and `revocation` parse through it. It copies nothing: a value is a slice of the
//! input or a [`Span`] (a pair of offsets) that the owner of the bytes can keep. Lengths must be
//! definite and minimal, tags must fit one byte, and every structure must be used up, so two
//! parsers never disagree about the end of a value. Invariant: no input causes a panic, and each
//! call consumes what it returns.

use std::num::NonZeroU32;

use thiserror::Error;

pub(crate) const BOOLEAN: u8 = 0x01;
pub(crate) const INTEGER: u8 = 0x02;
pub(crate) const BIT_STRING: u8 = 0x03;
pub(crate) const OCTET_STRING: u8 = 0x04;
pub(crate) const OID: u8 = 0x06;
pub(crate) const UTF8_STRING: u8 = 0x0c;
pub(crate) const UTC_TIME: u8 = 0x17;
pub(crate) const GENERALIZED_TIME: u8 = 0x18;
pub(crate) const SEQUENCE: u8 = 0x30;
pub(crate) const SET: u8 = 0x31;

/// Context-specific tag `[number]` holding a primitive value.
pub(crate) const fn context(number: u8) -> u8 {
    0x80 | number
}

/// Context-specific tag `[number]` holding a constructed value.
pub(crate) const fn context_constructed(number: u8) -> u8 {
    0xa0 | number
}

/// Why bytes are not DER. The caller adds the structure.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub(crate) enum DerError {
    #[error("the data ends in the middle of a value")]
    Truncated,
    #[error("a length is not in DER's one permitted form")]
    Length,
    #[error("a value has an unexpected type")]
    Tag,
    #[error("there is data after the end of a structure")]
    Trailing,
    #[error("a value is not in DER's one permitted form")]
    Value,
    #[error("a date is not one RFC 5280 permits")]
    Time,
}

/// The position of a value in the bytes it was parsed from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    start: u32,
    /// Its end plus one, which is never zero, so that `Option<Span>` is as small as `Span`.
    end_plus_one: NonZeroU32,
}

impl Default for Span {
    fn default() -> Self {
        Self { start: 0, end_plus_one: NonZeroU32::MIN }
    }
}

impl Span {
    /// The bytes of the span; empty when `whole` is too short for it.
    pub(crate) fn slice(self, whole: &[u8]) -> &[u8] {
        whole.get(self.start as usize..self.end() as usize).unwrap_or_default()
    }

    /// The span without its first byte: a BIT STRING without its count of unused bits.
    pub(crate) fn skip_first(self) -> Self {
        Self { start: self.start.saturating_add(1).min(self.end()), ..self }
    }

    fn new(start: usize, end: usize) -> Self {
        // The reader rejects inputs beyond u32, so nothing is truncated.
        Self { start: start as u32, end_plus_one: NonZeroU32::MIN.saturating_add(end as u32) }
    }

    fn end(self) -> u32 {
        self.end_plus_one.get() - 1
    }
}

/// One value: its tag, its content, and the content with its header.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tlv<'a> {
    pub(crate) tag: u8,
    pub(crate) content: &'a [u8],
    /// Header and content.
    whole: &'a [u8],
    /// Position of the content in the reader's whole input.
    pub(crate) inner: Span,
    /// Position of header and content in the reader's whole input.
    pub(crate) outer: Span,
}

impl<'a> Tlv<'a> {
    /// Header and content.
    pub(crate) fn outer_bytes(&self) -> &'a [u8] {
        self.whole
    }
}

/// A cursor over consecutive values. Spans are relative to the start of `whole`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader<'a> {
    whole: &'a [u8],
    at: usize,
    end: usize,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(whole: &'a [u8]) -> Self {
        // A span cannot address more than u32; a larger input reads as empty, and so as truncated.
        let end = if u32::try_from(whole.len()).is_ok() { whole.len() } else { 0 };
        Self { whole, at: 0, end }
    }

    /// Reads the part `span` of `whole`, with spans relative to `whole`.
    pub(crate) fn within(whole: &'a [u8], span: Span) -> Self {
        let end = (span.end() as usize).min(whole.len());
        Self { whole, at: (span.start as usize).min(end), end }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.at >= self.end
    }

    /// The tag of the next value, without consuming it.
    pub(crate) fn peek(&self) -> Option<u8> {
        if self.is_empty() { None } else { self.whole.get(self.at).copied() }
    }

    /// The next value of any type.
    pub(crate) fn next(&mut self) -> Result<Tlv<'a>, DerError> {
        let start = self.at;
        let tag = self.byte()?;
        if tag & 0x1f == 0x1f {
            return Err(DerError::Tag); // X.509 has no use for multi-byte tags
        }
        let length = self.length()?;
        let content_start = self.at;
        let content_end = content_start.checked_add(length).ok_or(DerError::Length)?;
        if content_end > self.end {
            return Err(DerError::Truncated);
        }
        let content = self.whole.get(content_start..content_end).ok_or(DerError::Truncated)?;
        let whole = self.whole.get(start..content_end).ok_or(DerError::Truncated)?;
        self.at = content_end;
        Ok(Tlv {
            tag,
            content,
            whole,
            inner: Span::new(content_start, content_end),
            outer: Span::new(start, content_end),
        })
    }

    /// The next value, which must have this tag.
    pub(crate) fn expect(&mut self, tag: u8) -> Result<Tlv<'a>, DerError> {
        match self.peek() {
            None => Err(DerError::Truncated),
            Some(found) if found != tag => Err(DerError::Tag),
            Some(_) => self.next(),
        }
    }

    /// The next value if it has this tag; otherwise nothing is consumed.
    pub(crate) fn optional(&mut self, tag: u8) -> Result<Option<Tlv<'a>>, DerError> {
        if self.peek() == Some(tag) { self.next().map(Some) } else { Ok(None) }
    }

    /// The content of the next value, which must have this tag, as a reader.
    pub(crate) fn nested(&mut self, tag: u8) -> Result<Reader<'a>, DerError> {
        let value = self.expect(tag)?;
        Ok(Reader::within(self.whole, value.inner))
    }

    /// Ends a structure: no bytes may follow.
    pub(crate) fn finish(self) -> Result<(), DerError> {
        if self.is_empty() { Ok(()) } else { Err(DerError::Trailing) }
    }

    fn byte(&mut self) -> Result<u8, DerError> {
        let byte = self.peek().ok_or(DerError::Truncated)?;
        self.at += 1;
        Ok(byte)
    }

    fn length(&mut self) -> Result<usize, DerError> {
        let first = self.byte()?;
        if first < 0x80 {
            return Ok(usize::from(first));
        }
        let count = first & 0x7f;
        if count == 0 || count > 4 {
            return Err(DerError::Length); // indefinite, or beyond any limit of ours
        }
        let mut length = 0usize;
        for index in 0..count {
            let byte = self.byte()?;
            if index == 0 && byte == 0 {
                return Err(DerError::Length);
            }
            length = (length << 8) | usize::from(byte);
        }
        if length < 0x80 { Err(DerError::Length) } else { Ok(length) }
    }
}

/// A BOOLEAN's content.
pub(crate) fn boolean(content: &[u8]) -> Result<bool, DerError> {
    match content {
        [0x00] => Ok(false),
        [0xff] => Ok(true),
        _ => Err(DerError::Value),
    }
}

/// Checks that an INTEGER's content has its shortest form. It may be negative.
pub(crate) fn integer(content: &[u8]) -> Result<&[u8], DerError> {
    match content {
        [] => Err(DerError::Value),
        [0x00, next, ..] if next & 0x80 == 0 => Err(DerError::Value),
        [0xff, next, ..] if next & 0x80 != 0 => Err(DerError::Value),
        other => Ok(other),
    }
}

/// A small, non-negative INTEGER's content.
pub(crate) fn small_integer(content: &[u8]) -> Result<u32, DerError> {
    let content = integer(content)?;
    if content.first().is_some_and(|first| first & 0x80 != 0) || content.len() > 5 {
        return Err(DerError::Value);
    }
    let value = content.iter().fold(0u64, |value, byte| (value << 8) | u64::from(*byte));
    u32::try_from(value).map_err(|_| DerError::Value)
}

/// A BIT STRING's content when it must be whole bytes: keys and signatures.
pub(crate) fn whole_bytes(content: &[u8]) -> Result<&[u8], DerError> {
    match content {
        [0x00, bytes @ ..] => Ok(bytes),
        _ => Err(DerError::Value),
    }
}

/// A BIT STRING's content as named bits: bit 0 is the most significant of the first byte. Bits
/// beyond the 16th are ignored.
pub(crate) fn named_bits(content: &[u8]) -> Result<u16, DerError> {
    let (unused, bytes) = content.split_first().ok_or(DerError::Value)?;
    if *unused > 7 || (bytes.is_empty() && *unused != 0) {
        return Err(DerError::Value);
    }
    let mask = 0xffu8 << unused;
    if bytes.last().is_some_and(|last| last & !mask != 0) {
        return Err(DerError::Value);
    }
    let high = bytes.first().copied().unwrap_or(0);
    let low = bytes.get(1).copied().unwrap_or(0);
    Ok(u16::from_be_bytes([high, low]))
}

/// Parses a UTCTime or GeneralizedTime in the forms of RFC 5280 4.1.2.5 (Zulu, seconds, no
/// fraction) to seconds since 1970.
pub(crate) fn time(value: &Tlv<'_>) -> Result<i64, DerError> {
    let (year, rest) = match (value.tag, value.content) {
        (UTC_TIME, [a, b, rest @ ..]) => {
            let year = two_digits(*a, *b)?;
            (if year >= 50 { 1900 + year } else { 2000 + year }, rest)
        }
        (GENERALIZED_TIME, [a, b, c, d, rest @ ..]) => {
            (two_digits(*a, *b)? * 100 + two_digits(*c, *d)?, rest)
        }
        _ => return Err(DerError::Tag),
    };
    let [mo1, mo2, d1, d2, h1, h2, mi1, mi2, s1, s2, b'Z'] = rest else { return Err(DerError::Time) };
    let (month, day) = (two_digits(*mo1, *mo2)?, two_digits(*d1, *d2)?);
    let (hour, minute, second) = (two_digits(*h1, *h2)?, two_digits(*mi1, *mi2)?, two_digits(*s1, *s2)?);
    if !(1..=12).contains(&month)
        || day < 1
        || day > days_in(year, month)
        || hour > 23
        || minute > 59
        || second > 59
    {
        return Err(DerError::Time);
    }
    Ok(days_since_epoch(year, month, day) * 86_400 + hour * 3_600 + minute * 60 + second)
}

fn two_digits(tens: u8, ones: u8) -> Result<i64, DerError> {
    if tens.is_ascii_digit() && ones.is_ascii_digit() {
        Ok(i64::from(tens - b'0') * 10 + i64::from(ones - b'0'))
    } else {
        Err(DerError::Time)
    }
}

fn days_in(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days from 1970-01-01 to a date of the Gregorian calendar (Howard Hinnant's `days_from_civil`).
fn days_since_epoch(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// Appends one value to `out`: for structures that rcgen cannot write.
pub(crate) fn write(out: &mut Vec<u8>, tag: u8, content: &[u8]) {
    out.push(tag);
    let length = content.len();
    if length < 0x80 {
        out.push(length as u8);
    } else {
        let bytes = length.to_be_bytes();
        let significant = bytes.iter().skip_while(|byte| **byte == 0);
        out.push(0x80 | significant.clone().count() as u8);
        out.extend(significant);
    }
    out.extend_from_slice(content);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn der_lengths_must_be_minimal() {
        for bad in [
            &[0x04, 0x80][..],
            &[0x04, 0x81, 0x01, 0x00],
            &[0x04, 0x82, 0x00, 0x81],
            &[0x04, 0x85, 1, 1, 1, 1, 1],
        ] {
            assert_eq!(Reader::new(bad).next().unwrap_err(), DerError::Length, "{bad:?}");
        }
        assert_eq!(Reader::new(&[0x04, 0x02, 0x00]).next().unwrap_err(), DerError::Truncated);
        assert_eq!(Reader::new(&[0x1f, 0x81, 0x00]).next().unwrap_err(), DerError::Tag);
    }

    #[test]
    fn dates_are_parsed_by_the_calendar() {
        let read = |tag, text: &str| {
            let mut bytes = Vec::new();
            write(&mut bytes, tag, text.as_bytes());
            time(&Reader::new(&bytes).next().unwrap())
        };
        assert_eq!(read(UTC_TIME, "700101000001Z"), Ok(1));
        assert_eq!(read(UTC_TIME, "491231235959Z"), Ok(2_524_607_999));
        assert_eq!(read(UTC_TIME, "500101000000Z"), Ok(-631_152_000));
        assert_eq!(read(GENERALIZED_TIME, "20240229120000Z"), Ok(1_709_208_000));
        assert_eq!(read(GENERALIZED_TIME, "99991231235959Z"), Ok(253_402_300_799));
        for bad in
            ["20230229120000Z", "20240229120000", "20240229120000.5Z", "20240229240000Z", "202402291200Z"]
        {
            assert_eq!(read(GENERALIZED_TIME, bad), Err(DerError::Time), "{bad}");
        }
    }

    #[test]
    fn named_bits_count_from_the_left() {
        assert_eq!(named_bits(&[0x02, 0x04]), Ok(0x0400)); // keyCertSign, bit 5
        assert_eq!(named_bits(&[0x00]), Ok(0));
        assert_eq!(named_bits(&[0x07, 0x00, 0x80]), Ok(0x0080)); // decipherOnly, bit 8
        assert_eq!(named_bits(&[0x02, 0x05]), Err(DerError::Value)); // an unused bit is set
    }

    proptest! {
        #[test]
        fn written_values_parse_back(tag in 1u8..0x1f, content in proptest::collection::vec(any::<u8>(), 0..700)) {
            let mut bytes = Vec::new();
            write(&mut bytes, tag, &content);
            let mut reader = Reader::new(&bytes);
            let value = reader.next().unwrap();
            prop_assert_eq!(value.tag, tag);
            prop_assert_eq!(value.content, &content[..]);
            prop_assert_eq!(value.outer.slice(&bytes), &bytes[..]);
            prop_assert!(reader.finish().is_ok());
        }

        #[test]
        fn any_bytes_terminate(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut reader = Reader::new(&bytes);
            while let Ok(value) = reader.next() {
                let _ = (time(&value), boolean(value.content), small_integer(value.content), named_bits(value.content));
                prop_assert!(value.outer.slice(&bytes).len() >= 2);
            }
        }
    }
}

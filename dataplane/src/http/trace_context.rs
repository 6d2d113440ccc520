//! W3C Trace Context: the header `traceparent`, which names the trace of a request and the span of
//! its sender (W3C Recommendation of 23 November 2021, sections 3.2 and 4).
//!
//! Invariant: an id has no zero value, and what is not exactly a `traceparent` is none.

use std::num::{NonZeroU64, NonZeroU128};

use data_encoding::HEXLOWER;
use http::{HeaderMap, HeaderName, HeaderValue};

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// The length of version 00. Later versions may append fields.
const LENGTH: usize = 55;
const SAMPLED: u8 = 1;
/// The length of `tracestate` that is to be kept (section 3.3.1.5).
const STATE_MAX: usize = 512;

/// The id of a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TraceId(pub(crate) NonZeroU128);

impl TraceId {
    /// The low half, which a sampler reads as a random number.
    pub(crate) fn low(self) -> u64 {
        self.0.get() as u64
    }
}

/// The id of a span.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SpanId(pub(crate) NonZeroU64);

impl SpanId {
    /// Another id, which is the same for the same number. 0: this one.
    pub(crate) fn nth(self, n: usize) -> Self {
        // The overflow is 0, which is no id.
        Self(self.0.checked_add(n as u64).unwrap_or(NonZeroU64::MIN))
    }
}

/// What `traceparent` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TraceParent {
    pub(crate) trace_id: TraceId,
    /// The sender's span.
    pub(crate) span_id: SpanId,
    /// Whether the sender records the trace.
    pub(crate) sampled: bool,
}

impl TraceParent {
    /// `None`: there is no valid one; several are not valid.
    pub(crate) fn from_headers(headers: &HeaderMap) -> Option<Self> {
        let mut values = headers.get_all(TRACEPARENT).iter();
        let value = values.next().filter(|_| values.next().is_none())?;
        Self::parse(value.as_bytes())
    }

    fn parse(value: &[u8]) -> Option<Self> {
        let (fields, rest) = value.split_at_checked(LENGTH)?;
        let (version, fields) = fields.split_first_chunk::<2>()?;
        match version {
            b"ff" => return None,
            b"00" if !rest.is_empty() => return None,
            _ => hex::<2, 1>(version)?,
        };
        if !matches!(rest.first(), None | Some(b'-')) {
            return None;
        }
        let fields = fields.strip_prefix(b"-")?;
        let (trace_id, fields) = fields.split_first_chunk::<32>()?;
        let fields = fields.strip_prefix(b"-")?;
        let (span_id, fields) = fields.split_first_chunk::<16>()?;
        let [flags] = hex(fields.strip_prefix(b"-")?.first_chunk::<2>()?)?;
        Some(Self {
            trace_id: TraceId(NonZeroU128::new(u128::from_be_bytes(hex(trace_id)?))?),
            span_id: SpanId(NonZeroU64::new(u64::from_be_bytes(hex(span_id)?))?),
            sampled: flags & SAMPLED != 0,
        })
    }

    /// The header's value, of version 00. Of the flags it has the one that this version defines.
    fn value(self) -> HeaderValue {
        let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
        if let Some(digits) = text.get_mut(3..35) {
            HEXLOWER.encode_mut(&self.trace_id.0.get().to_be_bytes(), digits);
        }
        if let Some(digits) = text.get_mut(36..52) {
            HEXLOWER.encode_mut(&self.span_id.0.get().to_be_bytes(), digits);
        }
        if let (Some(last), true) = (text.last_mut(), self.sampled) {
            *last = b'1';
        }
        // Never the other: digits and dashes are valid.
        HeaderValue::from_bytes(&text).unwrap_or(HeaderValue::from_static(""))
    }
}

/// What the requests to an upstream carry of a trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Propagation {
    /// With the span of the first attempt.
    pub(crate) first: TraceParent,
    /// Whether it is the trace that the client's headers name. `tracestate` belongs to that one.
    pub(crate) continues: bool,
}

impl Propagation {
    /// Sets the headers of the attempt with this number, counted from 0.
    pub(crate) fn set_headers(&self, attempt: usize, headers: &mut HeaderMap) {
        let parent = TraceParent { span_id: self.first.span_id.nth(attempt), ..self.first };
        headers.insert(TRACEPARENT, parent.value());
        if !self.continues {
            headers.remove(TRACESTATE);
        }
    }
}

/// `tracestate`, whose fields are one list. `None`: absent, or longer than a participant has to
/// keep.
pub(crate) fn state(headers: &HeaderMap) -> Option<String> {
    let values: Option<Vec<_>> =
        headers.get_all(TRACESTATE).iter().map(|value| value.to_str().ok()).collect();
    values.map(|values| values.join(",")).filter(|state| (1..=STATE_MAX).contains(&state.len()))
}

/// Lower-case hexadecimal digits, twice as many as bytes.
fn hex<const DIGITS: usize, const BYTES: usize>(digits: &[u8; DIGITS]) -> Option<[u8; BYTES]> {
    let mut bytes = [0; BYTES];
    let length = HEXLOWER.decode_mut(digits, &mut bytes).ok()?;
    (length == BYTES).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const VALID: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn parse(text: &str) -> Option<TraceParent> {
        TraceParent::parse(text.as_bytes())
    }

    #[test]
    fn the_example_of_the_recommendation_is_read() {
        let parent = parse(VALID).unwrap();
        assert_eq!(parent.trace_id.0.get(), 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736);
        assert_eq!(parent.span_id.0.get(), 0x00f0_67aa_0ba9_02b7);
        assert_eq!(parent.trace_id.low(), 0xa3ce_929d_0e0e_4736);
        assert!(parent.sampled);
        assert_eq!(parent.value(), VALID);
        assert!(!parse(&VALID.replace("-01", "-00")).unwrap().sampled);
    }

    #[test]
    fn other_flags_are_read_over_and_not_passed_on() {
        let parent = parse(&VALID.replace("-01", "-ff")).unwrap();
        assert!(parent.sampled);
        assert_eq!(parent.value(), VALID);
        assert!(!parse(&VALID.replace("-01", "-fe")).unwrap().sampled);
    }

    #[test]
    fn later_versions_may_have_further_fields() {
        for valid in ["cc-", "01-", "fe-"] {
            let later = VALID.replacen("00-", valid, 1);
            for rest in ["", "-", "-what-the-future-will-be-like"] {
                assert_eq!(parse(&format!("{later}{rest}")), parse(VALID), "{later}{rest}");
            }
            assert_eq!(parse(&format!("{later}.")), None);
        }
    }

    #[test]
    fn what_is_not_exactly_a_traceparent_is_none() {
        for invalid in [
            "",
            "00",
            &VALID[..54],
            &format!("{VALID}-"),
            &format!("{VALID}-00"),
            &format!(" {VALID}"),
            &VALID.replacen("00-", "ff-", 1),
            &VALID.replacen("00-", "0g-", 1),
            &VALID.replacen("00-", "0A-", 1),
            &VALID.replace("4bf9", "4BF9"),
            &VALID.replace("4bf9", "4bg9"),
            &VALID.replace("-01", "-0x"),
            &VALID.replace("-01", "_01"),
            &VALID.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            &VALID.replace("00f067aa0ba902b7", &"0".repeat(16)),
        ] {
            assert_eq!(parse(invalid), None, "{invalid:?}");
        }
    }

    #[test]
    fn several_headers_are_none() {
        let mut headers = HeaderMap::new();
        assert_eq!(TraceParent::from_headers(&headers), None);
        headers.insert(TRACEPARENT, HeaderValue::from_static(VALID));
        assert_eq!(TraceParent::from_headers(&headers), parse(VALID));
        headers.append(TRACEPARENT, HeaderValue::from_static(VALID));
        assert_eq!(TraceParent::from_headers(&headers), None);
    }

    #[test]
    fn tracestate_stays_with_its_trace() {
        let mut headers = HeaderMap::new();
        headers.append(TRACESTATE, HeaderValue::from_static("a=1"));
        headers.append(TRACESTATE, HeaderValue::from_static("b=2"));
        let first = parse(VALID).unwrap();
        Propagation { first, continues: true }.set_headers(0, &mut headers);
        assert_eq!(headers.get_all(TRACESTATE).iter().count(), 2);
        Propagation { first, continues: false }.set_headers(2, &mut headers);
        assert_eq!(headers.len(), 1);
        assert_eq!(headers[TRACEPARENT], VALID.replace("02b7", "02b9"));
    }

    #[test]
    fn ids_of_attempts_differ_and_are_never_zero() {
        let id = |id| SpanId(NonZeroU64::new(id).unwrap());
        assert_eq!(id(7).nth(0), id(7));
        assert_eq!(id(7).nth(2), id(9));
        assert_eq!(id(u64::MAX).nth(1), id(1));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(trace in 1_u128.., span in 1_u64.., sampled: bool) {
            let ids = (NonZeroU128::new(trace).unwrap(), NonZeroU64::new(span).unwrap());
            let parent = TraceParent { trace_id: TraceId(ids.0), span_id: SpanId(ids.1), sampled };
            prop_assert_eq!(TraceParent::parse(parent.value().as_bytes()), Some(parent));
        }

        /// Whatever else a client sends is read as none, without a panic.
        #[test]
        fn any_value_is_read(value in prop::collection::vec(any::<u8>(), 0..80)) {
            prop_assert_eq!(TraceParent::parse(&value), None);
        }

        #[test]
        fn a_changed_byte_is_noticed(at in 0..LENGTH, byte: u8) {
            let mut value = VALID.as_bytes().to_vec();
            value[at] = byte;
            if let Some(parent) = TraceParent::parse(&value) {
                let digit = byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
                prop_assert!(digit || byte == VALID.as_bytes()[at], "{:?}", parent);
            }
        }
    }
}

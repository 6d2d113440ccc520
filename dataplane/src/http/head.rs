//! The limits on the head of a message, and what only the raw bytes of a head show.
//!
//! [`HeadScanner`] reads an HTTP/1 request head on its way to hyper, in whatever pieces it comes.
//! hyper keeps only one of `Content-Length` and `Transfer-Encoding`, drops the fragment of a target
//! and does not limit a single line, so that these are checked here (RFC 9112 sections 3.2 and
//! 6.3). [`HeadLimits`] checks a parsed head, of an HTTP/2 request or a response, against the same
//! limits.
//!
//! Invariant: the scanner ends a head exactly where hyper's parser does: at the first empty line,
//! whether lines end in CR LF or LF, after any empty lines before the request line.

use http::{HeaderMap, Method, Response, Uri};
use hyper::ext::ReasonPhrase;
use memchr::{memchr, memchr_iter};

use crate::observability::HasReason;
use crate::reason::Reason;

/// Name and colon of the two fields that frame a body.
const CONTENT_LENGTH: &[u8] = b"content-length:";
const TRANSFER_ENCODING: &[u8] = b"transfer-encoding:";
/// Bytes of a line that are kept to recognise them.
const PREFIX: usize = TRANSFER_ENCODING.len();
/// The shortest field in HTTP/1: `a:` and CR LF.
const FIELD_MIN: usize = 4;
/// The most fields that a [`HeaderMap`] can reserve.
const FIELDS_MAX: usize = 24_576;
/// Around a field in HTTP/1: `: ` and CR LF.
const FIELD_OVERHEAD: usize = 4;
/// In a request line, besides method and target: two spaces, the version, CR LF.
const LINE_OVERHEAD: usize = 12;

/// `HTTP/1.1 200 ` and CR LF.
const STATUS_LINE: usize = 15;

/// The limits on a head: nginx's `large_client_header_buffers`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadLimits {
    /// A request line, or one field, without its line end. Bytes.
    pub line: usize,
    /// The whole head, in HTTP/1's encoding. Bytes.
    pub head: usize,
}

/// A head that is rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    /// nginx responds with 414.
    #[error("the first line is longer than {0} bytes (countersign.limits.header_line_bytes)")]
    LineTooLong(usize),
    /// nginx responds with 400, Request Header Or Cookie Too Large.
    #[error("a header field is longer than {0} bytes (countersign.limits.header_line_bytes)")]
    FieldTooLong(usize),
    /// nginx responds as to [`Self::FieldTooLong`].
    #[error("the head is larger than {0} bytes (countersign.limits.header_bytes)")]
    HeadTooLarge(usize),
    /// A smuggling attempt: another program may frame the body differently (RFC 9112 sections 6.1
    /// and 6.3). Two equal lengths are rejected, too, as in nginx.
    #[error("Content-Length twice, or beside Transfer-Encoding")]
    AmbiguousLength,
    /// A client does not send the fragment (RFC 9110 section 7.1).
    #[error("a fragment in the request target")]
    Fragment,
}

impl HasReason for HeadError {
    fn reason(&self) -> Reason {
        match self {
            Self::LineTooLong(_) => Reason::UriTooLong,
            Self::FieldTooLong(_) | Self::HeadTooLarge(_) => Reason::HeadTooLarge,
            Self::AmbiguousLength | Self::Fragment => Reason::BadRequest,
        }
    }
}

/// A head that hyper cannot parse.
impl HasReason for hyper::Error {
    fn reason(&self) -> Reason {
        if self.is_parse_too_large() { Reason::HeadTooLarge } else { Reason::BadRequest }
    }
}

impl HeadLimits {
    /// As many fields as a head can hold: hyper demands a number.
    pub(crate) fn max_fields(self) -> usize {
        (self.head / FIELD_MIN).clamp(1, FIELDS_MAX)
    }

    /// The size of hyper's buffer, in bytes. A head within the limits never fills it: hyper would
    /// reject it.
    pub(crate) fn buffer_size(self) -> usize {
        self.head.saturating_add(8 * 1024).max(64 * 1024)
    }

    /// Checks the head of an HTTP/2 request.
    ///
    /// # Errors
    /// [`HeadError`].
    pub(crate) fn check_request(
        self,
        method: &Method,
        uri: &Uri,
        headers: &HeaderMap,
    ) -> Result<(), HeadError> {
        let target = uri.path_and_query().map_or(0, |target| target.as_str().len());
        let authority = uri.authority().map_or(0, |authority| authority.as_str().len());
        let line = method.as_str().len() + target + LINE_OVERHEAD;
        if line > self.line {
            return Err(HeadError::LineTooLong(self.line));
        }
        self.check_fields(line + authority, headers)
    }

    /// Checks the head of a response.
    ///
    /// # Errors
    /// [`HeadError`].
    pub(crate) fn check_response<B>(self, response: &Response<B>) -> Result<(), HeadError> {
        // hyper keeps the phrase only where it is not the usual one.
        let phrase = response.extensions().get::<ReasonPhrase>();
        let line = STATUS_LINE + phrase.map_or(0, |phrase| phrase.as_bytes().len());
        if line > self.line {
            return Err(HeadError::LineTooLong(self.line));
        }
        self.check_fields(line, response.headers())
    }

    /// Checks the fields of a head whose first line has `first_line` bytes.
    pub(super) fn check_fields(self, first_line: usize, headers: &HeaderMap) -> Result<(), HeadError> {
        let mut total = first_line;
        for (name, value) in headers {
            let field = name.as_str().len() + value.len() + FIELD_OVERHEAD;
            if field > self.line {
                return Err(HeadError::FieldTooLong(self.line));
            }
            total += field;
        }
        if total > self.head { Err(HeadError::HeadTooLarge(self.head)) } else { Ok(()) }
    }
}

/// Scans one HTTP/1 request head.
#[derive(Debug)]
pub(super) struct HeadScanner {
    limits: HeadLimits,
    /// Bytes so far, with empty lines before the request line.
    total: usize,
    /// Bytes of this line so far.
    line: usize,
    /// The last of them is a CR.
    ends_in_cr: bool,
    /// The request line has ended.
    in_fields: bool,
    /// The first bytes of this line, if it may be one of the two fields.
    prefix: [u8; PREFIX],
    has_content_length: bool,
    has_transfer_encoding: bool,
}

impl HeadScanner {
    pub(super) fn new(limits: HeadLimits) -> Self {
        Self {
            limits,
            total: 0,
            line: 0,
            ends_in_cr: false,
            in_fields: false,
            prefix: [0; PREFIX],
            has_content_length: false,
            has_transfer_encoding: false,
        }
    }

    /// Whether the request line has ended.
    pub(super) fn is_in_fields(&self) -> bool {
        self.in_fields
    }

    /// Reads the next bytes. `Some(n)`: the head ends with the first `n` bytes of `data`, and the
    /// rest is not read.
    ///
    /// # Errors
    /// [`HeadError`], as soon as it is certain; hyper must not get `data` then.
    pub(super) fn read(&mut self, data: &[u8]) -> Result<Option<usize>, HeadError> {
        let mut from = 0;
        for at in memchr_iter(b'\n', data) {
            self.scan_line(data.get(from..at).unwrap_or_default())?;
            from = at + 1;
            self.total += 1;
            if self.total > self.limits.head {
                return Err(HeadError::HeadTooLarge(self.limits.head));
            }
            if self.end_line()? {
                return Ok(Some(from));
            }
        }
        self.scan_line(data.get(from..).unwrap_or_default())?;
        Ok(None)
    }

    /// Scans a piece of one line, without its LF.
    fn scan_line(&mut self, piece: &[u8]) -> Result<(), HeadError> {
        let Some(last) = piece.last() else { return Ok(()) };
        if self.in_fields {
            // The first letter rules out nearly every field.
            if self.line == 0 {
                self.prefix = [0; PREFIX];
            }
            let first = if self.line == 0 { piece.first().copied() } else { self.prefix.first().copied() };
            if matches!(first, Some(b'c' | b'C' | b't' | b'T'))
                && let Some(room) = self.prefix.get_mut(self.line..)
            {
                room.iter_mut().zip(piece).for_each(|(to, from)| *to = *from);
            }
        } else if memchr(b'#', piece).is_some() {
            return Err(HeadError::Fragment);
        }
        self.ends_in_cr = *last == b'\r';
        self.line += piece.len();
        self.total += piece.len();
        let content = self.line - usize::from(self.ends_in_cr);
        if content > self.limits.line {
            let too_long = if self.in_fields { HeadError::FieldTooLong } else { HeadError::LineTooLong };
            return Err(too_long(self.limits.line));
        }
        if self.total > self.limits.head {
            return Err(HeadError::HeadTooLarge(self.limits.head));
        }
        Ok(())
    }

    /// Ends a line; whether the head has ended with it.
    fn end_line(&mut self) -> Result<bool, HeadError> {
        let is_empty = self.line == usize::from(self.ends_in_cr);
        (self.line, self.ends_in_cr) = (0, false);
        if is_empty {
            // Empty lines before the request line are skipped.
            return Ok(self.in_fields);
        }
        if self.in_fields && matches!(self.prefix.first(), Some(b'c' | b'C' | b't' | b'T')) {
            let named = |name: &[u8]| {
                self.prefix.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name))
            };
            let is_length = named(CONTENT_LENGTH);
            if is_length && self.has_content_length {
                return Err(HeadError::AmbiguousLength);
            }
            self.has_content_length |= is_length;
            self.has_transfer_encoding |= named(TRANSFER_ENCODING);
            if self.has_content_length && self.has_transfer_encoding {
                return Err(HeadError::AmbiguousLength);
            }
        }
        self.in_fields = true;
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: HeadLimits = HeadLimits { line: 64, head: 256 };

    fn read(head: &[u8]) -> Result<Option<usize>, HeadError> {
        HeadScanner::new(LIMITS).read(head)
    }

    #[test]
    fn ambiguous_lengths_are_rejected_in_every_spelling() {
        for head in [
            "POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nTRANSFER-ENCODING:chunked\r\ncontent-length:1\r\n\r\n",
            "POST / HTTP/1.1\nA: b\ntransfer-encodinG: x\nB: c\nContent-Length: 0\n\n",
            "POST / HTTP/1.1\r\nContent-Length: 1\r\ncontent-length: 1\r\n\r\n",
            "\r\n\r\nPOST / HTTP/1.1\r\nContent-Length:\r\nTransfer-Encoding:\r\n\r\n",
        ] {
            assert_eq!(read(head.as_bytes()), Err(HeadError::AmbiguousLength), "{head:?}");
        }
        for head in [
            "POST /content-length: HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nX: content-length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Lengths: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encodin: chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
        ] {
            assert_eq!(read(head.as_bytes()), Ok(Some(head.len())), "{head:?}");
        }
    }

    #[test]
    fn a_head_ends_at_its_first_empty_line() {
        let first = "\r\n\nGET / HTTP/1.1\r\nHost: a\r\n\n";
        let both = format!("{first}GET / HTTP/1.1\r\n\r\n");
        assert_eq!(read(both.as_bytes()), Ok(Some(first.len())));
        for partial in ["", "\r", "\r\n\r\n", "GET / HTTP/1.1\r\n", "GET / HTTP/1.1\r\nA: b\r\n\r"] {
            assert_eq!(read(partial.as_bytes()), Ok(None), "{partial:?}");
        }
    }

    #[test]
    fn limits_are_exact_to_the_byte() {
        let line = |bytes: usize| format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(bytes - 14));
        assert_eq!(read(line(64).as_bytes()), Ok(Some(68)));
        assert_eq!(read(line(65).as_bytes()), Err(HeadError::LineTooLong(64)));
        let field = |bytes: usize| format!("GET / HTTP/1.1\r\nA: {}\r\n\r\n", "x".repeat(bytes - 3));
        assert_eq!(read(field(64).as_bytes()), Ok(Some(84)));
        assert_eq!(read(field(65).as_bytes()), Err(HeadError::FieldTooLong(64)));
        let head = |bytes: usize| {
            let fields = "A: 45678901234567890\r\n".repeat((bytes - 18) / 22);
            let left = bytes - 18 - fields.len();
            format!("GET / HTTP/1.1\r\n{fields}B:{}\r\n\r\n", " ".repeat(left - 4))
        };
        assert_eq!(read(head(256).as_bytes()), Ok(Some(256)));
        assert_eq!(read(head(257).as_bytes()), Err(HeadError::HeadTooLarge(256)));
        assert_eq!(read(&[b'\n'; 257]), Err(HeadError::HeadTooLarge(256)));
        assert_eq!(read("\r\n".repeat(200).as_bytes()), Err(HeadError::HeadTooLarge(256)));
    }

    #[test]
    fn only_a_fragment_in_the_request_line_is_rejected() {
        assert_eq!(read(b"GET /a#b HTTP/1.1\r\n\r\n"), Err(HeadError::Fragment));
        assert_eq!(read(b"GET http://a/#"), Err(HeadError::Fragment));
        assert_eq!(read(b"GET /a HTTP/1.1\r\nA: #b\r\n\r\n"), Ok(Some(26)));
    }

    #[test]
    fn the_limit_applies_to_a_status_line() {
        let response = |phrase: usize| {
            let mut response = Response::new(());
            response.extensions_mut().insert(ReasonPhrase::try_from("r".repeat(phrase)).unwrap());
            LIMITS.check_response(&response)
        };
        assert_eq!((response(49), response(50)), (Ok(()), Err(HeadError::LineTooLong(64))));
    }

    #[test]
    fn the_same_limits_apply_to_a_parsed_head() {
        let mut headers = HeaderMap::new();
        let uri: Uri = "https://a.example/".parse().unwrap();
        assert_eq!(LIMITS.check_request(&Method::GET, &uri, &headers), Ok(()));
        let long: Uri = format!("/{}", "x".repeat(60)).parse().unwrap();
        assert_eq!(LIMITS.check_request(&Method::GET, &long, &headers), Err(HeadError::LineTooLong(64)));
        headers.insert("a", "x".repeat(60).parse().unwrap());
        assert_eq!(LIMITS.check_fields(0, &headers), Err(HeadError::FieldTooLong(64)));
        headers.clear();
        for _ in 0..6 {
            headers.append("a", "x".repeat(40).parse().unwrap());
        }
        assert_eq!(LIMITS.check_fields(0, &headers), Err(HeadError::HeadTooLarge(256)));
    }

    /// Heads of pieces that matter to the scanner.
    fn heads() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop::sample::select(vec![
            "GET / HTTP/1.1\r\n",
            "\r\n",
            "\n",
            "\r",
            "a",
            ": ",
            "A: b\r\n",
            "A: b\n",
            "Content-Length: 1\r\n",
            "Transfer-Encoding: chunked\r\n",
            "content-length",
            " ",
            "#",
            "Xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
        ]);
        prop::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat().into_bytes())
    }

    proptest! {
        #[test]
        fn a_head_may_be_read_in_any_pieces(head in heads(), cuts in prop::collection::vec(0usize..64, 0..20)) {
            let whole = read(&head);
            let mut scanner = HeadScanner::new(LIMITS);
            let (mut at, mut pieced) = (0, Ok(None));
            for cut in cuts.into_iter().chain([head.len()]) {
                let to = (at + cut).min(head.len());
                match scanner.read(&head[at..to]) {
                    Ok(None) => at = to,
                    Ok(Some(n)) => { pieced = Ok(Some(at + n)); break }
                    Err(error) => { pieced = Err(error); break }
                }
            }
            // Of two errors the one that is certain first is reported.
            prop_assert!(whole == pieced || (whole.is_err() && pieced.is_err()), "{whole:?} {pieced:?}");
        }

        #[test]
        fn the_scanner_ends_a_head_where_the_parser_does(head in heads()) {
            let mut headers = [httparse::EMPTY_HEADER; 64];
            let parsed = httparse::Request::new(&mut headers).parse(&head);
            if let (Ok(ours), Ok(theirs)) = (read(&head), parsed) {
                let theirs = match theirs {
                    httparse::Status::Complete(n) => Some(n),
                    httparse::Status::Partial => None,
                };
                prop_assert_eq!(ours, theirs);
            }
        }
    }
}

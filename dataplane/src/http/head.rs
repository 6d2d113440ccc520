//! The limits of a message's head, and what only its raw bytes show.
//!
//! [`Scan`] reads an HTTP/1 request head on its way to hyper, in whatever pieces it comes. hyper
//! keeps only one of `Content-Length` and `Transfer-Encoding`, cuts a fragment off the target and
//! has no limit on a single line, so these are found here (RFC 9112 sections 3.2 and 6.3). A head
//! that is parsed already, an HTTP/2 request or an answer, is held to the same
//! limits by [`Limits::admit`].
//! Invariant: the head ends for [`Scan`] exactly where it ends for hyper's parser: at the first
//! empty line, whether lines end in CR LF or LF, after any empty lines in front of it.

use http::{HeaderMap, Method, Response, Uri};
use hyper::ext::ReasonPhrase;
use memchr::{memchr, memchr_iter};

use crate::reason::Reason;

/// Name and colon of the two fields that say where a body ends.
const CONTENT_LENGTH: &[u8] = b"content-length:";
const TRANSFER_ENCODING: &[u8] = b"transfer-encoding:";
/// How much of a line is kept to recognise one of the two.
const PREFIX: usize = TRANSFER_ENCODING.len();
/// The shortest field in HTTP/1: `a:` and CR LF.
const FIELD_MIN: usize = 4;
/// The most fields that a [`HeaderMap`] can be made for.
const FIELDS_MAX: usize = 24_576;
/// Around a field in HTTP/1: `: ` and CR LF.
const FIELD_OVERHEAD: usize = 4;
/// In a request line, besides method and target: two spaces, the version, CR LF.
const LINE_OVERHEAD: usize = 12;

/// `HTTP/1.1 200 ` and CR LF.
const STATUS_LINE: usize = 15;

/// How large a head may be: nginx's `large_client_header_buffers`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadLimits {
    /// A request line, or one field. Bytes, without the end of the line.
    pub line: usize,
    /// The whole head, counted as HTTP/1 writes it. Bytes.
    pub head: usize,
}

/// Why a head is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    /// nginx answers 414.
    #[error("the first line is longer than {0} bytes (countersign.limits.header_line_bytes)")]
    LineTooLong(usize),
    /// nginx answers 400, Request Header Or Cookie Too Large.
    #[error("a header field is longer than {0} bytes (countersign.limits.header_line_bytes)")]
    FieldTooLong(usize),
    /// The same.
    #[error("the head is larger than {0} bytes (countersign.limits.header_bytes)")]
    HeadTooLarge(usize),
    /// RFC 9112 sections 6.1 and 6.3: an attempt to be read differently elsewhere. Two equal
    /// lengths are refused as in nginx.
    #[error("Content-Length twice, or beside Transfer-Encoding")]
    AmbiguousLength,
    /// A client keeps the fragment to itself (RFC 9110 section 7.1).
    #[error("a fragment in the request target")]
    Fragment,
}

impl HeadError {
    /// For the log, the metric and the status.
    pub fn reason(self) -> Reason {
        match self {
            Self::LineTooLong(_) => Reason::UriTooLong,
            Self::FieldTooLong(_) | Self::HeadTooLarge(_) => Reason::HeadTooLarge,
            Self::AmbiguousLength | Self::Fragment => Reason::BadRequest,
        }
    }
}

impl HeadLimits {
    /// As many fields as a head can hold: for hyper, which wants a number. No limit of its own.
    pub fn max_fields(self) -> usize {
        (self.head / FIELD_MIN).clamp(1, FIELDS_MAX)
    }

    /// hyper's buffer, for bodies too. Bytes. A head within the limits never fills it, since hyper
    /// would refuse it then.
    pub fn buffer_size(self) -> usize {
        self.head.saturating_add(8 * 1024).max(64 * 1024)
    }

    /// Judges the head of an HTTP/2 request.
    ///
    /// # Errors
    /// [`HeadError`]; the request is refused.
    pub fn check_request(self, method: &Method, uri: &Uri, headers: &HeaderMap) -> Result<(), HeadError> {
        let target = uri.path_and_query().map_or(0, |target| target.as_str().len());
        let authority = uri.authority().map_or(0, |authority| authority.as_str().len());
        let line = method.as_str().len() + target + LINE_OVERHEAD;
        if line > self.line {
            return Err(HeadError::LineTooLong(self.line));
        }
        self.check_fields(line + authority, headers)
    }

    /// Judges the head of an answer.
    ///
    /// # Errors
    /// [`HeadError`]; the answer is not forwarded.
    pub fn check_response<B>(self, answer: &Response<B>) -> Result<(), HeadError> {
        // hyper keeps the phrase only where it is not the usual one.
        let phrase = answer.extensions().get::<ReasonPhrase>();
        let line = STATUS_LINE + phrase.map_or(0, |phrase| phrase.as_bytes().len());
        if line > self.line {
            Err(HeadError::LineTooLong(self.line))
        } else {
            self.check_fields(line, answer.headers())
        }
    }

    /// Judges the fields of a head whose first line takes `first` bytes.
    ///
    /// # Errors
    /// [`HeadError`]; the message is refused.
    pub fn check_fields(self, first: usize, headers: &HeaderMap) -> Result<(), HeadError> {
        let mut total = first;
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

/// The scan of one HTTP/1 request head.
#[derive(Debug)]
pub(crate) struct HeadScanner {
    limits: HeadLimits,
    /// Bytes so far, empty lines in front included.
    total: usize,
    /// Bytes of this line so far.
    line: usize,
    /// The last of them is a CR.
    ends_in_cr: bool,
    /// The request line has ended.
    in_fields: bool,
    /// The first bytes of this line, as far as they may be one of the two names.
    prefix: [u8; PREFIX],
    has_content_length: bool,
    has_transfer_encoding: bool,
}

impl HeadScanner {
    /// A scan that has seen nothing.
    pub(crate) fn new(limits: HeadLimits) -> Self {
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
    pub(crate) fn is_in_fields(&self) -> bool {
        self.in_fields
    }

    /// Reads on. `Some(n)`: the head ends with the first `n` bytes of `data`, and nothing behind
    /// them was read.
    ///
    /// # Errors
    /// [`HeadError`], as soon as it is certain; hyper must not see `data` then.
    pub(crate) fn read(&mut self, data: &[u8]) -> Result<Option<usize>, HeadError> {
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

    /// A piece of one line, without its LF.
    fn scan_line(&mut self, piece: &[u8]) -> Result<(), HeadError> {
        let Some(last) = piece.last() else { return Ok(()) };
        if self.in_fields {
            // Nearly every field is told from the two by its first letter.
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
            let (line, field) =
                (HeadError::LineTooLong(self.limits.line), HeadError::FieldTooLong(self.limits.line));
            return Err(if self.in_fields { field } else { line });
        }
        if self.total > self.limits.head { Err(HeadError::HeadTooLarge(self.limits.head)) } else { Ok(()) }
    }

    /// A line has ended; whether the head has.
    fn end_line(&mut self) -> Result<bool, HeadError> {
        let empty = self.line == usize::from(self.ends_in_cr);
        (self.line, self.ends_in_cr) = (0, false);
        if empty {
            // Before the request line an empty line is skipped.
            return Ok(self.in_fields);
        }
        if self.in_fields && matches!(self.prefix.first(), Some(b'c' | b'C' | b't' | b'T')) {
            let named = |name: &[u8]| {
                self.prefix.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name))
            };
            let length = named(CONTENT_LENGTH);
            if length && self.has_content_length {
                return Err(HeadError::AmbiguousLength);
            }
            self.has_content_length |= length;
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
    fn two_lengths_are_found_in_every_spelling() {
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
    fn limits_hold_to_the_byte() {
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
    fn a_fragment_is_found_in_the_request_line_alone() {
        assert_eq!(read(b"GET /a#b HTTP/1.1\r\n\r\n"), Err(HeadError::Fragment));
        assert_eq!(read(b"GET http://a/#"), Err(HeadError::Fragment));
        assert_eq!(read(b"GET /a HTTP/1.1\r\nA: #b\r\n\r\n"), Ok(Some(26)));
    }

    #[test]
    fn an_answers_status_line_meets_the_limit() {
        let answer = |phrase: usize| {
            let mut answer = Response::new(());
            answer.extensions_mut().insert(ReasonPhrase::try_from("r".repeat(phrase)).unwrap());
            LIMITS.check_response(&answer)
        };
        assert_eq!((answer(49), answer(50)), (Ok(()), Err(HeadError::LineTooLong(64))));
    }

    #[test]
    fn a_parsed_head_meets_the_same_limits() {
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

    /// What a head is put together from.
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
        fn pieces_make_no_difference(head in heads(), cuts in prop::collection::vec(0usize..64, 0..20)) {
            let whole = read(&head);
            let mut scan = HeadScanner::new(LIMITS);
            let (mut at, mut pieced) = (0, Ok(None));
            for cut in cuts.into_iter().chain([head.len()]) {
                let to = (at + cut).min(head.len());
                match scan.read(&head[at..to]) {
                    Ok(None) => at = to,
                    Ok(Some(n)) => { pieced = Ok(Some(at + n)); break }
                    Err(error) => { pieced = Err(error); break }
                }
            }
            // Of two faults the one that is certain first is told.
            prop_assert!(whole == pieced || (whole.is_err() && pieced.is_err()), "{whole:?} {pieced:?}");
        }

        #[test]
        fn the_head_ends_where_the_parser_sees_its_end(head in heads()) {
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

//! A minimal HTTP/1.1 client: sends prepared bytes, reads one response.
//!
//! The load generator shares a small machine with the server it measures, so this client uses one
//! buffer a connection, one write and usually one read. It reads responses with a length, chunked
//! ones and ones that end with the connection; any other is a failure.

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::failure::{Failure, FailureKind};

/// Longer responses are a failure.
const ANSWER_MAX: usize = 64 << 20;
/// The capacity reserved before each read.
const READ_SIZE: usize = 16 << 10;

/// The head of a response; the buffer it was read into holds the rest.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// False when the server will close the connection, or must, to end the body.
    pub reusable: bool,
    /// Bytes of the status line, the headers and the empty line.
    pub head: usize,
    body: Body,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Body {
    Length(usize),
    Chunked,
    UntilClose,
}

impl Answer {
    /// The first header of that name (lower case), from the buffer the response was read into.
    pub fn header<'a>(&self, buffer: &'a [u8], name: &str) -> Option<&'a str> {
        headers(buffer.get(..self.head)?)
            .find(|(found, _)| found.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
    }

    /// The body without chunk framing.
    pub fn body(&self, buffer: &[u8]) -> Vec<u8> {
        let rest = buffer.get(self.head..).unwrap_or_default();
        match self.body {
            Body::Length(length) => rest.get(..length).unwrap_or_default().to_vec(),
            Body::UntilClose => rest.to_vec(),
            Body::Chunked => unchunk(rest).ok().flatten().map(|(body, _)| body).unwrap_or_default(),
        }
    }
}

/// A GET request as bytes.
pub fn get(host: &str, path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: countersign-bench\r\nAccept: */*\r\n\r\n")
        .into_bytes()
}

/// Writes the request and reads the whole response into `buffer`, which is emptied first.
///
/// # Errors
/// [`FailureKind::Send`], [`FailureKind::Receive`] when the response ends early,
/// [`FailureKind::Malformed`].
pub async fn exchange<S>(stream: &mut S, request: &[u8], buffer: &mut Vec<u8>) -> Result<Answer, Failure>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let sent = async {
        stream.write_all(request).await?;
        stream.flush().await
    };
    sent.await.map_err(|error| Failure::new(FailureKind::Send, error))?;
    buffer.clear();
    let answer = loop {
        if let Some(answer) = parse_head(buffer)? {
            break answer;
        }
        if fill(stream, buffer).await? == 0 {
            return Err(Failure::new(FailureKind::Receive, "the server closed before it answered"));
        }
    };
    while !complete(&answer, buffer)? {
        if fill(stream, buffer).await? == 0 {
            if answer.body == Body::UntilClose {
                break;
            }
            return Err(Failure::new(FailureKind::Receive, "the answer broke off in its body"));
        }
    }
    Ok(answer)
}

async fn fill<S: AsyncRead + Unpin>(stream: &mut S, buffer: &mut Vec<u8>) -> Result<usize, Failure> {
    if buffer.len() > ANSWER_MAX {
        return Err(malformed("the answer is larger than 64 MiB"));
    }
    buffer.reserve(READ_SIZE);
    match stream.read_buf(buffer).await {
        Ok(read) => Ok(read),
        // A server may end TCP without close_notify: the length decides whether the response is
        // complete.
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(0),
        Err(error) => Err(Failure::new(FailureKind::Receive, error)),
    }
}

fn malformed(text: &str) -> Failure {
    Failure::new(FailureKind::Malformed, text)
}

fn parse_head(buffer: &[u8]) -> Result<Option<Answer>, Failure> {
    let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(None) };
    let head_size = end + 4;
    let head = buffer.get(..head_size).unwrap_or_default();
    let version = head.get(..9).unwrap_or_default();
    let status = head.get(9..12).and_then(|digits| std::str::from_utf8(digits).ok()?.parse::<u16>().ok());
    let (true, Some(status)) = (version == b"HTTP/1.1 " || version == b"HTTP/1.0 ", status) else {
        return Err(malformed("the answer is not HTTP/1.1"));
    };
    let mut body = Body::UntilClose;
    let mut reusable = version == b"HTTP/1.1 ";
    if matches!(status, 204 | 304) {
        body = Body::Length(0);
    }
    for (name, value) in headers(head) {
        if name.eq_ignore_ascii_case("content-length") {
            body = Body::Length(value.parse().map_err(|_| malformed("Content-Length is not a number"))?);
        } else if name.eq_ignore_ascii_case("transfer-encoding") && value.eq_ignore_ascii_case("chunked") {
            body = Body::Chunked;
        } else if name.eq_ignore_ascii_case("connection") && value.eq_ignore_ascii_case("close") {
            reusable = false;
        }
    }
    reusable &= body != Body::UntilClose;
    Ok(Some(Answer { status, reusable, head: head_size, body }))
}

/// The header lines of a complete head.
fn headers(head: &[u8]) -> impl Iterator<Item = (&str, &str)> {
    let text = std::str::from_utf8(head).unwrap_or_default();
    text.split("\r\n")
        .skip(1)
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name, value.trim()))
}

fn complete(answer: &Answer, buffer: &[u8]) -> Result<bool, Failure> {
    let rest = buffer.get(answer.head..).unwrap_or_default();
    match answer.body {
        Body::Length(length) if rest.len() > length => Err(malformed("bytes after the answer's end")),
        Body::Length(length) => Ok(rest.len() == length),
        Body::UntilClose => Ok(false),
        Body::Chunked => Ok(unchunk(rest)?.is_some()),
    }
}

/// The content of the chunks and the length of the framing; `None` while the last chunk is missing.
fn unchunk(mut rest: &[u8]) -> Result<Option<(Vec<u8>, usize)>, Failure> {
    let whole = rest.len();
    let mut body = Vec::new();
    loop {
        let Some(line) = rest.windows(2).position(|window| window == b"\r\n") else { return Ok(None) };
        let size = std::str::from_utf8(rest.get(..line).unwrap_or_default()).unwrap_or_default();
        let size = size.split(';').next().unwrap_or_default().trim();
        let size =
            usize::from_str_radix(size, 16).map_err(|_| malformed("a chunk's size is not a number"))?;
        if size > ANSWER_MAX {
            return Err(malformed("a chunk is larger than 64 MiB"));
        }
        let after = line + 2;
        let Some(chunk) = rest.get(after..after + size + 2) else { return Ok(None) };
        body.extend_from_slice(chunk.get(..size).unwrap_or_default());
        rest = rest.get(after + size + 2..).unwrap_or_default();
        if size == 0 {
            return Ok(Some((body, whole - rest.len())));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn answer(pieces: &[&'static str]) -> Result<(Answer, Vec<u8>), Failure> {
        let (mut ours, mut theirs) = tokio::io::duplex(1 << 16);
        let pieces = pieces.to_vec();
        let server = async move {
            let mut request = [0; 256];
            let _ = theirs.read(&mut request).await.unwrap();
            for piece in pieces {
                theirs.write_all(piece.as_bytes()).await.unwrap();
                tokio::task::yield_now().await;
            }
        };
        let mut buffer = Vec::new();
        let request = get("a.test", "/");
        let (answer, ()) = tokio::join!(exchange(&mut ours, &request, &mut buffer), server);
        answer.map(|answer| (answer, buffer))
    }

    #[tokio::test]
    async fn a_body_with_a_length() {
        let (answer, buffer) =
            answer(&["HTTP/1.1 200 OK\r\nContent-Le", "ngth: 5\r\nX-A: b\r\n\r\nhe", "llo"]).await.unwrap();
        assert_eq!((answer.status, answer.reusable), (200, true));
        assert_eq!(answer.body(&buffer), b"hello");
        assert_eq!(answer.header(&buffer, "x-a"), Some("b"));
    }

    #[tokio::test]
    async fn a_chunked_body() {
        let pieces = [
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n",
            "2;x=y\r\nl",
            "o\r\n0\r\n\r\n",
        ];
        let (answer, buffer) = answer(&pieces).await.unwrap();
        assert!(answer.reusable);
        assert_eq!(answer.body(&buffer), b"hello");
    }

    #[tokio::test]
    async fn a_body_that_ends_with_the_connection() {
        let (answer, buffer) = answer(&["HTTP/1.1 200 OK\r\n\r\nhel", "lo"]).await.unwrap();
        assert!(!answer.reusable);
        assert_eq!(answer.body(&buffer), b"hello");
    }

    #[tokio::test]
    async fn truncated_and_invalid_responses_are_failures() {
        for (piece, kind) in [
            ("", FailureKind::Receive),
            ("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello", FailureKind::Receive),
            ("SSH-2.0-x\r\n\r\n", FailureKind::Malformed),
            ("HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", FailureKind::Malformed),
            ("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nhello", FailureKind::Malformed),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", FailureKind::Malformed),
        ] {
            assert_eq!(answer(&[piece]).await.unwrap_err().kind, kind, "{piece}");
        }
    }
}

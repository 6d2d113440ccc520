//! An upstream that logs what arrives, read as strictly as RFC 9112 allows: whatever is not one
//! clean request behind the other is logged as invalid.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// A request that arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SeenRequest {
    /// `INVALID` for bytes that are no request; they are the target then.
    pub(super) method: String,
    pub(super) target: String,
    /// Without its coding.
    pub(super) body: String,
}

impl SeenRequest {
    fn invalid(why: &str, bytes: &[u8]) -> Self {
        let text = bytes.escape_ascii().to_string();
        Self { method: "INVALID".to_owned(), target: text, body: why.to_owned() }
    }

    /// The number of its case, which its target names.
    pub(super) fn number(&self) -> Option<usize> {
        let (_, rest) = self.target.split_once("/case-")?;
        rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
    }
}

/// A running logger; dropping it ends it.
pub(super) struct ByteLogger {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<SeenRequest>>>,
    task: JoinHandle<()>,
}

impl ByteLogger {
    pub(super) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen: Arc<Mutex<Vec<SeenRequest>>> = Arc::default();
        let log = Arc::clone(&seen);
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, Arc::clone(&log)));
            }
        });
        Self { address, seen, task }
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes what arrived so far, in order.
    pub(super) fn seen(&self) -> Vec<SeenRequest> {
        std::mem::take(&mut *self.seen.lock().unwrap())
    }
}

impl Drop for ByteLogger {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(mut stream: TcpStream, log: Arc<Mutex<Vec<SeenRequest>>>) {
    let mut read = Vec::new();
    loop {
        let parsed = parse(&read);
        let request = match parsed {
            Parsed::More => {
                let mut buffer = [0; 8192];
                match stream.read(&mut buffer).await {
                    Ok(count @ 1..) => read.extend_from_slice(&buffer[..count]),
                    // Half a request is none: its sender gave it up.
                    Ok(0) | Err(_) => return,
                }
                continue;
            }
            Parsed::Invalid(why) => {
                log.lock().unwrap().push(SeenRequest::invalid(why, &read));
                return;
            }
            Parsed::Whole(request, used) => {
                read.drain(..used);
                request
            }
        };
        let body = format!("seen {}\n", request.target);
        let length = body.len();
        let shown = if request.method == "HEAD" { "" } else { body.as_str() };
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{shown}");
        log.lock().unwrap().push(request);
        if stream.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

enum Parsed {
    More,
    Invalid(&'static str),
    /// A request and its length in bytes.
    Whole(SeenRequest, usize),
}

/// A byte of a method or of a field's name (RFC 9110 section 5.6.2).
fn token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(token)
}

fn parse(bytes: &[u8]) -> Parsed {
    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
        // What cannot become a head must not wait for its end.
        let started = bytes.first().is_none_or(|byte| token(*byte));
        return if started { Parsed::More } else { Parsed::Invalid("no method") };
    };
    let head = String::from_utf8_lossy(&bytes[..end]);
    if head.bytes().any(|byte| byte == 0 || byte == 0x7f) {
        return Parsed::Invalid("a control character");
    }
    let mut lines = head.split("\r\n");
    let line: Vec<&str> = lines.next().unwrap_or_default().split(' ').collect();
    let [method, target, "HTTP/1.1"] = line[..] else { return Parsed::Invalid("the request line") };
    if !is_token(method) || target.is_empty() || !target.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Parsed::Invalid("the request line");
    }
    let (mut lengths, mut codings, mut hosts) = (Vec::new(), Vec::new(), 0);
    for line in lines {
        let Some((name, value)) = line.split_once(':') else { return Parsed::Invalid("no colon") };
        if !is_token(name) || value.contains(['\r', '\n']) {
            return Parsed::Invalid("a field");
        }
        match name.to_ascii_lowercase().as_str() {
            "content-length" => lengths.push(value.trim_matches(' ')),
            "transfer-encoding" => codings.push(value.trim_matches(' ')),
            "host" => hosts += 1,
            _ => {}
        }
    }
    if hosts != 1 {
        return Parsed::Invalid("not one Host");
    }
    let rest = &bytes[end + 4..];
    let body = match (&lengths[..], &codings[..]) {
        ([], []) => Ok(Some((Vec::new(), 0))),
        ([length], []) if !length.is_empty() && length.bytes().all(|byte| byte.is_ascii_digit()) => {
            let length: usize = length.parse().unwrap_or(usize::MAX);
            Ok(rest.get(..length).map(|body| (body.to_vec(), length)))
        }
        ([], ["chunked"]) => chunks(rest),
        _ => Err("the framing"),
    };
    match body {
        Err(why) => Parsed::Invalid(why),
        Ok(None) => Parsed::More,
        Ok(Some((body, used))) => {
            let request = SeenRequest {
                method: method.to_owned(),
                target: target.to_owned(),
                body: String::from_utf8_lossy(&body).into_owned(),
            };
            Parsed::Whole(request, end + 4 + used)
        }
    }
}

/// A body in chunks without extensions or trailers, and how many bytes it took.
fn chunks(bytes: &[u8]) -> Result<Option<(Vec<u8>, usize)>, &'static str> {
    let (mut body, mut at) = (Vec::new(), 0);
    loop {
        let rest = &bytes[at..];
        let Some(line) = rest.windows(2).position(|two| two == b"\r\n") else { return Ok(None) };
        let digits = std::str::from_utf8(&rest[..line]).map_err(|_| "a chunk's size")?;
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err("a chunk's size");
        }
        let size = usize::from_str_radix(digits, 16).map_err(|_| "a chunk's size")?;
        let Some(data) = rest.get(line + 2..line + 2 + size + 2) else { return Ok(None) };
        if !data.ends_with(b"\r\n") {
            return Err(if size == 0 { "trailers" } else { "a chunk's end" });
        }
        body.extend_from_slice(&data[..size]);
        at += line + 2 + size + 2;
        if size == 0 {
            return Ok(Some((body, at)));
        }
    }
}

#[test]
fn the_logger_takes_no_second_reading() {
    let head = "POST /case-1 HTTP/1.1\r\nHost: a\r\n";
    let whole = |text: &str| matches!(parse(text.as_bytes()), Parsed::Whole(..));
    let invalid = |text: &str| matches!(parse(text.as_bytes()), Parsed::Invalid(_));
    assert!(whole(&format!("{head}\r\n")));
    assert!(whole(&format!("{head}Content-Length: 2\r\n\r\nab")));
    assert!(whole(&format!("{head}Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n")));
    for fields in [
        "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n",
        "Content-Length: 2\r\nContent-Length: 2\r\n",
        "Content-Length: +2\r\n",
        "Transfer-Encoding: chunked, chunked\r\n",
        "Transfer-Encoding : chunked\r\n",
        "Transfer-Encoding: \x0bchunked\r\n",
        "X: y\n\r\n",
        "Host: b\r\n",
    ] {
        assert!(invalid(&format!("{head}{fields}\r\n2\r\nab\r\n0\r\n\r\n")), "{fields:?}");
    }
    for chunks in
        ["2;x\r\nab\r\n0\r\n\r\n", "2\r\nabc\r\n0\r\n\r\n", "0\r\nX: y\r\n\r\n", "0x2\r\nab\r\n0\r\n\r\n"]
    {
        assert!(invalid(&format!("{head}Transfer-Encoding: chunked\r\n\r\n{chunks}")), "{chunks:?}");
    }
    assert!(invalid("\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"));
}

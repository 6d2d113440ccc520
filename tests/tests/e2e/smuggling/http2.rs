//! The same in frames: header blocks that would be another message in HTTP/1, and bodies that do
//! not fit their length. Each is forwarded as one request, or its stream or connection ends.

use e2e::frames::{self, DATA, END_HEADERS, END_STREAM, FrameConnection, HEADERS, ReceivedFrames, frame};
use e2e::world::World;

use super::chains::Chain;
use super::logger::SeenRequest;
use super::{corpus, host, world};

/// The stream of the attack and that of the canary.
const ATTACK: u32 = 1;
const CANARY: u32 = 3;

/// A request in frames.
struct FrameCase {
    name: &'static str,
    /// The pseudo fields `:method` and `:path`, then further fields. `{T}` is the target.
    fields: Vec<(&'static str, &'static str)>,
    /// The DATA frames; without one the HEADERS end the stream.
    data: Vec<&'static str>,
    /// The method and the body of the request that is forwarded, if one is.
    forwarded: Option<(&'static str, &'static str)>,
}

const GET: [(&str, &str); 2] = [(":method", "GET"), (":path", "{T}")];
const POST: [(&str, &str); 2] = [(":method", "POST"), (":path", "{T}")];

fn rejected(
    name: &'static str,
    pseudo: [(&'static str, &'static str); 2],
    more: &[(&'static str, &'static str)],
) -> FrameCase {
    FrameCase { name, fields: [&pseudo[..], more].concat(), data: Vec::new(), forwarded: None }
}

fn cases() -> Vec<FrameCase> {
    let mut cases = Vec::new();
    for (name, field) in [
        ("Transfer-Encoding", ("transfer-encoding", "chunked")),
        ("an empty Transfer-Encoding", ("transfer-encoding", "")),
        ("Connection", ("connection", "close")),
        ("Connection: Transfer-Encoding", ("connection", "transfer-encoding")),
        ("Keep-Alive", ("keep-alive", "timeout=5")),
        ("Proxy-Connection", ("proxy-connection", "keep-alive")),
        ("Upgrade", ("upgrade", "h2c")),
        ("TE: chunked", ("te", "chunked")),
        ("a name in upper case", ("Content-Length", "5")),
        ("a name with a line end", ("x\r\ncontent-length", "5")),
        ("a name with a colon", ("transfer-encoding: chunked\r\nx", "y")),
        ("a name with a blank", ("transfer-encoding ", "chunked")),
        ("a name with a NUL", ("x\0", "y")),
        ("an empty name", ("", "y")),
        ("a value with CR LF", ("x", "y\r\ntransfer-encoding: chunked")),
        ("a value with LF", ("x", "y\ntransfer-encoding: chunked")),
        ("a value with CR", ("x", "y\rtransfer-encoding: chunked")),
        ("a value with a NUL", ("x", "y\0")),
        ("a value with a request", ("x", "y\r\n\r\nGET {T}/smuggled HTTP/1.1\r\nhost: a\r\n\r\n")),
        ("an unknown pseudo field", (":x", "y")),
        ("a second path", (":path", "/smuggled")),
        ("a second method", (":method", "POST")),
        ("a status", (":status", "200")),
        ("another host", ("host", "other.test")),
        ("a host with a line end", ("host", "a\r\nx: y")),
        ("an empty host", ("host", "")),
    ] {
        cases.push(rejected(name, GET, &[field]));
    }
    for (name, pseudo) in [
        (
            "a line end in the method",
            [(":method", "GET /smuggled HTTP/1.1\r\nx: y\r\n\r\nGET"), (":path", "{T}")],
        ),
        ("a blank in the method", [(":method", "GET /smuggled"), (":path", "{T}")]),
        ("an empty method", [(":method", ""), (":path", "{T}")]),
        ("CONNECT with a path", [(":method", "CONNECT"), (":path", "{T}")]),
        ("TRACE", [(":method", "TRACE"), (":path", "{T}")]),
        ("a line end in the path", [(":method", "GET"), (":path", "{T} HTTP/1.1\r\nx: y")]),
        ("a blank in the path", [(":method", "GET"), (":path", "{T} HTTP/1.1")]),
        ("a tab in the path", [(":method", "GET"), (":path", "{T}\tx")]),
        ("a NUL in the path", [(":method", "GET"), (":path", "{T}\0")]),
        ("an empty path", [(":method", "GET"), (":path", "")]),
        ("an absolute path", [(":method", "GET"), (":path", "http://other.test{T}")]),
        ("an asterisk", [(":method", "GET"), (":path", "*")]),
    ] {
        cases.push(rejected(name, pseudo, &[]));
    }
    cases.extend(bodies());
    cases
}

/// Bodies beside `content-length`, and fields that are forwarded as they are.
fn bodies() -> Vec<FrameCase> {
    let case = |name, method: [_; 2], more: &[_], data: &[_], forwarded| FrameCase {
        name,
        fields: [&method[..], more].concat(),
        data: data.to_vec(),
        forwarded,
    };
    let length = |value| [("content-length", value)];
    vec![
        case("no body", GET, &[], &[], Some(("GET", ""))),
        case("a body", POST, &[], &["abcde"], Some(("POST", "abcde"))),
        case("a body in frames", POST, &[], &["ab", "", "cde"], Some(("POST", "abcde"))),
        case("a body with its length", POST, &length("5"), &["abcde"], Some(("POST", "abcde"))),
        case("a body of a GET", GET, &length("5"), &["abcde"], Some(("GET", "abcde"))),
        case(
            "a request as a body",
            POST,
            &[],
            &["GET / HTTP/1.1\r\n\r\n"],
            Some(("POST", "GET / HTTP/1.1\r\n\r\n")),
        ),
        case("a last chunk as a body", POST, &[], &["0\r\n\r\n"], Some(("POST", "0\r\n\r\n"))),
        case("length 0 and no body", POST, &length("0"), &[], Some(("POST", ""))),
        case("TE: trailers", GET, &[("te", "trailers")], &[], Some(("GET", ""))),
        case("an underscore", POST, &[("transfer_encoding", "chunked")], &["abc"], Some(("POST", "abc"))),
        case("longer than its length", POST, &length("3"), &["abcde"], None),
        case("shorter than its length", POST, &length("50"), &["abcde"], None),
        case("a body beside length 0", POST, &length("0"), &["abcde"], None),
        case("a length without a body", POST, &length("5"), &[], None),
        case("a length that is no number", POST, &length("five"), &["abcde"], None),
        case("a length with a sign", POST, &length("+5"), &["abcde"], None),
        case("a list of lengths", POST, &length("5, 5"), &["abcde"], None),
        case(
            "two different lengths",
            POST,
            &[("content-length", "5"), ("content-length", "6")],
            &["abcde"],
            None,
        ),
    ]
}

/// Literal fields without indexing, names included.
fn block(host: &str, fields: &[(&str, String)]) -> Vec<u8> {
    let mut block = vec![0x87];
    let text = |block: &mut Vec<u8>, text: &str| {
        let length = u8::try_from(text.len()).expect("a short text");
        assert!(length < 127, "a length of one byte");
        block.push(length);
        block.extend(text.bytes());
    };
    for (name, value) in [(":authority", host.to_owned())].iter().chain(fields) {
        block.push(0);
        text(&mut block, name);
        text(&mut block, value);
    }
    block
}

/// The frames of a case and of its canary.
fn frames(host: &str, number: usize, case: &FrameCase) -> Vec<u8> {
    let target = corpus::target(number);
    let fill = |(name, value): &(&'static str, &str)| (*name, value.replace("{T}", &target));
    let fields: Vec<_> = case.fields.iter().map(fill).collect();
    let last = if case.data.is_empty() { END_STREAM } else { 0 };
    let mut bytes = frame(HEADERS, END_HEADERS | last, ATTACK, &block(host, &fields));
    for (index, data) in case.data.iter().enumerate() {
        let last = if index + 1 == case.data.len() { END_STREAM } else { 0 };
        bytes.extend(frame(DATA, last, ATTACK, data.as_bytes()));
    }
    bytes.extend(frames::get(CANARY, host, &corpus::canary(number)));
    bytes
}

/// Whether both streams, or the connection, have ended.
fn settled(heard: &ReceivedFrames) -> bool {
    let over =
        |stream| heard.whole.contains(&stream) || heard.reset.iter().any(|(reset, _)| *reset == stream);
    heard.over || (over(ATTACK) && over(CANARY))
}

async fn send(world: &World, host: &str, number: usize, case: &FrameCase) {
    let mut wire = FrameConnection::connect(&world.client(host)).await;
    // A connection that ends for the first frames does not take the rest.
    let _ = wire.send(&frames(host, number, case)).await;
    wire.until(case.name, settled).await;
}

#[tokio::test]
async fn no_reader_finds_another_request_in_frames() {
    let folder = tempfile::tempdir().unwrap();
    let chains = Chain::all(folder.path()).await;
    let world = world(&chains).await;
    let cases = cases();
    let mut wrong = Vec::new();
    for chain in &chains {
        let host = host(chain);
        for (number, case) in cases.iter().enumerate() {
            send(&world, &host, number, case).await;
            let mut seen = chain.logger().seen();
            let canary = corpus::canary(number);
            let before = seen.len();
            seen.retain(|seen| seen.target != canary);
            // A connection that was fine before stays so.
            let canary_seen = seen.len() + 1 == before;
            let found: Vec<_> = seen.iter().map(|seen| (seen.method.as_str(), seen.body.as_str())).collect();
            let ours = seen.iter().all(|seen: &SeenRequest| seen.target == corpus::target(number));
            let answered = canary_seen || case.forwarded.is_none();
            if found != Vec::from_iter(case.forwarded) || !ours || !answered {
                wrong.push(format!("{} {:?}: {seen:?}", chain.name(), case.name));
            }
        }
        let late = chain.logger().seen();
        assert!(late.is_empty(), "{}: {late:?}", chain.name());
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

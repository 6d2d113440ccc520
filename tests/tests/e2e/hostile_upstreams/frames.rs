//! Frames of HTTP/2 upstreams that break the protocol, end or stall an exchange, or flood: the
//! faulty stream gets 502, 504 or a broken answer and one line in the log; the stream beside it
//! lives or ends as RFC 9113 says, and others notice nothing.

use std::time::{Duration, Instant};

use e2e::client::{bounded, full};
use e2e::frames::{
    ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, RST_STREAM, SETTINGS, frame,
    window_settings, window_update,
};
use e2e::resources::memory_peak;
use e2e::upstream::Upstream;
use e2e::upstream::framed::{FrameStep, FramedUpstream, OK, field, greeting, whole_response};
use e2e::world::World;
use futures_util::future::join_all;
use http::{Method, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::{Broken, BrokenOrUnread, Outcome, Status};

use FrameStep::{Close, Flood, Requests, Reset, Send};

const PADDED: u8 = 8;
const PRIORITY: u8 = 2;
const PUSH_PROMISE: u8 = 5;

const INVALID: &str = "upstream_invalid";
const CLOSED: &str = "upstream_closed";
const LATE: &str = "upstream_read_timeout";

/// The stream of the request beside the faulty one, which is asked for first.
const BESIDE: u32 = 1;
/// The stream of the fault.
const FAULTY: u32 = 3;

/// What a fault ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reach {
    /// Its stream: the one beside it gets its answer.
    Stream,
    /// The connection: the stream beside it ends in the same way.
    Connection,
}

use Reach::{Connection, Stream};

struct Case {
    name: &'static str,
    steps: Vec<FrameStep>,
    outcome: Outcome,
    /// `None`: the fault is none.
    reason: Option<&'static str>,
    reach: Reach,
}

/// A fault once both requests have arrived; afterwards the stream beside it is answered.
fn fault(name: &'static str, bytes: Vec<u8>, reach: Reach, outcome: Outcome, reason: &'static str) -> Case {
    let steps = vec![Send(greeting()), Requests(2), Send(bytes), Send(whole_response(BESIDE))];
    Case { name, steps, outcome, reason: Some(reason), reach }
}

/// Nothing that harms.
fn fine(name: &'static str, bytes: Vec<u8>, status: u16) -> Case {
    Case { reason: None, ..fault(name, bytes, Stream, Status(status), "") }
}

/// The connection ends.
fn ended(name: &'static str, bytes: Vec<u8>, end: FrameStep, outcome: Outcome) -> Case {
    let steps = vec![Send(greeting()), Requests(2), Send(bytes), end];
    Case { name, steps, outcome, reason: Some(CLOSED), reach: Connection }
}

fn number(value: u32) -> [u8; 4] {
    value.to_be_bytes()
}

fn head(flags: u8, block: &[u8]) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | flags, FAULTY, block)
}

/// The head of a 200 with these fields.
fn answer(flags: u8, fields: &[(&str, &str)]) -> Vec<u8> {
    let fields = fields.iter().flat_map(|(name, value)| field(name, value));
    head(flags, &OK.iter().copied().chain(fields).collect::<Vec<_>>())
}

/// `:status`, written out.
fn status(code: &str) -> Vec<u8> {
    [&[8, 3], code.as_bytes()].concat()
}

fn data(flags: u8, bytes: &[u8]) -> Vec<u8> {
    frame(DATA, flags, FAULTY, bytes)
}

fn reset(stream: u32, code: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &number(code))
}

fn go_away(last: u32, code: u32) -> Vec<u8> {
    frame(GOAWAY, 0, 0, &[number(last), number(code)].concat())
}

fn setting(id: u16, value: u32) -> Vec<u8> {
    frame(SETTINGS, 0, 0, &[&id.to_be_bytes()[..], &number(value)].concat())
}

/// A head whose block is small, and whose list has this many fields of 3,000 bytes.
fn bomb(fields: usize) -> Vec<u8> {
    // With incremental indexing; a length of 127 + 0x39 + 128 * 0x16.
    let entry = [&[0x40, 1, b'b', 0x7f, 0x80 | 0x39, 0x16][..], &[b'v'; 3000]].concat();
    head(END_STREAM, &[OK, &entry, &vec![0xbe; fields - 1]].concat())
}

/// Faults of a response's head, and what is beside it.
fn heads() -> Vec<Case> {
    let invalid = |name, bytes| fault(name, bytes, Stream, Status(502), INVALID);
    vec![
        invalid("no status", head(END_STREAM, &field("x-own", "1"))),
        invalid("two statuses", head(END_STREAM, &[0x88, 0x88])),
        invalid("a status behind a field", head(END_STREAM, &[&field("x-own", "1"), OK].concat())),
        invalid("a connection field", answer(END_STREAM, &[("connection", "close")])),
        invalid("a transfer coding", answer(END_STREAM, &[("transfer-encoding", "chunked")])),
        invalid("a length without a body", answer(END_STREAM, &[("content-length", "5")])),
        invalid("a length that is no number", answer(0, &[("content-length", "x")])),
        invalid("a length with a sign", answer(0, &[("content-length", "+5")])),
        invalid("two lengths", answer(0, &[("content-length", "5"), ("content-length", "6")])),
        invalid("one length twice", answer(0, &[("content-length", "5"), ("content-length", "5")])),
        invalid("a list over the limit of a head", bomb(20)),
        invalid("a list over the limit of SETTINGS", bomb(60)),
        invalid("101", head(0, &status("101"))),
        invalid("103 that ends the stream", head(END_STREAM, &status("103"))),
        invalid("interim responses without end", head(0, &status("103")).repeat(1000)),
        fine("204 with a body", [head(0, &[0x89]), data(END_STREAM, b"body")].concat(), 204),
        fine("304 with a body", [head(0, &[0x8b]), data(END_STREAM, b"body")].concat(), 304),
        fine("interim responses", [head(0, &status("103")).repeat(10), head(END_STREAM, OK)].concat(), 200),
        fine("frames of an unknown type", [frame(0xaa, 0xff, 0, b"x"), head(END_STREAM, OK)].concat(), 200),
        fault("a stall before the head", Vec::new(), Stream, Status(504), LATE),
        fault("a list far over it", bomb(1000), Connection, Status(502), INVALID),
        fault(
            "a status that is no number",
            head(END_STREAM, &status("abc")),
            Connection,
            Status(502),
            INVALID,
        ),
        fault("an upper-case name", answer(END_STREAM, &[("X-Own", "1")]), Connection, Status(502), INVALID),
    ]
}

/// Faults of a response's body and trailers.
fn bodies() -> Vec<Case> {
    let broken = |name, bytes, reason| fault(name, bytes, Stream, BrokenOrUnread, reason);
    let begun =
        |rest: Vec<u8>| [answer(0, &[]), data(0, b"half")].into_iter().flatten().chain(rest).collect();
    let of_five = |rest: Vec<u8>| [answer(0, &[("content-length", "5")]), rest].concat();
    let trailers = |flags: u8, block: &[u8]| frame(HEADERS, END_HEADERS | flags, FAULTY, block);
    let pads = [&[10][..], b"whole", &[0; 10]].concat();
    vec![
        broken("more than the length", of_five(data(0, b"five and more")), INVALID),
        broken("less than the length", of_five(data(END_STREAM, b"four")), INVALID),
        broken("trailers before the length", of_five(trailers(END_STREAM, &field("x", "1"))), INVALID),
        broken("trailers that end nothing", begun(trailers(0, &field("x", "1"))), INVALID),
        broken("an interim response behind the head", begun(trailers(0, &status("103"))), INVALID),
        broken("RST_STREAM", begun(reset(FAULTY, 2)), CLOSED),
        broken("RST_STREAM without an error", begun(reset(FAULTY, 0)), CLOSED),
        broken("CANCEL", begun(reset(FAULTY, 8)), CLOSED),
        broken("REFUSED_STREAM behind the head", begun(reset(FAULTY, 7)), CLOSED),
        broken("a stall in the body", begun(Vec::new()), LATE),
        fine(
            "padding",
            [answer(0, &[("content-length", "5")]), data(PADDED | END_STREAM, &pads)].concat(),
            200,
        ),
        fine(
            "pseudo fields in trailers",
            begun(trailers(END_STREAM, &[&[0x84], &field("x", "1")[..]].concat())),
            200,
        ),
        fault(
            "padding beyond the frame",
            begun(data(PADDED, &[200, 1])),
            Connection,
            BrokenOrUnread,
            INVALID,
        ),
        fault(
            "empty frames without end",
            begun(data(0, &[]).repeat(1000)),
            Connection,
            BrokenOrUnread,
            INVALID,
        ),
        ended("GOAWAY and FIN in the body", begun(go_away(FAULTY, 0)), Close, BrokenOrUnread),
        ended("FIN in the body", begun(Vec::new()), Close, BrokenOrUnread),
        ended("FIN in a frame", begun(data(END_STREAM, b"the end")[..10].to_vec()), Close, BrokenOrUnread),
        ended("RST in the body", begun(Vec::new()), Reset, BrokenOrUnread),
    ]
}

/// Resets of the stream, and faults of its windows.
fn streams() -> Vec<Case> {
    let closed = |name, bytes| fault(name, bytes, Stream, Status(502), CLOSED);
    let invalid = |name, bytes| fault(name, bytes, Stream, Status(502), INVALID);
    let no_window = |bytes: Vec<u8>| {
        let begin = [window_settings(0), frame(SETTINGS, ACK, 0, &[])].concat();
        vec![Send(begin), Requests(2), Send(bytes), Send(whole_response(BESIDE))]
    };
    // Behind the end of the stream beside.
    let behind = |frames: Vec<u8>| [whole_response(BESIDE), frames, whole_response(FAULTY)].concat();
    vec![
        closed("RST_STREAM with NO_ERROR", reset(FAULTY, 0)),
        closed("RST_STREAM with CANCEL", reset(FAULTY, 8)),
        closed("RST_STREAM with ENHANCE_YOUR_CALM", reset(FAULTY, 11)),
        closed("RST_STREAM with HTTP_1_1_REQUIRED", reset(FAULTY, 13)),
        closed("RST_STREAM with an unknown code", reset(FAULTY, 0xdead)),
        closed("a storm of RST_STREAM", reset(FAULTY, 2).repeat(10_000)),
        Case {
            // The node has enough of the body (RFC 9113 section 8.1).
            steps: no_window([head(END_STREAM, OK), reset(FAULTY, 0)].concat()),
            ..fine("NO_ERROR behind an early head", Vec::new(), 200)
        },
        Case {
            steps: no_window([answer(0, &[]), data(END_STREAM, b"x"), reset(FAULTY, 0)].concat()),
            ..fine("NO_ERROR behind an early body", Vec::new(), 200)
        },
        fine("heads on a closed stream", behind(whole_response(BESIDE).repeat(1000)), 200),
        fine("data on a closed stream", behind(frame(DATA, 0, BESIDE, b"x").repeat(1000)), 200),
        Case {
            steps: no_window(window_update(FAULTY, 0x7fff_ffff).repeat(2)),
            ..invalid("a window beyond the limit", Vec::new())
        },
        Case {
            steps: no_window(Vec::new()),
            ..fault("no window for the body", Vec::new(), Stream, Status(504), LATE)
        },
    ]
}

/// What RFC 9113 calls an error of the connection.
fn connections() -> Vec<Case> {
    let invalid = |name, bytes| fault(name, bytes, Connection, Status(502), INVALID);
    let unfinished = frame(HEADERS, 0, FAULTY, OK);
    vec![
        invalid("a head on an idle stream", whole_response(99)),
        invalid("a head on a stream of the server", whole_response(2)),
        invalid("data before the head", data(0, b"x")),
        invalid("data on an idle stream", frame(DATA, 0, 99, b"x")),
        invalid("a reset of an idle stream", reset(99, 0)),
        invalid("a window for an idle stream", window_update(99, 1)),
        invalid(
            "PUSH_PROMISE",
            frame(PUSH_PROMISE, END_HEADERS, FAULTY, &[&number(2), &[0x82][..]].concat()),
        ),
        invalid("half a setting", frame(SETTINGS, 0, 0, &[0; 5])),
        invalid("SETTINGS of a stream", frame(SETTINGS, 0, FAULTY, &[])),
        invalid("an acknowledgement of nothing", frame(SETTINGS, ACK, 0, &[])),
        invalid("a window setting beyond the limit", setting(4, 0x8000_0000)),
        invalid("a frame size below the limit", setting(5, 100)),
        invalid("PING of seven bytes", frame(PING, 0, 0, &[0; 7])),
        invalid("PING of a stream", frame(PING, 0, FAULTY, &[0; 8])),
        invalid("GOAWAY of a stream", frame(GOAWAY, 0, FAULTY, &[0; 8])),
        invalid("a second GOAWAY with more streams", [go_away(3, 0), go_away(5, 0)].concat()),
        invalid("a frame over the limit", data(0, &vec![0; 16_385])),
        invalid("index 0 of HPACK", head(END_STREAM, &[0x80])),
        invalid("an index beyond HPACK's table", head(END_STREAM, &[0xfe])),
        invalid("a table of HPACK beyond SETTINGS", head(END_STREAM, &[0x3f, 0xff, 0xff, 0x3f, 0x88])),
        invalid("CONTINUATION of nothing", frame(CONTINUATION, END_HEADERS, FAULTY, OK)),
        invalid("another frame in a head", [unfinished.clone(), frame(PING, 0, 0, &[0; 8])].concat()),
        invalid(
            "a head without end",
            [unfinished, frame(CONTINUATION, 0, FAULTY, &field("x", "1")).repeat(1000)].concat(),
        ),
        invalid("a window of the connection beyond the limit", window_update(0, 0x7fff_ffff)),
        invalid("HTTP/1", b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()),
        ended("FIN before the head", Vec::new(), Close, Status(502)),
        ended("FIN in the head", head(END_STREAM, OK)[..5].to_vec(), Close, Status(502)),
        ended("RST before the head", Vec::new(), Reset, Status(502)),
        ended("GOAWAY with an error and FIN", go_away(FAULTY, 2), Close, Status(502)),
    ]
}

/// Faults before the upstream's SETTINGS: no request leaves.
fn beginnings() -> Vec<Case> {
    let case =
        |name, steps, outcome, reason| Case { name, steps, outcome, reason: Some(reason), reach: Stream };
    let invalid = |name, bytes: &[u8]| case(name, vec![Send(bytes.to_vec())], Status(502), INVALID);
    let late = |name, bytes| case(name, vec![Send(bytes)], Status(504), "upstream_connect_timeout");
    vec![
        case("FIN at once", vec![Close], Status(502), CLOSED),
        case("FIN in the SETTINGS", vec![Send(greeting()[..5].to_vec()), Close], Status(502), CLOSED),
        invalid("HTTP/1 at once", b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"),
        invalid("another protocol", b"SSH-2.0-OpenSSH_9.2\r\n"),
        invalid("a client's preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        invalid("a head before SETTINGS", &whole_response(1)),
        late("no SETTINGS", Vec::new()),
        late("SETTINGS that allow no stream", setting(3, 0)),
    ]
}

/// Serves each of these nodes at `/<index>/...`, without retries and with short time-outs.
async fn world_to(nodes: &[&FramedUpstream]) -> World {
    let settings = json!({"countersign": {"workers": 1, "limits": {"requests_per_client": 0}}});
    let world = World::builder().settings(settings).start().await;
    let documents: Vec<(String, Value)> = nodes
        .iter()
        .enumerate()
        .map(|(index, node)| {
            let upstream = json!({
                "scheme": "grpc",
                "nodes": {node.address().to_string(): 1},
                "retries": 0,
                "timeout": {"connect": 2, "send": 2, "read": 2},
            });
            (format!("routes/{index}"), json!({"uri": format!("/{index}/*"), "upstream": upstream}))
        })
        .collect();
    let borrowed: Vec<_> = documents.iter().map(|(path, json)| (path.as_str(), json.clone())).collect();
    world.apply(&borrowed).await;
    world
}

/// One request on a connection of its own.
async fn outcome(world: &World, path: &str) -> Outcome {
    let mut session = world.plain("app.test").await;
    let request = session.request(Method::POST, path, full("body"));
    // A fault that comes with the head ends the connection before the head is sent.
    let Ok(response) = session.send(request).await else { return Broken };
    collected(response).await
}

async fn collected(response: Response<Incoming>) -> Outcome {
    let status = response.status().as_u16();
    match bounded("the end of an answer", response.into_body().collect()).await {
        Ok(_) => Status(status),
        Err(_) => Broken,
    }
}

/// Asks an upstream twice on one connection, and gives what came of the faulty stream and of the
/// other one.
async fn both(world: &World, node: &FramedUpstream, index: usize) -> (Outcome, Outcome) {
    let (beside, faulty) = (format!("/{index}/beside"), format!("/{index}/faulty"));
    let beside = outcome(world, &beside);
    let faulty = async {
        node.arrived(1).await;
        outcome(world, &faulty).await
    };
    let (beside, faulty) = tokio::join!(beside, faulty);
    (faulty, beside)
}

/// Serves others, on the only worker, until `work` is done.
async fn while_others_are_served<T>(world: &World, work: impl Future<Output = T>) -> T {
    let good = Upstream::plain("good").await;
    let fine = json!({"uri": "/good", "upstream": {"nodes": {good.address().to_string(): 1}}});
    world.apply(&[("routes/good", fine)]).await;
    let others = async {
        let mut session = world.plain("app.test").await;
        loop {
            assert_eq!(session.get("/good").await.unwrap().status, StatusCode::OK);
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        done = work => done,
        never = others => never,
    }
}

/// The reason of each line, with its route if it has one.
fn logged(text: &str) -> Vec<(String, String)> {
    let word = |line: &str, name: &str| {
        let rest = line.split_once(name).map(|(_, rest)| rest);
        rest.and_then(|rest| rest.split([' ', '\n']).next()).unwrap_or_default().replace('"', "")
    };
    let lines = text.lines().filter(|line| line.contains("reason="));
    let mut found: Vec<_> = lines.map(|line| (word(line, "route="), word(line, "reason="))).collect();
    found.sort();
    found
}

async fn all_fail(cases: Vec<Case>, alone: bool) {
    let nodes = join_all(cases.iter().map(|case| FramedUpstream::start(case.steps.clone()))).await;
    let world = world_to(&nodes.iter().collect::<Vec<_>>()).await;
    let mark = world.node_log().mark();
    let asked = join_all(nodes.iter().enumerate().map(async |(index, node)| {
        if alone {
            (outcome(&world, &format!("/{index}/faulty")).await, Status(200))
        } else {
            both(&world, node, index).await
        }
    }));
    let found = while_others_are_served(&world, asked).await;
    let mut wrong = Vec::new();
    let mut lines = Vec::new();
    for (index, (case, (faulty, beside))) in cases.iter().zip(&found).enumerate() {
        let wanted = if case.reach == Stream { Status(200) } else { Status(502) };
        if !case.outcome.is_met_by(*faulty) || !wanted.is_met_by(*beside) {
            let name = case.name;
            wrong.push(format!("{name}: {faulty:?} for {:?}, beside it {beside:?}", case.outcome));
        }
        let reason = case.reason.unwrap_or_default().to_owned();
        let failed = [*faulty, *beside].into_iter().filter(|outcome| match outcome {
            Status(status) => *status >= 500,
            _ => true,
        });
        // A line about a broken answer has no route.
        let routes = failed.map(|outcome| if outcome == Broken { String::new() } else { index.to_string() });
        lines.extend(routes.map(|route| (route, reason.clone())));
        assert!(nodes[index].requests() <= 2, "{}: a POST was sent twice", case.name);
    }
    assert!(wrong.is_empty(), "{wrong:#?}\n{}", world.node_log().text());
    lines.sort();
    let count = lines.len();
    let seen = world
        .node_log()
        .find("a line for each failure", |text| {
            let seen = logged(&text[mark..]);
            (seen.len() >= count).then_some(seen)
        })
        .await;
    assert_eq!(seen, lines, "{}", &world.node_log().text()[mark..]);
}

#[tokio::test]
async fn faults_of_heads_end_their_stream() {
    all_fail(heads(), false).await;
}

#[tokio::test]
async fn faults_of_bodies_break_the_answer() {
    all_fail(bodies(), false).await;
}

#[tokio::test]
async fn faults_of_streams_end_them_alone() {
    all_fail(streams(), false).await;
}

#[tokio::test]
async fn faults_of_the_connection_end_it() {
    all_fail(connections(), false).await;
}

#[tokio::test]
async fn no_request_leaves_before_settings() {
    all_fail(beginnings(), true).await;
}

/// What the data plane may take for a flood, in bytes.
const MEMORY: u64 = 24 << 20;

#[tokio::test]
async fn floods_end_with_the_time_out() {
    let floods = [
        ("SETTINGS", frame(SETTINGS, 0, 0, &[])),
        ("SETTINGS that change", [window_settings(1), window_settings(70_000)].concat()),
        ("PING", frame(PING, 0, 0, &[0; 8])),
        ("PRIORITY", frame(PRIORITY, 0, 99, &[0, 0, 0, 0, 1])),
        ("windows", window_update(0, 1)),
        ("windows of the stream", window_update(FAULTY, 1)),
        ("an unknown type", frame(0xaa, 0, 0, &[0; 100])),
        ("resets", reset(FAULTY - 2, 0)),
    ];
    let steps = |bytes: &[u8]| vec![Send(greeting()), Requests(2), Flood(bytes.to_vec())];
    let nodes = join_all(floods.iter().map(|(_, bytes)| FramedUpstream::start(steps(bytes)))).await;
    let world = world_to(&nodes.iter().collect::<Vec<_>>()).await;
    let before = memory_peak(world.node_id());
    let asked = async {
        for (index, ((name, _), node)) in floods.iter().zip(&nodes).enumerate() {
            let started = Instant::now();
            let (faulty, beside) = both(&world, node, index).await;
            let ended_by_it = if *name == "resets" { Status(502) } else { Status(504) };
            assert_eq!((faulty, beside), (Status(504), ended_by_it), "{name}");
            assert!(started.elapsed() < Duration::from_secs(15), "{name}: {:?}", started.elapsed());
            node.no_connection().await;
        }
    };
    while_others_are_served(&world, asked).await;
    let grown = memory_peak(world.node_id()) - before;
    assert!(grown < MEMORY, "the data plane grew by {grown} bytes");
}

#[tokio::test]
async fn an_upstream_that_ignores_windows_is_cut() {
    let piece = data(0, &[b'x'; 16_384]);
    let steps = vec![Send(greeting()), Requests(2), Send(answer(0, &[])), Flood(piece)];
    let node = FramedUpstream::start(steps).await;
    let world = world_to(&[&node]).await;
    let before = memory_peak(world.node_id());
    let mut beside = world.plain("app.test").await;
    let request = beside.request(Method::POST, "/0/beside", full("body"));
    let beside = tokio::spawn(async move { beside.fetch(request).await.unwrap().status });
    node.arrived(1).await;
    let mut faulty = world.plain("app.test").await;
    let request = faulty.request(Method::POST, "/0/faulty", full("body"));
    let response = faulty.send(request).await.unwrap();
    // Until then nothing of it is read, and the upstream sends as much as the gateway reads.
    assert_eq!(beside.await.unwrap(), StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(collected(response).await, Broken);
    node.no_connection().await;
    let grown = memory_peak(world.node_id()) - before;
    assert!(grown < MEMORY, "the data plane grew by {grown} bytes");
    world.node_log().line_with(&["upstream_invalid", "broke off"]).await;
}

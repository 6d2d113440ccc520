//! Tests of exchanges: over HTTP/2 with a server whose frames the test writes.

use std::cell::Cell;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::pin::Pin;
use std::thread::JoinHandle;

use futures_util::future::join_all;
use http_body_util::BodyExt as _;
use model::{CacheSlot, KeepalivePool, PassHost, Snapshot, UpstreamTls};
use tokio::sync::oneshot;

use super::*;
use crate::http::head::HeadLimits;
use crate::runtime::{self, Driver};
use crate::tls::record::RecordLayerKind;
use crate::tls::site_config;
use crate::upstream::client::ClientSettings;
use crate::upstream::client_tls::{ClientTlsConfigs, TrustDefaults};
use crate::upstream::connector::{ConnectContext, ConnectError};
use crate::upstream::pool::Pool;
use crate::upstream::pool::permits::ConnectionPermits;
use crate::upstream::resolver::{Resolver, ResolverCache};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
/// `:status: 200` of HPACK's static table.
const OK: &[u8] = &[0x88];
/// `:status: 204`
const NO_CONTENT: &[u8] = &[0x89];
/// `:status: 103`, written out.
const EARLY_HINTS: &[u8] = b"\x08\x03103";
const MAX_CONCURRENT_STREAMS: u16 = 3;

const KEEPALIVE: KeepalivePool =
    KeepalivePool { size: 8, idle_timeout: Duration::from_secs(60), requests: 1000, max_connections: None };

/// One connection of the scripted server.
struct Connection(TcpStream);

impl Connection {
    fn accept(listener: &TcpListener) -> Self {
        let mut socket = listener.accept().unwrap().0;
        socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let mut preface = [0; 24];
        socket.read_exact(&mut preface).unwrap();
        Self(socket)
    }

    /// Accepts a connection, and sends SETTINGS.
    fn serve(listener: &TcpListener, settings: &[(u16, u32)]) -> Self {
        let mut connection = Self::accept(listener);
        connection.settings(settings);
        connection
    }

    fn settings(&mut self, settings: &[(u16, u32)]) {
        let payload: Vec<u8> = settings
            .iter()
            .flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat())
            .collect();
        self.send(SETTINGS, 0, 0, &payload);
    }

    fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
        frame.extend([kind, flags]);
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        self.0.write_all(&frame).unwrap();
    }

    fn respond(&mut self, stream: u32) {
        self.send(HEADERS, END_HEADERS | END_STREAM, stream, OK);
    }

    fn go_away(&mut self, last: u32) {
        self.send(GOAWAY, 0, 0, &[last.to_be_bytes(), [0; 4]].concat());
    }

    fn reset(&mut self, stream: u32, code: u32) {
        self.send(RST_STREAM, 0, stream, &code.to_be_bytes());
    }

    /// The next frame of one of these kinds: its kind, flags, stream and payload.
    fn next(&mut self, kinds: &[u8]) -> (u8, u8, u32, Vec<u8>) {
        loop {
            let mut head = [0; 9];
            self.0.read_exact(&mut head).unwrap();
            let [a, b, c, kind, flags, id @ ..] = head;
            let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
            self.0.read_exact(&mut payload).unwrap();
            if kinds.contains(&kind) {
                return (kind, flags, u32::from_be_bytes(id), payload);
            }
        }
    }

    /// The stream of the next request.
    fn request(&mut self) -> u32 {
        self.next(&[HEADERS]).2
    }

    /// Leaves it open: closing it resets what the client has not read.
    fn keep(self) {
        std::mem::forget(self);
    }
}

fn server<T: Send + 'static>(
    script: impl FnOnce(TcpListener) -> T + Send + 'static,
) -> (SocketAddr, JoinHandle<T>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    (addr, std::thread::spawn(move || script(listener)))
}

fn upstream(addr: SocketAddr) -> Upstream {
    Upstream {
        id: None,
        scheme: Scheme::Grpc,
        nodes: vec![Node { host: addr.ip().to_string(), port: Some(addr.port()), weight: 1, priority: 0 }],
        retries: None,
        retry_timeout: None,
        timeout: None,
        pass_host: PassHost::Pass,
        upstream_host: None,
        keepalive: None,
        tls: UpstreamTls::default(),
        http2: false,
        cache: CacheSlot::new(),
        blocked: None,
    }
}

fn client() -> UpstreamClient {
    let pool = Pool::start();
    let provider = Arc::new(site_config::crypto_provider());
    UpstreamClient {
        pool: Rc::clone(&pool),
        connect_context: ConnectContext {
            permits: ConnectionPermits::new(100, pool),
            counters: Arc::default(),
        },
        settings: Cell::new(ClientSettings {
            connections_per_node: 8,
            keepalive: KEEPALIVE,
            head: HeadLimits { line: 8192, head: 32768 },
            preserve_header_case: false,
        }),
        timers: Rc::default(),
        resolver: ResolverCache::new(Resolver::start().unwrap()),
        tls_configs: Arc::new(ClientTlsConfigs::new(
            provider,
            TrustDefaults::default(),
            RecordLayerKind::Rustls,
        )),
    }
}

fn request(method: Method) -> Request<RequestBody> {
    let mut request = Request::new(RequestBody::empty());
    *request.method_mut() = method;
    *request.uri_mut() = "/a".parse().unwrap();
    request
}

/// Sends a request to the only node, and reads the whole response.
async fn send(client: &UpstreamClient, upstream: &Upstream, method: Method) -> Result<usize, Reason> {
    let minute = Duration::from_secs(60);
    let target = UpstreamTarget {
        snapshot: &Snapshot::default(),
        upstream,
        timeouts: Timeouts { connect: minute, send: minute, read: minute },
        authority: Some("app.test"),
        deadline: None,
        interim: None,
    };
    let mut attempts = Attempts::default();
    let response = client.send_request(&target, &mut Some(request(method)), &mut attempts).await;
    let response = response.map_err(|error| error.reason())?;
    assert!(response.status().is_success());
    let body = response.into_body().collect().await.map_err(|_| Reason::UpstreamClosed)?;
    Ok(body.to_bytes().len())
}

/// Sends so many requests at once to a scripted server. Gives the results, and the script's.
fn exchange<T: Send + 'static>(
    methods: &'static [Method],
    script: impl FnOnce(TcpListener) -> T + Send + 'static,
) -> (Vec<Result<usize, Reason>>, T) {
    let (addr, server) = server(script);
    let results = runtime::block_on(&Driver::detect(), || async move {
        let (client, upstream) = (client(), upstream(addr));
        join_all(methods.iter().map(|method| send(&client, &upstream, method.clone()))).await
    });
    (results.unwrap(), server.join().unwrap())
}

#[test]
fn a_node_with_one_stream_gets_a_connection_for_each() {
    let (results, ()) = exchange(&[Method::GET, Method::POST], |listener| {
        let one = [(MAX_CONCURRENT_STREAMS, 1)];
        let mut first = Connection::serve(&listener, &one);
        let stream = first.request();
        // The second request does not wait for the first.
        let mut second = Connection::serve(&listener, &one);
        let other = second.request();
        second.respond(other);
        first.respond(stream);
        first.keep();
        second.keep();
    });
    assert_eq!(results, [Ok(0), Ok(0)]);
}

#[test]
fn streams_wait_for_room_where_no_connection_may_be_opened() {
    let (addr, server) = server(|listener| {
        let mut connection = Connection::serve(&listener, &[(MAX_CONCURRENT_STREAMS, 2)]);
        let streams = [connection.request(), connection.request()];
        connection.respond(streams[1]);
        let third = connection.request();
        connection.respond(streams[0]);
        connection.respond(third);
        connection.keep();
        (streams, third)
    });
    let results = runtime::block_on(&Driver::detect(), || async move {
        let (client, upstream) = (client(), upstream(addr));
        client.settings.set(ClientSettings { connections_per_node: 1, ..client.settings.get() });
        join_all((0..3).map(|_| send(&client, &upstream, Method::POST))).await
    });
    assert_eq!(results.unwrap(), [Ok(0), Ok(0), Ok(0)]);
    assert_eq!(server.join().unwrap(), ([1, 3], 5));
}

#[test]
fn a_lowered_limit_opens_no_further_stream() {
    let (results, ()) = exchange(&[Method::GET; 3], |listener| {
        let mut first = Connection::serve(&listener, &[(MAX_CONCURRENT_STREAMS, 2)]);
        let streams = [first.request(), first.request()];
        let mut second = Connection::serve(&listener, &[]);
        let third = second.request();
        first.settings(&[(MAX_CONCURRENT_STREAMS, 0)]);
        streams.into_iter().for_each(|stream| first.respond(stream));
        second.respond(third);
        first.keep();
        second.keep();
    });
    assert_eq!(results, [Ok(0), Ok(0), Ok(0)]);
}

#[test]
fn after_a_goaway_unprocessed_requests_are_sent_again() {
    let (results, order) = exchange(&[Method::POST, Method::POST], |listener| {
        let mut first = Connection::serve(&listener, &[]);
        let streams = [first.request(), first.request()];
        first.go_away(streams[0]);
        let mut second = Connection::serve(&listener, &[]);
        let again = second.request();
        second.respond(again);
        // The stream that the node goes on with.
        first.respond(streams[0]);
        first.keep();
        second.keep();
        (streams, again)
    });
    assert_eq!((results, order), (vec![Ok(0), Ok(0)], ([1, 3], 1)));
}

#[test]
fn a_refused_stream_is_sent_again_and_a_reset_one_is_not() {
    let (results, streams) = exchange(&[Method::POST], |listener| {
        let mut connection = Connection::serve(&listener, &[]);
        let refused = connection.request();
        connection.reset(refused, 7);
        let again = connection.request();
        connection.respond(again);
        connection.keep();
        (refused, again)
    });
    assert_eq!((results, streams), (vec![Ok(0)], (1, 3)));
    let (results, ()) = exchange(&[Method::POST], |listener| {
        let mut connection = Connection::serve(&listener, &[]);
        let stream = connection.request();
        connection.reset(stream, 2);
        connection.keep();
    });
    assert_eq!(results, [Err(Reason::UpstreamClosed)]);
}

#[test]
fn a_node_that_refuses_for_ever_is_asked_twice() {
    let (results, ()) = exchange(&[Method::POST], |listener| {
        let mut connection = Connection::serve(&listener, &[]);
        for _ in 0..2 {
            let stream = connection.request();
            connection.reset(stream, 7);
        }
        connection.keep();
    });
    assert_eq!(results, [Err(Reason::UpstreamClosed)]);
}

#[test]
fn what_is_no_http_2_is_invalid_and_gets_no_request() {
    for greeting in [&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], b"SSH-2.0-x\r\n"] {
        let (results, ()) = exchange(&[Method::GET], move |listener| {
            let mut connection = Connection::accept(&listener);
            connection.0.write_all(greeting).unwrap();
            connection.keep();
        });
        assert_eq!(results, [Err(Reason::UpstreamInvalid)]);
    }
    let (results, ()) = exchange(&[Method::GET; 3], |listener| drop(Connection::accept(&listener)));
    assert_eq!(results, [Err(Reason::UpstreamClosed); 3], "all of them waited for that connection");
}

#[test]
fn interim_responses_have_a_limit() {
    for (count, expected) in [(16, Ok(0)), (17, Err(Reason::UpstreamInvalid))] {
        let (results, ()) = exchange(&[Method::GET], move |listener| {
            let mut connection = Connection::serve(&listener, &[]);
            let stream = connection.request();
            for _ in 0..count {
                connection.send(HEADERS, END_HEADERS, stream, EARLY_HINTS);
            }
            connection.respond(stream);
            connection.keep();
        });
        assert_eq!(results, [expected], "{count}");
    }
}

#[test]
fn no_content_is_no_body() {
    let (results, ()) = exchange(&[Method::GET], |listener| {
        let mut connection = Connection::serve(&listener, &[]);
        let stream = connection.request();
        connection.send(HEADERS, END_HEADERS, stream, NO_CONTENT);
        connection.send(DATA, END_STREAM, stream, b"body");
        connection.keep();
    });
    assert_eq!(results, [Ok(0)]);
}

#[test]
fn a_response_that_breaks_off_is_no_whole_one() {
    type Script = fn(&mut Connection, u32);
    let scripts: [(&str, Script); 4] = [
        ("RST_STREAM", |connection, stream| connection.reset(stream, 2)),
        ("RST_STREAM without an error", |connection, stream| connection.reset(stream, 0)),
        ("the end of the connection", |_, _| {}),
        ("a GOAWAY and the end", |connection, stream| connection.go_away(stream)),
    ];
    for (what, end) in scripts {
        let (results, ()) = exchange(&[Method::GET], move |listener| {
            let mut connection = Connection::serve(&listener, &[]);
            let stream = connection.request();
            connection.send(HEADERS, END_HEADERS, stream, OK);
            connection.send(DATA, 0, stream, b"half");
            end(&mut connection, stream);
        });
        assert_eq!(results, [Err(Reason::UpstreamClosed)], "{what}");
    }
}

#[test]
fn a_dropped_exchange_resets_its_stream_alone() {
    let (dropped, wait) = oneshot::channel::<()>();
    let (addr, server) = server(move |listener| {
        let mut connection = Connection::serve(&listener, &[]);
        let stream = connection.request();
        dropped.send(()).unwrap();
        // In either order.
        let mut frames = [(); 2].map(|()| connection.next(&[HEADERS, RST_STREAM]));
        frames.sort();
        let [(_, _, next, _), (_, _, reset, code)] = frames;
        connection.respond(next);
        connection.keep();
        (stream == reset, code, next)
    });
    runtime::block_on(&Driver::detect(), || async move {
        let (client, upstream) = (client(), upstream(addr));
        let mut first = Box::pin(send(&client, &upstream, Method::GET));
        let mut wait = wait;
        poll_fn(|cx| {
            assert!(first.as_mut().poll(cx).is_pending());
            Pin::new(&mut wait).poll(cx)
        })
        .await
        .unwrap();
        drop(first);
        assert_eq!(send(&client, &upstream, Method::GET).await, Ok(0));
    })
    .unwrap();
    assert_eq!(server.join().unwrap(), (true, 8_u32.to_be_bytes().to_vec(), 3));
}

#[test]
fn only_attempts_that_reached_a_node_have_a_status() {
    let addr = "192.0.2.1:80".parse().unwrap();
    let within = Duration::from_secs(1);
    let connect = ConnectError::Timeout { addr, within };
    for (error, status) in [
        (ExchangeError::Timeout { addr, reason: Reason::UpstreamReadTimeout, within }, Some(504)),
        (ExchangeError::RequestBodyUnsent { addr }, Some(502)),
        (UpstreamError::Connect(connect).into(), Some(504)),
        (UpstreamError::Resolve("a".into()).into(), None),
        (UpstreamError::NoNode.into(), None),
        (UpstreamError::RetryTimeout(1).into(), None),
        (ExchangeError::ClientBody(Reason::BodyTimeout), None),
    ] {
        assert_eq!(error.attempt_status().map(|status| status.as_u16()), status, "{error}");
    }
}

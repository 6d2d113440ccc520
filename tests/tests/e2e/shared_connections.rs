//! One HTTP/2 connection to a node serves many clients, and one upstream's node is another's, too:
//! what a client, or the limit of a route, does to its own request reaches no other.

use e2e::client::{bounded, full};
use e2e::frames::{DATA, END_HEADERS, END_STREAM, HEADERS, frame};
use e2e::scripted::read_until;
use e2e::upstream::Upstream;
use e2e::upstream::framed::{FrameStep, FramedUpstream, OK, greeting, whole_response};
use e2e::world::World;
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};

use FrameStep::{Requests, Send};

async fn one_worker() -> World {
    let settings = json!({"countersign": {"workers": 1, "limits": {"requests_per_client": 0}}});
    World::builder().settings(settings).start().await
}

/// Routes a path to a node, with these members more in its upstream.
async fn route(world: &World, path: &str, node: impl ToString, more: Value) {
    let mut upstream = json!({"nodes": {node.to_string(): 1}});
    for (name, value) in more.as_object().unwrap() {
        upstream[name] = value.clone();
    }
    world.apply(&[(&format!("routes{path}"), json!({"uri": path, "upstream": upstream}))]).await;
}

fn timeouts(connect: f64, read: f64) -> Value {
    json!({"connect": connect, "send": 60, "read": read})
}

/// The node answers all of them after their clients have gone.
#[tokio::test]
async fn cancelled_requests_end_no_other() {
    const CANCELLED: usize = 500;
    let beside = |stream: u32, flags: u8, bytes: &[u8]| frame(DATA, flags, stream, bytes);
    let late: Vec<u8> = (1..=CANCELLED).flat_map(|nth| whole_response(1 + 2 * nth as u32)).collect();
    let steps = vec![
        Send(greeting()),
        Requests(1),
        Send([frame(HEADERS, END_HEADERS, 1, OK), beside(1, 0, b"first")].concat()),
        Requests(1 + CANCELLED),
        Send([late, beside(1, END_STREAM, b", last")].concat()),
    ];
    let node = FramedUpstream::start(steps).await;
    let world = one_worker().await;
    route(&world, "/any", node.address(), json!({"scheme": "grpc"})).await;
    let mut session = world.plain("app.test").await;
    let request = session.request(Method::GET, "/any", full(""));
    let response = session.send(request).await.unwrap();
    for number in 1..=CANCELLED {
        let mut client = TcpStream::connect(world.http()).await.unwrap();
        client.write_all(b"GET /any HTTP/1.1\r\nHost: app.test\r\n\r\n").await.unwrap();
        node.arrived(number + 1).await;
    }
    let body = bounded("the other's body", response.into_body().collect()).await.unwrap();
    assert_eq!(body.to_bytes(), "first, last");
    // That connection opens no further stream: the next one is the first of another.
    let request = session.request(Method::GET, "/any", full(""));
    assert_eq!(session.send(request).await.unwrap().status(), StatusCode::OK);
}

/// Serves one HTTP/2 connection, and answers its first request with `serve`.
async fn serve_http2<F: Future<Output = ()>>(
    tcp: TcpStream,
    serve: impl FnOnce(Request<h2::RecvStream>, h2::server::SendResponse<bytes::Bytes>) -> F,
) {
    let mut connection = h2::server::handshake(tcp).await.unwrap();
    let (request, respond) = bounded("a request", connection.accept()).await.unwrap().unwrap();
    tokio::select! {
        () = serve(request, respond) => {
            connection.graceful_shutdown();
            let _drained = bounded("the end", std::future::poll_fn(|cx| connection.poll_closed(cx))).await;
        }
        _closed = connection.accept() => panic!("the gateway has closed the connection"),
    }
}

#[tokio::test]
async fn a_short_time_to_connect_ends_no_other_wait() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let node = listener.local_addr().unwrap();
    let world = one_worker().await;
    for (path, connect) in [("/short", 1.0), ("/long", 60.0)] {
        route(&world, path, node, json!({"scheme": "grpc", "timeout": timeouts(connect, 60.0)})).await;
    }
    let (mut first, mut second) = (world.plain("app.test").await, world.plain("app.test").await);
    let short = tokio::spawn(async move { first.get("/short").await.unwrap().status });
    // It sends no SETTINGS.
    let (_silent, _) = bounded("a connection", listener.accept()).await.unwrap();
    let long = tokio::spawn(async move { second.get("/long").await.unwrap().status });
    bounded("it waits for the same connection", async {
        while world.metric("countersign_upstream_requests_queued").await != 1 {}
    })
    .await;
    assert_eq!(short.await.unwrap(), StatusCode::GATEWAY_TIMEOUT);
    let (own, _) = bounded("a connection of its own", listener.accept()).await.unwrap();
    let answer = async |_, mut respond: h2::server::SendResponse<bytes::Bytes>| {
        respond.send_response(Response::new(()), true).unwrap();
    };
    tokio::join!(serve_http2(own, answer), async {
        assert_eq!(bounded("an answer", long).await.unwrap(), StatusCode::OK);
    });
}

/// Nobody opens it in time.
#[tokio::test]
async fn a_wait_for_a_connection_in_vain_is_a_time_out() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let node = listener.local_addr().unwrap();
    let world = one_worker().await;
    for (path, connect) in [("/long", 60.0), ("/short", 1.0)] {
        route(&world, path, node, json!({"scheme": "grpc", "timeout": timeouts(connect, 60.0)})).await;
    }
    let mut first = world.plain("app.test").await;
    let _held = tokio::spawn(async move { first.get("/long").await });
    let (_silent, _) = bounded("a connection", listener.accept()).await.unwrap();
    let reply = world.plain("app.test").await.get("/short").await.unwrap();
    assert_eq!(reply.status, StatusCode::GATEWAY_TIMEOUT);
    world.node_log().line_with(&["upstream_connect_timeout", "not done within 1s"]).await;
}

/// A stream in both directions: the upstream has nothing to say while its client pauses.
#[tokio::test]
async fn a_pause_of_the_client_is_none_of_the_upstream() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let world = one_worker().await;
    let more = json!({"scheme": "grpc", "timeout": timeouts(60.0, 1.0)});
    route(&world, "/call", listener.local_addr().unwrap(), more).await;
    route(&world, "/clock", silent.local_addr().unwrap(), json!({"timeout": timeouts(60.0, 1.0)})).await;
    let tcp = TcpStream::connect(world.http()).await.unwrap();
    let (client, connection) = h2::client::handshake(tcp).await.unwrap();
    tokio::spawn(connection);
    let mut client = client.ready().await.unwrap();
    let request = Request::post("http://app.test/call").body(()).unwrap();
    let (response, mut upload) = client.send_request(request, false).unwrap();
    upload.send_data("first".into(), false).unwrap();
    let node = async {
        let (tcp, _) = listener.accept().await.unwrap();
        let serve = async |request: Request<h2::RecvStream>,
                           mut respond: h2::server::SendResponse<bytes::Bytes>| {
            let mut answer = respond.send_response(Response::new(()), false).unwrap();
            let mut body = request.into_body();
            while let Some(data) = body.data().await {
                let length = data.unwrap().len();
                body.flow_control().release_capacity(length).unwrap();
            }
            answer.send_data("done".into(), true).unwrap();
        };
        serve_http2(tcp, serve).await;
    };
    let calls = async {
        let mut body = bounded("the head", response).await.unwrap().into_body();
        // More than the time to read passes.
        let mut clock = world.plain("app.test").await;
        for _ in 0..2 {
            assert_eq!(clock.get("/clock").await.unwrap().status, StatusCode::GATEWAY_TIMEOUT);
        }
        upload.send_data(", last".into(), true).unwrap();
        assert_eq!(bounded("the body", body.data()).await.unwrap().unwrap(), "done");
        assert!(body.data().await.is_none());
    };
    tokio::join!(node, calls);
}

/// What comes on a kept connection shows that the node is there: whatever it is, the request is not
/// sent again.
#[tokio::test]
async fn an_answer_is_no_stale_connection() {
    const HINTS: &str = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n";
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let world = one_worker().await;
    route(&world, "/any", listener.local_addr().unwrap(), json!({"retries": 0})).await;
    for answer in ["what?\r\n\r\n", "HTTP/1.1 200 OK\r\nno field\r\n\r\n", HINTS] {
        let serve = async {
            let (mut tcp, _) = bounded("a connection", listener.accept()).await.unwrap();
            for answer in ["HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", answer] {
                read_until(&mut tcp, "\r\n\r\n").await;
                tcp.write_all(answer.as_bytes()).await.unwrap();
            }
        };
        let ask = async {
            let mut session = world.plain("app.test").await;
            assert_eq!(session.get("/any").await.unwrap().status, StatusCode::OK);
            assert_eq!(session.get("/any").await.unwrap().status, StatusCode::BAD_GATEWAY, "{answer}");
        };
        tokio::join!(serve, ask);
    }
    // Over HTTP/2, the second answer is a frame of no stream.
    let steps = vec![
        Send(greeting()),
        Requests(1),
        Send(whole_response(1)),
        Requests(2),
        Send(frame(DATA, END_STREAM, 0, b"what?")),
    ];
    let node = FramedUpstream::start(steps).await;
    route(&world, "/two", node.address(), json!({"scheme": "grpc", "retries": 0})).await;
    let mut session = world.plain("app.test").await;
    assert_eq!(session.get("/two").await.unwrap().status, StatusCode::OK);
    assert_eq!(session.get("/two").await.unwrap().status, StatusCode::BAD_GATEWAY);
    assert_eq!(node.requests(), 2);
}

#[tokio::test]
async fn one_request_for_a_connection_means_a_new_one() {
    let node = Upstream::plain("node").await;
    let world = one_worker().await;
    route(&world, "/kept", node.address(), json!({})).await;
    route(&world, "/once", node.address(), json!({"keepalive_pool": {"requests": 1}})).await;
    let mut session = world.plain("app.test").await;
    for (path, connections) in [("/kept", 1), ("/kept", 1), ("/once", 2), ("/once", 3), ("/kept", 3)] {
        assert_eq!(session.get(path).await.unwrap().status, StatusCode::OK);
        assert_eq!(node.connections(), connections, "{path}");
    }
}

//! An upstream of HTTP/2 that sends one response in frames of a byte, to a client that does not
//! read, between the frames of another one.

use std::future::poll_fn;

use e2e::client::{Http, bounded};
use e2e::frames::{FrameConnection, get, window_update};
use e2e::resources::memory_peak;
use e2e::world::World;
use h2::SendStream;
use h2::server::{self, SendResponse};
use http::{Response, StatusCode};
use hyper::body::Bytes;
use serde_json::json;
use tokio::net::TcpListener;

const ROUNDS: usize = 4000;
const PIECE: usize = 10_000;
/// What the data plane may take, in bytes: the read buffers of these frames are more.
const MEMORY: u64 = 16 << 20;

/// Answers two requests in turn: a piece of the second response, a byte of the first.
async fn serve(listener: TcpListener) {
    let (tcp, _) = listener.accept().await.unwrap();
    tcp.set_nodelay(true).unwrap();
    let mut connection = server::handshake(tcp).await.unwrap();
    let begin = async |connection: &mut server::Connection<_, Bytes>| {
        let (_request, respond) = connection.accept().await.unwrap().unwrap();
        begun(respond)
    };
    let slow = begin(&mut connection).await;
    let fast = begin(&mut connection).await;
    tokio::spawn(send(slow, fast));
    while connection.accept().await.is_some() {}
}

fn begun(mut respond: SendResponse<Bytes>) -> SendStream<Bytes> {
    respond.send_response(Response::new(()), false).unwrap()
}

async fn send(mut slow: SendStream<Bytes>, mut fast: SendStream<Bytes>) {
    for _ in 0..ROUNDS {
        fast.reserve_capacity(PIECE);
        while fast.capacity() < PIECE {
            poll_fn(|cx| fast.poll_capacity(cx)).await.unwrap().unwrap();
        }
        fast.send_data(vec![b'x'; PIECE].into(), false).unwrap();
        slow.send_data("x".into(), false).unwrap();
    }
    fast.send_data("end".into(), true).unwrap();
    slow.send_data("end".into(), true).unwrap();
}

#[tokio::test]
async fn small_frames_that_are_not_read_hold_little() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let nodes = json!({listener.local_addr().unwrap().to_string(): 1});
    let server = tokio::spawn(serve(listener));
    let settings = json!({"countersign": {"workers": 1}, "nginx_config": {"http": {"send_timeout": "5m"}}});
    let world = World::builder().settings(settings).start().await;
    let upstream = json!({"scheme": "grpc", "nodes": nodes});
    let route = json!({"uri": "/*", "upstream": upstream});
    world.apply(&[("ssls/app", world.open_site()), ("routes/all", route)]).await;
    let mut slow = FrameConnection::with_window(&world.client("app.test"), 0).await;
    assert!(slow.send(&get(1, "app.test", "/slow")).await);
    slow.until("a head", |heard| heard.answers == 1).await;
    let before = memory_peak(world.node_id());
    let mut session = world.client("app.test").http(Http::One).connect().await.unwrap();
    let fast = bounded("the other response", session.get("/fast")).await.unwrap();
    assert_eq!((fast.status, fast.body.len()), (StatusCode::OK, ROUNDS * PIECE + 3));
    let grown = memory_peak(world.node_id()) - before;
    assert!(grown < MEMORY, "the data plane grew by {grown} bytes");
    // All of it is there.
    let opened = [window_update(0, 1 << 20), window_update(1, 1 << 20)].concat();
    assert!(slow.send(&opened).await);
    let heard = slow.until("the response", |heard| heard.whole == [1]).await;
    assert_eq!((heard.data, heard.resets), (ROUNDS + 3, 0), "{heard:?}");
    server.abort();
}

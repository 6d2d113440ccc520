//! Request and response bodies: large ones arrive complete in both directions, and bytes are
//! forwarded before the last one arrived.

use e2e::client::{Body, Http, HttpConnection, full};
use e2e::resources::memory_peak;
use e2e::upstream::{FIRST_HALF, SECOND_HALF, pattern, pattern_body, sha256};
use e2e::world::World;
use http::{Method, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use serde_json::json;
use tokio::sync::mpsc;

const TEN_MEGABYTES: usize = 10 * 1024 * 1024;

async fn session(world: &World, http: Http) -> HttpConnection {
    world.verified_client("app.test").http(http).connect().await.unwrap()
}

#[tokio::test]
async fn ten_megabytes_arrive_complete_in_both_directions() {
    let (world, _upstream) = World::protected(json!({})).await;
    let expected = sha256(&pattern(TEN_MEGABYTES));
    for http in [Http::One, Http::Two] {
        let mut session = session(&world, http).await;
        let down = session.get(&format!("/sized?bytes={TEN_MEGABYTES}")).await.unwrap();
        assert_eq!((down.status, down.body.len()), (StatusCode::OK, TEN_MEGABYTES), "{http:?}");
        assert_eq!(sha256(&down.body), expected, "{http:?} down");

        let request = session.request(Method::POST, "/sink", pattern_body(TEN_MEGABYTES));
        let up = session.fetch(request).await.unwrap().json();
        assert_eq!(up, json!({"bytes": TEN_MEGABYTES, "sha256": expected}), "{http:?} up");

        let request = session.request(Method::POST, "/echo", pattern_body(TEN_MEGABYTES));
        let both = session.fetch(request).await.unwrap();
        assert_eq!(sha256(&both.body), expected, "{http:?} both at once");
    }
}

#[tokio::test]
async fn a_body_with_a_known_length_keeps_it() {
    let (world, _upstream) = World::protected(json!({})).await;
    for http in [Http::One, Http::Two] {
        let mut session = session(&world, http).await;
        let bytes = pattern(300_001);
        let request = session.request(Method::PUT, "/seen", full(bytes.clone()));
        let seen = session.fetch(request).await.unwrap().json();
        assert_eq!(seen["headers"]["content-length"], "300001", "{http:?}: {seen}");
        let request = session.request(Method::PUT, "/sink", full(bytes.clone()));
        assert_eq!(session.fetch(request).await.unwrap().json()["sha256"], sha256(&bytes));
    }
}

#[tokio::test]
async fn responses_are_streamed() {
    for http in [Http::One, Http::Two] {
        let (world, upstream) = World::protected(json!({})).await;
        let mut session = session(&world, http).await;
        let request = session.request(Method::GET, "/halves", full(""));
        let mut body = session.send(request).await.unwrap().into_body();
        let first = e2e::client::bounded("the first half", body.frame()).await.unwrap().unwrap();
        assert_eq!(first.into_data().unwrap(), FIRST_HALF, "{http:?}");
        // The upstream may send the rest only now.
        upstream.open_gate();
        let rest = body.collect().await.unwrap().to_bytes();
        assert_eq!(rest, SECOND_HALF, "{http:?}");
    }
}

#[tokio::test]
async fn requests_are_streamed() {
    let (world, _upstream) = World::protected(json!({})).await;
    for http in [Http::One, Http::Two] {
        let mut session = session(&world, http).await;
        let (pieces, stream) = mpsc::channel::<&'static str>(1);
        let stream = futures_util::stream::unfold(stream, |mut stream| async move {
            stream.recv().await.map(|piece| (Ok(Frame::data(piece.into())), stream))
        });
        let body: Body = BodyExt::boxed(StreamBody::new(stream));
        pieces.send("first").await.unwrap();
        let request = session.request(Method::POST, "/echo", body);
        let mut echoed = session.send(request).await.unwrap().into_body();
        let first = e2e::client::bounded("the first piece", echoed.frame()).await.unwrap().unwrap();
        assert_eq!(first.into_data().unwrap(), "first", "{http:?}");
        pieces.send("second").await.unwrap();
        drop(pieces);
        assert_eq!(echoed.collect().await.unwrap().to_bytes(), "second", "{http:?}");
    }
}

#[tokio::test]
async fn curl_uploads_a_file_with_and_without_expect() {
    let (world, _upstream) = World::protected(json!({})).await;
    let bytes = pattern(TEN_MEGABYTES);
    std::fs::write(world.folder().join("upload"), &bytes).unwrap();
    let port = world.https().port();
    let (resolve, url) = (format!("app.test:{port}:127.0.0.1"), format!("https://app.test:{port}/sink"));
    for version in ["--http1.1", "--http2"] {
        for ask in ["Expect: 100-continue", "Expect:"] {
            let answered = e2e::tools::curl(
                world.folder(),
                &[
                    "--cacert",
                    "server-ca.crt",
                    "--cert",
                    "client.crt",
                    "--key",
                    "client.key",
                    "--resolve",
                    &resolve,
                    version,
                    "-H",
                    ask,
                    "--data-binary",
                    "@upload",
                    &url,
                ],
            )
            .await;
            assert_eq!((answered.exit, answered.status), (0, 200), "{version} {ask}: {answered:?}");
            assert!(answered.body.contains(&sha256(&bytes)), "{version} {ask}: {answered:?}");
        }
    }
}

#[tokio::test]
async fn responses_without_a_body_have_none() {
    let (world, _upstream) = World::protected(json!({})).await;
    for http in [Http::One, Http::Two] {
        let mut session = session(&world, http).await;
        let request = session.request(Method::HEAD, "/seen", full(""));
        let head = session.fetch(request).await.unwrap();
        assert_eq!((head.status, head.body.len()), (StatusCode::OK, 0), "{http:?}");
        for code in [204, 304] {
            let reply = session.get(&format!("/status?code={code}")).await.unwrap();
            assert_eq!((reply.status.as_u16(), reply.body.len()), (code, 0), "{http:?}");
        }
        assert_eq!(
            session.get("/after").await.unwrap().status,
            StatusCode::OK,
            "{http:?}: the connection goes on"
        );
    }
}

#[tokio::test]
async fn a_body_is_not_buffered_completely() {
    const LARGE: usize = 100 * 1024 * 1024;
    let (world, _upstream) = World::protected(json!({})).await;
    for http in [Http::One, Http::Two] {
        let mut session = session(&world, http).await;
        assert_eq!(session.get("/warm").await.unwrap().status, StatusCode::OK);
        let before = memory_peak(world.node_id());
        let request = session.request(Method::GET, &format!("/sized?bytes={LARGE}"), full(""));
        let mut body = session.send(request).await.unwrap().into_body();
        let mut read = 0;
        while let Some(frame) = body.frame().await {
            read += frame.unwrap().data_ref().map_or(0, bytes::Bytes::len);
        }
        assert_eq!(read, LARGE);
        let request = session.request(Method::POST, "/sink", pattern_body(LARGE));
        assert_eq!(session.fetch(request).await.unwrap().json()["bytes"], LARGE);
        // The kernel sums the peak from per-thread counters and may report a few pages less than
        // before.
        let grown = memory_peak(world.node_id()).saturating_sub(before);
        assert!(grown < 20 * 1024 * 1024, "{http:?}: grew by {grown} bytes");
    }
}

#[tokio::test]
async fn a_truncated_response_is_not_forwarded_as_complete() {
    for http in [Http::One, Http::Two] {
        let (world, upstream) = World::protected(json!({})).await;
        let mut session = session(&world, http).await;
        let request = session.request(Method::GET, "/cut", full(""));
        let mut body = session.send(request).await.unwrap().into_body();
        let first = e2e::client::bounded("the first half", body.frame()).await.unwrap().unwrap();
        assert_eq!(first.into_data().unwrap(), FIRST_HALF, "{http:?}");
        upstream.open_gate();
        let rest = e2e::client::bounded("the end", body.collect()).await;
        assert!(rest.is_err(), "{http:?}: a clean end");
        let again = world.verified_client("app.test").http(http).get("/").await.unwrap();
        assert_eq!(again.status, StatusCode::OK);
    }
}

#[tokio::test]
async fn a_body_over_the_limit_is_413() {
    let settings = json!({"nginx_config": {"http": {"client_max_body_size": "100k"}}});
    let (world, _upstream) = World::open(settings).await;
    for http in [Http::One, Http::Two] {
        let mut session = world.client("app.test").http(http).connect().await.unwrap();
        let request = session.request(Method::POST, "/sink", full(vec![0; 100 * 1024]));
        assert_eq!(session.fetch(request).await.unwrap().status, StatusCode::OK, "{http:?}");
        let request = session.request(Method::POST, "/sink", full(vec![0; 100 * 1024 + 1]));
        assert_eq!(session.fetch(request).await.unwrap().status, StatusCode::PAYLOAD_TOO_LARGE, "{http:?}");
    }
}

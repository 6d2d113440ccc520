//! RST_STREAM of an upstream, as clients see it: the status of a call, and never the end of a body.

use e2e::frames::{DATA, END_HEADERS, FrameConnection, HEADERS, RST_STREAM, frame, get};
use e2e::peers::{json_lines, run_python};
use e2e::upstream::framed::{FrameStep, FramedUpstream, OK, field, greeting};
use e2e::world::World;
use serde_json::{Value, json};

use FrameStep::{Requests, Send};

use super::{one_worker, route, upstream_to};

const NO_ERROR: u32 = 0;
const INTERNAL_ERROR: u32 = 2;
const REFUSED_STREAM: u32 = 7;
const CANCEL: u32 = 8;
const ENHANCE_YOUR_CALM: u32 = 11;
const HTTP_1_1_REQUIRED: u32 = 13;

/// The codes that an upstream sends, those that reach a call, and its statuses.
const CODES: [(u32, u32, &str); 6] = [
    (CANCEL, CANCEL, "CANCELLED"),
    (ENHANCE_YOUR_CALM, ENHANCE_YOUR_CALM, "RESOURCE_EXHAUSTED"),
    (NO_ERROR, INTERNAL_ERROR, "INTERNAL"),
    (INTERNAL_ERROR, INTERNAL_ERROR, "INTERNAL"),
    // A client might send it again, though its response has begun.
    (REFUSED_STREAM, INTERNAL_ERROR, "INTERNAL"),
    (HTTP_1_1_REQUIRED, INTERNAL_ERROR, "INTERNAL"),
];

/// Begins a response to each request of a connection, and resets its stream with the next code.
async fn resetting(content_type: &str) -> FramedUpstream {
    let mut steps = vec![Send(greeting())];
    for (index, (code, _, _)) in CODES.iter().enumerate() {
        let stream = 1 + 2 * u32::try_from(index).unwrap();
        let head = [OK, &field("content-type", content_type)].concat();
        let begun = [frame(HEADERS, END_HEADERS, stream, &head), frame(DATA, 0, stream, &[0; 3])].concat();
        let reset = frame(RST_STREAM, 0, stream, &code.to_be_bytes());
        steps.extend([Requests(index + 1), Send([begun, reset].concat())]);
    }
    FramedUpstream::start(steps).await
}

async fn world_to(upstream: &FramedUpstream) -> World {
    let world = one_worker().await;
    world.apply(&[("ssls/app", world.open_site())]).await;
    route(&world, upstream_to("grpc", upstream.address())).await;
    world
}

/// The codes that a client gets for one stream after the other.
async fn received(world: &World) -> Vec<u32> {
    let mut wire = FrameConnection::connect(&world.client("app.test")).await;
    for index in 0..CODES.len() {
        let stream = 1 + 2 * u32::try_from(index).unwrap();
        assert!(wire.send(&get(stream, "app.test", "/")).await);
        wire.until("a reset", |heard| heard.reset.len() > index).await;
    }
    let heard = wire.until("resets", |heard| heard.reset.len() == CODES.len()).await;
    assert!(heard.whole.is_empty(), "{heard:?}");
    heard.reset.into_iter().map(|(_, code)| code).collect()
}

#[tokio::test]
async fn a_reset_of_a_call_is_its_status() {
    let upstream = resetting("application/grpc").await;
    let world = world_to(&upstream).await;
    assert_eq!(received(&world).await, CODES.map(|(_, passed, _)| passed));
    let upstream = resetting("application/grpc").await;
    route(&world, upstream_to("grpc", upstream.address())).await;
    let address = world.https().to_string();
    let call = json!({"method": "Count", "messages": ["1"]}).to_string();
    let mut arguments = vec![address.as_str(), "--authority", "server-ca", "--host", "app.test"];
    arguments.extend([call.as_str(); CODES.len()]);
    let Some(output) = run_python(world.folder(), "grpc_client.py", &arguments).await else { return };
    let lines = json_lines(&output);
    let found: Vec<&Value> = lines.iter().map(|line| &line["code"]).collect();
    assert_eq!(found, CODES.map(|(_, _, status)| status), "{lines:#?}");
}

/// Clients on hyper read CANCEL and NO_ERROR as the end of a body.
#[tokio::test]
async fn a_reset_of_another_response_is_an_error() {
    let upstream = resetting("text/plain").await;
    let world = world_to(&upstream).await;
    assert_eq!(received(&world).await, [INTERNAL_ERROR; CODES.len()]);
}

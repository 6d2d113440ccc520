//! Collectors that are dead, slow or refusing, and TLS towards them: traffic goes on, spans are
//! dropped and counted, and the log has one line.

use e2e::client::bounded;
use e2e::collector::{Behaviour, Collector};
use e2e::credentials::Authority;
use e2e::ports::{BlackHole, Reservation};
use e2e::world::World;
use http::StatusCode;
use serde_json::{Value, json};
use tonic::Code;

use super::{tracing, until};

const UNDELIVERED: &str = "countersign_trace_spans_dropped_total{reason=\"undelivered\"}";
const REJECTED: &str = "countersign_trace_spans_dropped_total{reason=\"rejected\"}";
const QUEUE_FULL: &str = "countersign_trace_spans_dropped_total{reason=\"queue_full\"}";
const FAILURES: &str = "countersign_trace_export_failures_total";
const EXPORTED: &str = "countersign_trace_spans_exported_total";
/// Words of the line about a collector that fails.
const LINE: &str = "does not take spans";

async fn serves(world: &World, requests: usize) {
    let mut client = world.client("app.test").connect().await.unwrap();
    for _ in 0..requests {
        assert_eq!(client.get("/").await.unwrap().status, StatusCode::OK);
    }
}

fn lines(world: &World) -> usize {
    world.node_log().text().lines().filter(|line| line.contains(LINE)).count()
}

fn settings(endpoint: &str, more: Value) -> Value {
    let mut tracing = json!({"endpoint": endpoint, "sampling_ratio": 1});
    e2e::settings::merge(&mut tracing, more);
    json!({"countersign": {"tracing": tracing}})
}

#[tokio::test]
async fn a_dead_collector_costs_spans_only() {
    let dead = Reservation::any();
    let endpoint = format!("http://{}", dead.address());
    let (world, _upstream) = World::open(settings(&endpoint, json!({}))).await;
    serves(&world, 10).await;
    until(&world, FAILURES, 2).await;
    serves(&world, 10).await;
    until(&world, UNDELIVERED, 20).await;
    assert_eq!(world.metric(EXPORTED).await, 0);
    let line = world.node_log().line_with(&["WARN", LINE, "Connection refused"]).await;
    assert!(line.contains(&dead.address().to_string()), "{line}");
    assert_eq!(lines(&world), 1, "one line for a failure that stays");
}

#[tokio::test]
async fn a_full_queue_drops_and_delays_no_request() {
    let hole = BlackHole::open();
    let endpoint = format!("http://{}", hole.address());
    let more = json!({"queue_size": 4, "timeout": 600});
    let (world, _upstream) = World::open(settings(&endpoint, more)).await;
    // The first batch waits for the collector; then each worker's queue takes four.
    until_queue_is_full(&world).await;
    serves(&world, 50).await;
}

async fn until_queue_is_full(world: &World) {
    let full = async {
        while world.metric(QUEUE_FULL).await == 0 {
            serves(world, 10).await;
        }
    };
    bounded("a full queue", full).await;
}

#[tokio::test]
async fn a_collector_that_does_not_answer_is_named() {
    let collector = Collector::plain().await;
    collector.behave(Behaviour::Hang);
    let (world, _upstream) = World::open(tracing(&collector, json!({"timeout": 0.2}))).await;
    serves(&world, 3).await;
    collector.exports(2).await;
    world.node_log().line_with(&["WARN", LINE, "within 0.2 s (countersign.tracing.timeout)"]).await;
    collector.behave(Behaviour::Accept);
    let spans = collector.spans(6).await;
    assert_eq!(spans.len(), 6, "a batch is tried again");
    world.node_log().line_with(&["INFO", "the trace collector takes spans again"]).await;
    assert_eq!((world.metric(EXPORTED).await, lines(&world)), (6, 1));
}

#[tokio::test]
async fn what_a_collector_rejects_is_not_sent_again() {
    let collector = Collector::plain().await;
    collector.behave(Behaviour::Fail(Code::InvalidArgument));
    let (world, _upstream) = World::open(tracing(&collector, json!({}))).await;
    serves(&world, 3).await;
    until(&world, REJECTED, 6).await;
    world.node_log().line_with(&["WARN", LINE, "InvalidArgument", "the collector fails on purpose"]).await;
    collector.behave(Behaviour::RejectSome(1));
    serves(&world, 1).await;
    until(&world, REJECTED, 7).await;
    // The collector's line break does not begin a line of the log.
    world.node_log().line_with(&["WARN", LINE, r"too\\nold"]).await;
    assert_eq!((world.metric(EXPORTED).await, world.metric(UNDELIVERED).await), (1, 0));
    assert_eq!(world.metric(FAILURES).await, 1);
}

#[tokio::test]
async fn a_collector_that_is_overloaded_gets_the_batch_again() {
    let collector = Collector::plain().await;
    collector.behave(Behaviour::Fail(Code::Unavailable));
    let (world, _upstream) = World::open(tracing(&collector, json!({}))).await;
    serves(&world, 3).await;
    collector.exports(2).await;
    collector.behave(Behaviour::Accept);
    assert_eq!(collector.spans(6).await.len(), 6);
    until(&world, EXPORTED, 6).await;
    assert_eq!((world.metric(REJECTED).await, world.metric(UNDELIVERED).await), (0, 0));
}

/// Both sides verify each other; the files of another CA are named, and a reload mends it.
#[tokio::test]
async fn a_collector_with_mutual_tls() {
    let (servers, clients) = (Authority::root("Collector CA"), Authority::root("Agent CA"));
    let collector = Collector::demanding(&servers.server(&["collector.test"]), &clients).await;
    let agent = clients.client("agent");
    let endpoint = format!("https://{}", collector.address());
    let tls = json!({"ca": "other-ca.crt", "cert": "agent.crt", "key": "agent.key"});
    let mut world = World::builder()
        .settings(settings(&endpoint, json!({"tls": tls})))
        .file("collector-ca.crt", servers.certificate_pem())
        .file("other-ca.crt", clients.certificate_pem())
        .file("agent.crt", &agent.certificate_pem)
        .file("agent.key", &agent.key_pem)
        .start()
        .await;
    let upstream = e2e::upstream::Upstream::plain("plain").await;
    world.serve(world.open_site(), &upstream).await;
    serves(&world, 1).await;
    world.node_log().line_with(&["WARN", LINE, "certificate"]).await;
    assert!(collector.received().is_empty());
    let tls = json!({"countersign": {"tracing": {"tls": {"ca": "collector-ca.crt"}}}});
    crate::reload::reload(&mut world, tls).await;
    serves(&world, 1).await;
    collector.spans(2).await;
    let expiry = world.status("/metrics").await.text();
    for certificate in ["certificate_not_after", "ca_certificate_not_after"] {
        let name = format!("countersign_{certificate}_timestamp_seconds{{certificate=\"collector\"}}");
        assert!(expiry.contains(&name), "{name} is not in {expiry}");
    }
}

#[tokio::test]
async fn tls_files_that_are_missing_end_a_start() {
    let tls = json!({"ca": "nowhere.crt"});
    let settings = settings("https://127.0.0.1:1", json!({"tls": tls}));
    let mut world = World::builder().start().await;
    world.stop_node().await;
    world.change_settings(settings);
    let config = world.write_config("node-1");
    let arguments = ["-c", config.to_str().unwrap()];
    let output = e2e::process::run_to_end("dataplane", &arguments, world.folder()).await;
    assert!(!output.status.success());
    let expected = "nowhere.crt (countersign.tracing.tls.ca)";
    assert!(output.stderr.contains(expected), "{}", output.stderr);
}

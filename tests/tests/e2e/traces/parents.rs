//! Whose `traceparent` is continued, and what the upstream gets.

use e2e::client::{HttpConnection, Reply, full};
use e2e::collector::Collector;
use e2e::world::World;
use http::{HeaderName, Method};
use serde_json::json;

use super::{PARENT, TRACE, at_upstream, tracing};

async fn get(client: &mut HttpConnection, path: &str, headers: &[(&'static str, &str)]) -> Reply {
    let mut request = client.request(Method::GET, path, full(""));
    for (name, value) in headers {
        request.headers_mut().append(HeaderName::from_static(name), value.parse().unwrap());
    }
    client.fetch(request).await.unwrap()
}

#[tokio::test]
async fn the_parent_decides_whether_its_trace_is_recorded() {
    let collector = Collector::plain().await;
    // No trace that begins here.
    let (world, _upstream) = World::open(tracing(&collector, json!({"sampling_ratio": 0}))).await;
    let mut client = world.client("app.test").connect().await.unwrap();
    let unsampled = format!("00-{TRACE}-{PARENT}-00");
    let reply = get(&mut client, "/unsampled", &[("traceparent", &unsampled), ("tracestate", "a=1")]).await;
    let header = at_upstream(&reply, "traceparent");
    assert!(header.starts_with(&format!("00-{TRACE}-")) && header.ends_with("-00"), "{header}");
    assert!(!header.contains(PARENT), "the parent of what follows is a span of the gateway: {header}");
    assert_eq!(at_upstream(&reply, "tracestate"), "a=1");
    get(&mut client, "/begins-here", &[]).await;

    let sampled = format!("00-{TRACE}-{PARENT}-01");
    let headers = [("traceparent", sampled.as_str()), ("tracestate", "a=1,b=2"), ("tracestate", "c=3")];
    let reply = get(&mut client, "/sampled", &headers).await;
    let (server, attempts) = collector.request("/sampled", 1).await;
    assert_eq!((server.trace_id().as_str(), server.parent().as_str()), (TRACE, PARENT));
    assert_eq!(server.span.trace_state, "a=1,b=2,c=3");
    assert_eq!(at_upstream(&reply, "traceparent"), format!("00-{TRACE}-{}-01", attempts[0].id()));
    assert_eq!(at_upstream(&reply, "tracestate"), "a=1,b=2, c=3");
    assert_eq!(collector.received().len(), 2);
}

#[tokio::test]
async fn a_trace_begins_where_there_is_no_valid_parent() {
    let collector = Collector::plain().await;
    let (world, _upstream) = World::open(tracing(&collector, json!({}))).await;
    let mut client = world.client("app.test").connect().await.unwrap();
    let valid = format!("00-{TRACE}-{PARENT}-01");
    let later = format!("01-{TRACE}-{PARENT}-01-what-comes");
    let invalid = [
        ("/upper", vec![valid.to_uppercase()]),
        ("/version-ff", vec![valid.replacen("00-", "ff-", 1)]),
        ("/zero-trace", vec![valid.replace(TRACE, &"0".repeat(32))]),
        ("/zero-span", vec![valid.replace(PARENT, &"0".repeat(16))]),
        ("/longer", vec![format!("{valid}-00")]),
        ("/shorter", vec![valid[..54].to_owned()]),
        ("/garbage", vec!["x".repeat(8_000)]),
        ("/bytes", vec!["\u{e9}".to_owned()]),
        ("/two", vec![valid.clone(), valid.clone()]),
    ];
    for (path, values) in &invalid {
        let mut headers: Vec<_> = values.iter().map(|value| ("traceparent", value.as_str())).collect();
        headers.push(("tracestate", "a=1"));
        let reply = get(&mut client, path, &headers).await;
        let (server, attempts) = collector.request(path, 1).await;
        assert_ne!(server.trace_id(), TRACE, "{path}");
        assert_eq!(server.parent(), "", "{path}");
        let header = at_upstream(&reply, "traceparent");
        assert_eq!(header, format!("00-{}-{}-01", server.trace_id(), attempts[0].id()), "{path}");
        assert_eq!(at_upstream(&reply, "tracestate"), "", "{path}: it belongs to another trace");
    }
    get(&mut client, "/later", &[("traceparent", &later)]).await;
    let (server, _) = collector.request("/later", 1).await;
    assert_eq!((server.trace_id().as_str(), server.parent().as_str()), (TRACE, PARENT));
}

#[tokio::test]
async fn parents_of_clients_that_are_not_trusted_are_ignored() {
    let collector = Collector::plain().await;
    let settings = tracing(&collector, json!({"sampling_ratio": 0, "parents": "verified"}));
    let (mut world, upstream) = World::protected(settings).await;
    let valid = format!("00-{TRACE}-{PARENT}-01");
    let headers = [("traceparent", valid.as_str()), ("tracestate", "a=1")];
    let nodes = json!({upstream.address().to_string(): 1});
    let route =
        json!({"uri": "/*", "host": "plain.test", "upstream": {"nodes": nodes, "type": "roundrobin"}});
    world.apply(&[("routes/plain", route)]).await;
    let mut plain = world.plain("plain.test").await;
    get(&mut plain, "/anonymous", &headers).await;
    let mut verified = world.verified_client("app.test").connect().await.unwrap();
    let reply = get(&mut verified, "/verified", &headers).await;
    assert!(at_upstream(&reply, "traceparent").starts_with(&format!("00-{TRACE}-")));
    let (server, _) = collector.request("/verified", 1).await;
    assert_eq!(server.parent(), PARENT);

    crate::reload::reload(&mut world, json!({"countersign": {"tracing": {"parents": "none"}}})).await;
    let reply = get(&mut verified, "/none", &headers).await;
    let header = at_upstream(&reply, "traceparent");
    assert!(!header.contains(TRACE) && header.ends_with("-00"), "{header}");
    assert_eq!(at_upstream(&reply, "tracestate"), "");
    world.stop_node().await;
    assert_eq!(collector.received().len(), 2, "neither the anonymous client nor `none` records a trace");
}

/// A client cannot take the header out by naming it in `Connection`.
#[tokio::test]
async fn hop_by_hop_names_do_not_remove_our_header() {
    let collector = Collector::plain().await;
    let (world, _upstream) = World::open(tracing(&collector, json!({}))).await;
    let mut client = world.client("app.test").connect().await.unwrap();
    let reply = get(&mut client, "/hop", &[("connection", "traceparent, tracestate")]).await;
    let (server, _) = collector.request("/hop", 1).await;
    assert!(at_upstream(&reply, "traceparent").contains(&server.trace_id()));
}

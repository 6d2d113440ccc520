//! Cases C and X: client certificates for upstreams (`t/node/upstream-mtls.t`,
//! `upstream-keepalive-pool.t`).
//!
//! The node behaves like nginx: the handshake succeeds for every client, and requests without a
//! valid certificate are answered 400.

use e2e::credentials::Credential;
use e2e::fixtures::FIXTURES;
use e2e::upstream::Upstream;
use e2e::world::World;
use serde_json::{Value, json};

use super::stage::{Stage, page, served, ssl};

async fn strict(stage: &Stage) -> Upstream {
    let server = stage.world.credentials.upstreams.server(&["up.test", "two.test"]);
    Upstream::strict("1983", &server, &FIXTURES.mtls_ca).await
}

fn inline(credential: &Credential) -> Value {
    json!({"client_cert": credential.certificate_pem, "client_key": credential.key_pem})
}

fn to(node: &Upstream, tls: Value) -> Value {
    json!({"scheme": "https", "nodes": {node.address().to_string(): 1}, "tls": tls})
}

/// Asserts that the node answered and verified this client.
#[track_caller]
fn seen_as(answered: &e2e::tools::CurlOutput, path: &str, name: &str) {
    served(answered, path);
    assert!(answered.body.contains(&format!("\"client_subject\":\"CN={name}\"")), "{answered:?}");
}

#[tokio::test]
async fn case_c05_c06_c09_c10_where_the_certificate_is_written() {
    let stage = Stage::start().await;
    let node = strict(&stage).await;
    let good = inline(&FIXTURES.mtls_client);
    // C5
    stage.put("routes/1", json!({"uri": "/hello", "upstream": to(&node, good.clone())})).await;
    seen_as(&stage.plain("any.test", "/hello").await, "/hello", "client.apisix.dev");
    // C6: the node's own page is forwarded.
    let wrong = inline(&FIXTURES.apisix);
    stage.put("routes/1", json!({"uri": "/hello", "upstream": to(&node, wrong)})).await;
    let answered = stage.plain("any.test", "/hello").await;
    assert_eq!((answered.exit, answered.status), (0, 400), "{answered:?}");
    assert!(answered.body.contains("the node refuses this certificate"), "{answered:?}");
    // C9, C10
    stage.put("upstreams/1", to(&node, good.clone())).await;
    stage.put("services/1", json!({"upstream": to(&node, good)})).await;
    stage.put("routes/1", json!({"uri": "/server_port", "upstream_id": 1})).await;
    seen_as(&stage.plain("any.test", "/server_port").await, "/server_port", "client.apisix.dev");
    stage.put("routes/1", json!({"uri": "/hello_chunked", "service_id": 1})).await;
    seen_as(&stage.plain("any.test", "/hello_chunked").await, "/hello_chunked", "client.apisix.dev");
}

#[tokio::test]
async fn case_c11_c13_a_certificate_by_its_id() {
    let stage = Stage::start().await;
    let node = strict(&stage).await;
    let made = &*FIXTURES;
    let pair = ssl(&made.mtls_client, "test.com");
    let client = json!({"type": "client", "cert": pair["cert"], "key": pair["key"]});
    stage.put("ssls/1", client.clone()).await;
    stage
        .put("routes/1", json!({"uri": "/hello", "upstream": to(&node, json!({"client_cert_id": 1}))}))
        .await;
    seen_as(&stage.plain("any.test", "/hello").await, "/hello", "client.apisix.dev");
    let log = stage.world.node_log();
    // C12
    let mut server = pair.clone();
    server["type"] = json!("server");
    stage.put("ssls/1", server).await;
    page(&stage.plain("any.test", "/hello").await, 502);
    log.line_with(&["failed to get ssl cert: ssl type should be 'client'"]).await;
    // C13
    stage.put("ssls/1", client).await;
    seen_as(&stage.plain("any.test", "/hello").await, "/hello", "client.apisix.dev");
    stage.delete("ssls/1").await;
    page(&stage.plain("any.test", "/hello").await, 502);
    log.line_with(&["failed to get ssl cert: ssl id [1] not exits"]).await;
}

#[tokio::test]
async fn case_c14_c15_verify() {
    let settings = json!({"apisix": {"ssl": {"ssl_trusted_certificate": "upstream-ca.crt"}}});
    let stage = Stage::of(World::builder().settings(settings)).await;
    let made = &*FIXTURES;
    // C14, a difference: `verify` is enforced, so a self-signed node is rejected.
    let own = Upstream::tls("1983", &made.apisix).await;
    stage.put("routes/1", json!({"uri": "/hello", "upstream": to(&own, json!({"verify": true}))})).await;
    page(&stage.plain("any.test", "/hello").await, 502);
    assert_eq!(own.requests(), 0);
    stage.put("routes/1", json!({"uri": "/hello", "upstream": to(&own, json!({"verify": false}))})).await;
    served(&stage.plain("any.test", "/hello").await, "/hello");
    // C15
    let node = strict(&stage).await;
    let mut tls = inline(&made.mtls_client);
    tls["verify"] = json!(true);
    let mut upstream = to(&node, tls);
    upstream["pass_host"] = json!("rewrite");
    upstream["upstream_host"] = json!("up.test");
    stage.put("routes/1", json!({"uri": "/hello", "upstream": upstream})).await;
    seen_as(&stage.plain("any.test", "/hello").await, "/hello", "client.apisix.dev");
}

/// Alternating requests, two rounds: the node sees each identity, and each upstream keeps one
/// connection.
async fn in_turn(stage: &Stage, routes: &[(&str, Value, &str, Value)]) {
    for (path, upstream, _, _) in routes {
        stage.put(&format!("routes{path}"), json!({"uri": path, "upstream": upstream})).await;
    }
    let mut used = Vec::new();
    let mut session = stage.world.plain("any.test").await;
    for _ in 0..3 {
        for (path, _, subject, sni) in routes {
            let seen = session.get(path).await.unwrap().json();
            assert_eq!(seen["client_subject"], format!("CN={subject}"), "{path}: {seen}");
            assert_eq!(&seen["sni"], sni, "{path}: {seen}");
            used.push(seen["connection"].as_u64());
        }
    }
    // One each. An identity that was here before may find its connection in the pool.
    assert_eq!(used, used[..routes.len()].repeat(3));
    used.truncate(routes.len());
    used.sort_unstable();
    used.dedup();
    assert_eq!(used.len(), routes.len(), "two upstreams share a connection");
}

#[tokio::test]
async fn case_x01_x04_x06_pooled_connections_have_one_identity() {
    let one_worker = json!({"countersign": {"workers": 1}});
    let stage = Stage::of(World::builder().settings(one_worker)).await;
    let node = strict(&stage).await;
    let made = &*FIXTURES;
    let pool = json!({"size": 4, "idle_timeout": 8, "requests": 16});
    let named = |tls: Value, name: &str| {
        let mut upstream = to(&node, tls);
        upstream["pass_host"] = json!("rewrite");
        upstream["upstream_host"] = json!(name);
        upstream
    };
    let (alice, bob) = (inline(&made.mtls_client), inline(&made.mtls_server));
    let (a, b) = ("client.apisix.dev", "admin.apisix.dev");
    let pooled = |mut upstream: Value| {
        upstream["keepalive_pool"] = pool.clone();
        upstream
    };
    let up = json!("up.test");
    // X1, X2: two certificates, with and without a pool of their own.
    for with_pool in [true, false] {
        let shape = |upstream: Value| if with_pool { pooled(upstream) } else { upstream };
        let routes = [
            ("/1", shape(named(alice.clone(), "up.test")), a, up.clone()),
            ("/2", shape(named(bob.clone(), "up.test")), b, up.clone()),
        ];
        in_turn(&stage, &routes).await;
    }
    // X3, X4: two names; a name and none (an address is no SNI).
    let routes = [
        ("/1", pooled(named(alice.clone(), "up.test")), a, up.clone()),
        ("/2", pooled(named(alice.clone(), "two.test")), a, json!("two.test")),
        ("/3", pooled(named(alice.clone(), "127.0.0.1")), a, Value::Null),
    ];
    in_turn(&stage, &routes).await;
    // X6: two certificates by id.
    for (id, credential) in [("ssls/1", &made.mtls_client), ("ssls/2", &made.mtls_server)] {
        let pair = ssl(credential, "x");
        stage.put(id, json!({"type": "client", "cert": pair["cert"], "key": pair["key"]})).await;
    }
    let routes = [
        ("/1", named(json!({"client_cert_id": 1}), "up.test"), a, up.clone()),
        ("/2", named(json!({"client_cert_id": 2}), "up.test"), b, up),
    ];
    in_turn(&stage, &routes).await;
}

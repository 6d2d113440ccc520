//! APISIX's own cases about etcd: T and U (the start of a control plane stands for `make init`), V
//! (Admin API and data plane stand for its client), and those whose documents are written into etcd
//! by hand: C16, C17, and the etcd part of C4 and H1.
//!
//! The certificates have the forms of the originals.

use e2e::etcd::{Access, Etcd};
use e2e::fixtures::FIXTURES;
use e2e::upstream::tcp::{Script, TcpUpstream};
use e2e::world::World;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::stage::{Stage, assert_reported, name, refused_start};

/// `https://...:22379` of the originals: requires a certificate of `mtls_ca`, presents
/// `mtls_server`.
async fn mutual() -> Etcd {
    let made = &*FIXTURES;
    Etcd::builder().certificate(&made.mtls_server).clients(&made.mtls_ca).start().await
}

/// By an address, without an authority and a client certificate.
fn bare(etcd: &Etcd) -> Access {
    Access { authority_pem: None, client: None, ..etcd.access() }
}

fn trusting(access: Access) -> Access {
    Access { authority_pem: Some(FIXTURES.mtls_ca.clone()), ..access }
}

fn showing(access: Access) -> Access {
    Access { client: Some(FIXTURES.mtls_client.clone()), ..access }
}

fn tls(more: Value) -> Value {
    json!({"deployment": {"etcd": {"tls": more}}})
}

#[tokio::test]
async fn case_t01_t02_an_untrusted_etcd() {
    let etcd = Etcd::builder().certificate(&FIXTURES.apisix).start().await;
    let ended = refused_start(trusting(bare(&etcd)), json!({})).await;
    assert_reported(&ended, &["certificate verify failed", &etcd.url()]);
    // T2
    let builder = World::builder().etcd(bare(&etcd)).settings(tls(json!({"verify": false})));
    let world = builder.nodes(&[]).start().await;
    assert!(!world.control_log().text().contains("certificate verify failed"));
}

#[tokio::test]
async fn case_u01_u06_an_etcd_that_requires_a_certificate() {
    let etcd = mutual().await;
    // U2
    let ended = refused_start(bare(&etcd), tls(json!({"verify": false}))).await;
    assert_reported(&ended, &["bad certificate", &etcd.url()]);
    // U5: the certificate is for admin.apisix.dev, and the URL has an address.
    let ended = refused_start(trusting(showing(bare(&etcd))), json!({})).await;
    assert_reported(&ended, &["certificate host mismatch", "admin.apisix.dev", "tls.sni"]);
    // U1, U3 with U6.
    for (access, more) in [
        (showing(bare(&etcd)), json!({"verify": false})),
        (trusting(showing(bare(&etcd))), json!({"sni": "admin.apisix.dev"})),
    ] {
        let world = World::builder().etcd(access).settings(tls(more.clone())).nodes(&[]).start().await;
        let log = world.control_log().text();
        for wrong in ["bad certificate", "certificate verify failed", "certificate host mismatch", "ERROR"] {
            assert!(!log.contains(wrong), "{more}: {log}");
        }
    }
}

/// A world on it, with streams on a listener without TLS.
async fn streaming(etcd: Etcd, access: Access, more: Value) -> Stage {
    let apisix = json!({"apisix": {"proxy_mode": "http&stream", "stream_proxy": {"tcp": ["127.0.0.1:0"]}}});
    let builder = World::builder().etcd(access).settings(tls(more)).settings(apisix);
    Stage::with(etcd, builder).await
}

/// Documents of both kinds are added and removed.
async fn documents_come_and_go(stage: &Stage) {
    let admin = stage.world.admin();
    stage.world.apply(&[("routes/a", stage.route("/a"))]).await;
    assert_eq!(stage.etcd_get("routes/a").await["uri"], "/a");
    assert_eq!(admin.get("routes/a").await.status, StatusCode::OK);
    assert_eq!(stage.status("/a").await, StatusCode::OK);

    // V3: a stream route is picked up.
    let streams = TcpUpstream::plain("streams", Script::Greet).await;
    let document = json!({"upstream": {"nodes": {streams.address().to_string(): 1}}});
    stage.world.apply(&[("stream_routes/1", document)]).await;
    let mut stream = TcpStream::connect(stage.world.stream(0)).await.unwrap();
    stream.write_all(b"mmm").await.unwrap();
    assert_eq!(e2e::raw::until_closed(&mut stream).await, b"hello from streams\n");

    let revision = admin.delete("routes/a").await;
    stage.world.wait_acknowledged(revision).await;
    assert_eq!(stage.etcd.keys().await.get(&name("routes/a")).await, None);
    assert_eq!(admin.get("routes/a").await.status, StatusCode::NOT_FOUND);
    assert_eq!(stage.status("/a").await, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn case_v01_v03_documents_over_mutual_tls() {
    let etcd = mutual().await;
    let access = showing(bare(&etcd));
    documents_come_and_go(&streaming(etcd, access, json!({"verify": false})).await).await;
}

#[tokio::test]
async fn case_u04_v04_documents_over_verified_mutual_tls() {
    let etcd = mutual().await;
    let access = trusting(showing(bare(&etcd)));
    let stage = streaming(etcd, access, json!({"sni": "admin.apisix.dev"})).await;
    documents_come_and_go(&stage).await;
    assert!(!stage.world.control_log().text().contains("ERROR"), "{}", stage.world.control_log().text());
}

#[tokio::test]
async fn case_v02_writes_of_another_program_are_picked_up() {
    let etcd = mutual().await;
    let builder = World::builder().etcd(showing(bare(&etcd))).settings(tls(json!({"verify": false})));
    let stage = Stage::with(etcd, builder).await;
    let mut document = stage.route("/jobs");
    document["id"] = json!("jobs");
    stage.etcd_put("routes/jobs", &document).await;
    assert_eq!(stage.status("/jobs").await, StatusCode::OK);
}

#[tokio::test]
async fn case_c16_c17_invalid_certificates_written_by_hand() {
    let made = &*FIXTURES;
    let stage = Stage::start().await;
    stage.world.apply(&[("routes/all", stage.route("/*"))]).await;
    for (what, cert, key) in [
        ("C16", "x".repeat(200), made.mtls_client.key_pem.clone()),
        ("C17", made.mtls_client.certificate_pem.clone(), "!".repeat(100)),
    ] {
        let mut document = stage.route("/hello");
        document["upstream"]["tls"] = json!({"client_cert": cert, "client_key": key});
        let mark = stage.world.control_log().mark();
        stage.etcd_put("routes/1", &document).await;
        assert_eq!(stage.status("/hello").await, StatusCode::SERVICE_UNAVAILABLE, "{what}");
        assert_eq!(stage.status("/other").await, StatusCode::OK, "{what}: everything else is served");
        stage.world.control_log().line_after(mark, &["routes/1", "client_"]).await;
        let revision = stage.world.admin().delete("routes/1").await;
        stage.world.wait_acknowledged(revision).await;
    }
}

#[tokio::test]
async fn case_c04_c08_h01_the_documents_in_etcd() {
    let made = &*FIXTURES;
    let stage = Stage::start().await;
    let ssl = json!({"cert": made.apisix.certificate_pem, "key": made.apisix.key_pem, "sni": "test.com"});
    let tls =
        json!({"client_cert": made.mtls_client.certificate_pem, "client_key": made.mtls_client.key_pem});
    let mut upstream = stage.route("/")["upstream"].take();
    upstream["scheme"] = json!("https");
    upstream["tls"] = tls;
    let documents = [
        ("ssls/1", ssl),
        ("upstreams/1", upstream.clone()),
        ("services/1", json!({"upstream": upstream})),
        ("routes/1", json!({"uri": "/hello", "upstream": upstream})),
    ];
    stage.world.apply(&documents).await;
    // H1
    let stored = stage.etcd_get("ssls/1").await;
    assert!(stored["create_time"].is_u64() && stored["update_time"].is_u64(), "{stored}");
    assert_eq!(stored["sni"], "test.com");
    // C4
    for (path, pointer) in [
        ("ssls/1", "/key"),
        ("upstreams/1", "/tls/client_key"),
        ("services/1", "/upstream/tls/client_key"),
        ("routes/1", "/upstream/tls/client_key"),
    ] {
        let stored = stage.etcd_get(path).await;
        let key =
            stored.pointer(pointer).and_then(Value::as_str).unwrap_or_else(|| panic!("{path}: {stored}"));
        assert!(!key.contains("PRIVATE KEY") && key.len() > 1000, "{path}: {key}");
    }
}

#[tokio::test]
async fn case_c08_without_a_keyring_keys_are_in_clear() {
    let made = &*FIXTURES;
    let etcd = Etcd::plain().await;
    let builder =
        World::builder().etcd(&etcd).settings(json!({"apisix": {"data_encryption": {"keyring": null}}}));
    let stage = Stage::with(etcd, builder).await;
    let ssl = json!({"cert": made.apisix.certificate_pem, "key": made.apisix.key_pem, "sni": "test.com"});
    stage.world.apply(&[("ssls/1", ssl)]).await;
    assert_eq!(stage.etcd_get("ssls/1").await["key"], made.apisix.key_pem.as_str());
}

/// The originals' result is the same through the Admin API.
#[tokio::test]
async fn a_document_deleted_by_hand_disappears() {
    let stage = Stage::start().await;
    stage.world.apply(&[("routes/a", stage.route("/a"))]).await;
    let revision = stage.etcd.keys().await.delete(&name("routes/a")).await;
    stage.world.wait_acknowledged(revision).await;
    assert_eq!(stage.status("/a").await, StatusCode::NOT_FOUND);
    let answer = stage.world.admin().call(Method::DELETE, "routes/a", None).await.unwrap();
    assert_eq!(answer.status, StatusCode::NOT_FOUND);
}

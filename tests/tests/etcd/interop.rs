//! One etcd, two programs: documents of an APISIX are served, ours can be read by an APISIX, and
//! invalid or unsupported ones are left as they are and never served unprotected.
//!
//! `openssl` seals and opens keys, as a third implementation.

use std::io::Write;
use std::net::SocketAddr;
use std::process::{Command, Stdio};

use data_encoding::HEXLOWER;
use e2e::etcd::{Etcd, Keys};
use e2e::raw;
use e2e::upstream::tcp::{Script, TcpUpstream};
use e2e::world::World;
use http::StatusCode;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use super::stage::{KEYRING, Stage, linted, name};

/// AES-128-CBC as an APISIX seals: the keyring's entry is both key and initial vector, the result
/// is base64.
fn openssl(entry: &str, direction: &str, input: &str) -> String {
    let hex = HEXLOWER.encode(entry.as_bytes());
    let mut child = Command::new("openssl")
        .args(["enc", "-aes-128-cbc", direction, "-K", &hex, "-iv", &hex, "-a", "-A"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|problem| panic!("cannot run openssl ({problem}): `make setup` installs it"));
    child.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("openssl reads");
    let output = child.wait_with_output().expect("openssl ends");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("text")
}

fn sealed(entry: &str, pem: &str) -> String {
    openssl(entry, "-e", pem)
}

fn opened(entry: &str, stored: &str) -> String {
    openssl(entry, "-d", stored)
}

const DIRECTORIES: [&str; 12] = [
    "consumers",
    "consumer_groups",
    "global_rules",
    "plugin_configs",
    "plugin_metadata",
    "plugins",
    "protos",
    "routes",
    "secrets",
    "services",
    "ssls",
    "upstreams",
];

/// The keys that `apisix init_etcd` creates.
async fn laid_out(keys: &mut Keys) {
    for directory in DIRECTORIES {
        keys.put(&format!("/apisix/{directory}/"), "init_dir").await;
    }
    keys.put("/apisix/stream_routes/", "init_dir").await;
    keys.put("/apisix/plugins", r#"[{"name":"key-auth"},{"name":"proxy-rewrite"}]"#).await;
    keys.put("/apisix/gen_id", "1").await;
}

/// A world with an APISIX's default keyring, and streams over TLS.
fn world(etcd: &Etcd) -> e2e::world::WorldBuilder {
    let apisix = json!({
        "proxy_mode": "http&stream",
        "stream_proxy": {"tcp": [{"addr": "127.0.0.1:0", "tls": true}]},
        "data_encryption": {"keyring": KEYRING},
    });
    World::builder().etcd(etcd).settings(json!({"apisix": apisix}))
}

async fn put(keys: &mut Keys, path: &str, document: &Value) -> u64 {
    keys.put(&name(path), document.to_string()).await
}

/// Documents with defaults written out or not, keys sealed under both entries, ids as strings and
/// numbers.
fn written_by_an_apisix(stage: &Stage, streams: SocketAddr) -> Vec<(&'static str, Value)> {
    let credentials = &stage.world.credentials;
    let (site, ca) = (&credentials.site, credentials.clients.certificate_pem());
    let other = credentials.servers.server(&["svc.test"]);
    let node = stage.upstream.address();
    let mut documents = vec![
        (
            "ssls/1",
            json!({
                "id": "1", "snis": ["app.test"], "cert": site.certificate_pem, "key": sealed(KEYRING[0], &site.key_pem),
                "type": "server", "status": 1, "client": {"ca": ca, "depth": 1},
            }),
        ),
        // Sealed before the keyring was rotated.
        (
            "ssls/00000000000000000042",
            json!({
                "id": "00000000000000000042", "sni": "svc.test", "cert": other.certificate_pem,
                "key": sealed(KEYRING[1], &other.key_pem), "labels": {"env": "prod"},
            }),
        ),
        (
            "upstreams/1",
            json!({
                "id": "1", "type": "roundrobin", "scheme": "http", "hash_on": "vars", "pass_host": "pass",
                "nodes": {node.to_string(): 1}, "name": "app",
            }),
        ),
        (
            "routes/1",
            json!({
                "id": "1", "uri": "/*", "host": "app.test", "upstream_id": 1, "priority": 0, "status": 1, "name": "app",
            }),
        ),
        // The key in etcd is the id, whatever the document says.
        ("routes/3", json!({"id": "33", "uri": "/third", "host": "app.test", "upstream_id": "1"})),
        ("services/7", json!({"id": "7", "hosts": ["svc.test"], "upstream_id": "1", "plugins": {}})),
        (
            "routes/2",
            json!({"id": "2", "uris": ["/svc", "/svc/*"], "service_id": "7", "methods": ["GET"], "plugins": {}}),
        ),
        (
            "stream_routes/1",
            json!({
                "id": "1", "sni": "app.test",
                "upstream": {
                    "type": "roundrobin", "scheme": "tcp", "hash_on": "vars", "pass_host": "pass",
                    "nodes": [{"host": "127.0.0.1", "port": streams.port(), "weight": 1, "priority": 0}],
                },
            }),
        ),
    ];
    for (_, document) in &mut documents {
        document["create_time"] = json!(1_700_000_000);
        document["update_time"] = json!(1_700_000_001);
    }
    documents
}

#[tokio::test]
async fn documents_of_an_apisix_are_served() {
    let etcd = Etcd::plain().await;
    let mut keys = etcd.keys().await;
    laid_out(&mut keys).await;
    let streams = TcpUpstream::plain("streams", Script::Greet).await;
    let builder = world(&etcd).without_control();
    let mut stage = Stage::with(etcd, builder).await;
    // The site's certificates are issued with the world, so its documents are written before its
    // control plane starts.
    for (path, document) in written_by_an_apisix(&stage, streams.address()) {
        put(&mut keys, path, &document).await;
    }
    let before = keys.with_prefix("/apisix/").await;
    stage.world.start_control().await;
    let revision = before.iter().map(|entry| entry.modified).max().unwrap();
    stage.world.wait_acknowledged(revision).await;

    let reply = stage.world.verified_client("app.test").get("/any").await.unwrap();
    assert_eq!(reply.json()["upstream"], "one");
    let reply = stage.world.verified_client("app.test").get("/third").await.unwrap();
    assert_eq!(reply.json()["uri"], "/third");
    stage.world.client("app.test").expect_alert().await;
    let reply = stage.world.client("svc.test").get("/svc/x").await.unwrap();
    assert_eq!(reply.json()["uri"], "/svc/x");
    let mut stream = stage
        .world
        .tcp_client("app.test")
        .identity(&stage.world.credentials.client)
        .handshake()
        .await
        .unwrap();
    stream.write_all(b"mmm").await.unwrap();
    assert_eq!(raw::until_closed(&mut stream).await, b"hello from streams\n");

    // None was changed, and none is missing in the lists.
    let after = stage.etcd.keys().await.with_prefix("/apisix/").await;
    for entry in &before {
        assert!(after.contains(entry), "{} was changed", entry.key);
    }
    let listed = stage.world.admin().get("ssls").await;
    assert_eq!(listed.body["total"], 2, "{:?}", listed.body);
    assert_eq!(listed.body["list"][0]["key"], "/apisix/ssls/00000000000000000042");
    assert!(listed.body["list"][0]["modifiedIndex"].as_u64().is_some_and(|index| index <= revision));
}

#[tokio::test]
async fn documents_have_the_form_of_an_apisix() {
    let etcd = Etcd::plain().await;
    let builder = world(&etcd);
    let stage = Stage::with(etcd, builder).await;
    let mut site = stage.world.open_site();
    // Keys in another order than an APISIX writes them; the order does not matter.
    site["labels"] = json!({"b": "1", "a": "2"});
    let node = stage.upstream.address().to_string();
    let upstream = json!({"type": "roundrobin", "nodes": {node: 1}});
    stage.world.apply(&[("ssls/1", site.clone()), ("upstreams/1", upstream.clone())]).await;
    let posted = json!({"uri": "/*", "host": "app.test", "upstream_id": "1"});
    let answer = stage.world.admin().call(http::Method::POST, "routes", Some(&posted)).await.unwrap();
    assert_eq!(answer.status, StatusCode::CREATED);
    let path = answer.body["key"].as_str().unwrap().strip_prefix("/apisix/").unwrap().to_owned();
    let id = path.strip_prefix("routes/").unwrap();
    assert!(
        id.len() == 20 && id.bytes().all(|byte| byte.is_ascii_digit()),
        "an id as an APISIX makes them: {id}"
    );

    let stored = stage.etcd_get("ssls/1").await;
    assert_eq!(opened(KEYRING[0], stored["key"].as_str().unwrap()), site["key"].as_str().unwrap());
    assert_eq!(stored["key"], sealed(KEYRING[0], site["key"].as_str().unwrap()), "bit for bit");
    assert_members(&stored, &["cert", "create_time", "id", "key", "labels", "snis", "update_time"]);
    assert_eq!(stored["id"], "1");
    let stored = stage.etcd_get("upstreams/1").await;
    assert_members(&stored, &["create_time", "id", "nodes", "type", "update_time"]);
    let stored = stage.etcd_get(&path).await;
    assert_members(&stored, &["create_time", "host", "id", "update_time", "upstream_id", "uri"]);
    assert_eq!(stored["id"], id);

    // The placeholders of an APISIX, and none of our keys among its directories.
    let keys = stage.etcd.keys().await.with_prefix("/apisix/").await;
    for directory in DIRECTORIES.iter().chain(&["stream_routes"]) {
        let placeholder = keys.iter().find(|entry| entry.key == format!("/apisix/{directory}/"));
        assert_eq!(placeholder.map(|entry| &entry.value[..]), Some(&b"init_dir"[..]), "{directory}");
    }
}

#[track_caller]
fn assert_members(document: &Value, expected: &[&str]) {
    let mut members: Vec<_> = document.as_object().expect("an object").keys().map(String::as_str).collect();
    members.sort_unstable();
    assert_eq!(members, expected, "{document}");
}

#[tokio::test]
async fn invalid_values_are_reported_and_others_served() {
    let etcd = Etcd::builder().argument("--max-request-bytes=8000000").start().await;
    let builder = world(&etcd);
    let stage = Stage::with(etcd, builder).await;
    stage.world.apply(&[("ssls/good", stage.world.open_site()), ("routes/good", stage.route("/good"))]).await;
    let site = stage.world.credentials.servers.server(&["bad.test"]);
    let with_key = |key: String| {
        json!({"id": "1", "sni": "bad.test", "cert": site.certificate_pem, "key": key}).to_string()
    };
    let big = json!({"id": "big", "uri": "/big", "desc": "d".repeat(2 << 20), "upstream": stage.route("/")["upstream"]});
    for (path, value) in [
        ("routes/not-json", "{\"uri\": \"/not-json\"".to_owned()),
        ("routes/no-object", "[1, 2]".to_owned()),
        ("routes/deep", "[".repeat(100_000)),
        ("routes/an-ssl", stage.world.open_site().to_string()),
        ("routes/big", big.to_string()),
        ("ssls/no-key", with_key(sealed("0123456789abcdef", &site.key_pem))),
        ("ssls/no-base64", with_key("!".repeat(128))),
        ("ssls/a-route", stage.route("/x").to_string()),
        ("upstreams/empty", String::new()),
        ("services/binary", "\u{0}\u{1}\u{2}".to_owned()),
    ] {
        let mark = stage.world.control_log().mark();
        stage.etcd_put_text(path, value.clone()).await;
        let line = stage.world.control_log().line_after(mark, &[path]).await;
        assert!(line.contains("ERROR") || line.contains("WARN"), "{line}");
        assert!(line.len() < 2000, "one line, not the value: {}", line.len());
        let finding = linted(&stage, path).await;
        assert_eq!(finding["severity"], "error", "{finding}");
        // It stays as it was written.
        assert_eq!(stage.etcd.keys().await.get(&name(path)).await.unwrap().value, value.as_bytes());
        assert_eq!(stage.status("/good").await, StatusCode::OK, "{path}");
    }
    // A site with an unusable certificate is closed, and its names go to no other site.
    stage.world.client("bad.test").expect_alert().await;
    assert_eq!(stage.world.client("app.test").get("/good").await.unwrap().status, StatusCode::OK);

    // Objects of unsupported kinds, and names that no Admin API could write.
    let mut keys = stage.etcd.keys().await;
    keys.put("/apisix/consumers/jack", r#"{"username":"jack"}"#).await;
    keys.put("/apisix/routes/a b", stage.route("/ab").to_string()).await;
    keys.put("/apisix/routes/1/2", stage.route("/12").to_string()).await;
    stage.world.apply(&[("routes/last", stage.route("/last"))]).await;
    linted(&stage, "consumers").await;
    linted(&stage, "routes/a b").await;
    assert_eq!(stage.status("/ab").await, StatusCode::SERVICE_UNAVAILABLE, "an APISIX obeys it");
    assert_eq!(stage.status("/last").await, StatusCode::OK);
}

#[tokio::test]
async fn a_control_plane_starts_with_invalid_values() {
    let etcd = Etcd::plain().await;
    let mut keys = etcd.keys().await;
    keys.put("/apisix/routes/bad", "{").await;
    keys.put("/apisix/ssls/bad", "init_dir").await;
    let builder = world(&etcd);
    let stage = Stage::with(etcd, builder).await;
    stage.world.apply(&[("routes/good", stage.route("/good"))]).await;
    assert_eq!(stage.status("/good").await, StatusCode::OK);
    linted(&stage, "routes/bad").await;
    linted(&stage, "ssls/bad").await;
    // The Admin API can repair and remove both.
    stage.world.apply(&[("routes/bad", stage.route("/mended"))]).await;
    assert_eq!(stage.status("/mended").await, StatusCode::OK);
    let revision = stage.world.admin().delete("ssls/bad").await;
    stage.world.wait_acknowledged(revision).await;
}

#[tokio::test]
async fn an_invalid_value_does_not_replace_a_valid_one() {
    let stage = Stage::start().await;
    stage.world.apply(&[("ssls/app", stage.world.protected_site()), ("routes/1", stage.route("/one"))]).await;
    for bad in ["{", "null", "{\"uri\": 5}", "{\"id\":\"1\",\"uri\":\"/one\"}"] {
        stage.etcd_put_text("routes/1", bad).await;
        assert_eq!(stage.status("/one").await, StatusCode::OK, "{bad}");
        stage.etcd_put_text("ssls/app", bad).await;
        let reply = stage.world.verified_client("app.test").get("/one").await.unwrap();
        assert_eq!(reply.status, StatusCode::OK, "{bad}");
        stage.world.client("app.test").expect_alert().await;
    }
    let finding = linted(&stage, "ssls/app").await;
    assert_eq!(finding["severity"], "error");
    // Removal and a valid document take effect.
    let revision = stage.etcd.keys().await.delete(&name("ssls/app")).await;
    stage.world.wait_acknowledged(revision).await;
    stage.world.verified_client("app.test").expect_alert().await;
    stage.etcd_put("routes/1", &stage.route("/two")).await;
    assert_eq!(stage.status("/two").await, StatusCode::OK);
    assert_eq!(stage.status("/one").await, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_document_with_a_time_to_live_expires() {
    let stage = Stage::start().await;
    let admin = stage.world.admin();
    let revision = admin.put("routes/brief?ttl=1", &stage.route("/brief")).await;
    stage.world.wait_acknowledged(revision).await;
    let mut keys = stage.etcd.keys().await;
    assert_ne!(keys.get(&name("routes/brief")).await.unwrap().lease, 0);
    assert_eq!(stage.status("/brief").await, StatusCode::OK);
    // The end of the lease is the next change.
    let gone = keys.history("/apisix/routes/brief", revision + 1, revision + 1).await;
    assert_eq!(gone[0].value, None);
    stage.world.wait_acknowledged(gone[0].revision).await;
    assert_eq!(stage.status("/brief").await, StatusCode::NOT_FOUND);
    assert_eq!(keys.get(&name("routes/brief")).await, None);
}

#[tokio::test]
async fn a_document_rewritten_without_a_time_to_live_stays() {
    let stage = Stage::start().await;
    let admin = stage.world.admin();
    admin.put("routes/kept?ttl=1", &stage.route("/kept")).await;
    let revision = admin.put("routes/kept", &stage.route("/kept")).await;
    assert_eq!(stage.etcd.keys().await.get(&name("routes/kept")).await.unwrap().lease, 0);
    // A later lease ends later.
    let brief = admin.put("routes/brief?ttl=1", &stage.route("/brief")).await;
    let gone = stage.etcd.keys().await.history("/apisix/routes/", revision + 1, brief + 1).await;
    let gone = gone.last().unwrap();
    assert_eq!((gone.key.as_str(), &gone.value), (name("routes/brief").as_str(), &None), "{gone:?}");
    stage.world.wait_acknowledged(gone.revision).await;
    assert_eq!(stage.status("/kept").await, StatusCode::OK);
    assert_eq!(stage.status("/brief").await, StatusCode::NOT_FOUND);
}

//! The Admin API over mutual TLS with an admin key: authorized and denied requests.
//!
//! The API must neither return private keys nor store them in clear.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use e2e::admin::{Admin, VIEWER_KEY};
use e2e::client::{HttpClient, HttpConnection};
use e2e::credentials::certificates;
use e2e::documents::route;
use e2e::tools::curl;
use e2e::upstream::Upstream;
use e2e::world::World;
use http::{Method, StatusCode};
use serde_json::{Value, json};

async fn control_only() -> World {
    World::builder().nodes(&[]).start().await
}

#[tokio::test]
async fn the_admin_api_needs_certificate_and_key() {
    let world = control_only().await;
    world.write_credential("untrusted", &world.credentials.untrusted.client("administrator"));
    let port = world.admin_address().port();
    let (resolve, url) =
        (format!("admin.test:{port}:127.0.0.1"), format!("https://admin.test:{port}/apisix/admin/routes"));
    let key = format!("X-API-KEY: {}", e2e::admin::ADMIN_KEY);
    let base = ["--cacert", "server-ca.crt", "--resolve", &resolve, &url];
    let certificate = ["--cert", "administrator.crt", "--key", "administrator.key"];
    let call = |more: Vec<String>| {
        let all: Vec<String> = base.iter().map(|part| (*part).to_owned()).chain(more).collect();
        let folder = world.folder().to_owned();
        async move { curl(&folder, &all.iter().map(String::as_str).collect::<Vec<_>>()).await }
    };
    let owned = |parts: &[&str]| parts.iter().map(|part| (*part).to_owned()).collect::<Vec<_>>();

    let answered = call(owned(&[&certificate[..], &["-H", &key]].concat())).await;
    assert_eq!((answered.exit, answered.status), (0, 200), "{answered:?}");
    assert_eq!(answered.body.trim_end(), r#"{"list":[],"total":0}"#);

    let bare = call(owned(&["-H", &key])).await;
    assert_eq!((bare.exit, bare.status), (0, 400), "{bare:?}");
    assert!(bare.body.contains("No required SSL certificate was sent"), "{bare:?}");

    let untrusted = call(owned(&["--cert", "untrusted.crt", "--key", "untrusted.key", "-H", &key])).await;
    assert_eq!((untrusted.exit, untrusted.status), (0, 400), "{untrusted:?}");
    assert!(untrusted.body.contains("The SSL certificate error"), "{untrusted:?}");

    let keyless = call(owned(&certificate)).await;
    assert_eq!((keyless.exit, keyless.status), (0, 401), "{keyless:?}");
    assert!(keyless.body.contains("missing apikey"), "{keyless:?}");

    let wrong = call(owned(&[&certificate[..], &["-H", "X-API-KEY: guessed"]].concat())).await;
    assert_eq!((wrong.exit, wrong.status), (0, 401), "{wrong:?}");
    assert!(wrong.body.contains("wrong apikey"), "{wrong:?}");
}

#[tokio::test]
async fn an_expired_administrator_and_a_plain_request_get_400() {
    let world = control_only().await;
    let expired = world.admin().identity(&world.credentials.clients.expired_client("administrator"));
    let answer = expired.get("routes").await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);
    assert!(answer.reply.text().contains("The SSL certificate error"), "{}", answer.reply.text());

    let mut plain = HttpConnection::plain(world.admin_address(), "admin.test").await.unwrap();
    let reply = plain.get("/apisix/admin/routes").await.unwrap();
    assert_eq!(reply.status, StatusCode::BAD_REQUEST);
    assert!(reply.text().contains("The plain HTTP request was sent to HTTPS port"), "{}", reply.text());
}

#[tokio::test]
async fn a_viewer_may_read_and_not_write() {
    let world = control_only().await;
    let viewer = world.admin().key(Some(VIEWER_KEY));
    assert_eq!(viewer.get("routes").await.status, StatusCode::OK);
    let document = route("app.test", "/*", &[world.admin_address()]);
    let answer = viewer.call(Method::PUT, "routes/1", Some(&document)).await.unwrap();
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
    assert_eq!(answer.body["description"], "invalid method for role viewer");
    assert_eq!(world.admin().get("routes/1").await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_resource_supports_every_method() {
    let world = control_only().await;
    let admin = world.admin();
    let call = |method: Method, path: &'static str, body: Value| {
        let admin = admin.clone();
        async move { admin.call(method, path, (!body.is_null()).then_some(&body)).await.unwrap() }
    };
    let document = json!({"nodes": {"127.0.0.1:1": 1}});
    let made = call(Method::PUT, "upstreams/u", document.clone()).await;
    assert_eq!(made.status, StatusCode::CREATED, "{made:?}");
    assert_eq!((&made.body["key"], &made.body["value"]["id"]), (&json!("/apisix/upstreams/u"), &json!("u")));
    let replaced = call(Method::PUT, "upstreams/u", document.clone()).await;
    assert_eq!(replaced.status, StatusCode::OK, "{replaced:?}");
    assert!(replaced.revision > made.revision, "{made:?} {replaced:?}");
    let patched = call(Method::PATCH, "upstreams/u", json!({"retries": 3})).await;
    assert_eq!(
        (patched.status, &patched.body["value"]["retries"]),
        (StatusCode::OK, &json!(3)),
        "{patched:?}"
    );
    let below = call(Method::PATCH, "upstreams/u/nodes", json!({"127.0.0.1:2": 5})).await;
    assert_eq!(below.body["value"]["nodes"], json!({"127.0.0.1:2": 5}), "{below:?}");
    let got = call(Method::GET, "upstreams/u", Value::Null).await;
    assert_eq!(got.body["value"], below.body["value"], "{got:?}");
    assert!(got.body["modifiedIndex"].as_u64() > got.body["createdIndex"].as_u64(), "{got:?}");
    let posted = call(Method::POST, "upstreams", document).await;
    assert_eq!(posted.status, StatusCode::CREATED, "{posted:?}");
    let list = call(Method::GET, "upstreams", Value::Null).await;
    assert_eq!(
        (&list.body["total"], list.body["list"].as_array().map(Vec::len)),
        (&json!(2), Some(2)),
        "{list:?}"
    );
    let gone = call(Method::DELETE, "upstreams/u", Value::Null).await;
    assert_eq!((gone.status, &gone.body["deleted"]), (StatusCode::OK, &json!("1")), "{gone:?}");
    let missing = call(Method::GET, "upstreams/u", Value::Null).await;
    assert_eq!(
        (missing.status, &missing.body),
        (StatusCode::NOT_FOUND, &json!({"message": "Key not found"}))
    );
}

#[tokio::test]
async fn private_keys_are_stored_encrypted_and_never_read_back() {
    let world = World::start().await;
    let upstream = Upstream::plain("plain").await;
    let gateway = world.credentials.upstreams.client("gateway");
    world
        .apply(&[
            ("ssls/app", world.protected_site()),
            (
                "ssls/gateway",
                json!({"type": "client", "cert": gateway.certificate_pem, "key": gateway.key_pem}),
            ),
            (
                "upstreams/u",
                json!({"scheme": "https", "nodes": {upstream.address().to_string(): 1},
                    "tls": {"client_cert": gateway.certificate_pem, "client_key": gateway.key_pem}}),
            ),
        ])
        .await;
    let admin = world.admin();
    for path in ["ssls/app", "ssls/gateway", "ssls"] {
        let answer = admin.get(path).await;
        assert_eq!(answer.status, StatusCode::OK);
        assert!(!answer.reply.text().contains("\"key\":\"-----"), "{}", answer.reply.text());
        let values = answer.body["list"].as_array().cloned().unwrap_or_else(|| vec![answer.body.clone()]);
        assert!(values.iter().all(|item| item["value"].get("key").is_none()), "{}", answer.reply.text());
    }
    let secret = world.credentials.site.key_pem.lines().nth(1).expect("a PEM has lines").to_owned();
    // The acknowledgement says that the node serves the revision; its last-good file follows later.
    world.node_log().line_with(&["the last good snapshot is on disk"]).await;
    let logs = [world.control_log().text(), world.node_log().text()].join("\n");
    for (what, bytes) in [
        ("the store", fs::read(world.store()).unwrap()),
        ("the last good snapshot", fs::read(world.last_good("node-1")).unwrap()),
        ("the logs", logs.into_bytes()),
    ] {
        for needle in ["PRIVATE KEY", secret.as_str()] {
            let found = bytes.windows(needle.len()).any(|window| window == needle.as_bytes());
            assert!(!found, "{what} contains {needle:?}");
        }
    }
    for file in [world.store(), world.last_good("node-1")] {
        let mode = fs::metadata(&file).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{}: {mode:o}", file.display());
    }
}

#[tokio::test]
async fn the_fleet_lists_acknowledged_revisions() {
    let world = World::builder().nodes(&["paris", "oslo"]).start().await;
    let upstream = Upstream::plain("plain").await;
    let revision = world.apply(&[("routes/app", route("app.test", "/*", &[upstream.address()]))]).await;
    let fleet = world.admin().get("dataplanes").await;
    assert_eq!((&fleet.body["total"], &fleet.body["revision"]), (&json!(2), &json!(revision)), "{fleet:?}");
    let mut names = Vec::new();
    for node in fleet.body["list"].as_array().unwrap() {
        names.push(node["name"].as_str().unwrap().to_owned());
        assert_eq!((&node["connected"], &node["lag"]), (&json!(true), &json!(0)), "{node}");
        assert_eq!((&node["acknowledged"], &node["last_nack"]), (&json!(revision), &Value::Null), "{node}");
        assert!(node["address"].as_str().is_some_and(|address| address.starts_with("127.0.0.1")), "{node}");
    }
    names.sort();
    assert_eq!(names, ["oslo", "paris"]);

    let ahead = world.admin().get(&format!("dataplanes?acknowledged={}&timeout=1", revision + 1000)).await;
    assert_eq!(ahead.status, StatusCode::GATEWAY_TIMEOUT, "{ahead:?}");
}

#[tokio::test]
async fn the_admin_port_trusts_no_other_authority() {
    let world = control_only().await;
    let roots = certificates(world.credentials.untrusted.certificate_pem());
    let refused = HttpClient::new(world.admin_address(), "admin.test", roots).connect().await;
    assert!(refused.is_err(), "a client must notice that this is not its control plane");
    let node = world.credentials.node("node-1");
    let answer = Admin::new(world.admin_address(), &world.credentials).identity(&node).get("routes").await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST, "a node's certificate is no administrator's");
}

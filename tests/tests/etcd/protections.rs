//! Unsupported protections that another program wrote into etcd: what they protect is denied, never
//! served without them, and never left to a broader route or site.

use e2e::etcd::Etcd;
use e2e::process::run_to_end;
use e2e::raw;
use e2e::upstream::tcp::{Script, TcpUpstream};
use e2e::world::World;
use http::StatusCode;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::stage::{Stage, linted, name};

#[tokio::test]
async fn an_unsupported_protection_is_never_left_out() {
    let stage = Stage::start().await;
    stage.world.apply(&[("routes/all", stage.route("/*"))]).await;
    let mut secret = stage.route("/secret/*");
    secret["plugins"] = json!({"key-auth": {}});
    let written = stage.etcd_put("routes/secret", &secret).await;
    assert_eq!(stage.status("/secret/x").await, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(stage.status("/other").await, StatusCode::OK);
    let finding = linted(&stage, "routes/secret").await;
    assert!(finding.to_string().contains("key-auth"), "{finding}");
    stage.world.control_log().line_with(&["routes/secret", "key-auth"]).await;
    assert_eq!(stage.etcd_get("routes/secret").await, secret, "it is left untouched");
    assert_eq!(stage.upstream.requests(), 1, "only the other request came through");

    // A route that gets a protection is not served without it.
    let mut open = stage.route("/open");
    stage.etcd_put("routes/open", &open).await;
    assert_eq!(stage.status("/open").await, StatusCode::OK);
    open["plugins"] = json!({"ip-restriction": {"whitelist": ["10.0.0.0/8"]}});
    stage.etcd_put("routes/open", &open).await;
    assert_eq!(stage.status("/open").await, StatusCode::SERVICE_UNAVAILABLE);

    // A service's protection covers the routes that refer to it.
    let service = json!({"plugins": {"jwt-auth": {}}, "upstream": stage.route("/")["upstream"]});
    stage.etcd_put("services/guarded", &service).await;
    stage.etcd_put("routes/guarded", &json!({"uri": "/guarded", "service_id": "guarded"})).await;
    assert_eq!(stage.status("/guarded").await, StatusCode::SERVICE_UNAVAILABLE);

    // It survives a restart of both planes.
    let mut stage = stage;
    stage.world.kill_control().await;
    stage.world.kill_node().await;
    stage.world.start_control().await;
    stage.world.start_node().await;
    stage.world.wait_acknowledged(written).await;
    for path in ["/secret/x", "/open", "/guarded"] {
        assert_eq!(stage.status(path).await, StatusCode::SERVICE_UNAVAILABLE, "{path}");
    }
    // It ends when it is removed.
    stage.etcd_put("routes/secret", &stage.route("/secret/*")).await;
    assert_eq!(stage.status("/secret/x").await, StatusCode::OK);
}

/// Each of these requires a condition; the route for everything must not bypass it.
#[tokio::test]
async fn unknown_conditions_of_a_route_deny_requests() {
    let stage = Stage::start().await;
    stage.world.apply(&[("routes/all", stage.route("/*"))]).await;
    let with = |more: Value| {
        let mut route = stage.route("/guarded");
        e2e::settings::merge(&mut route, more);
        route
    };
    for (what, document) in [
        ("a plugin", with(json!({"plugins": {"forward-auth": {"uri": "http://127.0.0.1:9"}}}))),
        (
            "a plugin beside one of ours",
            with(json!({"plugins": {"proxy-rewrite": {"uri": "/x"}, "uri-blocker": {}}})),
        ),
        ("plugins that no program has stored", with(json!({"plugin_config_id": "1"}))),
        ("a script", with(json!({"script": "local _M = {} function _M.access() end return _M"}))),
        ("a function", with(json!({"filter_func": "function(vars) return vars.arg_a == \"1\" end"}))),
        ("a predicate that we cannot read", with(json!({"vars": [["http_x", "NO-SUCH-OPERATOR", "1"]]}))),
        ("a member from a later version", with(json!({"allow_only": ["other"]}))),
    ] {
        stage.etcd_put("routes/guarded", &document).await;
        assert_eq!(stage.status("/guarded").await, StatusCode::SERVICE_UNAVAILABLE, "{what}");
        assert_eq!(stage.status("/other").await, StatusCode::OK, "{what}");
        let revision = stage.etcd.keys().await.delete(&name("routes/guarded")).await;
        stage.world.wait_acknowledged(revision).await;
        assert_eq!(stage.status("/guarded").await, StatusCode::OK, "{what}: deleted, it guards nothing");
    }
    assert!(stage.etcd.keys().await.get(&name("routes/all")).await.is_some());
}

/// The plugins of a plugin config belong to the routes that name it.
#[tokio::test]
async fn an_unknown_plugin_of_a_plugin_config_denies_its_routes() {
    let stage = Stage::start().await;
    let mut named = stage.route("/named");
    named["plugin_config_id"] = 1.into();
    stage.world.apply(&[("routes/all", stage.route("/*"))]).await;
    let observers = json!({
        "prometheus": {}, "request-id": {}, "kafka-logger": {"brokers": "none"},
        "zipkin": {"endpoint": "http://127.0.0.1:9", "sample_ratio": 1}
    });
    let config = |plugins: Value| json!({"id": "1", "plugins": plugins});
    stage.etcd_put("plugin_configs/1", &config(observers.clone())).await;
    stage.etcd_put("routes/named", &named).await;
    assert_eq!(stage.status("/named").await, StatusCode::OK);
    let mut unknown = observers;
    unknown["key-auth"] = json!({});
    stage.etcd_put("plugin_configs/1", &config(unknown)).await;
    assert_eq!(stage.status("/named").await, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(stage.status("/other").await, StatusCode::OK);
    let finding = linted(&stage, "plugin_configs/1").await;
    assert!(finding.to_string().contains("unknown plugin [key-auth]"), "{finding}");
    stage.etcd_put("plugin_configs/1", &config(json!({"proxy-rewrite": {"uri": "/x"}}))).await;
    assert_eq!(stage.status("/named").await, StatusCode::OK);
}

/// A global rule applies to every request.
#[tokio::test]
async fn an_unknown_global_rule_denies_every_request() {
    let stage = Stage::start().await;
    stage.world.apply(&[("ssls/app", stage.world.open_site()), ("routes/all", stage.route("/*"))]).await;
    stage.etcd_put("global_rules/0", &json!({"id": "0", "plugins": {"prometheus": {}, "datadog": {}}})).await;
    assert_eq!(stage.status("/any").await, StatusCode::OK);
    stage
        .etcd_put(
            "global_rules/1",
            &json!({"id": "1", "plugins": {"ip-restriction": {"whitelist": ["10.0.0.0/8"]}}}),
        )
        .await;
    assert_eq!(stage.status("/any").await, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(
        stage.world.client("app.test").get("/any").await.unwrap().status,
        StatusCode::SERVICE_UNAVAILABLE
    );
    linted(&stage, "global_rules/1").await;
    let revision = stage.etcd.keys().await.delete(&name("global_rules/1")).await;
    stage.world.wait_acknowledged(revision).await;
    assert_eq!(stage.status("/any").await, StatusCode::OK);
}

/// A site with an unreadable policy keeps its names: no open wildcard site gets them.
#[tokio::test]
async fn a_site_whose_policy_cannot_be_read_is_closed() {
    let stage = Stage::start().await;
    let credentials = &stage.world.credentials;
    let site = credentials.servers.server(&["strict.app.test", "*.app.test"]);
    let everybody = json!({"snis": ["*.app.test"], "cert": site.certificate_pem, "key": site.key_pem});
    let ca = credentials.clients.certificate_pem();
    stage.world.apply(&[("ssls/everybody", everybody), ("routes/all", stage.route("/*"))]).await;
    assert_eq!(stage.world.client("strict.app.test").get("/").await.unwrap().status, StatusCode::OK);
    let with = |client: Value| json!({"id": "strict", "sni": "strict.app.test", "cert": site.certificate_pem, "key": site.key_pem, "client": client});
    for (what, client) in [
        ("no certificate", json!({"ca": "x".repeat(200), "depth": 1})),
        ("a broken one", json!({"ca": ca.replace("MII", "AAA"), "depth": 1})),
        ("no number", json!({"ca": ca, "depth": "one"})),
        ("a reference", json!({"ca": "$secret://vault/1/ca"})),
        ("a member from a later version", json!({"ca": ca, "ocsp": "required"})),
        ("a pattern that we cannot read", json!({"ca": ca, "skip_mtls_uri_regex": ["^/(open"]})),
    ] {
        stage.etcd_put("ssls/strict", &with(client)).await;
        println!("{what}");
        stage.world.verified_client("strict.app.test").expect_alert().await;
        stage.world.client("strict.app.test").expect_alert().await;
        // Nor through another name.
        let reply = stage.world.client("other.app.test").get("/").await.unwrap();
        assert_eq!(reply.status, StatusCode::OK, "{what}: the wildcard's other names are served");
        let mut session =
            stage.world.client("strict.app.test").sni("other.app.test").connect().await.unwrap();
        let reply = session.get("/").await.unwrap();
        assert!(reply.status.is_client_error() || reply.status.is_server_error(), "{what}: {}", reply.status);
        let revision = stage.etcd.keys().await.delete(&name("ssls/strict")).await;
        stage.world.wait_acknowledged(revision).await;
    }
}

/// Values that an APISIX reads and RFC 8259 or this parser does not, and names that are no ids:
/// their paths go to nothing broader, before and after a restart.
#[tokio::test]
async fn lenient_json_never_falls_to_a_broader_route() {
    let mut stage = Stage::start().await;
    let site = stage.world.credentials.servers.server(&["strict.app.test", "*.app.test"]);
    let everybody = json!({"snis": ["*.app.test"], "cert": site.certificate_pem, "key": site.key_pem});
    stage.world.apply(&[("ssls/everybody", everybody), ("routes/all", stage.route("/*"))]).await;
    let members = |document: Value| {
        let text = document.to_string();
        text.strip_prefix('{').and_then(|text| text.strip_suffix('}')).unwrap().to_owned()
    };
    let guarded = |path: &str| {
        let mut route = stage.route(path);
        route["plugins"] = json!({"key-auth": {}});
        members(route)
    };
    let ca = stage.world.credentials.clients.certificate_pem();
    let strict = members(json!({
        "sni": "strict.app.test", "cert": site.certificate_pem, "key": site.key_pem, "client": {"ca": ca},
    }));
    let deep = format!("{}{}", "[".repeat(200), "]".repeat(200));
    for (path, value) in [
        ("routes/latin", [b"{\"desc\": \"caf\xe9\",", guarded("/latin").as_bytes(), b"}"].concat()),
        ("routes/twice", format!("{{\"priority\": 1, {}, \"priority\": 2}}", guarded("/twice")).into_bytes()),
        ("routes/lone", format!("{{\"desc\": \"\\ud800\", {}}}", guarded("/lone")).into_bytes()),
        ("routes/deep", format!("{{\"vars\": {deep}, {}}}", guarded("/deep")).into_bytes()),
        ("routes/team:a", format!("{{{}}}", guarded("/team")).into_bytes()),
        ("ssls/strict", [b"{\"desc\": \"caf\xe9\",", strict.as_bytes(), b"}"].concat()),
    ] {
        stage.etcd_put_text(path, value).await;
        let finding = linted(&stage, path).await;
        assert_eq!(finding["severity"], "error", "{finding}");
    }
    for restarted in [false, true] {
        if restarted {
            let revision = stage.etcd.keys().await.documents_revision().await;
            stage.world.kill_control().await;
            stage.world.kill_node().await;
            stage.world.start_control().await;
            stage.world.start_node().await;
            stage.world.wait_acknowledged(revision).await;
        }
        for path in ["/latin", "/twice", "/lone", "/deep", "/team"] {
            assert_eq!(stage.status(path).await, StatusCode::SERVICE_UNAVAILABLE, "{path} {restarted}");
        }
        assert_eq!(stage.status("/other").await, StatusCode::OK);
        stage.world.client("strict.app.test").expect_alert().await;
        assert_eq!(stage.world.client("other.app.test").get("/").await.unwrap().status, StatusCode::OK);
    }
    // The copy omits none of them.
    let config = stage.world.write_config("copy");
    let line = ["-c", config.to_str().unwrap(), "copy", "--from", "etcd", "--to", "yaml:rules.yaml"];
    let ended = run_to_end("controlplane", &line, stage.world.folder()).await;
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    for named in ["cannot be copied: routes/latin", "team:a", "cannot be copied: ssls/strict"] {
        assert!(ended.stdout.contains(named), "{named}: {ended:?}");
    }
    assert!(!stage.world.folder().join("rules.yaml").exists());
    // Written again under an id, or deleted, it takes effect.
    let revision = stage.etcd.keys().await.delete(&name("routes/team:a")).await;
    stage.world.wait_acknowledged(revision).await;
    assert_eq!(stage.status("/team").await, StatusCode::OK);
}

#[tokio::test]
async fn a_stream_route_with_a_plugin_is_closed() {
    let etcd = Etcd::plain().await;
    let apisix = json!({"apisix": {"proxy_mode": "http&stream", "stream_proxy": {"tcp": ["127.0.0.1:0"]}}});
    let builder = World::builder().etcd(&etcd).settings(apisix);
    let stage = Stage::with(etcd, builder).await;
    let streams = TcpUpstream::plain("streams", Script::Greet).await;
    let upstream = json!({"nodes": {streams.address().to_string(): 1}});
    stage.world.apply(&[("stream_routes/all", json!({"upstream": upstream}))]).await;
    assert_eq!(received(&stage).await, b"hello from streams\n");
    let guarded = json!({
        "id": "0-guarded", "remote_addr": "127.0.0.1", "upstream": upstream,
        "plugins": {"ip-restriction": {"whitelist": ["10.0.0.0/8"]}},
    });
    stage.etcd_put("stream_routes/0-guarded", &guarded).await;
    assert_eq!(received(&stage).await, b"");
    linted(&stage, "stream_routes/0-guarded").await;
    let revision = stage.etcd.keys().await.delete(&name("stream_routes/0-guarded")).await;
    stage.world.wait_acknowledged(revision).await;
    assert_eq!(received(&stage).await, b"hello from streams\n");
}

async fn received(stage: &Stage) -> Vec<u8> {
    let mut stream = TcpStream::connect(stage.world.stream(0)).await.unwrap();
    // It may be closed before this arrives.
    let _ = stream.write_all(b"mmm").await;
    raw::until_closed(&mut stream).await
}

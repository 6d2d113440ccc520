//! The control API of a data plane: APISIX's questions, what this node serves, and what it never
//! shows. The client is curl.

use std::fs;
use std::net::TcpListener;

use e2e::documents::weighted;
use e2e::process::{Launch, Log, run_to_end};
use e2e::tools::{CurlOutput, curl};
use e2e::world::World;
use http::Method;
use serde_json::{Value, json};

/// A request to the first node's control API, with these options of curl.
async fn ask(world: &World, path: &str, options: &[&str]) -> CurlOutput {
    let url = format!("http://{}{path}", world.node_address(0, "control"));
    let arguments: Vec<&str> = options.iter().copied().chain([url.as_str()]).collect();
    curl(world.folder(), &arguments).await
}

async fn get(world: &World, path: &str) -> Value {
    let output = ask(world, path, &[]).await;
    assert_eq!(output.status, 200, "{path}: {output:?}");
    serde_json::from_str(&output.body).unwrap_or_else(|error| panic!("{path}: {error}: {}", output.body))
}

/// The status and `error_msg` of a refused request.
async fn refused(world: &World, path: &str, options: &[&str]) -> (u16, String) {
    let output = ask(world, path, options).await;
    let body: Value = serde_json::from_str(&output.body).unwrap();
    (output.status, body["error_msg"].as_str().unwrap().to_owned())
}

#[tokio::test]
async fn apisix_questions_are_answered() {
    let (world, upstream) = World::open(json!({})).await;
    world
        .apply(&[
            ("upstreams/u", json!({"nodes": weighted(&[upstream.address()]), "type": "roundrobin"})),
            ("services/s", json!({"hosts": ["s.test"], "upstream_id": "u"})),
            ("routes/r", json!({"uris": ["/a", "/b/*"], "service_id": "s", "priority": 3})),
        ])
        .await;
    let routes = get(&world, "/v1/routes").await;
    let keys: Vec<&str> = routes.as_array().unwrap().iter().map(|one| one["key"].as_str().unwrap()).collect();
    assert_eq!(keys, ["/routes/app", "/routes/r"]);
    let route = get(&world, "/v1/route/r").await;
    assert_eq!(route["value"]["uris"], json!(["/a", "/b/*"]));
    assert_eq!((&route["value"]["service_id"], &route["value"]["priority"]), (&json!("s"), &json!(3)));
    assert_eq!(get(&world, "/v1/services").await[0]["value"]["hosts"], json!(["s.test"]));
    assert_eq!(get(&world, "/v1/service/s").await["value"]["upstream_id"], "u");
    let node = &get(&world, "/v1/upstream/u").await["value"]["nodes"][0];
    assert_eq!(node["port"], upstream.address().port());
    assert_eq!(get(&world, "/v1/upstreams").await.as_array().unwrap().len(), 1);
    assert_eq!(get(&world, "/v1/stream_routes").await, json!([]));
    for empty in ["/v1/healthcheck", "/v1/plugin_metadatas"] {
        assert_eq!(get(&world, empty).await, json!([]), "{empty}");
    }
    let schema = get(&world, "/v1/schema").await;
    assert_eq!(schema["main"]["route"]["type"], "object");
    assert_eq!(get(&world, "/v1/routes?page=2&page_size=1").await[0]["key"], "/routes/r");

    for (path, status, words) in [
        ("/v1/route/none", 404, "route[none] not found"),
        ("/v1/upstream/none", 404, "upstream[none] not found"),
        ("/v1/healthcheck/upstreams/u", 404, "no checker for upstreams[u]"),
        ("/v1/healthcheck/routes/none", 404, "routes[none] not found"),
        ("/v1/healthcheck/routes", 404, "missing src id for src type routes"),
        ("/v1/healthcheck/none/1", 400, "invalid src type none"),
        ("/v1/plugin_metadata/x", 404, "plugin metadata[x] not found"),
        ("/v1/none", 404, "no such path"),
        ("/v1/routes?page_size=0", 400, "page_size: expected 1 to 10000"),
    ] {
        let (found, message) = refused(&world, path, &[]).await;
        assert!(found == status && message.contains(words), "{path}: {found} {message}");
    }
    let (status, message) = refused(&world, "/v1/gc", &["-X", "POST"]).await;
    assert!(status == 404 && message.contains("no garbage collector"), "{message}");
    let (status, message) = refused(&world, "/v1/plugins/reload", &["-X", "PUT"]).await;
    assert!(status == 404 && message.contains("part of the program"), "{message}");
    let put = ask(&world, "/v1/routes", &["-X", "PUT", "-D", "-"]).await;
    assert!(put.status == 405 && put.body.to_lowercase().contains("allow: get, head"), "{put:?}");
}

#[tokio::test]
async fn certificates_are_shown_and_no_page_has_a_key() {
    let (world, upstream) = World::protected(json!({})).await;
    let own = world.credentials.clients.client("gateway");
    let secured = json!({
        "nodes": weighted(&[upstream.address()]), "type": "roundrobin", "scheme": "https",
        "tls": {"client_cert": own.certificate_pem, "client_key": own.key_pem},
    });
    let rewrite = json!({"headers": {"set": {"Authorization": "Bearer hidden-token"}}});
    world
        .apply(&[
            ("upstreams/secured", secured),
            (
                "routes/secured",
                json!({"uri": "/x", "upstream_id": "secured", "plugins": {"proxy-rewrite": rewrite}}),
            ),
        ])
        .await;
    world.verified_client("app.test").get("/").await.unwrap();

    let shown = get(&world, "/v1/certificates").await;
    let entry = |key: &str| shown.as_array().unwrap().iter().find(|one| one["key"] == key).unwrap().clone();
    let fingerprint = |chain: Vec<rustls::pki_types::CertificateDer<'static>>| {
        let certificate = pki::Certificate::from_der(&chain[0]).unwrap();
        certificate.fingerprint_sha256().iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    };
    let ssl = entry("/ssls/app");
    assert_eq!(ssl["snis"], json!(["app.test"]));
    assert_eq!(ssl["certificates"][0]["fingerprint_sha256"], fingerprint(world.credentials.site.chain()));
    assert!(ssl["certificates"][0]["not_after_timestamp"].as_u64().unwrap() > 1_700_000_000, "{ssl}");
    assert_eq!(ssl["client"]["ca"][0]["subject"], "CN=Test Client CA");
    let gateway = entry("/upstreams/secured");
    assert_eq!(gateway["certificates"][0]["fingerprint_sha256"], fingerprint(own.chain()));

    let tickets = get(&world, "/v1/tickets").await;
    let sealing = tickets["secrets"].as_array().unwrap().iter().filter(|secret| secret["seals"] == true);
    assert_eq!((sealing.count(), &tickets["enabled"]), (1, &json!(true)), "{tickets}");

    let keys = [&own.key_pem, &world.credentials.site.key_pem];
    let lines = keys.map(|pem| pem.lines().nth(1).unwrap().to_owned());
    let pages = [
        "/v1/schema",
        "/v1/routes",
        "/v1/services",
        "/v1/upstreams",
        "/v1/upstream/secured",
        "/v1/certificates",
        "/v1/connections",
        "/v1/pools",
        "/v1/tickets",
        "/v1/stream_routes",
    ];
    for path in pages {
        let text = ask(&world, path, &[]).await.body;
        for secret in lines.iter().map(String::as_str).chain(["PRIVATE KEY", "hidden-token"]) {
            assert!(!text.contains(secret), "{path}: {secret}");
        }
    }
    assert!(ask(&world, "/v1/route/secured", &[]).await.body.contains("(not shown)"));
}

#[tokio::test]
async fn connections_and_pools_are_counted() {
    let (world, upstream) = World::protected(json!({})).await;
    let other = world.credentials.clients.client("other-client");
    let mut kept = Vec::new();
    for _ in 0..3 {
        let mut connection = world.verified_client("app.test").connect().await.unwrap();
        connection.get("/").await.unwrap();
        kept.push(connection);
    }
    let mut one = world.client("app.test").identity(&other).connect().await.unwrap();
    one.get("/").await.unwrap();

    let shown = get(&world, "/v1/connections").await;
    assert_eq!((&shown["connections"], &shown["all_groups"]), (&json!(4), &json!(2)), "{shown}");
    assert_eq!((&shown["groups"][0]["connections"], &shown["groups"][0]["site"]), (&json!(3), &json!("app")));
    assert_eq!(shown["groups"][0]["client"]["subject"], "CN=good-client");
    assert_eq!(shown["groups"][1]["client"]["subject"], "CN=other-client");
    assert_eq!(shown["workers_without_answer"], json!([]));
    assert_eq!(get(&world, "/v1/connections?page_size=1").await["groups"].as_array().unwrap().len(), 1);

    let pools = get(&world, "/v1/pools").await;
    let node = &pools["nodes"][0];
    assert_eq!(node["node"], upstream.address().to_string());
    let open = node["idle"].as_u64().unwrap() + node["in_use"].as_u64().unwrap();
    assert!((1..=4).contains(&open) && node["waiting"] == 0, "{pools}");
}

#[tokio::test]
async fn a_web_page_cannot_ask() {
    let world = World::start().await;
    let port = world.node_address(0, "control").port();
    let rebound = format!("Host: page.example:{port}");
    let before = world.metric("countersign_status_rejections_total{reason=\"cross_site\"}").await;
    for header in [rebound.as_str(), "Origin: https://page.example", "Sec-Fetch-Site: cross-site"] {
        let (status, message) = refused(&world, "/v1/routes", &["-H", header]).await;
        assert_eq!(status, 403, "{header}: {message}");
    }
    let after = world.metric("countersign_status_rejections_total{reason=\"cross_site\"}").await;
    assert_eq!(after - before, 3);
    assert_eq!(ask(&world, "/v1/routes", &["-H", &format!("Host: localhost:{port}")]).await.status, 200);
}

#[tokio::test]
async fn an_upgrade_keeps_the_operators_ports() {
    let (mut world, _upstream) = World::open(json!({})).await;
    let names = ["status", "control", "prometheus"];
    let before = names.map(|name| world.node_ready()[name].clone());
    let successor = world.upgrade_node().await;
    assert_eq!(names.map(|name| successor.ready()[name].clone()), before);
    assert_eq!(get(&world, "/v1/routes").await[0]["key"], "/routes/app");
    let upgraded = world.status("/status").await.json();
    assert_eq!(upgraded["generation"], 2, "{upgraded}");
}

#[tokio::test]
async fn a_default_port_in_use_is_a_warning() {
    let world = World::builder().without_control().nodes(&[]).start().await;
    world.write_credential("node-1", &world.credentials.node("node-1"));
    let path = world.write_config("node-1");
    let mut settings: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    settings["apisix"].as_object_mut().unwrap().remove("control");
    fs::write(&path, settings.to_string()).unwrap();
    // Another program has the port already, or this test takes it.
    let _taken = TcpListener::bind("127.0.0.1:9090");
    let log = Log::default();
    let node = Launch::new("dataplane", &path).start(&log).await;
    assert_eq!(node.ready()["control"], Value::Null);
    log.line_with(&["WARN", "apisix.control: cannot listen on 127.0.0.1:9090", "open by default"]).await;
    assert!(node.stop().await.success());

    settings["apisix"]["control"] = json!({"port": 9090});
    fs::write(&path, settings.to_string()).unwrap();
    let ended = run_to_end("dataplane", &["-c", path.to_str().unwrap()], world.folder()).await;
    let problem = format!("{ended:?}");
    assert!(!ended.status.success() && problem.contains("apisix.control: cannot listen on"), "{problem}");
}

#[tokio::test]
async fn ten_thousand_routes_are_listed_by_pages() {
    let world = World::start().await;
    let admin = world.admin();
    let node = json!({"nodes": {"127.0.0.1:1": 1}, "type": "roundrobin"});
    let mut revision = admin.put("upstreams/u", &node).await;
    let numbers: Vec<u32> = (0..10_100).collect();
    for chunk in numbers.chunks(128) {
        let writes: Vec<Value> = chunk
            .iter()
            .map(|number| {
                let body = json!({"uri": format!("/{number}"), "upstream_id": "u"});
                json!({"method": "PUT", "path": format!("/apisix/admin/routes/{number}"), "body": body})
            })
            .collect();
        revision = admin.write(Method::POST, "batch", Some(&json!({"operations": writes}))).await;
    }
    world.wait_acknowledged(revision).await;
    assert_eq!(get(&world, "/v1/routes").await.as_array().unwrap().len(), 10_000);
    assert_eq!(get(&world, "/v1/routes?page=2").await.as_array().unwrap().len(), 100);
    let head = ask(&world, "/v1/routes?page_size=1", &["-D", "-"]).await;
    assert!(head.body.to_lowercase().contains("x-total-count: 10100"), "{}", head.body);
}

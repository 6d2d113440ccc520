//! SIGHUP applies the settings file to a running data plane: each kind of key by its effect,
//! listeners that appear and vanish, and nothing of a bad file.

use std::fs;

use e2e::client::{Http, HttpConnection, Reply, bounded, full};
use e2e::documents::route;
use e2e::ports::Reservation;
use e2e::process::run_to_end;
use e2e::steady_load::SteadyLoad;
use e2e::upstream::Upstream;
use e2e::world::World;
use http::{Method, StatusCode};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

use crate::steady::loaded_world;

fn hang_up(world: &World) {
    kill(Pid::from_raw(world.node_id().try_into().unwrap()), Signal::SIGHUP).unwrap();
}

/// Changes settings of the first node and waits until they are applied; gives the log line.
pub(crate) async fn reload(world: &mut World, more: Value) -> String {
    world.change_settings(more);
    reload_file(world).await
}

pub(crate) async fn reload_file(world: &World) -> String {
    world.write_config("node-1");
    let mark = world.node_log().mark();
    hang_up(world);
    world.node_log().line_after(mark, &["INFO", "server::reload: reload: "]).await
}

fn seen(reply: &Reply, header: &str) -> String {
    reply.json()["headers"][header].as_str().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn requests_of_open_connections_get_new_settings() {
    let (mut world, upstream) = World::open(json!({})).await;
    let mut kept = world.client("app.test").connect().await.unwrap();
    let mut kept_h2 = world.client("app.test").http(Http::Two).connect().await.unwrap();
    let with_version = kept.get("/").await.unwrap().headers["server"].clone();

    let line = reload(&mut world, json!({"apisix": {"enable_server_tokens": false}})).await;
    assert!(line.contains("apisix.enable_server_tokens"), "{line}");
    for connection in [&mut kept, &mut kept_h2] {
        let server = connection.get("/").await.unwrap().headers["server"].clone();
        assert!(server != with_version && with_version.to_str().unwrap().contains(server.to_str().unwrap()));
    }

    reload(&mut world, json!({"nginx_config": {"http": {"client_max_body_size": 10}}})).await;
    for connection in [&mut kept, &mut kept_h2] {
        let request = connection.request(Method::POST, "/", full("more than ten bytes"));
        assert_eq!(connection.fetch(request).await.unwrap().status, StatusCode::PAYLOAD_TOO_LARGE);
    }
    let mut kept = world.client("app.test").connect().await.unwrap();

    reload(&mut world, json!({"apisix": {"show_upstream_status_in_response_header": true}})).await;
    assert_eq!(kept.get("/").await.unwrap().headers["x-apisix-upstream-status"], "200");

    assert_eq!(kept.get("/tail/").await.unwrap().json()["uri"], "/tail/");
    reload(&mut world, json!({"apisix": {"delete_uri_tail_slash": true}})).await;
    assert_eq!(kept.get("/tail/").await.unwrap().json()["uri"], "/tail");

    let claim = |connection: &HttpConnection| {
        let mut request = connection.request(Method::GET, "/", full(""));
        request.headers_mut().insert("x-real-ip", "192.0.2.7".parse().unwrap());
        request.headers_mut().insert("x-forwarded-host", "claimed.test".parse().unwrap());
        request
    };
    let request = claim(&kept);
    let reply = kept.fetch(request).await.unwrap();
    assert_eq!(
        (seen(&reply, "x-real-ip"), seen(&reply, "x-forwarded-host")),
        ("127.0.0.1".into(), "app.test".into())
    );
    let trusted = json!({
        "nginx_config": {"http": {"real_ip_from": ["127.0.0.1"]}},
        "apisix": {"trusted_addresses": ["127.0.0.1", "192.0.2.7"]},
    });
    reload(&mut world, trusted).await;
    let request = claim(&kept);
    let reply = kept.fetch(request).await.unwrap();
    assert_eq!(
        (seen(&reply, "x-real-ip"), seen(&reply, "x-forwarded-host")),
        ("192.0.2.7".into(), "claimed.test".into())
    );

    // A connection to the upstream is kept, and no longer with a pool of size 0.
    let connections = upstream.connections();
    for _ in 0..3 {
        kept.get("/").await.unwrap();
    }
    assert!(upstream.connections() <= connections + 1);
    reload(&mut world, json!({"nginx_config": {"http": {"upstream": {"keepalive": 0}}}})).await;
    kept.get("/").await.unwrap();
    let connections = upstream.connections();
    for _ in 0..3 {
        kept.get("/").await.unwrap();
    }
    assert_eq!(upstream.connections(), connections + 3);
}

#[tokio::test]
async fn limits_and_timeouts_change() {
    let (mut world, upstream) = World::open(json!({})).await;
    let long_field = |connection: &HttpConnection| {
        let mut request = connection.request(Method::GET, "/", full(""));
        request.headers_mut().insert("x-long", "x".repeat(3000).parse().unwrap());
        request
    };
    let mut idle = world.client("app.test").connect().await.unwrap();
    let request = long_field(&idle);
    assert_eq!(idle.fetch(request).await.unwrap().status, StatusCode::OK);
    reload(&mut world, json!({"countersign": {"limits": {"header_line_bytes": 1000}}})).await;
    // The open connection keeps the limit that it began with.
    let request = long_field(&idle);
    assert_eq!(idle.fetch(request).await.unwrap().status, StatusCode::OK);
    let mut new = world.client("app.test").connect().await.unwrap();
    let request = long_field(&new);
    assert_eq!(new.fetch(request).await.unwrap().status, StatusCode::BAD_REQUEST);

    // Open connections, idle for no second yet, end after the new time.
    reload(&mut world, json!({"nginx_config": {"http": {"keepalive_timeout": "1s"}}})).await;
    idle.ended().await;
    // So do those that send no head.
    reload(&mut world, json!({"countersign": {"limits": {"handshake_timeout": 1}}})).await;
    let mut silent = TcpStream::connect(world.https()).await.unwrap();
    let read = bounded("the end of the handshake's time", silent.read(&mut [0; 10])).await;
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");

    let one_each = json!({"countersign": {"limits": {"requests_per_client": 1}}});
    reload(&mut world, one_each).await;
    // HTTP/2: both requests are on one worker.
    let mut client = world.client("app.test").http(Http::Two).connect().await.unwrap();
    let mut other = world.client("app.test").http(Http::Two).connect().await.unwrap();
    let before = upstream.requests();
    let request = client.request(Method::GET, "/hold", full(""));
    let held = tokio::spawn(async move { client.fetch(request).await.unwrap().status });
    upstream.arrived(before + 1).await;
    // The other connection may be on the other worker: it holds one there, too.
    let request = other.request(Method::GET, "/status?code=204", full(""));
    let first = other.fetch(request).await.unwrap().status;
    assert!([StatusCode::NO_CONTENT, StatusCode::SERVICE_UNAVAILABLE].contains(&first));
    reload(&mut world, json!({"countersign": {"limits": {"requests_per_client": 0}}})).await;
    let request = other.request(Method::GET, "/status?code=204", full(""));
    assert_eq!(other.fetch(request).await.unwrap().status, StatusCode::NO_CONTENT);
    upstream.open_gate();
    assert_eq!(held.await.unwrap(), StatusCode::OK);

    reload(&mut world, json!({"countersign": {"drain_delay": 3600}})).await;
    let mut node = world.take_node();
    node.signal(Signal::SIGTERM);
    world.node_log().line_with(&["accepting connections until drain_delay has passed", "3600"]).await;
    node.signal(Signal::SIGTERM);
    node.ended().await;
}

#[tokio::test]
async fn the_name_of_clients_without_one_changes() {
    let (mut world, _upstream) = World::open(json!({})).await;
    assert!(world.client("app.test").no_sni().get("/").await.is_err());
    reload(&mut world, json!({"apisix": {"ssl": {"fallback_sni": "app.test"}}})).await;
    assert_eq!(world.client("app.test").no_sni().get("/").await.unwrap().status, StatusCode::OK);
    reload(&mut world, json!({"apisix": {"ssl": {"fallback_sni": null}}})).await;
    assert!(world.client("app.test").no_sni().get("/").await.is_err());
}

#[tokio::test]
async fn the_trust_in_upstreams_is_read_again() {
    let mut world = World::start().await;
    let authorities =
        [&world.credentials.upstreams, &world.credentials.clients].map(|ca| ca.certificate_pem().to_owned());
    let upstream = Upstream::tls("tls", &world.credentials.upstreams.server(&["up.test"])).await;
    let mut document = route("app.test", "/*", &[upstream.address()]);
    let tls = json!({"scheme": "https", "pass_host": "rewrite", "upstream_host": "up.test"});
    e2e::settings::merge(&mut document["upstream"], tls);
    world.apply(&[("ssls/app", world.open_site()), ("routes/app", document)]).await;
    let mut kept = world.client("app.test").connect().await.unwrap();
    let mut status = async || kept.get("/").await.unwrap().status;
    // Not verified, then with a CA that did not sign it.
    assert_eq!(status().await, StatusCode::OK);
    world.write("trusted.pem", &authorities[1]);
    let ssl = json!({"ssl_trusted_certificate": "trusted.pem", "upstream_verify_default": true});
    reload(&mut world, json!({"apisix": {"ssl": ssl}})).await;
    assert_eq!(status().await, StatusCode::BAD_GATEWAY);
    fs::write(world.folder().join("trusted.pem"), &authorities[0]).unwrap();
    reload_file(&world).await;
    assert_eq!(status().await, StatusCode::OK);
    // Another CA: the kept connection to the upstream gets no further request.
    fs::write(world.folder().join("trusted.pem"), &authorities[1]).unwrap();
    reload_file(&world).await;
    assert_eq!(status().await, StatusCode::BAD_GATEWAY);
    fs::write(world.folder().join("trusted.pem"), "no certificate").unwrap();
    assert!(failed_reload(&world).await.contains("trusted.pem"));
    fs::write(world.folder().join("trusted.pem"), authorities.concat()).unwrap();
    reload_file(&world).await;
    assert_eq!(status().await, StatusCode::OK);
}

/// SIGHUP with a file that must not be applied; gives the log line.
async fn failed_reload(world: &World) -> String {
    let mark = world.node_log().mark();
    hang_up(world);
    world.node_log().line_after(mark, &["ERROR", "the settings were not reloaded, nothing has changed"]).await
}

#[tokio::test]
async fn a_bad_file_changes_nothing() {
    let (mut world, _upstream) = World::open(json!({"apisix": {"enable_server_tokens": false}})).await;
    let server =
        async |world: &World| world.client("app.test").get("/").await.unwrap().headers["server"].clone();
    let before = server(&world).await;
    let metric = "countersign_reload_success";
    assert_eq!(world.metric(&format!("{metric} ")).await, 1);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap();
    let bad = [
        (json!({"countersign": {"drain_delay": "soon"}}), "countersign.drain_delay"),
        (json!({"countersign": {"drain_delay": 0, "misspelt": 1}}), "unknown key"),
        (json!({"nginx_config": {"error_log": "missing/error.log"}}), "nginx_config.error_log"),
        (json!({"apisix": {"ssl": {"ssl_trusted_certificate": "missing.pem"}}}), "missing.pem"),
        (
            json!({"apisix": {"proxy_mode": "http&stream", "stream_proxy": {"tcp": [taken.to_string()]}}}),
            "is in use",
        ),
    ];
    let good = world.write_config("node-1");
    let text = fs::read_to_string(&good).unwrap();
    let failures = bad.len() as u64;
    for (more, words) in bad {
        // With a change that would show.
        let mut settings: Value = serde_json::from_str(&text).unwrap();
        e2e::settings::merge(&mut settings, json!({"apisix": {"enable_server_tokens": true}}));
        e2e::settings::merge(&mut settings, more);
        fs::write(&good, settings.to_string()).unwrap();
        let line = failed_reload(&world).await;
        let words = if words == "is in use" { "Address already in use" } else { words };
        assert!(line.contains(words), "{words}: {line}");
        assert_eq!(server(&world).await, before);
        assert_eq!(world.metric(&format!("{metric} ")).await, 0);
    }
    assert_eq!(world.metric("countersign_reloads_total{result=\"failed\"}").await, failures);
    reload(&mut world, json!({})).await;
    assert_eq!(world.metric(&format!("{metric} ")).await, 1);
    assert_eq!(world.metric("countersign_reloads_total{result=\"applied\"}").await, 1);
}

#[tokio::test]
async fn the_command_ends_with_the_result() {
    let (mut world, _upstream) = World::open(json!({})).await;
    let run = async |world: &World| {
        let config = world.write_config("node-1");
        run_to_end("dataplane", &["reload", "-c", config.to_str().unwrap()], world.folder()).await
    };
    world.change_settings(json!({"countersign": {"drain_idle_timeout": 7, "workers": 1}}));
    let output = run(&world).await;
    assert!(output.status.success(), "{output:?}");
    assert!(
        output.stdout.contains("applied") && output.stdout.contains("countersign.drain_idle_timeout"),
        "{output:?}"
    );
    assert!(
        output.stdout.contains("need an upgrade") && output.stdout.contains("countersign.workers"),
        "{output:?}"
    );

    for (more, words) in [
        (json!({"countersign": {"drain_delay": "soon"}}), "countersign.drain_delay: expected"),
        // Only the running process finds this one.
        (
            json!({"countersign": {"drain_delay": 0}, "nginx_config": {"error_log": "missing/error.log"}}),
            "missing/error.log",
        ),
    ] {
        world.change_settings(more);
        let output = run(&world).await;
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(output.stderr.contains(words) && output.stdout.is_empty(), "{output:?}");
        world.node_log().line_with(&["ERROR", "the settings were not reloaded", words]).await;
    }
    world.change_settings(json!({"nginx_config": {"error_log": null}}));
    world.stop_node().await;
    let output = run(&world).await;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(output.stderr.contains("does not run with this configuration file"), "{output:?}");
}

#[tokio::test]
async fn commands_work_with_a_broken_settings_file() {
    let (mut world, _upstream) = World::open(json!({})).await;
    let config = world.write_config("node-1");
    let run = async |world: &World, verb: &str| {
        run_to_end("dataplane", &[verb, "-c", config.to_str().unwrap()], world.folder()).await
    };
    let checked = run(&world, "check").await;
    assert!(checked.status.success() && checked.stdout.contains("is fine"), "its own ports: {checked:?}");
    let good = fs::read_to_string(&config).unwrap();
    let settings = conf::load(&config).unwrap();
    let mut unknown: Value = serde_json::from_str(&good).unwrap();
    e2e::settings::merge(&mut unknown, json!({"no_such_key": 1}));
    let last_good = settings.countersign.node.last_good.display();
    let no_yaml = format!("countersign:\n  node:\n    last_good: {last_good}\napisix: [\n");
    for (broken, words) in [(unknown.to_string(), "no_such_key"), (no_yaml, "not valid YAML")] {
        fs::write(&config, broken).unwrap();
        let pid = run(&world, "pid").await;
        assert!(pid.status.success() && pid.stdout.trim().parse::<u32>().is_ok(), "{pid:?}");
        let failed = run(&world, "reload").await;
        assert!(failed.status.code() == Some(1) && failed.stderr.contains(words), "{failed:?}");
        world.node_log().line_with(&["ERROR", "the settings were not reloaded", words]).await;
    }
    world.stop_node().await;
    assert_eq!(run(&world, "pid").await.status.code(), Some(3));
    fs::write(&config, &good).unwrap();
    let listen = *settings.apisix.ssl.listen.first().unwrap();
    assert!(run(&world, "check").await.status.success());
    let _taken = std::net::TcpListener::bind(listen).unwrap();
    let failed = run(&world, "check").await;
    assert!(failed.status.code() == Some(1) && failed.stderr.contains("apisix.ssl.listen"), "{failed:?}");
}

#[tokio::test]
async fn keys_that_need_an_upgrade_are_named() {
    let (mut world, _upstream) = World::open(json!({})).await;
    let more = json!({
        "countersign": {"workers": 1, "drain_idle_timeout": 7},
        "apisix": {"enable_http2": false},
    });
    for applied in ["countersign.drain_idle_timeout; these", "settings name were read again; these"] {
        let line = reload(&mut world, more.clone()).await;
        assert!(line.contains(applied), "{line}");
        let (_, upgrade) = line.split_once("need an upgrade").unwrap();
        assert!(upgrade.contains("apisix.enable_http2") && upgrade.contains("countersign.workers"), "{line}");
    }
    let reply = world.client("app.test").http(Http::Two).get("/").await.unwrap();
    assert_eq!(reply.status, StatusCode::OK);
}

#[tokio::test]
async fn listeners_appear_and_vanish_under_load() {
    let mut loaded = loaded_world(json!({})).await;
    let load = SteadyLoad::start(&loaded.targets);
    let world = &mut loaded.world;
    load.more(100).await;
    let (plain, proxied) = (Reservation::any(), Reservation::any());
    let (plain_at, proxied_at) = (plain.address(), proxied.address());
    drop((plain, proxied));
    let stream = |more: Vec<Value>| {
        let mut all = vec![json!({"addr": "127.0.0.1:0", "tls": true}), json!("127.0.0.1:0")];
        all.extend(more);
        json!({"apisix": {"stream_proxy": {"tcp": all}}})
    };
    let appearing = json!({"apisix": {"proxy_protocol": {"listen_http_port": proxied_at.port()}}});
    reload(world, appearing).await;
    reload(world, stream(vec![json!(plain_at.to_string())])).await;
    let mut echo = TcpStream::connect(plain_at).await.unwrap();
    echoes(&mut echo).await;
    TcpStream::connect(("127.0.0.1", proxied_at.port())).await.unwrap();
    load.more(100).await;

    // Both vanish: an open connection goes on, and the port is free.
    reload(world, stream(vec![])).await;
    reload(world, json!({"apisix": {"proxy_protocol": null}})).await;
    let closed = async { while TcpStream::connect(plain_at).await.is_ok() {} };
    bounded("the listener is closed", closed).await;
    std::net::TcpListener::bind(plain_at).unwrap();
    echoes(&mut echo).await;

    load.more(100).await;
    load.stop().await.assert_flawless();
}

async fn echoes(stream: &mut TcpStream) {
    use tokio::io::AsyncWriteExt as _;
    stream.write_all(b"ping").await.unwrap();
    let mut back = [0; 4];
    bounded("the echo", stream.read_exact(&mut back)).await.unwrap();
    assert_eq!(&back, b"ping");
}

#[tokio::test]
async fn twenty_reloads_under_load_fail_nothing() {
    let mut loaded = loaded_world(json!({})).await;
    let load = SteadyLoad::start(&loaded.targets);
    let world = &mut loaded.world;
    for nth in 0..20 {
        let timeout = 60 + nth;
        let more = json!({
            "nginx_config": {"http": {"keepalive_timeout": format!("{timeout}s"), "upstream": {"keepalive": 10 + nth}}},
            "countersign": {"limits": {"connections_per_worker": 1000 + nth}},
        });
        let line = reload(world, more).await;
        assert!(line.contains("applied"), "{line}");
        load.more(20).await;
    }
    load.stop().await.assert_flawless();
}

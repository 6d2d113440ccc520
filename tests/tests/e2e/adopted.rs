//! Stored documents that can no longer be compiled block their resources: no wildcard site serves
//! the name, and no broader route takes the requests. The tests remove keyring entries and
//! environment variables; documents of other programs take the same path, but need a store that
//! another program can write to.

use std::time::{Duration, Instant};

use e2e::client::{HttpConnection, bounded};
use e2e::credentials::Credential;
use e2e::documents::{protected, route, site, weighted};
use e2e::upstream::Upstream;
use e2e::upstream::tcp::{Script, TcpUpstream};
use e2e::world::World;
use http::StatusCode;
use rustls::AlertDescription;
use serde_json::{Value, json};

use crate::stream::{ask_plain, hello, streaming};

const OLD: &str = "0123456789abcdef";
const NEW: &str = "fedcba9876543210";

fn keyring(entries: &[&str]) -> Value {
    json!({"apisix": {"data_encryption": {"keyring": entries}}})
}

/// Restarts the control plane with another keyring or environment and waits until the node is up to
/// date.
async fn restarted(world: &mut World) {
    world.stop_control().await;
    world.start_control().await;
    let fleet = world.admin().get("dataplanes").await;
    world.wait_acknowledged(fleet.body["revision"].as_u64().expect("the store has a revision")).await;
}

async fn restarted_with(world: &mut World, entries: &[&str]) {
    world.change_settings(keyring(entries));
    restarted(world).await;
}

/// `*.app.test` without a client policy, with a route to the upstream.
async fn everything_else(world: &World, upstream: &Upstream) {
    let wildcard = site(&world.credentials.servers.server(&["*.app.test"]), "*.app.test");
    let all = json!({"uri": "/*", "upstream": {"nodes": weighted(&[upstream.address()])}});
    world.apply(&[("ssls/wildcard", wildcard), ("routes/all", all)]).await;
}

async fn status(session: &mut HttpConnection, host: &str, path: &str) -> StatusCode {
    let mut request = session.request(http::Method::GET, path, e2e::client::full(""));
    request.headers_mut().insert("host", host.parse().unwrap());
    session.fetch(request).await.unwrap_or_else(|error| panic!("{host}{path}: {error}")).status
}

/// The wildcard site is served, and its certificate covers the other name, but that name is
/// rejected.
async fn refused_and_not_answered_by_the_wildcard(world: &World, why: &str) {
    for client in [world.client("secret.app.test"), world.verified_client("secret.app.test")] {
        assert_eq!(client.expect_alert().await, AlertDescription::UnrecognisedName);
    }
    let mut other = world.client("other.app.test").connect().await.unwrap();
    assert_eq!(status(&mut other, "other.app.test", "/").await, StatusCode::OK);
    assert_eq!(status(&mut other, "secret.app.test", "/").await, StatusCode::SERVICE_UNAVAILABLE);
    assert!(world.metric("countersign_errors_total{reason=\"blocked_site\"}").await >= 3);
    world.node_log().line_with(&["handshake rejected", "blocked_site", "ssl secret is blocked", why]).await;
    world.control_log().line_with(&["ERROR", "a stored document is not usable", "ssls/secret", why]).await;
    let found = world.admin().get("lint").await.body;
    let of_site = |found: &&Value| found["resource"] == "ssls/secret" && found["severity"] == "error";
    let of_this_site: Vec<_> = found["list"].as_array().unwrap().iter().filter(of_site).collect();
    assert!(of_this_site.len() == 1 && of_this_site[0]["message"].as_str().unwrap().contains(why), "{found}");
}

fn secret(world: &World) -> (Credential, Value) {
    let credential = world.credentials.servers.server(&["secret.app.test"]);
    let document = protected(site(&credential, "secret.app.test"), &world.credentials.clients);
    (credential, document)
}

#[tokio::test]
async fn a_site_with_an_undecryptable_key_shadows_the_wildcard() {
    let mut world = World::builder().settings(keyring(&[OLD])).start().await;
    let upstream = Upstream::plain("plain").await;
    world.apply(&[("ssls/secret", secret(&world).1)]).await;
    restarted_with(&mut world, &[NEW, OLD]).await;
    everything_else(&world, &upstream).await;
    let mut live = world.verified_client("secret.app.test").connect().await.unwrap();
    assert_eq!(live.get("/").await.unwrap().status, StatusCode::OK);

    restarted_with(&mut world, &[NEW]).await;
    // Connections accepted before are closed, too.
    let since = Instant::now();
    bounded("the end of a live connection", live.ended()).await;
    assert!(since.elapsed() < Duration::from_secs(2), "{:?}", since.elapsed());
    refused_and_not_answered_by_the_wildcard(&world, "failed to decrypt previous encrypted key").await;
    // A node that starts from its last-good file is tested, too. The file has the revision, so a
    // new one is needed.
    let revision = world.apply(&[("upstreams/u", json!({"nodes": weighted(&[upstream.address()])}))]).await;
    world.wait_persisted(revision).await;
    world.kill_control().await;
    world.kill_node().await;
    world.start_node().await;
    assert_eq!(
        world.verified_client("secret.app.test").expect_alert().await,
        AlertDescription::UnrecognisedName
    );
    assert_eq!(world.client("other.app.test").get("/").await.unwrap().status, StatusCode::OK);

    world.change_settings(keyring(&[NEW, OLD]));
    world.start_control().await;
    let fleet = world.admin().get("dataplanes").await;
    world.wait_acknowledged(fleet.body["revision"].as_u64().unwrap()).await;
    assert_eq!(world.verified_client("secret.app.test").get("/").await.unwrap().status, StatusCode::OK);
    world.client("secret.app.test").expect_alert().await;
}

#[tokio::test]
async fn a_site_with_an_unset_variable_shadows_the_wildcard() {
    let builder = World::builder();
    let pair = e2e::credentials::Authority::root("Elsewhere").server(&["secret.app.test"]);
    let mut world = builder
        .control_environment("SECRET_CERT", &pair.certificate_pem)
        .control_environment("SECRET_KEY", &pair.key_pem)
        .start()
        .await;
    let upstream = Upstream::plain("plain").await;
    everything_else(&world, &upstream).await;
    let mut document = secret(&world).1;
    document["cert"] = json!("$env://SECRET_CERT");
    document["key"] = json!("$env://SECRET_KEY");
    world.apply(&[("ssls/secret", document)]).await;
    assert_eq!(world.client("other.app.test").get("/").await.unwrap().status, StatusCode::OK);
    world.change_control_environment("SECRET_KEY", None);
    restarted(&mut world).await;
    refused_and_not_answered_by_the_wildcard(&world, "variable SECRET_KEY is not set").await;
}

/// The client certificate key of an upstream cannot be decrypted, in each kind of document.
#[tokio::test]
async fn an_undecryptable_upstream_key_blocks_and_shadows() {
    let mut settings = streaming();
    e2e::settings::merge(&mut settings, keyring(&[OLD]));
    let mut world = World::builder().settings(settings).start().await;
    let upstream = Upstream::plain("plain").await;
    let streams = TcpUpstream::plain("broader", Script::Greet).await;
    let identity = world.credentials.clients.client("gateway");
    let secured = |nodes: Value| {
        let tls = json!({"client_cert": identity.certificate_pem, "client_key": identity.key_pem});
        json!({"scheme": "https", "nodes": nodes, "tls": tls})
    };
    let own = secured(weighted(&[upstream.address()]));
    let nodes = weighted(&[upstream.address()]);
    let port = world.stream(1).port();
    world
        .apply(&[
            ("routes/all", json!({"uri": "/*", "upstream": {"nodes": nodes}})),
            ("routes/inline", json!({"uri": "/inline", "upstream": own})),
            ("upstreams/u", own.clone()),
            ("routes/named", json!({"uri": "/named", "upstream_id": "u"})),
            ("services/s", json!({"upstream": own})),
            // The service is unknown, so even a route with a plain upstream of its own is blocked.
            ("routes/served", json!({"uri": "/served", "service_id": "s", "upstream": {"nodes": nodes}})),
            ("stream_routes/1", json!({"server_port": port, "upstream": own})),
            ("stream_routes/2", json!({"upstream": {"nodes": weighted(&[streams.address()])}})),
        ])
        .await;
    restarted_with(&mut world, &[NEW, OLD]).await;
    world.apply(&[("ssls/app", world.open_site())]).await;
    // The control plane starts only if it can decrypt most keys of the store.
    for id in ["a", "b", "c", "d"] {
        world.apply(&[(&format!("upstreams/{id}"), own.clone())]).await;
    }
    restarted_with(&mut world, &[NEW]).await;
    let mut session = world.plain("app.test").await;
    for (path, reason) in
        [("/inline", "blocked_route"), ("/named", "blocked_upstream"), ("/served", "blocked_service")]
    {
        let reply = session.get(path).await.unwrap();
        assert_eq!(reply.status, StatusCode::SERVICE_UNAVAILABLE, "{path}");
        assert!(!reply.text().contains("blocked"), "reasons are not for the peer: {}", reply.text());
        let refused = world.metric(&format!("countersign_errors_total{{reason=\"{reason}\"}}")).await;
        assert_eq!(refused, 1, "{reason}");
        let question = json!({"sni": "app.test", "uri": path});
        let explained = world.admin().call(http::Method::POST, "explain", Some(&question)).await.unwrap();
        assert_eq!(explained.body["outcome"]["reason"], reason);
    }
    assert_eq!(session.get("/else").await.unwrap().status, StatusCode::OK);
    assert_eq!(ask_plain(&world).await, "");
    assert_eq!(streams.connections(), 0);
    assert_eq!(world.metric("countersign_errors_total{reason=\"blocked_stream_route\"}").await, 1);

    // Written again, the resource is served; the broader one was served all the time.
    let clear = route("app.test", "/inline", &[upstream.address()]);
    let stream = json!({"server_port": port, "upstream": {"nodes": weighted(&[streams.address()])}});
    world.apply(&[("routes/inline", clear), ("stream_routes/1", stream)]).await;
    assert_eq!(session.get("/inline").await.unwrap().status, StatusCode::OK);
    assert_eq!(ask_plain(&world).await, hello("broader"));
}

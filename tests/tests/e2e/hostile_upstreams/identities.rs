//! Two identities to one node never share a connection, under load and while one is rotated.

use std::time::Duration;

use e2e::credentials::Authority;
use e2e::upstream::Upstream;
use e2e::world::World;
use futures_util::future::join_all;
use http::StatusCode;
use serde_json::{Value, json};
use tokio::time::timeout;

/// Client connections, and requests of each.
const CLIENTS: usize = 10;
const REQUESTS: usize = 500;
/// The time between two rotations.
const PERIOD: Duration = Duration::from_millis(100);

fn identity(authority: &Authority, name: &str) -> Value {
    let issued = authority.client(name);
    json!({"type": "client", "cert": issued.certificate_pem, "key": issued.key_pem})
}

/// Asks for both routes in turn; each answer must name that route's identity.
async fn load(world: &World) {
    let mut session = world.plain("app.test").await;
    for number in 0..REQUESTS {
        let route = if number % 2 == 0 { "one" } else { "two" };
        let reply = session.get(&format!("/{route}")).await.unwrap();
        assert_eq!(reply.status, StatusCode::OK, "{route}: {}", reply.text());
        let subject = reply.json()["client_subject"].as_str().unwrap_or_default().to_owned();
        assert!(subject.starts_with(&format!("CN={route}-")), "{route} was served as {subject}");
    }
}

#[tokio::test]
async fn two_identities_never_share_a_connection() {
    let world = World::builder().settings(json!({"countersign": {"workers": 2}})).start().await;
    let authority = &world.credentials.upstreams;
    let node = Upstream::demanding("strict", &authority.server(&["up.test"]), authority).await;
    let route = |name: &str| {
        let nodes = json!({node.address().to_string(): 1});
        let tls = json!({"client_cert_id": name});
        let upstream = json!({"scheme": "https", "nodes": nodes, "tls": tls});
        json!({"uri": format!("/{name}"), "upstream": upstream})
    };
    world
        .apply(&[
            ("ssls/one", identity(authority, "one-0")),
            ("ssls/two", identity(authority, "two-0")),
            ("routes/one", route("one")),
            ("routes/two", route("two")),
        ])
        .await;
    let mut clients = Box::pin(join_all((0..CLIENTS).map(|_| load(&world))));
    let mut generation = 0;
    while timeout(PERIOD, &mut clients).await.is_err() {
        generation += 1;
        let name = format!("one-{generation}");
        world.admin().put("ssls/one", &identity(authority, &name)).await;
    }
    assert!(generation > 3, "{generation} rotations came while there was load");
    // The last one is what new requests use.
    world.apply(&[("ssls/one", identity(authority, "one-last"))]).await;
    let mut session = world.plain("app.test").await;
    assert_eq!(session.get("/one").await.unwrap().json()["client_subject"], "CN=one-last");
    assert_eq!(session.get("/two").await.unwrap().json()["client_subject"], "CN=two-0");
}

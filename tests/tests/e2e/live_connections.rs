//! A changed client policy closes the open connections that it rejects, within a second, and no
//! others.
//!
//! Each case has bystanders, clients of the same site that the new policy accepts and clients of
//! another site, whose connections must still work afterwards.

use std::time::{Duration, Instant};

use e2e::client::{Http, HttpClient, HttpConnection, full};
use e2e::credentials::Credential;
use e2e::documents::{protected, route, site};
use e2e::upstream::Upstream;
use e2e::world::World;
use http::{Method, StatusCode};
use pki::ca::LeafSpec;
use rustls::pki_types::UnixTime;
use serde_json::{Value, json};

/// From the Admin API's response to the end of a connection.
const BOUND: Duration = Duration::from_secs(1);

struct Stage {
    world: World,
    upstream: Upstream,
    /// Two clients of one CA.
    alice: Credential,
    bob: Credential,
}

/// One connection of each protocol, idle after a request.
struct Open(Vec<HttpConnection>);

impl Stage {
    async fn new() -> Self {
        let world = World::start().await;
        let upstream = Upstream::plain("plain").await;
        let (alice, bob) =
            (world.credentials.clients.client("alice"), world.credentials.clients.client("bob"));
        let stage = Self { world, upstream, alice, bob };
        stage
            .world
            .apply(&[
                ("ssls/app", stage.world.protected_site()),
                ("ssls/other", stage.other()),
                (
                    "routes/all",
                    json!({"uri": "/*", "upstream": {"nodes": {stage.upstream.address().to_string(): 1}}}),
                ),
            ])
            .await;
        stage
    }

    /// Another site for the same clients.
    fn other(&self) -> Value {
        let own = site(&self.world.credentials.servers.server(&["other.test"]), "other.test");
        protected(own, &self.world.credentials.clients)
    }

    fn revoking(&self, who: &[&Credential]) -> Value {
        let mut site = self.world.protected_site();
        site["client"]["crl"] = json!([self.world.credentials.clients.crl(who)]);
        site
    }

    async fn open(&self, host: &str, who: Option<&Credential>) -> Open {
        let mut open = Vec::new();
        for http in [Http::One, Http::Two] {
            let client = self.world.client(host).http(http);
            let client = who.map_or(client.clone(), |who| client.identity(who));
            let mut session = client.connect().await.expect("let in before");
            assert_eq!(session.get("/before").await.expect("served before").status, StatusCode::OK);
            open.push(session);
        }
        Open(open)
    }

    /// Applies a document and waits for the end of these connections, within the required bound.
    async fn ends(&self, documents: &[(&str, Value)], refused: Vec<Open>, bystanders: Vec<Open>) {
        self.world.apply(documents).await;
        let applied = Instant::now();
        for mut session in refused.into_iter().flat_map(|open| open.0) {
            session.ended().await;
        }
        assert!(applied.elapsed() < BOUND, "it took {:?}", applied.elapsed());
        for mut session in bystanders.into_iter().flat_map(|open| open.0) {
            let reply = session.get("/after").await.expect("a bystander's connection goes on");
            assert_eq!(reply.status, StatusCode::OK);
        }
    }
}

#[tokio::test]
async fn revoking_a_client_closes_its_connections_only() {
    let stage = Stage::new().await;
    let refused = vec![stage.open("app.test", Some(&stage.alice)).await];
    let bystanders = vec![
        stage.open("app.test", Some(&stage.bob)).await,
        stage.open("other.test", Some(&stage.alice)).await,
    ];
    stage.ends(&[("ssls/app", stage.revoking(&[&stage.alice]))], refused, bystanders).await;
    let line = stage
        .world
        .node_log()
        .line_with(&["connection closed", "policy_changed", "revoked", "app.test"])
        .await;
    assert!(line.contains("127.0.0.1:"), "{line}");
    // Again, with a list that revokes the second client, too, and the first no longer.
    let refused = vec![stage.open("app.test", Some(&stage.bob)).await];
    stage.ends(&[("ssls/app", stage.revoking(&[&stage.bob]))], refused, vec![]).await;
    stage.open("app.test", Some(&stage.alice)).await;
}

#[tokio::test]
async fn a_request_in_progress_is_ended_too() {
    let stage = Stage::new().await;
    let mut waiting = Vec::new();
    for http in [Http::One, Http::Two] {
        for path in ["/hold", "/halves"] {
            let mut session =
                stage.world.client("app.test").identity(&stage.alice).http(http).connect().await.unwrap();
            let before = stage.upstream.requests();
            let task = tokio::spawn(async move {
                let request = session.request(Method::GET, path, full(""));
                session.fetch(request).await
            });
            stage.upstream.arrived(before + 1).await;
            waiting.push(task);
        }
    }
    stage.world.apply(&[("ssls/app", stage.revoking(&[&stage.alice]))]).await;
    let applied = Instant::now();
    for task in waiting {
        let answer = e2e::client::bounded("the end of a request under way", task).await.unwrap();
        assert!(answer.is_err(), "{answer:?}");
    }
    assert!(applied.elapsed() < BOUND, "it took {:?}", applied.elapsed());
    stage.upstream.open_gate();
}

#[tokio::test]
async fn ca_depth_and_site_changes_close_connections() {
    let stage = Stage::new().await;
    let credentials = &stage.world.credentials;
    let deep = credentials.clients.intermediate("Department").client("carol");
    let open = |who: &Credential| {
        let who = who.clone();
        let stage = &stage;
        async move { stage.open("app.test", Some(&who)).await }
    };
    let (carol, alice) = (open(&deep).await, open(&stage.alice).await);
    let mut shallow = stage.world.protected_site();
    shallow["client"]["depth"] = json!(0);
    stage.ends(&[("ssls/app", shallow)], vec![carol], vec![alice]).await;

    let alice = open(&stage.alice).await;
    let other = stage.open("other.test", Some(&stage.alice)).await;
    let strange = protected(stage.world.open_site(), &credentials.untrusted);
    stage.ends(&[("ssls/app", strange)], vec![alice], vec![other]).await;

    for take_away in ["disable", "delete"] {
        stage.world.apply(&[("ssls/app", stage.world.protected_site())]).await;
        let alice = open(&stage.alice).await;
        let other = stage.open("other.test", Some(&stage.alice)).await;
        if take_away == "disable" {
            let mut disabled = stage.world.protected_site();
            disabled["status"] = json!(0);
            stage.ends(&[("ssls/app", disabled)], vec![alice], vec![other]).await;
        } else {
            let revision = stage.world.admin().delete("ssls/app").await;
            stage.world.wait_acknowledged(revision).await;
            stage.ends(&[], vec![alice], vec![other]).await;
        }
    }
}

#[tokio::test]
async fn requiring_certificates_closes_anonymous_connections() {
    let stage = Stage::new().await;
    stage.world.apply(&[("ssls/app", stage.world.open_site())]).await;
    let anonymous = stage.open("app.test", None).await;
    let other = stage.open("other.test", Some(&stage.bob)).await;
    stage.ends(&[("ssls/app", stage.world.protected_site())], vec![anonymous], vec![other]).await;

    // With skip rules, connections without an identity stay: each request is checked.
    let mut skipping = stage.world.protected_site();
    skipping["client"]["skip_mtls_uri_regex"] = json!(["^/(before|after)$"]);
    stage.world.apply(&[("ssls/app", skipping.clone())]).await;
    let (anonymous, alice) =
        (stage.open("app.test", None).await, stage.open("app.test", Some(&stage.alice)).await);
    skipping["client"]["crl"] = json!([stage.world.credentials.clients.crl(&[&stage.alice])]);
    stage.ends(&[("ssls/app", skipping)], vec![alice], vec![anonymous]).await;
}

#[tokio::test]
async fn an_expired_certificate_closes_its_connections() {
    let stage = Stage::new().await;
    let now = UnixTime::now().as_secs();
    let at = |seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds));
    // Two seconds are enough to connect even on a busy machine; otherwise `open` would fail.
    let spec = LeafSpec::client("dave").between(at(now - 60), at(now + 4));
    let dave = stage.world.credentials.clients.issue(&spec);
    let (dave, alice) =
        (stage.open("app.test", Some(&dave)).await, stage.open("app.test", Some(&stage.alice)).await);
    for mut session in dave.0 {
        session.ended().await;
    }
    let over = UnixTime::now().as_secs();
    assert!((now + 4..=now + 7).contains(&over), "ended {} s after its certificate", over - now - 4);
    stage.ends(&[], vec![], vec![alice]).await;
}

#[tokio::test]
async fn a_change_of_routes_revalidates_no_connection() {
    let stage = Stage::new().await;
    let alice = stage.open("app.test", Some(&stage.alice)).await;
    let document = route("app.test", "/*", &[stage.upstream.address()]);
    stage.ends(&[("routes/app", document)], vec![], vec![alice]).await;
}

/// Timing does not matter: a policy that changes during a client's handshake rejects it as well.
#[tokio::test]
async fn a_policy_change_during_handshakes_is_enforced() {
    let stage = Stage::new().await;
    let client: HttpClient = stage.world.client("app.test").identity(&stage.alice);
    for _ in 0..10 {
        stage.world.apply(&[("ssls/app", stage.world.protected_site())]).await;
        let mut opening = tokio::task::JoinSet::new();
        for _ in 0..20 {
            let client = client.clone();
            opening.spawn(async move { client.connect().await });
        }
        stage.world.apply(&[("ssls/app", stage.revoking(&[&stage.alice]))]).await;
        while let Some(opened) = opening.join_next().await {
            if let Ok(mut session) = opened.expect("no panic") {
                session.ended().await;
            }
        }
        stage.world.client("app.test").identity(&stage.alice).expect_alert().await;
    }
}

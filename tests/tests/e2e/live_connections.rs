//! A change of a site's policy ends the live connections that it refuses, within a second, and no other.
//!
//! Every case has bystanders: connections of the same site that the new policy lets in, and of another site. They must still answer
//! afterwards on the very same connection.

use std::time::{Duration, Instant};

use e2e::caller::{Caller, Http, Session, full};
use e2e::credentials::Credential;
use e2e::documents::{protected, route, site};
use e2e::upstream::Upstream;
use e2e::world::World;
use http::{Method, StatusCode};
use pki::ca::LeafSpec;
use rustls::pki_types::UnixTime;
use serde_json::{Value, json};

/// From the Admin API's answer to the end of a connection.
const BOUND: Duration = Duration::from_secs(1);

struct Stage {
    world: World,
    upstream: Upstream,
    /// Two clients of one CA.
    alice: Credential,
    bob: Credential,
}

/// A connection of each protocol; all have made a request and ask for nothing more.
struct Open(Vec<Session>);

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
            let caller = self.world.caller(host).http(http);
            let caller = who.map_or(caller.clone(), |who| caller.identity(who));
            let mut session = caller.connect().await.expect("let in before");
            assert_eq!(session.get("/before").await.expect("served before").status, StatusCode::OK);
            open.push(session);
        }
        Open(open)
    }

    /// Applies a document and waits for the end of these connections; the bound is the issue's own.
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
async fn revoking_a_client_ends_its_connections_and_no_other() {
    let stage = Stage::new().await;
    let refused = vec![stage.open("app.test", Some(&stage.alice)).await];
    let bystanders = vec![
        stage.open("app.test", Some(&stage.bob)).await,
        stage.open("other.test", Some(&stage.alice)).await,
    ];
    stage.ends(&[("ssls/app", stage.revoking(&[&stage.alice]))], refused, bystanders).await;
    let line =
        stage.world.node_log().line_with(&["connection closed", "policy_moved", "revoked", "app.test"]).await;
    assert!(line.contains("127.0.0.1:"), "{line}");
    // Once more, with a list that takes the second client away too, and the first back.
    let refused = vec![stage.open("app.test", Some(&stage.bob)).await];
    stage.ends(&[("ssls/app", stage.revoking(&[&stage.bob]))], refused, vec![]).await;
    stage.open("app.test", Some(&stage.alice)).await;
}

#[tokio::test]
async fn a_request_under_way_ends_too() {
    let stage = Stage::new().await;
    let mut waiting = Vec::new();
    for http in [Http::One, Http::Two] {
        for path in ["/hold", "/halves"] {
            let mut session =
                stage.world.caller("app.test").identity(&stage.alice).http(http).connect().await.unwrap();
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
        let answer = e2e::caller::bounded("the end of a request under way", task).await.unwrap();
        assert!(answer.is_err(), "{answer:?}");
    }
    assert!(applied.elapsed() < BOUND, "it took {:?}", applied.elapsed());
    stage.upstream.open_gate();
}

#[tokio::test]
async fn another_ca_another_depth_and_a_site_taken_away_end_connections() {
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
    let strange = protected(stage.world.open_site(), &credentials.strangers);
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
            stage.world.settled(revision).await;
            stage.ends(&[], vec![alice], vec![other]).await;
        }
    }
}

#[tokio::test]
async fn a_site_that_begins_to_insist_ends_who_showed_nothing() {
    let stage = Stage::new().await;
    stage.world.apply(&[("ssls/app", stage.world.open_site())]).await;
    let anonymous = stage.open("app.test", None).await;
    let other = stage.open("other.test", Some(&stage.bob)).await;
    stage.ends(&[("ssls/app", stage.world.protected_site())], vec![anonymous], vec![other]).await;

    // With skip rules nobody who never was anybody has to go: each request is judged.
    let mut skipping = stage.world.protected_site();
    skipping["client"]["skip_mtls_uri_regex"] = json!(["^/(before|after)$"]);
    stage.world.apply(&[("ssls/app", skipping.clone())]).await;
    let (anonymous, alice) =
        (stage.open("app.test", None).await, stage.open("app.test", Some(&stage.alice)).await);
    skipping["client"]["crl"] = json!([stage.world.credentials.clients.crl(&[&stage.alice])]);
    stage.ends(&[("ssls/app", skipping)], vec![alice], vec![anonymous]).await;
}

#[tokio::test]
async fn a_certificate_that_expires_ends_its_connections() {
    let stage = Stage::new().await;
    let now = UnixTime::now().as_secs();
    let at = |seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds));
    // Two seconds are enough to connect even on a busy machine; were they not, `open` would say so.
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
async fn a_change_of_routes_looks_through_nothing_and_ends_nothing() {
    let stage = Stage::new().await;
    let alice = stage.open("app.test", Some(&stage.alice)).await;
    let document = route("app.test", "/*", &[stage.upstream.address()]);
    stage.ends(&[("routes/app", document)], vec![], vec![alice]).await;
}

/// The verdict does not depend on the moment: a policy that moves while a client shakes hands refuses it as well.
#[tokio::test]
async fn a_policy_that_moves_during_handshakes_lets_nobody_through() {
    let stage = Stage::new().await;
    let caller: Caller = stage.world.caller("app.test").identity(&stage.alice);
    for _ in 0..10 {
        stage.world.apply(&[("ssls/app", stage.world.protected_site())]).await;
        let mut opening = tokio::task::JoinSet::new();
        for _ in 0..20 {
            let caller = caller.clone();
            opening.spawn(async move { caller.connect().await });
        }
        stage.world.apply(&[("ssls/app", stage.revoking(&[&stage.alice]))]).await;
        while let Some(opened) = opening.join_next().await {
            if let Ok(mut session) = opened.expect("no panic") {
                session.ended().await;
            }
        }
        stage.world.caller("app.test").identity(&stage.alice).refusal().await;
    }
}

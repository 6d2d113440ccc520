//! Sessions resume wherever a full handshake of the client would succeed, and nowhere else.
//!
//! The client offers the last session it got, to any name and site, and ignores its age. A session
//! that may not be resumed leads to a full handshake with its own verdict, never to a failed one.

mod openssl;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use e2e::client::{ClientError, Http, HttpClient, Tls};
use e2e::credentials::{Credential, certificates};
use e2e::documents::{protected, route, site};
use e2e::process::EVENT_TIMEOUT;
use e2e::upstream::Upstream;
use e2e::world::World;
use http::StatusCode;
use pki::ca::LeafSpec;
use rustls::client::{ClientSessionStore, Resumption, Tls12ClientSessionValue, Tls13ClientSessionValue};
use rustls::pki_types::{ServerName, UnixTime};
use rustls::time_provider::TimeProvider;
use rustls::{AlertDescription, ClientConfig, NamedGroup};
use serde_json::{Value, json};

const BOTH: [Tls; 2] = [Tls::V12, Tls::V13];

/// The last session, for any server, any number of times.
#[derive(Debug, Default)]
struct Greedy {
    tls12: Mutex<Option<Tls12ClientSessionValue>>,
    tls13: Mutex<Option<Tls13ClientSessionValue>>,
}

impl ClientSessionStore for Greedy {
    fn set_kx_hint(&self, _: ServerName<'static>, _: NamedGroup) {}
    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        None
    }
    fn set_tls12_session(&self, _: ServerName<'static>, session: Tls12ClientSessionValue) {
        *self.tls12.lock().unwrap() = Some(session);
    }
    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        self.tls12.lock().unwrap().clone()
    }
    fn remove_tls12_session(&self, _: &ServerName<'static>) {}
    fn insert_tls13_ticket(&self, _: ServerName<'static>, session: Tls13ClientSessionValue) {
        *self.tls13.lock().unwrap() = Some(session);
    }
    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.tls13.lock().unwrap().take()
    }
}

#[derive(Debug)]
struct Frozen(UnixTime);

impl TimeProvider for Frozen {
    fn current_time(&self) -> Option<UnixTime> {
        Some(self.0)
    }
}

fn greedy(client: &HttpClient) -> Arc<ClientConfig> {
    let mut config = client.config();
    config.resumption = Resumption::store(Arc::new(Greedy::default()));
    config.time_provider = Arc::new(Frozen(UnixTime::now()));
    Arc::new(config)
}

/// One request on a new connection: whether its session was resumed, and the status.
async fn visit(
    client: &HttpClient,
    config: &Arc<ClientConfig>,
    path: &str,
) -> Result<(bool, StatusCode), ClientError> {
    let mut session = client.connect_with(Arc::clone(config)).await?;
    let resumed = session.resumed();
    Ok((resumed, session.get(path).await?.status))
}

/// Makes a full handshake, then resumes; gives the configuration with the new ticket.
async fn resuming_config(client: &HttpClient) -> Arc<ClientConfig> {
    let config = greedy(client);
    assert_eq!(visit(client, &config, "/").await.unwrap(), (false, StatusCode::OK));
    assert_eq!(visit(client, &config, "/").await.unwrap(), (true, StatusCode::OK));
    config
}

const FULL: (bool, StatusCode) = (false, StatusCode::OK);
const RESUMED: (bool, StatusCode) = (true, StatusCode::OK);

async fn protected_world(settings: Value, nodes: &[&str]) -> (World, Upstream, u64) {
    let world = World::builder().settings(settings).nodes(nodes).start().await;
    let upstream = Upstream::plain("plain").await;
    let documents =
        [("ssls/app", world.protected_site()), ("routes/app", route("*.test", "/*", &[upstream.address()]))];
    let revision = world.apply(&documents).await;
    (world, upstream, revision)
}

async fn protected_app() -> (World, Upstream, u64) {
    protected_world(json!({}), &["node-1"]).await
}

async fn refused_tickets(world: &World, why: &str) -> u64 {
    world.metric(&format!("countersign_tls_tickets_rejected_total{{reason=\"{why}\"}}")).await
}

/// Offers the ticket in `config`: it must be read, not resumed, and not fail the handshake.
async fn offer_in_vain(
    world: &World,
    client: &HttpClient,
    config: &Arc<ClientConfig>,
) -> Result<StatusCode, ClientError> {
    let resumed = world.metric("countersign_tls_handshakes_total{resumed=\"true\"}").await;
    let unknown_key = refused_tickets(world, "unknown_key").await;
    let visited = visit(client, config, "/").await;
    assert_eq!(world.metric("countersign_tls_handshakes_total{resumed=\"true\"}").await, resumed);
    assert_eq!(refused_tickets(world, "unknown_key").await, unknown_key + 1, "the ticket was offered");
    visited.map(|(resumed, status)| {
        assert!(!resumed);
        status
    })
}

#[tokio::test]
async fn a_session_resumes_over_every_protocol_on_every_core() {
    let (world, upstream, _) = protected_app().await;
    for tls in BOTH {
        for http in [Http::One, Http::Two] {
            let client = world.verified_client("app.test").tls(tls).http(http);
            let config = resuming_config(&client).await;
            // The kernel spreads connections over two workers.
            for _ in 0..16 {
                assert_eq!(visit(&client, &config, "/").await.unwrap(), RESUMED, "{tls:?} {http:?}");
            }
        }
    }
    assert_eq!(world.metric("countersign_tls_handshakes_total{resumed=\"true\"}").await, 4 * 17);
    assert_eq!(world.metric("countersign_tls_handshakes_total{resumed=\"false\"}").await, 4);
    assert_eq!(upstream.requests(), 4 * 18);
}

#[tokio::test]
async fn a_client_keeps_its_identity_after_resumption() {
    let (world, _upstream, _) = protected_app().await;
    let mut skipping = world.protected_site();
    skipping["client"]["skip_mtls_uri_regex"] = json!(["^/open"]);
    world.apply(&[("ssls/app", skipping)]).await;
    let untrusted = world.client("app.test").identity(&world.credentials.untrusted.client("untrusted"));
    for tls in BOTH {
        // A verified client may request any path, an absent one only open paths; both resume as
        // they were.
        for (client, closed) in [
            (world.verified_client("app.test"), StatusCode::OK),
            (world.client("app.test"), StatusCode::BAD_REQUEST),
        ] {
            let client = client.tls(tls);
            let config = greedy(&client);
            assert_eq!(visit(&client, &config, "/open").await.unwrap(), FULL);
            for _ in 0..3 {
                assert_eq!(visit(&client, &config, "/open").await.unwrap(), RESUMED);
                assert_eq!(visit(&client, &config, "/closed").await.unwrap(), (true, closed));
            }
        }
        // A rejected client is asked again each time.
        let client = untrusted.clone().tls(tls);
        let config = greedy(&client);
        for _ in 0..3 {
            assert_eq!(visit(&client, &config, "/open").await.unwrap(), FULL);
            let closed = visit(&client, &config, "/closed").await.unwrap();
            assert_eq!(closed, (false, StatusCode::BAD_REQUEST));
        }
    }
}

/// The upstream's identity headers and a route's allow-list are the same after resumption.
#[tokio::test]
async fn a_resumed_identity_is_forwarded_and_matched() {
    let (world, upstream, _) = protected_app().await;
    let mut document = route("app.test", "/named", &[upstream.address()]);
    document["client_identity"] =
        json!({"forward": ["x_ssl_client", "client_cert", "xfcc"], "allow": [{"subject": "CN=good-client"}]});
    let mut other = route("app.test", "/others", &[upstream.address()]);
    other["client_identity"] = json!({"allow": [{"subject": "CN=other"}]});
    world.apply(&[("routes/named", document), ("routes/others", other)]).await;
    let forwarded = [
        "x-ssl-client-verify",
        "x-ssl-client-s-dn",
        "x-ssl-client-serial",
        "client-cert",
        "x-forwarded-client-cert",
    ];
    for tls in BOTH {
        let client = world.verified_client("app.test").tls(tls);
        let config = greedy(&client);
        let mut seen = Vec::new();
        for resumed in [false, true, true] {
            let mut session = client.connect_with(Arc::clone(&config)).await.unwrap();
            assert_eq!(session.resumed(), resumed, "{tls:?}");
            let reply = session.get("/named").await.unwrap();
            assert_eq!(reply.status, StatusCode::OK, "{}", reply.text());
            let headers = reply.json()["headers"].clone();
            assert!(forwarded.iter().all(|name| headers[name].is_string()), "{headers}");
            seen.push(forwarded.map(|name| headers[name].clone()));
            assert_eq!(session.get("/others").await.unwrap().status, StatusCode::FORBIDDEN);
        }
        assert!(seen.iter().all(|one| *one == seen[0]), "{tls:?}: {seen:?}");
    }
}

fn at(world: &World, address: SocketAddr, tls: Tls) -> HttpClient {
    let roots = certificates(world.credentials.servers.certificate_pem());
    HttpClient::new(address, "app.test", roots).identity(&world.credentials.client).tls(tls)
}

#[tokio::test]
async fn data_planes_resume_each_others_sessions() {
    let (mut world, _upstream, revision) = protected_world(json!({}), &["node-1", "node-2"]).await;
    world.wait_persisted(revision).await;
    let addresses = [world.node_address(0, "https"), world.node_address(1, "https")];
    for tls in BOTH {
        let [one, two] = addresses.map(|address| at(&world, address, tls));
        let config = resuming_config(&one).await;
        for client in [&two, &one, &two] {
            assert_eq!(visit(client, &config, "/").await.unwrap(), RESUMED, "{tls:?}");
        }
        // Killed and restarted, with its control plane and alone.
        world.kill_node().await;
        world.start_node().await;
        assert_eq!(visit(&one, &config, "/").await.unwrap(), RESUMED, "{tls:?}");
        world.kill_control().await;
        world.kill_node().await;
        world.start_node().await;
        assert_eq!(visit(&one, &config, "/").await.unwrap(), RESUMED, "{tls:?}");
        // A restarted control plane keeps its secrets.
        world.start_control().await;
        world.wait_acknowledged(revision).await;
        assert_eq!(visit(&two, &config, "/").await.unwrap(), RESUMED, "{tls:?}");
    }
}

#[tokio::test]
async fn a_session_outlives_a_rotation_of_secrets() {
    let settings = json!({"countersign": {"ticket_lifetime": 16}});
    let (world, _upstream, _) = protected_world(settings, &["node-1"]).await;
    let client = world.verified_client("app.test");
    let config = resuming_config(&client).await;
    let rings = world.metric("countersign_ticket_key_rotations_total").await;
    world.node_log().lines_with(&["new ticket secrets"], rings as usize + 1).await;
    assert_eq!(visit(&client, &config, "/").await.unwrap(), RESUMED);
    // It does not outlive its lifetime, however often it is resumed: the client must prove its key
    // again. (In its last second it gets no new ticket, so there may be none to reject.)
    let started = std::time::Instant::now();
    while visit(&client, &config, "/").await.unwrap() == RESUMED {
        assert!(started.elapsed() < EVENT_TIMEOUT);
    }
    let outlived = started.elapsed() >= std::time::Duration::from_secs(16);
    assert!(!outlived, "it did not end with the first handshake's lifetime");
}

#[tokio::test]
async fn a_ticket_is_not_valid_for_another_site() {
    let (world, upstream, _) = protected_app().await;
    let credentials = &world.credentials;
    let other = |name: &str| site(&credentials.servers.server(&[name]), name);
    world
        .apply(&[
            ("ssls/none", other("none.test")),
            ("ssls/same", protected(other("same.test"), &credentials.clients)),
            ("ssls/strange", protected(other("strange.test"), &credentials.untrusted)),
        ])
        .await;
    for tls in BOTH {
        let good = |host: &str| world.verified_client(host).tls(tls);
        // From the protected site to an open one, to one of the same authority, to one of another.
        for (host, expected) in
            [("none.test", Some(StatusCode::OK)), ("same.test", Some(StatusCode::OK)), ("strange.test", None)]
        {
            let config = resuming_config(&good("app.test")).await;
            let seen = upstream.requests();
            assert_eq!(offer_in_vain(&world, &good(host), &config).await.ok(), expected, "{tls:?} {host}");
            assert_eq!(upstream.requests(), seen + u64::from(expected.is_some()), "{tls:?} {host}");
        }
        // The attack: a session without a certificate, offered where one is required, under either
        // name.
        let anonymous = |host: &str| world.client(host).tls(tls);
        let config = resuming_config(&anonymous("none.test")).await;
        let seen = upstream.requests();
        let refused = offer_in_vain(&world, &anonymous("app.test"), &config).await.unwrap_err();
        assert_eq!(refused.alert, Some(AlertDescription::CertificateRequired), "{tls:?} {refused}");
        let config = resuming_config(&anonymous("none.test")).await;
        let seen = (seen, upstream.requests());
        let beside = anonymous("app.test").sni("none.test");
        assert_eq!(
            visit(&beside, &config, "/").await.unwrap(),
            (true, StatusCode::MISDIRECTED_REQUEST),
            "{tls:?}: it resumes where it was made, and Host is checked as ever"
        );
        assert_eq!(upstream.requests(), seen.1, "{tls:?}");
        assert_eq!(seen.0 + 2, seen.1, "nothing but the two visits of `resuming_config`");
    }
}

/// A change of the site after which no earlier session may resume, and whether the good client is
/// still accepted.
type Change<'a> = (&'static str, Box<dyn Fn(&mut Value) + 'a>, bool);

#[tokio::test]
async fn a_policy_change_ends_the_sessions_of_a_site() {
    let (world, upstream, _) = protected_app().await;
    let credentials = &world.credentials;
    let revoked = credentials.clients.client("revoked");
    let bundle =
        format!("{}{}", credentials.clients.certificate_pem(), credentials.untrusted.certificate_pem());
    let changes: [Change<'_>; 8] = [
        (
            "another CA",
            Box::new(|ssl| ssl["client"]["ca"] = json!(credentials.untrusted.certificate_pem())),
            false,
        ),
        ("one CA more", Box::new(|ssl| ssl["client"]["ca"] = json!(bundle)), true),
        ("another depth", Box::new(|ssl| ssl["client"]["depth"] = json!(3)), true),
        ("a CRL", Box::new(|ssl| ssl["client"]["crl"] = json!([credentials.clients.crl(&[&revoked])])), true),
        (
            "revoked",
            Box::new(|ssl| ssl["client"]["crl"] = json!([credentials.clients.crl(&[&credentials.client])])),
            false,
        ),
        ("a skip rule", Box::new(|ssl| ssl["client"]["skip_mtls_uri_regex"] = json!(["^/nothing"])), true),
        ("no client", Box::new(|ssl| drop(ssl.as_object_mut().unwrap().remove("client"))), true),
        ("versions", Box::new(|ssl| ssl["ssl_protocols"] = json!(["TLSv1.2"])), true),
    ];
    for tls in BOTH {
        for (what, change, let_in) in &changes {
            // An absent list stays as it was.
            let mut base = world.protected_site();
            base["client"]["crl"] = json!(null);
            world.apply(&[("ssls/app", base)]).await;
            if *what == "versions" && tls == Tls::V13 {
                continue; // that version is gone: there is no handshake to be had
            }
            let client = world.verified_client("app.test").tls(tls);
            let config = resuming_config(&client).await;
            let mut changed = world.protected_site();
            change(&mut changed);
            world.apply(&[("ssls/app", changed)]).await;
            let seen = upstream.requests();
            let visited = offer_in_vain(&world, &client, &config).await;
            assert_eq!(visited.is_ok(), *let_in, "{tls:?} {what}: {visited:?}");
            assert_eq!(upstream.requests(), seen + u64::from(*let_in), "{tls:?} {what}");
        }
    }
}

#[tokio::test]
async fn a_change_without_effect_on_verdicts_keeps_sessions() {
    let (world, _upstream, _) = protected_app().await;
    for tls in BOTH {
        let client = world.verified_client("app.test").tls(tls);
        let config = resuming_config(&client).await;
        // A renewed server certificate, another name, and the same document again.
        let mut renewed = world.protected_site();
        let credential = world.credentials.servers.server(&["app.test", "more.test"]);
        renewed["cert"] = json!(credential.certificate_pem);
        renewed["key"] = json!(credential.key_pem);
        renewed["snis"] = json!(["app.test", "more.test"]);
        for document in [renewed, world.protected_site(), world.protected_site()] {
            world.apply(&[("ssls/app", document)]).await;
            assert_eq!(visit(&client, &config, "/").await.unwrap(), RESUMED, "{tls:?}");
        }
    }
}

#[tokio::test]
async fn a_session_is_bound_to_its_name_within_a_site() {
    let (world, _upstream, _) = protected_app().await;
    let mut wild = site(&world.credentials.servers.server(&["app.test", "other.test"]), "app.test");
    wild["snis"] = json!(["app.test", "*.test"]);
    world.apply(&[("ssls/app", protected(wild, &world.credentials.clients))]).await;
    for tls in BOTH {
        let (app, other) =
            (world.verified_client("app.test").tls(tls), world.verified_client("other.test").tls(tls));
        let config = resuming_config(&app).await;
        assert_eq!(visit(&other, &config, "/").await.unwrap(), FULL, "{tls:?}");
        assert_eq!(visit(&other, &config, "/").await.unwrap(), RESUMED, "{tls:?}");
    }
}

fn short_lived(world: &World, seconds: u64) -> Credential {
    let now = UnixTime::now().as_secs();
    let time = |seconds| UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds));
    let spec = LeafSpec::client("short-lived").between(time(now - 60), time(now + seconds));
    world.credentials.clients.issue(&spec)
}

#[tokio::test]
async fn a_session_ends_with_its_clients_certificate() {
    let (world, _upstream, _) = protected_app().await;
    for tls in BOTH {
        let expired = refused_tickets(&world, "expired").await;
        let client = world.client("app.test").identity(&short_lived(&world, 8)).tls(tls);
        let config = resuming_config(&client).await;
        // The gateway ends an open connection with the certificate.
        let mut open = client.connect().await.unwrap();
        open.ended().await;
        let refused = visit(&client, &config, "/").await.unwrap_err();
        assert_eq!(refused.alert, Some(AlertDescription::CertificateExpired), "{tls:?} {refused}");
        assert_eq!(
            refused_tickets(&world, "expired").await,
            expired + 1,
            "{tls:?}: a full handshake was tried"
        );
    }
}

#[tokio::test]
async fn tickets_can_be_disabled() {
    let (mut world, _upstream, revision) = protected_app().await;
    world.wait_persisted(revision).await;
    let clients = BOTH.map(|tls| world.verified_client("app.test").tls(tls));
    let mut configs = Vec::new();
    for client in &clients {
        configs.push(resuming_config(client).await);
    }
    // A data plane by itself; its control plane serves others.
    world.stop_node().await;
    world.change_settings(json!({"apisix": {"ssl": {"ssl_session_tickets": false}}}));
    world.start_node().await;
    world.wait_acknowledged(revision).await;
    for (client, config) in clients.iter().zip(&configs) {
        assert_eq!(visit(client, config, "/").await.unwrap(), FULL, "an old one is not taken");
        assert_eq!(visit(client, config, "/").await.unwrap(), FULL, "and no new one is given");
    }
    assert_eq!(world.metric("countersign_ticket_key_rotations_total").await, 0, "no secret was sent");
}

#[tokio::test]
async fn a_foreign_session_leads_to_a_full_handshake() {
    let (world, _upstream, _) = protected_app().await;
    // An unrelated server with the gateway's name.
    let foreign = Upstream::tls("foreign", &world.credentials.servers.server(&["app.test"])).await;
    for tls in BOTH {
        let client = world.verified_client("app.test").tls(tls);
        let config = resuming_config(&at(&world, foreign.address(), tls)).await;
        assert_eq!(visit(&client, &config, "/").await.unwrap(), FULL, "{tls:?}");
        assert_eq!(visit(&client, &config, "/").await.unwrap(), RESUMED, "{tls:?}");
    }
}

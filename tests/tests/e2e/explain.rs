//! The explain API agrees with the data plane: each scenario is run and explained.
//!
//! The client's alert or status, the reason and rule in the data plane's log, and its counters must
//! match the answer of `POST explain`. A flood of rejected handshakes writes a bounded number of
//! log lines.

use std::time::Duration;

use e2e::client::{HttpClient, Tls};
use e2e::credentials::{Authority, Credential};
use e2e::documents::{route, site};
use e2e::upstream::Upstream;
use e2e::world::World;
use http::Method;
use pki::UnixTime;
use pki::ca::{self, AuthoritySpec, CrlSpec, LeafSpec};
use serde_json::{Value, json};

const DAY: u64 = 86_400;

fn day(from_today: i64) -> UnixTime {
    let today = i64::try_from(UnixTime::now().as_secs()).unwrap();
    let then = today + from_today * i64::try_from(DAY).unwrap();
    UnixTime::since_unix_epoch(Duration::from_secs(then.try_into().unwrap()))
}

/// An action of a client.
struct Scenario {
    what: &'static str,
    /// `client` of the site, which gets a name of its own.
    client: Value,
    shows: Option<Credential>,
    expected: &'static str,
    rule: Option<&'static str>,
}

fn scenario(
    what: &'static str,
    client: Value,
    shows: Option<Credential>,
    expected: &'static str,
    rule: Option<&'static str>,
) -> Scenario {
    Scenario { what, client, shows, expected, rule }
}

fn credential(issued: &ca::IssuedCertificate) -> Credential {
    Credential { certificate_pem: issued.chain_pem.clone(), key_pem: issued.key_pem.to_string() }
}

/// A counter of the first node.
async fn counter(world: &World, name: &str) -> u64 {
    let text = world.status("/metrics").await.text();
    let line =
        text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{name}: {text}"));
    line.trim().parse().unwrap()
}

/// Counters of a reason and, for certificates, of a rule.
async fn counted(world: &World, reason: &str, rule: Option<&str>) -> (u64, u64) {
    let by_reason = counter(world, &format!("countersign_errors_total{{reason=\"{reason}\"}}")).await;
    let by_rule = match rule {
        Some(rule) => {
            counter(world, &format!("countersign_client_certificate_rejections_total{{reason=\"{rule}\"}}"))
                .await
        }
        None => 0,
    };
    (by_reason, by_rule)
}

async fn explain(world: &World, question: Value) -> Value {
    let answer = world.admin().call(Method::POST, "explain", Some(&question)).await.unwrap();
    assert!(answer.status.is_success(), "{}", answer.reply.text());
    answer.body
}

/// The alert that ends a handshake, in the spelling of RFC 8446.
async fn alert(client: &HttpClient) -> String {
    let camel =
        format!("{:?}", client.expect_alert().await).replace("recognised", "recognized").replace("CA", "Ca");
    let snake = camel.chars().flat_map(|letter| {
        let gap = letter.is_uppercase().then_some('_');
        gap.into_iter().chain(letter.to_lowercase())
    });
    snake.skip(1).collect()
}

/// Every way in which a client's handshake is rejected.
fn handshakes() -> Vec<Scenario> {
    let root = ca::Authority::root(&AuthoritySpec::new("Root")).unwrap();
    let ca = root.certificate_pem();
    let plain = || json!({"ca": ca, "depth": 1});
    let alice = LeafSpec::client("alice");
    let by = |authority: &ca::Authority, spec: &LeafSpec| Some(credential(&authority.issue(spec).unwrap()));
    let between = root.intermediate(&AuthoritySpec::new("Between")).unwrap();
    let untrusted = ca::Authority::root(&AuthoritySpec::new("Untrusted")).unwrap();
    let namesake = ca::Authority::root(&AuthoritySpec::new("Root")).unwrap();
    let short = ca::Authority::root(&AuthoritySpec::new("Short").path_length(0)).unwrap();
    let below_short = short.intermediate(&AuthoritySpec::new("Below")).unwrap();
    let narrow = ca::Authority::root(&AuthoritySpec::new("Narrow").permit_dns("ours.test")).unwrap();
    let ended = root.intermediate(&AuthoritySpec::new("Ended").valid(day(-30), 10)).unwrap();
    let revoked = root.issue(&alice).unwrap();
    let list = |spec: CrlSpec| root.crl_pem(&spec).unwrap();
    let current = list(CrlSpec::new().revoke(&revoked.certificate).between(day(-1), day(9)));
    let stale = list(CrlSpec::new().between(day(-9), day(-1)));
    let rejected =
        |name, policy, shows, reason| scenario(name, policy, shows, "bad_certificate", Some(reason));
    vec![
        scenario("nothing", plain(), None, "no_certificate", None),
        rejected("an untrusted CA", plain(), by(&untrusted, &alice), "unknown_issuer"),
        rejected("an expired one", plain(), by(&root, &alice.clone().valid(day(-9), 2)), "expired"),
        rejected("an expired intermediate", plain(), by(&ended, &alice), "expired"),
        rejected("one of tomorrow", plain(), by(&root, &alice.clone().valid(day(1), 2)), "not_yet_valid"),
        rejected("a server's", plain(), by(&root, &LeafSpec::server("alice")), "invalid_purpose"),
        rejected("a namesake's", plain(), by(&namesake, &alice), "bad_signature"),
        rejected("too deep", json!({"ca": ca, "depth": 0}), by(&between, &alice), "depth_exceeded"),
        rejected(
            "a CA's limit",
            json!({"ca": short.certificate_pem(), "depth": 3}),
            by(&below_short, &alice),
            "path_length_exceeded",
        ),
        rejected(
            "another name",
            json!({"ca": narrow.certificate_pem()}),
            by(&narrow, &alice.clone().dns("theirs.test")),
            "name_constraint_violation",
        ),
        rejected("revoked", json!({"ca": ca, "crl": [current]}), Some(credential(&revoked)), "revoked"),
        rejected(
            "a stale list",
            json!({"ca": ca, "crl": [stale]}),
            by(&root, &alice),
            "unknown_revocation_status",
        ),
    ]
}

/// The client of a scenario, and what the explain API needs about it.
fn client(world: &World, name: &str, shows: Option<&Credential>) -> (HttpClient, Value) {
    let client = world.client(name);
    match shows {
        Some(identity) => {
            (client.identity(identity), json!({"sni": name, "client_cert": identity.certificate_pem}))
        }
        None => (client, json!({"sni": name})),
    }
}

#[tokio::test]
async fn rejected_handshakes_are_explained() {
    let world = World::start().await;
    let scenarios = handshakes();
    let mut revision = 0;
    for (number, scenario) in scenarios.iter().enumerate() {
        let name = format!("s{number}.test");
        let mut document = site(&world.credentials.servers.server(&[&name]), &name);
        document["client"] = scenario.client.clone();
        revision = world.admin().put(&format!("ssls/{number}"), &document).await;
    }
    world.wait_acknowledged(revision).await;
    for (number, scenario) in scenarios.iter().enumerate() {
        let Scenario { what, expected, rule, .. } = scenario;
        let (client, question) = client(&world, &format!("s{number}.test"), scenario.shows.as_ref());
        let explained = explain(&world, question).await;
        let outcome = &explained["outcome"];
        assert_eq!(outcome["result"], "handshake_rejected", "{what}: {explained}");
        assert_eq!(
            (outcome["reason"].as_str(), outcome["verify_reason"].as_str()),
            (Some(*expected), *rule),
            "{what}"
        );
        assert!(outcome["fix"].as_str().is_some_and(|fix| !fix.is_empty()), "{what}: {explained}");
        for tls in [Tls::V12, Tls::V13] {
            let before = counted(&world, expected, *rule).await;
            let seen = alert(&client.clone().tls(tls)).await;
            assert_eq!(outcome["alert"], seen, "{what} {tls:?}");
            let after = counted(&world, expected, *rule).await;
            assert_eq!(after, (before.0 + 1, before.1 + u64::from(rule.is_some())), "{what} {tls:?}");
        }
        let mut words = vec![
            format!("sni=\"s{number}.test\""),
            format!("reason=\"{expected}\""),
            "peer=127.0.0.1:".into(),
        ];
        words.extend(rule.map(|rule| format!("verify_reason=\"{rule}\"")));
        if let Some(shown) = explained["client_certificate"].get("leaf") {
            for field in ["subject", "issuer", "serial", "fingerprint"] {
                words.push(format!("{field}={}", shown[field]));
            }
        }
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        world.node_log().line_with(&words).await;
    }
}

#[tokio::test]
async fn names_without_a_site_are_explained() {
    let world = World::start().await;
    world.apply(&[("ssls/wild", site(&world.credentials.site, "*.test"))]).await;
    for (sni, reason) in [(Some("a.b.test"), "no_site"), (Some("other.example"), "no_site"), (None, "no_sni")]
    {
        let client = world.client("a.test");
        let client = sni.map_or_else(|| client.clone().no_sni(), |sni| client.clone().sni(sni));
        let explained = explain(&world, json!({"sni": sni})).await;
        let before = counted(&world, reason, None).await.0;
        let seen = alert(&client).await;
        let outcome = &explained["outcome"];
        assert_eq!(outcome["alert"], seen, "{sni:?}");
        assert_eq!(outcome["reason"], reason, "{sni:?}: {explained}");
        assert_eq!(counted(&world, reason, None).await.0, before + 1, "{sni:?}");
        let shown = sni.map(|sni| format!("sni=\"{sni}\"")).unwrap_or_default();
        world.node_log().line_with(&["handshake rejected", &format!("reason=\"{reason}\""), &shown]).await;
    }
}

/// Sites and routes for requests: two sites skip `^/free`, one is open.
async fn request_world() -> (World, Upstream) {
    let world = World::start().await;
    let upstream = Upstream::plain("plain").await;
    let skipping = |name: &str| {
        let mut document = site(&world.credentials.servers.server(&[name]), name);
        let ca = world.credentials.clients.certificate_pem();
        document["client"] = json!({"ca": ca, "skip_mtls_uri_regex": ["^/free"]});
        document
    };
    let nodes = [upstream.address()];
    let mut bare = route("bare.test", "/*", &nodes);
    bare.as_object_mut().unwrap().remove("upstream");
    bare["service_id"] = "bare".into();
    let mut gone = route("gone.test", "/*", &nodes);
    gone.as_object_mut().unwrap().remove("upstream");
    gone["upstream_id"] = "gone".into();
    world
        .apply(&[
            ("ssls/a", skipping("a.test")),
            ("ssls/b", skipping("b.test")),
            ("ssls/open", site(&world.credentials.servers.server(&["open.test"]), "*.test")),
            ("services/bare", json!({})),
            ("upstreams/gone", json!({"type": "roundrobin", "nodes": {"127.0.0.1:1": 1}})),
            ("routes/a", route("a.test", "/*", &nodes)),
            ("routes/b", route("b.test", "/free", &nodes)),
            ("routes/bare", bare),
            ("routes/gone", gone),
        ])
        .await;
    let revision = world.admin().delete("upstreams/gone?force=true").await;
    world.wait_acknowledged(revision).await;
    (world, upstream)
}

#[tokio::test]
async fn denied_requests_are_explained() {
    let (world, _upstream) = request_world().await;
    let good = world.credentials.client.clone();
    let bad = Authority::root("Other").client("mallory");
    let evil = world.credentials.clients.expired_client("evil");
    for (sni, host, uri, shows, reason, rule) in [
        ("a.test", "a.test", "/x", None, Some("no_certificate"), None),
        ("a.test", "a.test", "/x", Some(&bad), Some("bad_certificate"), Some("unknown_issuer")),
        ("a.test", "a.test", "/x/../y", Some(&evil), Some("bad_certificate"), Some("expired")),
        ("a.test", "a.test", "/free/../x", None, Some("no_certificate"), None),
        ("a.test", "a.test", "/%66ree", None, None, None),
        ("a.test", "a.test", "//free?x", Some(&bad), None, None),
        ("a.test", "A.test.:1", "/x", Some(&good), None, None),
        ("a.test", "b.test", "/free", Some(&good), Some("misdirected"), None),
        ("open.test", "a.test", "/free", None, Some("misdirected"), None),
        ("a.test", "open.test", "/free", Some(&good), Some("no_route"), None),
        ("b.test", "b.test", "/other", Some(&good), Some("no_route"), None),
        ("open.test", "bare.test", "/", None, Some("no_upstream"), None),
        ("open.test", "gone.test", "/", None, Some("upstream_missing"), None),
        ("open.test", "open.test", "/%00", None, Some("bad_request"), None),
        ("open.test", "a..test", "/", None, Some("bad_request"), None),
    ] {
        let what = format!("{sni} {host} {uri}");
        let (client, mut question) = client(&world, sni, shows);
        question["host"] = host.into();
        question["uri"] = uri.into();
        let explained = explain(&world, question).await;
        let outcome = &explained["outcome"];
        let before = match reason {
            Some(reason) => counted(&world, reason, rule).await,
            None => (0, 0),
        };
        let mut session = client.connect().await.unwrap_or_else(|error| panic!("{what}: {error}"));
        let mut request = session.request(Method::GET, uri, e2e::client::full(""));
        request.headers_mut().insert("host", host.parse().unwrap());
        let reply = session.fetch(request).await.unwrap();
        let Some(reason) = reason else {
            assert_eq!(
                (reply.status.as_u16(), &outcome["result"]),
                (200, &json!("forwarded")),
                "{what}: {explained}"
            );
            continue;
        };
        assert_eq!(outcome["status"], reply.status.as_u16(), "{what}: {explained}");
        assert_eq!(
            (outcome["reason"].as_str(), outcome["verify_reason"].as_str()),
            (Some(reason), rule),
            "{what}"
        );
        let after = counted(&world, reason, rule).await;
        assert_eq!(after, (before.0 + 1, before.1 + u64::from(rule.is_some())), "{what}");
        let message = if reason == "bad_request" { "request rejected" } else { "request denied" };
        let mut words = vec![message.to_owned(), format!("reason=\"{reason}\"")];
        words.extend(rule.map(|rule| format!("verify_reason=\"{rule}\"")));
        if rule.is_some() || reason == "misdirected" && shows.is_some() {
            words.push(format!("fingerprint={}", explained["client_certificate"]["leaf"]["fingerprint"]));
        }
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        world.node_log().line_with(&words).await;
        assert!(
            !reply.text().contains(reason) && !reply.text().contains("Other"),
            "{what}: {}",
            reply.text()
        );
    }
}

#[tokio::test]
async fn hostile_names_cannot_forge_a_log_line() {
    let world = World::start().await;
    world.apply(&[("ssls/app", world.protected_site())]).await;
    let name = "evil\n2026-01-01T00:00:00Z  INFO forged reason=\"none\"\r\u{1b}[31m\u{202e}";
    let forged = Authority::root("Other").issue(&LeafSpec::client(name).organization("x".repeat(4000)));
    world.client("app.test").identity(&forged).expect_alert().await;
    let line = world.node_log().line_with(&["verify_reason=\"unknown_issuer\"", "evil"]).await;
    assert!(line.len() < 4000, "{} bytes", line.len());
    let text = world.node_log().text();
    assert!(!text.lines().any(|line| line.starts_with("2026-01-01")), "{text}");
    assert!(!text.contains(['\u{1b}', '\r', '\u{202e}']), "{text:?}");
}

#[tokio::test]
async fn a_flood_of_rejections_logs_few_lines_and_counts_all() {
    const FLOOD: u64 = 1500;
    let world = World::start().await;
    world.apply(&[("ssls/app", world.protected_site())]).await;
    let (client, other) = (world.client("app.test"), world.client("none.example"));
    let started = std::time::Instant::now();
    for _ in 0..FLOOD {
        client.expect_alert().await;
    }
    // It does not hide another reason.
    other.expect_alert().await;
    world.node_log().line_with(&["reason=\"no_site\""]).await;
    assert_eq!(counted(&world, "no_certificate", None).await.0, FLOOD);
    // Each has a line of its own, or counts as a suppressed one.
    let (written, left_out) = world
        .node_log()
        .find("the whole flood", |text| {
            let flood = text.lines().filter(|line| line.contains("reason=\"no_certificate\""));
            let (numbers, lines): (Vec<_>, Vec<_>) = flood.partition(|line| line.contains("were suppressed"));
            let number =
                |line: &&str| line.split_once(" suppressed=")?.1.split(' ').next()?.parse::<u64>().ok();
            let left_out: u64 = numbers.iter().filter_map(number).sum();
            (lines.len() as u64 + left_out == FLOOD).then_some((lines.len() as u64, left_out))
        })
        .await;
    // For each of two workers 200 at once, and ten a second; the workers' seconds began at the
    // earliest with the test's.
    let most = 2 * (200 + 10 * (started.elapsed().as_secs() + 1));
    assert!(written <= most && left_out > 0, "{written} lines, at most {most}, {left_out} left out");
}

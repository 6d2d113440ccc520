//! `POST explain`: the JSON and its messages. The end-to-end suites show that it agrees with a data
//! plane.

use http::Method;
use model::Key;
use pki::UnixTime;
use pki::ca::{Authority, AuthoritySpec, CrlSpec, IssuedCertificate, LeafSpec};
use serde_json::{Value, json};

use crate::world::{Response, VIEWER, World, request};

const DAY: u64 = 86_400;

fn day(from_today: i64) -> UnixTime {
    let today = i64::try_from(UnixTime::now().as_secs()).unwrap();
    let then = today + from_today * i64::try_from(DAY).unwrap();
    UnixTime::since_unix_epoch(std::time::Duration::from_secs(then.try_into().unwrap()))
}

async fn site(world: &World, id: &str, name: &str, client: Value) -> Response {
    let pair = world.pair(name);
    let mut document = json!({"cert": pair.certificate_pem, "key": &*pair.key_pem, "snis": [name]});
    if !client.is_null() {
        document["client"] = client;
    }
    world.put(&format!("/ssls/{id}"), document).await.ok()
}

async fn explain(world: &World, question: Value) -> Value {
    world.post("/explain", question).await.ok().json()
}

/// The explanation of a chain sent to `a.test`.
async fn explain_chain(world: &World, chain: &str) -> Value {
    explain(world, json!({"sni": "a.test", "client_cert": chain})).await
}

#[tokio::test]
async fn an_invalid_query_names_its_field() {
    let world = World::start().await;
    for (body, field) in [
        (json!({"sni": "*.a.com"}), "sni"),
        (json!({"client_cert": "junk"}), "client_cert"),
        (json!({"remote_addr": "here"}), "remote_addr"),
        (json!({"uri": "/ /"}), "uri"),
        (json!({"serial": "01"}), "serial"),
    ] {
        let response = world.post("/explain", body).await;
        let message = response.json()["error_msg"].as_str().unwrap().to_owned();
        assert_eq!(response.status, 400, "{response:?}");
        assert!(message.contains(field) && response.json()["hint"].is_string(), "{response:?}");
    }
    assert_eq!(world.call(Method::POST, "/explain", "").await.status, 400);
    assert_eq!(world.call(Method::POST, "/explain", "{").await.status, 400);
    assert_eq!(world.get("/explain").await.status, 404);
    assert_eq!(world.put("/explain", json!({})).await.status, 404);
    assert_eq!(world.post("/explain/1", json!({})).await.status, 404);
}

#[tokio::test]
async fn a_viewer_may_explain_and_lint_only() {
    let world = World::start().await;
    let ask = |method, path, key| {
        world.send(Some(&world.identity), request(method, path, key, json!({"sni": "a.test"}).into()))
    };
    assert_eq!(ask(Method::POST, "/explain", Some(VIEWER)).await.status, 200);
    assert_eq!(ask(Method::GET, "/lint", Some(VIEWER)).await.status, 200);
    assert_eq!(ask(Method::POST, "/explain", None).await.status, 401);
    assert_eq!(ask(Method::POST, "/explain", Some("wrong")).await.status, 401);
    for (method, path) in [
        (Method::PUT, "/explain"),
        (Method::DELETE, "/explain"),
        (Method::POST, "/ssls"),
        (Method::POST, "/lint"),
        (Method::POST, "//apisix/admin/routes/explain"),
    ] {
        assert_eq!(ask(method, path, Some(VIEWER)).await.status, 401, "{path}");
    }
}

#[tokio::test]
async fn explain_sees_the_last_write_and_writes_nothing() {
    let world = World::start().await;
    for turn in 0..20 {
        let name = format!("n{turn}.test");
        let revision = site(&world, "1", &name, Value::Null).await.revision();
        let response = explain(&world, json!({"sni": name})).await;
        assert_eq!(
            (&response["revision"], &response["site"]["ssl"]),
            (&json!(revision), &json!("1")),
            "{response}"
        );
        assert_eq!(response["outcome"], json!({"result": "established"}));
    }
    assert_eq!(world.store.load().await.unwrap().revision, 20);
}

#[tokio::test]
async fn explain_reports_the_selected_site() {
    let world = World::start().await;
    site(&world, "exact", "a.test", Value::Null).await;
    site(&world, "wild", "*.test", Value::Null).await;
    for (sni, ssl, matched, entry, part) in [
        ("A.test", json!("exact"), "exact", json!("a.test"), "a.test is an entry of ssl exact"),
        (
            "b.test",
            json!("wild"),
            "wildcard",
            json!("*.test"),
            "the longest wildcard that covers it is *.test",
        ),
        ("c.b.test", json!(null), "none", json!(null), "a wildcard covers one label and \"c.b\" is more"),
        ("other", json!(null), "none", json!(null), "no ssl object has an entry that covers other"),
    ] {
        let response = explain(&world, json!({"sni": sni})).await;
        let site = &response["site"];
        assert_eq!(
            (&site["ssl"], &site["matched"], &site["entry"]),
            (&ssl, &json!(matched), &entry),
            "{site}"
        );
        assert!(site["message"].as_str().unwrap().contains(part), "{site}");
        let refused = ssl.is_null().then_some("no_site");
        assert_eq!(response["outcome"]["reason"].as_str(), refused);
    }
    site(&world, "all", "*", Value::Null).await;
    assert_eq!(explain(&world, json!({"sni": "other"})).await["site"]["matched"], "any");
    world.patch("/ssls/all", json!({"status": 0})).await.ok();
    let response = explain(&world, json!({"sni": "other"})).await;
    assert!(
        response["site"]["message"].as_str().unwrap().contains("ssl all, which is switched off"),
        "{response}"
    );
    let response = explain(&world, json!({})).await;
    assert_eq!(
        (&response["outcome"]["reason"], &response["outcome"]["alert"]),
        (&json!("no_sni"), &json!("unrecognized_name"))
    );

    let response = explain(&world, json!({"sni": "a.test"})).await;
    let shown = &response["site"];
    assert_eq!(shown["certificates"][0]["subject"], "CN=a.test");
    assert_eq!(shown["ssl_protocols"], json!(["TLSv1.2", "TLSv1.3"]));
    assert_eq!(shown["client"], json!({"requested": false}));
}

fn chain(issued: &IssuedCertificate) -> &str {
    &issued.chain_pem
}

#[tokio::test]
async fn the_fix_for_depth_works() {
    let world = World::start().await;
    let between = world.clients.intermediate(&AuthoritySpec::new("Between")).unwrap();
    let lower = between.intermediate(&AuthoritySpec::new("Lower")).unwrap();
    let alice = lower.issue(&LeafSpec::client("alice")).unwrap();
    site(&world, "1", "a.test", json!({"ca": world.clients.certificate_pem(), "depth": 1})).await;
    let response = explain_chain(&world, chain(&alice)).await;
    let verdict = &response["client_certificate"];
    assert_eq!(
        (&verdict["verified"], &verdict["verify_reason"]),
        (&json!(false), &json!("depth_exceeded")),
        "{response}"
    );
    assert!(verdict["fix"].as_str().unwrap().starts_with("set client.depth to 2"), "{verdict}");
    assert_eq!(response["outcome"]["alert"], "unknown_ca");
    site(&world, "1", "a.test", json!({"ca": world.clients.certificate_pem(), "depth": 2})).await;
    let response = explain_chain(&world, chain(&alice)).await;
    assert_eq!(response["client_certificate"]["verified"], true, "{response}");
    assert_eq!(response["client_certificate"]["anchor"], "CN=clients");
    assert_eq!(response["outcome"]["result"], "established");
}

/// Description, chain, and the expected reason, position and part of the fix.
type RejectedChain = (&'static str, String, &'static str, &'static str, &'static str);

/// Chains that a site with these client CAs and depth 1 rejects.
fn rejected_chains(clients: &Authority) -> Vec<RejectedChain> {
    let other_ca = Authority::root(&AuthoritySpec::new("Other")).unwrap();
    let namesake = Authority::root(&AuthoritySpec::new("clients")).unwrap();
    let own = Authority::root_v1(&AuthoritySpec::new("Self")).unwrap().certificate_pem();
    let ended = clients.intermediate(&AuthoritySpec::new("Ended").valid(day(-30), 10)).unwrap();
    let fine = clients.intermediate(&AuthoritySpec::new("Fine")).unwrap();
    let spec = LeafSpec::client("alice");
    let issue = |authority: &Authority, spec: &LeafSpec| authority.issue(spec).unwrap().chain_pem;
    let alone = fine.issue(&spec).unwrap().certificate_pem;
    let (past, future) = (spec.clone().valid(day(-9), 2), spec.clone().valid(day(1), 2));
    let server = LeafSpec::server("alice");
    let (first, second) = ("client_cert[1]", "client_cert[2]");
    let unknown = "unknown_issuer";
    let not_sent = "the issuer CN=Fine is not in client.ca and was not sent";
    vec![
        ("of another CA", issue(&other_ca, &spec), unknown, first, "the issuer CN=Other is not in client.ca"),
        ("no intermediate", alone, unknown, first, not_sent),
        ("self-signed", own, unknown, first, "is self-signed"),
        ("a namesake's", issue(&namesake, &spec), "bad_signature", first, "the same name and another key"),
        ("an expired one", issue(clients, &past), "expired", first, "renew the client's"),
        ("one of tomorrow", issue(clients, &future), "not_yet_valid", first, "check the clocks"),
        ("an expired intermediate", issue(&ended, &spec), "expired", second, "renewed intermediate"),
        ("a server's", issue(clients, &server), "invalid_purpose", first, "clientAuth"),
    ]
}

#[tokio::test]
async fn every_rejection_has_position_and_fix() {
    let world = World::start().await;
    let clients = &world.clients;
    site(&world, "1", "a.test", json!({"ca": clients.certificate_pem(), "depth": 1})).await;
    for (what, chain, rule, at, fix) in rejected_chains(clients) {
        let response = explain_chain(&world, &chain).await;
        let verdict = &response["client_certificate"];
        assert_eq!(
            (&verdict["verify_reason"], &verdict["failing_certificate"]["position"]),
            (&json!(rule), &json!(at)),
            "{what}: {response}"
        );
        assert!(verdict["fix"].as_str().unwrap().contains(fix), "{what}: {verdict}");
        let outcome = &response["outcome"];
        assert_eq!(
            (&outcome["reason"], &outcome["verify_reason"]),
            (&json!("bad_certificate"), &json!(rule)),
            "{what}"
        );
        assert_eq!(outcome["fix"], verdict["fix"], "{what}");
    }
}

#[tokio::test]
async fn a_revocation_names_its_crl() {
    let world = World::start().await;
    let clients = &world.clients;
    let (bad, good) =
        (clients.issue(&LeafSpec::client("bad")).unwrap(), clients.issue(&LeafSpec::client("good")).unwrap());
    let list = |spec: CrlSpec| clients.crl_pem(&spec).unwrap();
    let other = Authority::root(&AuthoritySpec::new("Other")).unwrap();
    let bundle = clients.certificate_pem() + &other.certificate_pem();
    let current = list(CrlSpec::new().revoke(&bad.certificate).between(day(-1), day(9)));
    site(&world, "1", "a.test", json!({"ca": bundle, "crl": [current]})).await;
    let verdict = explain_chain(&world, chain(&bad)).await["client_certificate"].clone();
    assert_eq!(
        (&verdict["verify_reason"], &verdict["failing_certificate"]["serial"]),
        (&json!("revoked"), &json!(bad.certificate.serial_hex()))
    );
    assert!(
        verdict["fix"].as_str().unwrap().contains("list 1 of client.crl (issuer CN=clients"),
        "{verdict}"
    );
    assert_eq!(explain_chain(&world, chain(&good)).await["client_certificate"]["verified"], true);
    let elsewhere = other.issue(&LeafSpec::client("unlisted")).unwrap();
    let verdict = explain_chain(&world, chain(&elsewhere)).await["client_certificate"].clone();
    assert_eq!(verdict["verify_reason"], "unknown_revocation_status");
    assert!(verdict["fix"].as_str().unwrap().contains("add a CRL signed by CN=Other"), "{verdict}");
    let stale = list(CrlSpec::new().between(day(-9), day(-1)));
    site(&world, "1", "a.test", json!({"ca": bundle, "crl": [stale]})).await;
    let verdict = explain_chain(&world, chain(&good)).await["client_certificate"].clone();
    assert!(verdict["fix"].as_str().unwrap().contains("put a new list in place of list 1"), "{verdict}");
}

/// Two sites that skip `^/free/`, an open one, and a few routes.
async fn request_world() -> World {
    let world = World::start().await;
    let client = json!({"ca": world.clients.certificate_pem(), "skip_mtls_uri_regex": ["^/free/"]});
    site(&world, "1", "a.test", client.clone()).await;
    site(&world, "2", "b.test", client).await;
    site(&world, "3", "open.test", Value::Null).await;
    let upstream = json!({"type": "roundrobin", "nodes": {"127.0.0.1:1980": 1}});
    world.put("/upstreams/u", json!({"type": "roundrobin", "nodes": {"127.0.0.1:1980": 1}})).await.ok();
    for (id, document) in [
        ("free", json!({"uri": "/free/*", "host": "a.test", "methods": ["GET"], "upstream": upstream})),
        ("gone", json!({"uri": "/gone", "upstream_id": "u"})),
        ("off", json!({"uri": "/off", "status": 0, "upstream": upstream})),
        ("near", json!({"uri": "/near", "remote_addr": "10.0.0.0/8", "upstream": upstream})),
    ] {
        world.put(&format!("/routes/{id}"), document).await.ok();
    }
    world.delete("/upstreams/u?force=true").await.ok();
    world
}

#[tokio::test]
async fn requests_are_explained_up_to_the_upstream() {
    let world = request_world().await;
    let ask = |sni: &str, more: Value| {
        let mut question = more;
        question["sni"] = sni.into();
        explain(&world, question)
    };
    let response = ask("a.test", json!({"uri": "//x/../free/./y?z"})).await;
    assert_eq!(response["request"]["path"], "/free/y");
    assert_eq!(response["request"]["skip_pattern"], "^/free/");
    assert_eq!(response["outcome"]["to"]["route"], "free", "{response}");
    for (sni, more, status, reason, part) in [
        ("a.test", json!({"uri": "/x"}), 400, "no_certificate", "no skip pattern matches the path /x"),
        (
            "open.test",
            json!({"host": "A.test:443", "uri": "/free/"}),
            421,
            "misdirected",
            "the Host a.test belongs to ssl 1",
        ),
        ("b.test", json!({"uri": "https://a.test/free/"}), 421, "misdirected", "connect with the SNI a.test"),
        ("a.test", json!({"uri": "/free/", "method": "PUT"}), 404, "no_route", "method PUT"),
        ("open.test", json!({"uri": "/gone"}), 502, "upstream_missing", "create upstream u"),
        ("open.test", json!({"uri": "/off"}), 404, "no_route", "path /off"),
        ("open.test", json!({"uri": "/.."}), 400, "bad_request", "leads above the root"),
        ("open.test", json!({"uri": "/", "host": "a..b"}), 400, "bad_request", "not a host name"),
        (
            "open.test",
            json!({"uri": "http://x.test/", "host": "y.test"}),
            400,
            "bad_request",
            "more than one host",
        ),
    ] {
        let response = ask(sni, more.clone()).await;
        let outcome = &response["outcome"];
        assert_eq!(
            (&outcome["status"], &outcome["reason"]),
            (&json!(status), &json!(reason)),
            "{more}: {response}"
        );
        assert!(outcome.to_string().contains(part), "{more}: {outcome}");
        assert_eq!(outcome.get("alert"), None);
    }
    let response = ask("open.test", json!({"uri": "/near"})).await;
    assert_eq!(
        response["request"]["near_misses"][0]["mismatch"],
        "it does not take this address (remote_addrs)"
    );
    let response = ask("open.test", json!({"uri": "/near", "remote_addr": "10.1.2.3"})).await;
    assert_eq!(response["outcome"]["result"], "forwarded", "{response}");
    assert!(
        world
            .store
            .get(&Key::new(model::Kind::Upstream, model::Id::parse("u").unwrap()))
            .await
            .unwrap()
            .is_none()
    );
}

//! Verified identities in headers and routing: each header format is parsed independently, each
//! kind of allow-list entry is tested with near misses, and `vars` and `proxy-rewrite` use the
//! identity.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Command, Stdio};

use base64::{Engine, engine::general_purpose::STANDARD};
use data_encoding::HEXLOWER;
use e2e::client::{Http, HttpClient, full};
use e2e::credentials::Credential;
use e2e::documents::{protected, route, site};
use e2e::tools::curl;
use e2e::upstream::Upstream;
use e2e::world::World;
use http::{HeaderValue, Method, StatusCode};
use percent_encoding::percent_decode_str;
use pki::ca::LeafSpec;
use serde_json::{Value, json};

mod forged;

/// A world with three sites: `mtls.test` requires a certificate, `skip.test` exempts `/free`,
/// `open.test` has no client policy.
async fn three_sites() -> (World, Upstream) {
    let (world, upstream) = (World::start().await, Upstream::plain("echo").await);
    let clients = &world.credentials.clients;
    let own = world.credentials.servers.server(&["mtls.test", "skip.test", "open.test"]);
    let of = |name| site(&own, name);
    let mut skipping = protected(of("skip.test"), clients);
    skipping["client"]["skip_mtls_uri_regex"] = json!(["^/free"]);
    world
        .apply(&[
            ("ssls/mtls", protected(of("mtls.test"), clients)),
            ("ssls/skip", skipping),
            ("ssls/open", of("open.test")),
        ])
        .await;
    (world, upstream)
}

/// A route for `uri` on every host, with more members.
fn any_host(upstream: &Upstream, uri: &str, more: Value) -> Value {
    let mut document = route("mtls.test", uri, &[upstream.address()]);
    document["hosts"] = json!(["mtls.test", "skip.test", "open.test"]);
    let members = document.as_object_mut().unwrap();
    members.remove("host");
    members.extend(more.as_object().unwrap().clone());
    document
}

async fn status(client: &HttpClient, path: &str) -> u16 {
    client.get(path).await.unwrap_or_else(|error| panic!("{path}: {error}")).status.as_u16()
}

async fn seen(client: &HttpClient, path: &str) -> Value {
    let reply = client.get(path).await.unwrap_or_else(|error| panic!("{path}: {error}"));
    assert_eq!(reply.status, StatusCode::OK, "{path}");
    reply.json()
}

/// What `openssl x509` prints about a certificate, without the name of the field.
fn openssl(credential: &Credential, question: &[&str]) -> String {
    let mut child = Command::new("openssl")
        .args(["x509", "-noout", "-nameopt", "RFC2253"])
        .args(question)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("openssl runs: `make setup` installs it");
    child.stdin.take().unwrap().write_all(credential.certificate_pem.as_bytes()).unwrap();
    let text = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
    text.trim().split_once('=').unwrap_or_else(|| panic!("{text}")).1.trim().to_owned()
}

/// Parses an element of an XFCC header by Envoy's documentation: `;` separates pairs, values may be
/// quoted, `\"` is a quote inside. Several values of a key keep their order.
fn xfcc(text: &str) -> BTreeMap<String, Vec<String>> {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut rest = text.chars().peekable();
    while rest.peek().is_some() {
        let key: String = rest.by_ref().take_while(|character| *character != '=').collect();
        let mut value = String::new();
        if rest.next_if_eq(&'"').is_some() {
            while let Some(character) = rest.next() {
                match character {
                    '\\' if rest.next_if_eq(&'"').is_some() => value.push('"'),
                    '"' => break,
                    other => value.push(other),
                }
            }
            assert!(matches!(rest.next(), None | Some(';')), "{text}");
        } else {
            value.extend(rest.by_ref().take_while(|character| *character != ';'));
            assert!(!value.contains(','), "one element only: {text}");
        }
        found.entry(key).or_default().push(value);
    }
    found
}

fn byte_sequence(text: &str) -> Vec<u8> {
    let inside = text.strip_prefix(':').and_then(|text| text.strip_suffix(':'));
    STANDARD.decode(inside.unwrap_or_else(|| panic!("{text}"))).unwrap()
}

fn unescaped(text: &Value) -> String {
    percent_decode_str(text.as_str().unwrap()).decode_utf8().unwrap().into_owned()
}

#[tokio::test]
async fn each_header_format_follows_its_standard() {
    let (world, upstream) = three_sites().await;
    let middle = world.credentials.clients.intermediate("Middle CA");
    let spec = LeafSpec::client("a\";URI=spiffe://evil\\")
        .organization("Acme, Inc.")
        .uri("spiffe://a.example/ns/x")
        .uri("https://b.example/?x=1;y")
        .dns("one.example")
        .dns("two.example");
    let client = middle.issue(&spec);
    let forward =
        json!(["client_cert", "client_cert_chain", "xfcc", "xfcc_cert", "xfcc_chain", "x_ssl_client"]);
    let block = json!({"client_identity": {"forward": forward}});
    world.apply(&[("routes/all", any_host(&upstream, "/*", block))]).await;
    let chain = client.chain();
    for http in [Http::One, Http::Two] {
        let https = world.client("mtls.test").identity(&client).http(http);
        let headers = seen(&https, "/").await["headers"].clone();
        let text = |name: &str| headers[name].as_str().unwrap_or_else(|| panic!("{name}: {headers}"));

        assert_eq!(byte_sequence(text("client-cert")), *chain[0]);
        assert_eq!(byte_sequence(text("client-cert-chain")), *chain[1]);

        let element = xfcc(text("x-forwarded-client-cert"));
        let keys: Vec<&str> = element.keys().map(String::as_str).collect();
        assert_eq!(keys, ["Cert", "Chain", "DNS", "Hash", "Subject", "URI"], "{element:?}");
        assert_eq!(element["URI"], ["spiffe://a.example/ns/x", "https://b.example/?x=1;y"]);
        assert_eq!(element["DNS"], ["one.example", "two.example"]);
        let hash = openssl(&client, &["-fingerprint", "-sha256"]).replace(':', "").to_lowercase();
        assert_eq!(element["Hash"], [hash]);
        assert_eq!(element["Subject"], ["CN=a\\22\\;URI=spiffe://evil\\5C,O=Acme\\, Inc."]);
        let pem = |key: &str| unescaped(&json!(element[key][0]));
        assert_eq!(e2e::credentials::certificates(&pem("Cert")), chain[..1]);
        assert_eq!(e2e::credentials::certificates(&pem("Chain")), chain);

        assert_eq!(text("x-ssl-client-verify"), "SUCCESS");
        assert_eq!(text("x-ssl-client-s-dn"), openssl(&client, &["-subject"]));
        assert_eq!(text("x-ssl-client-i-dn"), openssl(&client, &["-issuer"]));
        assert_eq!(text("x-ssl-client-serial"), openssl(&client, &["-serial"]));
        let sha1 = openssl(&client, &["-fingerprint", "-sha1"]).replace(':', "").to_lowercase();
        assert_eq!(text("x-ssl-client-fingerprint"), sha1);
        assert_eq!(text("x-ssl-client-v-start"), openssl(&client, &["-startdate"]));
        assert_eq!(text("x-ssl-client-v-end"), openssl(&client, &["-enddate"]));
        assert_eq!(e2e::credentials::certificates(&unescaped(&headers["x-ssl-client-cert"])), chain[..1]);
    }
    // No verified client: a site without a policy, a skipped path, plain HTTP.
    let forwarded = |reply: &Value| {
        let headers = reply["headers"].as_object().unwrap();
        let about = |name: &str| name.contains("client") || name.contains("ssl");
        headers.iter().filter(|(name, _)| about(name)).map(|(n, v)| format!("{n}: {v}")).collect::<Vec<_>>()
    };
    let none = ["x-ssl-client-verify: \"NONE\""];
    assert_eq!(forwarded(&seen(&world.verified_client("open.test"), "/").await), none);
    assert_eq!(forwarded(&seen(&world.client("skip.test"), "/free").await), none);
    let untrusted = world.credentials.untrusted.client("untrusted");
    assert_eq!(forwarded(&seen(&world.client("skip.test").identity(&untrusted), "/free").await), none);
    assert_eq!(forwarded(&world.plain("mtls.test").await.get("/").await.unwrap().json()), none);
}

#[tokio::test]
async fn only_listed_clients_are_allowed() {
    let (world, upstream) = three_sites().await;
    let spec = LeafSpec::client("alice")
        .organization("Acme")
        .uri("spiffe://a.example/ns/ab/sa/x")
        .dns("one.clients.example")
        .email("Ops@example.org");
    let client = world.credentials.clients.issue(&spec);
    let serial = openssl(&client, &["-serial"]);
    let leaf = pki::Certificate::from_der(&client.chain()[0]).unwrap();
    let key = HEXLOWER.encode(leaf.spki_sha256());
    let cases = [
        (json!({"spiffe": "spiffe://a.example/ns/ab/sa/x"}), true),
        (json!({"spiffe": "spiffe://a.example/ns/ab/*"}), true),
        (json!({"spiffe": "spiffe://a.example/*"}), true),
        (json!({"spiffe": "spiffe://a.example/ns/a/*"}), false),
        (json!({"spiffe": "spiffe://a.example.evil/*"}), false),
        (json!({"spiffe": "spiffe://a.example/ns/AB/*"}), false),
        (json!({"uri": "spiffe://a.example/ns/ab/sa/x"}), true),
        (json!({"uri": "spiffe://a.example/ns/ab/sa/x/"}), false),
        (json!({"dns": "ONE.clients.example"}), true),
        (json!({"dns": "*.clients.example"}), true),
        (json!({"dns": "*.example"}), false),
        (json!({"dns": "alice"}), false),
        (json!({"email": "Ops@EXAMPLE.org"}), true),
        (json!({"email": "ops@example.org"}), false),
        (json!({"subject": "CN=alice,O=Acme"}), true),
        (json!({"subject": "CN=alice"}), false),
        (json!({"serial": serial}), true),
        (json!({"serial": serial, "issuer": "CN=Test Client CA"}), true),
        (json!({"serial": serial, "issuer": "CN=Test Server CA"}), false),
        (json!({"spki_sha256": key}), true),
        (json!({"spki_sha256": "00".repeat(32)}), false),
    ];
    let other = json!({"dns": "other.example"});
    let documents: Vec<(String, Value)> = (0..)
        .zip(&cases)
        .map(|(index, (entry, _))| {
            let block = json!({"client_identity": {"allow": [other, entry]}});
            (format!("routes/r{index}"), any_host(&upstream, &format!("/free/{index}"), block))
        })
        .collect();
    let borrowed: Vec<(&str, Value)> =
        documents.iter().map(|(path, document)| (path.as_str(), document.clone())).collect();
    world.apply(&borrowed).await;
    let mut session = world.client("mtls.test").identity(&client).connect().await.unwrap();
    for (index, (entry, allowed)) in (0..).zip(&cases) {
        let status = session.get(&format!("/free/{index}")).await.unwrap().status;
        let expected = if *allowed { StatusCode::OK } else { StatusCode::FORBIDDEN };
        assert_eq!(status, expected, "{entry}");
    }
    let line = world.node_log().line_with(&["not_allowed", "CN=alice,O=Acme", &serial]).await;
    assert!(line.contains("spiffe://a.example/ns/ab/sa/x"), "{line}");
    // The same client where it is not verified, and no client at all: the list denies both.
    assert_eq!(status(&world.client("open.test").identity(&client), "/free/0").await, 403);
    assert_eq!(status(&world.client("skip.test"), "/free/0").await, 403);
    assert_eq!(status(&world.client("skip.test").identity(&client).http(Http::Two), "/free/0").await, 200);
    let untrusted = world.credentials.untrusted.issue(&spec);
    assert_eq!(status(&world.client("skip.test").identity(&untrusted), "/free/0").await, 403);
    let plain = world.plain("mtls.test").await.get("/free/0").await.unwrap();
    assert_eq!(plain.status, StatusCode::FORBIDDEN);
    assert!(plain.text().contains("403 Forbidden") && !plain.text().contains("not_allowed"));
    world.node_log().line_with(&["not_allowed", "no verified client"]).await;
}

#[tokio::test]
async fn a_routes_block_replaces_its_services() {
    let (world, upstream) = three_sites().await;
    let service = json!({
        "upstream": {"nodes": {upstream.address().to_string(): 1}},
        "client_identity": {"allow": [{"dns": "other.example"}]},
        "plugins": {"proxy-rewrite": {"headers": {"X-From": "service"}}},
    });
    let of = |uri: &str, more: Value| {
        let mut route = json!({"uri": uri, "service_id": "s"});
        route.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        route
    };
    let mine = json!({
        "client_identity": {"allow": [{"dns": "good-client"}]},
        "plugins": {"proxy-rewrite": {"headers": {"X-From": "route"}}},
    });
    world
        .apply(&[
            ("services/s", service),
            ("routes/1", of("/inherits", json!({}))),
            ("routes/2", of("/own", mine)),
        ])
        .await;
    let client = world.verified_client("mtls.test");
    assert_eq!(status(&client, "/inherits").await, 403);
    assert_eq!(seen(&client, "/own").await["headers"]["x-from"], "route");
}

#[tokio::test]
async fn the_headers_of_the_tutorial_arrive() {
    let (world, upstream) = three_sites().await;
    let plugin = json!({"plugins": {"proxy-rewrite": {"headers": {
        "X-Ssl-Client-Fingerprint": "$ssl_client_fingerprint",
        "X-Ssl-Client-Serial": "$ssl_client_serial",
        "X-Ssl-Client-S-DN": "$ssl_client_s_dn"
    }}}});
    world.apply(&[("routes/1", any_host(&upstream, "/anything", plugin))]).await;
    let resolve = format!("mtls.test:{}:127.0.0.1", world.https().port());
    let url = format!("https://mtls.test:{}/anything", world.https().port());
    let forged = "X-Ssl-Client-S-DN: CN=forged";
    let answered = curl(
        world.folder(),
        &[
            "--resolve",
            &resolve,
            "--cacert",
            "server-ca.crt",
            "--cert",
            "client.crt",
            "--key",
            "client.key",
            "-H",
            forged,
            &url,
        ],
    )
    .await;
    assert_eq!((answered.exit, answered.status), (0, 200), "{answered:?}");
    let headers = serde_json::from_str::<Value>(&answered.body).unwrap()["headers"].clone();
    let client = &world.credentials.client;
    assert_eq!(headers["x-ssl-client-s-dn"], openssl(client, &["-subject"]));
    assert_eq!(headers["x-ssl-client-serial"], openssl(client, &["-serial"]));
    let sha1 = openssl(client, &["-fingerprint", "-sha1"]).replace(':', "").to_lowercase();
    assert_eq!(headers["x-ssl-client-fingerprint"], sha1);
    let plain = world.plain("mtls.test").await.get("/anything").await.unwrap().json();
    assert!(plain["headers"].get("x-ssl-client-s-dn").is_none(), "no client, no header: {plain}");
}

#[tokio::test]
async fn vars_select_the_route() {
    let (world, upstream) = three_sites().await;
    let to = |name: &str, vars: Value| {
        let plugins = json!({"proxy-rewrite": {"headers": {"X-Route": name}}});
        any_host(&upstream, "/free", json!({"vars": vars, "plugins": plugins}))
    };
    world
        .apply(&[
            ("routes/1-known", to("known", json!([["ssl_client_s_dn", "==", "CN=good-client"]]))),
            (
                "routes/2-claimed",
                to(
                    "claimed",
                    json!(["OR", ["http_x_ssl_client_verify", "~=", null], ["http_client_cert", "~=", null]]),
                ),
            ),
            (
                "routes/3-h2",
                to("h2", json!([["ssl_alpn_protocol", "==", "h2"], ["ssl_protocol", "==", "TLSv1.3"]])),
            ),
            ("routes/4-arg", to("arg", json!([["arg_v", "in", ["1", "2"]], ["cookie_c", "!", "~~", "^x"]]))),
            (
                "routes/5-refused",
                to("refused", json!([["ssl_client_verify", "~~", "^FAILED:unable to get"]])),
            ),
            ("routes/6-rest", to("rest", json!([]))),
        ])
        .await;
    let untrusted = world.credentials.untrusted.client("good-client");
    let free = world.client("skip.test");
    for (client, path, expected) in [
        (world.verified_client("mtls.test"), "/free", "known"),
        (world.verified_client("skip.test"), "/free?v=1", "known"),
        (free.clone(), "/free", "rest"),
        (free.clone(), "/free?v=%31", "arg"),
        (free.clone(), "/free?v=3", "rest"),
        (free.clone().http(Http::Two), "/free", "h2"),
        (free.identity(&untrusted), "/free", "refused"),
        (world.verified_client("open.test"), "/free", "rest"),
    ] {
        assert_eq!(seen(&client, path).await["headers"]["x-route"], expected, "{path}");
    }
    // A claim of the client does not select a route.
    let mut session = world.client("open.test").connect().await.unwrap();
    let mut request = session.request(Method::GET, "/free", full(""));
    for name in ["x-ssl-client-verify", "x_ssl_client_verify", "client-cert"] {
        request.headers_mut().append(name, HeaderValue::from_static("SUCCESS"));
    }
    assert_eq!(session.fetch(request).await.unwrap().json()["headers"]["x-route"], "rest");
    // A predicate without meaning is invalid, and the route stays as it was.
    let bad = to("rest", json!([["ssl_client_sdn", "==", "CN=good-client"]]));
    let answer = world.admin().call(Method::PUT, "routes/1-known", Some(&bad)).await.unwrap();
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);
    let text = answer.body["error_msg"].as_str().unwrap();
    assert!(
        text.starts_with("failed to validate the 'vars' expression: unknown variable 'ssl_client_sdn'"),
        "{text}"
    );
    assert_eq!(seen(&world.verified_client("mtls.test"), "/free").await["headers"]["x-route"], "known");
}

#[tokio::test]
async fn rewritten_uris_keep_the_request_intact() {
    let (world, upstream) = three_sites().await;
    let plugin = |block: Value| json!({"plugins": {"proxy-rewrite": block}});
    world
        .apply(&[
            ("routes/1", any_host(&upstream, "/t/*", plugin(json!({"uri": "/base$uri?who=$arg_who"})))),
            ("routes/2", any_host(&upstream, "/climb", plugin(json!({"uri": "/in/$arg_p"})))),
            (
                "routes/3",
                any_host(&upstream, "/r/*", plugin(json!({"regex_uri": ["^/r/([^/]+)", "/new/$1"]}))),
            ),
            ("routes/4", any_host(&upstream, "/h/*", plugin(json!({"headers": {"X-Path": "$uri"}})))),
        ])
        .await;
    let mut session = world.plain("open.test").await;
    for (asked, expected) in [
        ("/t/a%20b?who=x%26admin%3D1", "/base/t/a%20b?who=x%26admin%3D1&who=x%26admin%3D1"),
        ("/climb?p=a%2Fb", "/in/a/b?p=a%2Fb"),
        ("/r/1%3F2/z?q", "/new/1%3F2/z?q"),
    ] {
        let reply = session.get(asked).await.unwrap();
        assert_eq!(reply.status, StatusCode::OK, "{asked}");
        assert_eq!(reply.json()["uri"], expected, "{asked}");
    }
    let before = upstream.requests();
    for refused in ["/climb?p=..%2Fadmin", "/climb?p=..", "/h/a%0d%0aX-Admin:%201", "/t/%0d%0aGET%20/x"] {
        let mut session = world.plain("open.test").await;
        assert_eq!(session.get(refused).await.unwrap().status, StatusCode::BAD_REQUEST, "{refused}");
    }
    assert_eq!(upstream.requests(), before, "nothing of it left");
}

/// The CA of one site names no client on another site, whose routes do not know that CA.
#[tokio::test]
async fn an_identity_is_not_valid_for_another_sites_host() {
    let (world, upstream) = three_sites().await;
    let client = world.credentials.clients.client("alice");
    let allow = json!([{"subject": "CN=alice"}]);
    let forward = json!(["x_ssl_client"]);
    world
        .apply(&[
            (
                "routes/named",
                any_host(&upstream, "/free/named", json!({"client_identity": {"allow": allow}})),
            ),
            (
                "routes/forwarded",
                any_host(&upstream, "/free/forwarded", json!({"client_identity": {"forward": forward}})),
            ),
        ])
        .await;
    for http in [Http::One, Http::Two] {
        let own = world.client("mtls.test").identity(&client).http(http);
        assert_eq!(status(&own, "/free/named").await, 200, "{http:?}");
        assert_eq!(seen(&own, "/free/forwarded").await["headers"]["x-ssl-client-verify"], "SUCCESS");
        let other = world.client("open.test").sni("mtls.test").identity(&client).http(http);
        assert_eq!(status(&other, "/free/named").await, 403, "{http:?}");
        let headers = &seen(&other, "/free/forwarded").await["headers"];
        assert_eq!(headers["x-ssl-client-verify"], "NONE");
        assert!(headers.get("x-ssl-client-s-dn").is_none(), "{headers}");
    }
}

//! The matched path is the forwarded path: for every spelling, as raw bytes over HTTP/1 and as
//! `:path` over HTTP/2, an upstream that echoes its request line sees only what the rules saw.

use e2e::client::{Http, HttpClient, full};
use e2e::documents::{protected, route, site};
use e2e::raw;
use e2e::upstream::HeadEcho;
use e2e::world::World;
use http::{Method, StatusCode, Uri};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

mod rewrite;
mod settings;
mod unsafe_uri;

/// The result of a request: the path and query at the upstream, or the gateway's own status.
type Outcome = Result<String, u16>;

/// The request target of the head that the upstream echoed.
fn line(status: u16, body: &str) -> Outcome {
    if status != 200 {
        return Err(status);
    }
    let line = body.lines().next().unwrap_or_default();
    let target = line.strip_prefix("GET ").and_then(|rest| rest.strip_suffix(" HTTP/1.1"));
    Ok(target.unwrap_or_else(|| panic!("{line:?}")).to_owned())
}

/// Sends these very bytes over HTTP/1.1.
async fn ask_raw(client: &HttpClient, target: &[u8]) -> Outcome {
    let mut stream =
        client.clone().http(Http::One).handshake().await.unwrap_or_else(|error| panic!("{error}"));
    let rest = format!(" HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", client.host());
    stream.write_all(&[b"GET ", target, rest.as_bytes()].concat()).await.unwrap();
    let answered = raw::until_closed(&mut stream).await;
    let answered = String::from_utf8_lossy(&answered);
    let (head, body) = answered.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{target:?}: {answered}"));
    line(head.split(' ').nth(1).unwrap().parse().unwrap(), body)
}

/// Sends it over HTTP/2. `None`: no client library sends this.
async fn ask_h2(client: &HttpClient, target: &str) -> Option<Outcome> {
    if target.starts_with("http") || format!("https://{}{target}", client.host()).parse::<Uri>().is_err() {
        return None;
    }
    let mut session =
        client.clone().http(Http::Two).connect().await.unwrap_or_else(|error| panic!("{error}"));
    let request = session.request(Method::GET, target, full(""));
    let reply = session.fetch(request).await.unwrap_or_else(|error| panic!("{target}: {error}"));
    Some(line(reply.status.as_u16(), &reply.text()))
}

#[track_caller]
fn same(what: &str, target: &str, got: &Outcome, expected: Result<&str, u16>) {
    assert_eq!(got.as_deref().map_err(|status| *status), expected, "{what} {target}");
}

async fn expect(client: &HttpClient, table: &[(&str, Result<&str, u16>)]) {
    for (target, expected) in table {
        same("HTTP/1", target, &ask_raw(client, target.as_bytes()).await, *expected);
        if let Some(got) = ask_h2(client, target).await {
            same("HTTP/2", target, &got, *expected);
        }
    }
}

/// A route with these members for `uri` on `host`.
fn to(upstream: &HeadEcho, host: &str, uri: &str, more: Value) -> Value {
    let mut document = route(host, uri, &[upstream.address()]);
    document.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    document
}

/// `skip.test` exempts `/public/`; `list.test` requires certificates and allows another client to
/// `/secret/`; `open.test` requires nothing.
async fn sites(settings: Value) -> (World, HeadEcho) {
    let world = World::builder().settings(settings).start().await;
    let upstream = HeadEcho::start().await;
    let own = world.credentials.servers.server(&["skip.test", "list.test", "open.test"]);
    let clients = &world.credentials.clients;
    let mut skipping = protected(site(&own, "skip.test"), clients);
    skipping["client"]["skip_mtls_uri_regex"] = json!(["^/public/.*"]);
    let listed = json!({"client_identity": {"allow": [{"dns": "other.test"}]}});
    world
        .apply(&[
            ("ssls/skip", skipping),
            ("ssls/list", protected(site(&own, "list.test"), clients)),
            ("ssls/open", site(&own, "open.test")),
            ("routes/skip", to(&upstream, "skip.test", "/*", json!({}))),
            ("routes/list", to(&upstream, "list.test", "/*", json!({}))),
            ("routes/listed", to(&upstream, "list.test", "/secret/*", listed)),
            ("routes/open", to(&upstream, "open.test", "/*", json!({}))),
        ])
        .await;
    (world, upstream)
}

#[tokio::test]
async fn no_spelling_bypasses_a_skip_rule() {
    let (world, _upstream) = sites(json!({})).await;
    let table = [
        ("/public/x", Ok("/public/x")),
        ("/secret/../public/x", Ok("/public/x")),
        ("/secret/%2e%2E/public/x?y=../z", Ok("/public/x?y=../z")),
        ("/secret%2f..%2fpublic/x", Ok("/public/x")),
        ("//public//x", Ok("/public/x")),
        ("/%70ublic/x", Ok("/public/x")),
        ("/public/%2e%2e%2e/x", Ok("/public/.../x")),
        ("/public/%252e%252e/secret", Ok("/public/%252e%252e/secret")),
        ("/public/..%252fsecret", Ok("/public/..%252fsecret")),
        ("/public/%c0%ae%c0%ae/secret", Ok("/public/%C0%AE%C0%AE/secret")),
        ("/public/%EF%BC%8E%EF%BC%8E/secret", Ok("/public/%EF%BC%8E%EF%BC%8E/secret")),
        ("/public/a;x/secret", Ok("/public/a;x/secret")),
        ("https://skip.test/public/x", Ok("/public/x")),
        ("https://skip.test/secret/../public/x", Ok("/public/x")),
        // Denied: no certificate, or a path that some upstream reads as another one.
        ("/secret", Err(400)),
        ("/public/../secret", Err(400)),
        ("/public/%2e%2e/secret", Err(400)),
        ("/public%2f%2e%2e%2fsecret", Err(400)),
        ("/public/..\\secret", Err(400)),
        ("/public/..%5csecret", Err(400)),
        ("/public/a%5C..%5C..%5csecret", Err(400)),
        ("/public/..;/secret", Err(400)),
        ("/public/..;x=y/secret", Err(400)),
        ("/public/%2e%2e;/secret", Err(400)),
        ("/public/..%3b/secret", Err(400)),
        ("/public/.;x/../secret", Err(400)),
        ("/public/x\"", Err(400)),
        ("/public/x%00", Err(400)),
        ("/public/x%0d%0aX:%20y", Err(400)),
        ("/public/x%1f", Err(400)),
        ("/public/x%7F", Err(400)),
        ("/public/../../public/x", Err(400)),
        ("/public/%", Err(400)),
        ("/public/%2", Err(400)),
        ("https://skip.test/public/../secret", Err(400)),
        ("https://skip.test", Err(400)),
    ];
    expect(&world.client("skip.test"), &table).await;
}

#[tokio::test]
async fn no_spelling_bypasses_an_allow_list() {
    let (world, _upstream) = sites(json!({})).await;
    let table = [
        ("/free", Ok("/free")),
        ("/secret/../free", Ok("/free")),
        ("/secret/x", Err(403)),
        ("/free/../secret/x", Err(403)),
        ("/free/%2e%2e/secret/x", Err(403)),
        ("/free%2F..%2Fsecret/x", Err(403)),
        ("//secret/x", Err(403)),
        ("/secret%2Fx", Err(403)),
        ("/%73ecret/x", Err(403)),
        ("/./secret/x", Err(403)),
        ("/free/..;/secret/x", Err(400)),
        ("/free/..%5Csecret/x", Err(400)),
        ("/free\\..\\secret/x", Err(400)),
        ("/.;/secret/x", Err(400)),
    ];
    expect(&world.verified_client("list.test"), &table).await;
}

#[tokio::test]
async fn the_matched_path_is_forwarded_byte_for_byte() {
    let (world, _upstream) = sites(json!({})).await;
    let client = world.client("open.test");
    let table = [
        ("/a/b?c=%2e%2e/&d=\\|{}", Ok("/a/b?c=%2e%2e/&d=\\|{}")),
        ("/a?", Ok("/a?")),
        ("/?/../x", Ok("/?/../x")),
        ("/!$&'()*+,;=:@-._~", Ok("/!$&'()*+,;=:@-._~")),
        ("/a%20b%3Fc%23d%25e", Ok("/a%20b%3Fc%23d%25e")),
        ("/%41%2d%7E%3A", Ok("/A-~:")),
        ("/a%5Cb", Ok("/a%5Cb")),
        ("/a%22b", Ok("/a%22b")),
        ("/a|b^[c]", Ok("/a%7Cb%5E%5Bc%5D")),
        ("/%e9/%ff", Ok("/%E9/%FF")),
        ("/a/", Ok("/a/")),
        ("/.well-known/x", Ok("/.well-known/x")),
        ("/a;b=c/d", Ok("/a;b=c/d")),
        ("/a;b=c/../d", Ok("/d")),
    ];
    expect(&client, &table).await;
    same("UTF-8", "", &ask_raw(&client, "/é?é".as_bytes()).await, Ok("/%C3%A9?é"));
    for (what, target) in [
        ("control", &b"/a\x01b"[..]),
        ("tab", b"/a\tb"),
        ("DEL", b"/a\x7fb"),
        ("DEL in the query", b"/a?b\x7fc"),
        ("no slash", b"a/b"),
        ("asterisk", b"*"),
        ("not UTF-8", b"/a\xffb"),
    ] {
        assert_eq!(ask_raw(&client, target).await, Err(400), "{what}");
    }
    let reply = client.get("/still").await.unwrap();
    assert_eq!(reply.status, StatusCode::OK);
}

#[tokio::test]
async fn an_explanation_names_the_forwarded_path() {
    let (world, _upstream) = sites(json!({})).await;
    let admin = world.admin();
    let explain = async |uri: &str| {
        let asked = json!({"sni": "skip.test", "uri": uri});
        admin.call(Method::POST, "explain", Some(&asked)).await.unwrap().body
    };
    let answer = explain("/secret/..//public/%20é").await;
    assert_eq!(answer["request"]["path"], "/public/ é", "{answer:#}");
    assert_eq!(answer["request"]["forwarded_path"], "/public/%20%C3%A9", "{answer:#}");
    let refused = explain("/public/..;/secret").await;
    assert_eq!(refused["outcome"]["status"], 400, "{refused:#}");
    assert!(refused["outcome"]["message"].as_str().unwrap().contains("dot segment"), "{refused:#}");
}

//! `proxy-rewrite` as APISIX's users write it: new URIs, methods, hosts and headers, as the
//! upstream gets them.

use e2e::client::{Http, full};
use e2e::tools::curl;
use e2e::upstream::{HeadEcho, Upstream, sha256};
use e2e::world::World;
use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::{ask_raw, expect, sites, to};

fn plugin(block: Value) -> Value {
    json!({"plugins": {"proxy-rewrite": block}})
}

/// The head at the upstream, in lower case.
async fn head(world: &World, path: &str, sent: &[&str]) -> String {
    let mut session = world.plain("open.test").await;
    let mut request = session.request(Method::GET, path, full(""));
    for field in sent {
        let (name, value) = field.split_once(": ").unwrap();
        request.headers_mut().append(name.parse::<http::HeaderName>().unwrap(), value.parse().unwrap());
    }
    let reply = session.fetch(request).await.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(reply.status, StatusCode::OK, "{path}: {}", reply.text());
    reply.text().to_lowercase()
}

#[tokio::test]
async fn a_pattern_gives_path_and_query() {
    let (world, upstream) = sites(json!({})).await;
    let uri = plugin(json!({"regex_uri": [
        "^/test/(.*)", "/hello?a=$1",
        "^/both/([^/]+)/(.*)", "/new/$1?b=$2&c",
        "^/cut/", "/cut?rest=",
    ]}));
    world.apply(&[("routes/open", to(&upstream, "open.test", "/*", uri))]).await;
    let table = [
        ("/test/abc?x=1", Ok("/hello?a=abc&x=1")),
        ("/test/abc", Ok("/hello?a=abc")),
        ("/test/abc?", Ok("/hello?a=abc")),
        ("/test/a&b=c%20d%2Be/f?x", Ok("/hello?a=a%26b%3Dc%20d%2Be/f&x")),
        ("/test/%E9%3F%23", Ok("/hello?a=%E9?%23")),
        ("/both/a%3Fb/c/d", Ok("/new/a%3Fb?b=c/d&c")),
        ("/cut/x&y", Ok("/cut?rest=x%26y")),
        ("/other%20x?y", Ok("/other%20x?y")),
        ("/test/../other", Ok("/other")),
    ];
    expect(&world.client("open.test"), &table).await;
}

#[tokio::test]
async fn a_rewritten_path_is_matched_like_any_other() {
    let (world, upstream) = sites(json!({})).await;
    let uri = plugin(json!({"uri": "/in/$arg_t/x"}));
    let moved = plugin(json!({"regex_uri": ["^/a-(.*)-b/(.*)", "/in/$1.$2"]}));
    world
        .apply(&[
            ("routes/open", to(&upstream, "open.test", "/*", uri)),
            ("routes/moved", to(&upstream, "open.test", "/a-*", moved)),
        ])
        .await;
    let table = [
        ("/?t=a%2Fb", Ok("/in/a/b/x?t=a%2Fb")),
        ("/?t=%252e%252e", Ok("/in/%252e%252e/x?t=%252e%252e")),
        ("/?t=..", Err(400)),
        ("/?t=..%2Fy", Err(400)),
        ("/?t=..%3Bz", Err(400)),
        ("/?t=..%5Cz", Err(400)),
        ("/?t=%0d%0aX:y", Err(400)),
        ("/?t=%00", Err(400)),
        ("/a-x/.-b/", Err(400)),
        ("/a-x/%5C.-b/", Err(400)),
        ("/a-x-b/y", Ok("/in/x.y")),
    ];
    expect(&world.client("open.test"), &table).await;
}

#[tokio::test]
async fn a_path_of_any_bytes_goes_through_a_rewrite() {
    let (world, upstream) = sites(json!({"apisix": {"match_uri_encoded_slash": true}})).await;
    let uri = plugin(json!({"regex_uri": ["^/v1/(.*)", "/v2/$1"]}));
    world.apply(&[("routes/open", to(&upstream, "open.test", "/v1/*", uri))]).await;
    let client = world.client("open.test");
    for (asked, expected) in
        [("/v1/%FF%2Fx%25", "/v2/%FF%2Fx%25"), ("/v1/a%252Fb", "/v2/a%252Fb"), ("/v1/%C3%A9", "/v2/%C3%A9")]
    {
        assert_eq!(ask_raw(&client, asked.as_bytes()).await.as_deref(), Ok(expected), "{asked}");
    }
}

#[tokio::test]
async fn hosts_and_lists_and_the_address_that_is_appended() {
    let (world, upstream) = sites(json!({})).await;
    let block = json!({
        "host": "inner.example:8080",
        "headers": {
            "add": {"X-List": ["a", "b"], "X-Number": [1, 2]},
            "set": {"X-Forwarded-For": "203.0.113.9", "X-Set": ["c", "d"]},
        },
    });
    let appended = plugin(json!({"headers": {"add": {"X-Forwarded-For": ["203.0.113.9", "203.0.113.10"]}}}));
    let removed = plugin(json!({"headers": {"remove": ["X-Forwarded-For"]}}));
    let mut other_host = to(&upstream, "open.test", "/rewrite", plugin(json!({"host": "inner.example"})));
    other_host["upstream"]["pass_host"] = json!("rewrite");
    other_host["upstream"]["upstream_host"] = json!("outer.example");
    world
        .apply(&[
            ("routes/open", to(&upstream, "open.test", "/set", plugin(block))),
            ("routes/add", to(&upstream, "open.test", "/add", appended)),
            ("routes/remove", to(&upstream, "open.test", "/remove", removed)),
            ("routes/rewrite", other_host),
        ])
        .await;
    let sent = ["X-Forwarded-For: 192.0.2.1", "X-Set: old", "x_set: older", "X-List: 0"];
    let got = head(&world, "/set", &sent).await;
    let lines = |name: &str| -> Vec<&str> {
        got.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).collect()
    };
    assert_eq!(lines("host"), ["inner.example:8080"]);
    assert_eq!(lines("x-forwarded-host"), ["open.test"]);
    assert_eq!(lines("x-list"), ["0", "a", "b"]);
    assert_eq!(lines("x-number"), ["1", "2"]);
    assert_eq!(lines("x-set"), ["c", "d"]);
    assert!(!got.contains("x_set"), "{got}");
    assert_eq!(lines("x-forwarded-for"), ["203.0.113.9, 127.0.0.1"]);
    let got = head(&world, "/add", &sent).await;
    assert!(got.contains("\nx-forwarded-for: 192.0.2.1, 203.0.113.9, 203.0.113.10, 127.0.0.1\r\n"), "{got}");
    let got = head(&world, "/remove", &sent).await;
    assert!(got.contains("\nx-forwarded-for: 127.0.0.1\r\n"), "{got}");
    let got = head(&world, "/rewrite", &[]).await;
    assert!(got.contains("\nhost: outer.example\r\n"), "{got}");
}

#[tokio::test]
async fn a_new_method_keeps_the_framing() {
    let (world, heads) = sites(json!({})).await;
    let upstream = Upstream::plain("methods").await;
    let by = |method: &str| {
        let mut document = e2e::documents::route("open.test", &format!("/{method}/*"), &[upstream.address()]);
        document["plugins"] = json!({"proxy-rewrite": {"method": method}});
        document
    };
    let methods = ["PUT", "GET", "POST", "HEAD", "PROPFIND"];
    world.apply(&[("routes/open", to(&heads, "open.test", "/some/*", json!({})))]).await;
    let documents: Vec<_> = methods.iter().map(|method| (format!("routes/{method}"), by(method))).collect();
    let documents: Vec<_> =
        documents.iter().map(|(path, document)| (path.as_str(), document.clone())).collect();
    world.apply(&documents).await;
    for http in [Http::One, Http::Two] {
        let mut session = world.client("open.test").http(http).connect().await.unwrap();
        for method in ["PUT", "POST", "PROPFIND"] {
            let request = session.request(Method::PATCH, &format!("/{method}/sink"), full("a body"));
            let reply = session.fetch(request).await.unwrap();
            assert_eq!(reply.json()["sha256"], sha256(b"a body"), "{http:?} {method}: {}", reply.text());
            let reply = session.get(&format!("/{method}/seen")).await.unwrap();
            assert_eq!(reply.json()["method"], method, "{http:?}");
        }
        // The response to a HEAD has a length and no body: the client of a GET must not wait for
        // one.
        let reply = session.get("/HEAD/seen").await.unwrap();
        assert_eq!((reply.status, reply.text().as_str()), (StatusCode::OK, ""), "{http:?}");
        // The response to a GET has a body, which the client of a HEAD must not get.
        let request = session.request(Method::HEAD, "/GET/seen", full(""));
        let reply = session.fetch(request).await.unwrap();
        assert_eq!((reply.status, reply.text().as_str()), (StatusCode::OK, ""), "{http:?}");
        // Nor an error page.
        let request = session.request(Method::HEAD, "/none", full(""));
        let reply = session.fetch(request).await.unwrap();
        assert_eq!((reply.status, reply.text().as_str()), (StatusCode::NOT_FOUND, ""), "{http:?}");
        let reply = session.get("/GET/still").await.unwrap();
        assert_eq!(reply.json()["method"], "GET", "{http:?}: the connection is in step");
    }
}

/// The request that was sent decides whether it may be retried.
#[tokio::test]
async fn a_retry_is_decided_on_the_new_method() {
    let (world, living) = sites(json!({})).await;
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let broken = listener.local_addr().unwrap();
    // Reads a request and closes.
    let breaking = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = tokio::io::AsyncReadExt::read(&mut stream, &mut [0; 1024]).await;
        }
    });
    let by = |method: &str| {
        let mut document = to(&living, "open.test", &format!("/{method}"), plugin(json!({"method": method})));
        document["upstream"]["nodes"] = json!([
            {"host": "127.0.0.1", "port": broken.port(), "weight": 1, "priority": 1},
            {"host": "127.0.0.1", "port": living.address().port(), "weight": 1, "priority": 0},
        ]);
        document
    };
    world.apply(&[("routes/get", by("GET")), ("routes/post", by("POST"))]).await;
    let mut session = world.plain("open.test").await;
    for (sent, path, status) in
        [(Method::POST, "/GET", StatusCode::OK), (Method::GET, "/POST", StatusCode::BAD_GATEWAY)]
    {
        let request = session.request(sent, path, full(""));
        let reply = session.fetch(request).await.unwrap();
        assert_eq!(reply.status, status, "{path}: {}", reply.text());
    }
    breaking.abort();
}

/// As on APISIX's page about the plugin, in a shell.
#[tokio::test]
async fn the_example_of_the_page_works_by_curl() {
    let (world, _) = sites(json!({})).await;
    let upstream = HeadEcho::start().await;
    let block = json!({"regex_uri": ["^/test/(.*)", "/hello?a=$1"], "use_real_request_uri_unsafe": false});
    world.apply(&[("routes/open", to(&upstream, "open.test", "/test/*", plugin(block)))]).await;
    let url = format!("http://{}/test/abc?x=1", world.http());
    let answered = curl(world.folder(), &["-H", "Host: open.test", &url]).await;
    assert_eq!(answered.status, 200, "{answered:?}");
    assert!(answered.body.starts_with("GET /hello?a=abc&x=1 HTTP/1.1\r\n"), "{}", answered.body);
}

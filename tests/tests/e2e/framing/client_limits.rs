//! Limits of request heads: nginx's, for both protocols, without a limit on the number of fields.

use e2e::client::{Http, full};
use e2e::raw;
use e2e::world::World;
use http::{HeaderName, Method, StatusCode};
use serde_json::json;

use super::client::{answers, statuses};

const KIB: usize = 1024;

/// A request whose line has `line` bytes, with these fields.
fn head(line: usize, fields: &str) -> String {
    let path = "x".repeat(line - "GET / HTTP/1.1".len());
    format!("GET /{path} HTTP/1.1\r\nHost: app.test\r\nConnection: close\r\n{fields}\r\n")
}

/// Fields of about 8,000 bytes each, and `rest` bytes in a last one.
fn large(count: usize, rest: usize) -> String {
    let mut fields: String = (0..count).map(|n| format!("X-{n}: {}\r\n", "y".repeat(8000))).collect();
    fields.push_str(&format!("X-R: {}\r\n", "y".repeat(rest)));
    fields
}

#[tokio::test]
async fn a_long_line_is_414_and_a_large_head_400() {
    let (world, upstream) = World::open(json!({})).await;
    let field = |bytes: usize| format!("X: {}\r\n", "y".repeat(bytes - 3));
    for (what, request, status) in [
        ("a line at the limit", head(8 * KIB, ""), "200"),
        ("a line over it", head(8 * KIB + 1, ""), "414"),
        ("a line over everything", head(64 * KIB, ""), "414"),
        ("a field at the limit", head(20, &field(8 * KIB)), "200"),
        ("a field over it", head(20, &field(8 * KIB + 1)), "400"),
        ("a cookie over it", head(20, &format!("Cookie: {}\r\n", "y".repeat(8 * KIB))), "400"),
        ("a name over it", head(20, &format!("{}: y\r\n", "x".repeat(8 * KIB))), "400"),
        ("a head below the limit", head(20, &large(4, 500)), "200"),
        ("a head over it", head(20, &large(4, 900)), "400"),
        ("a head far over it", head(20, &large(20, 1)), "400"),
    ] {
        for answered in answers(&world, request.as_bytes()).await {
            assert_eq!(statuses(&answered), [status], "{what}: {}", &answered[..answered.len().min(400)]);
            let large = answered.contains("<title>400 Request Header Or Cookie Too Large</title>");
            assert_eq!(large, status == "400", "{what}");
            assert!(answered.to_ascii_lowercase().contains("\r\nserver: countersign"), "{what}");
        }
    }
    assert_eq!(upstream.requests(), 6);
    assert_eq!(world.metric("countersign_errors_total{reason=\"uri_too_long\"}").await, 4);
    assert_eq!(world.metric("countersign_errors_total{reason=\"head_too_large\"}").await, 10);
}

#[tokio::test]
async fn http_2_has_the_same_limits() {
    let (world, upstream) = World::open(json!({})).await;
    for (what, path, fields, status) in [
        ("a line below the limit", 8000, (0, 0), 200),
        ("a line over it", 8 * KIB, (0, 0), 414),
        ("a field below the limit", 1, (1, 8000), 200),
        ("a field over it", 1, (1, 8 * KIB), 400),
        ("a head below the limit", 1, (4, 8000), 200),
        ("a head over it", 1, (5, 7000), 400),
        ("many fields", 1, (500, 8), 200),
    ] {
        let mut session = world.client("app.test").http(Http::Two).connect().await.unwrap();
        let mut request = session.request(Method::GET, &format!("/{}", "x".repeat(path)), full(""));
        for number in 0..fields.0 {
            let name: HeaderName = format!("x-{number}").parse().unwrap();
            request.headers_mut().insert(name, "y".repeat(fields.1).parse().unwrap());
        }
        let reply = session.fetch(request).await.unwrap();
        assert_eq!(reply.status.as_u16(), status, "{what}");
        let large = reply.text().contains("400 Request Header Or Cookie Too Large");
        assert_eq!(large, status == 400, "{what}");
    }
    assert_eq!(upstream.requests(), 4);
}

#[tokio::test]
async fn the_number_of_fields_is_not_limited() {
    let (world, upstream) = World::open(json!({})).await;
    for count in [99, 101, 1000, 3000] {
        let fields: String = (0..count).map(|n| format!("x{n}: y\r\n")).collect();
        let one = format!("GET /a HTTP/1.1\r\nHost: app.test\r\n{fields}\r\n");
        let last = head(20, &fields);
        // The first request of a connection, a later one, and one after a chunked body.
        let chunks = "POST /c HTTP/1.1\r\nHost: app.test\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
        for answered in answers(&world, format!("{one}{chunks}{last}").as_bytes()).await {
            assert_eq!(statuses(&answered), ["200"; 3], "{count}");
            assert!(answered.contains(&format!("\"x{}\"", count - 1)), "{count}");
        }
    }
    assert_eq!(upstream.requests(), 24);
}

#[tokio::test]
async fn the_settings_change_the_limits() {
    let limits = json!({"countersign": {"limits": {"header_line_bytes": 300, "header_bytes": 1000}}});
    let world = World::builder().settings(limits).start().await;
    for (request, status) in [
        (head(300, ""), "404"),
        (head(301, ""), "414"),
        (head(20, &format!("X: {}\r\n", "y".repeat(298))), "400"),
        (head(20, &format!("X: {}\r\n", "y".repeat(200)).repeat(4)), "404"),
        (head(20, &format!("X: {}\r\n", "y".repeat(200)).repeat(5)), "400"),
    ] {
        let mut stream = raw::send(world.http(), request.as_bytes()).await;
        let answered = String::from_utf8_lossy(&raw::until_closed(&mut stream).await).into_owned();
        assert_eq!(statuses(&answered), [status], "{request}: {answered}");
    }
}

#[tokio::test]
async fn a_response_head_has_the_same_limit() {
    let (world, upstream) = World::open(json!({})).await;
    for http in [Http::One, Http::Two] {
        let mut session = world.client("app.test").http(http).connect().await.unwrap();
        for (query, status) in [
            ("fields=500&bytes=20", StatusCode::OK),
            ("fields=4&bytes=7900", StatusCode::OK),
            ("fields=1&bytes=9000", StatusCode::BAD_GATEWAY),
            ("fields=5&bytes=7900", StatusCode::BAD_GATEWAY),
        ] {
            let reply = session.get(&format!("/fields?{query}")).await.unwrap();
            assert_eq!(reply.status, status, "{http:?} {query}");
        }
    }
    assert!(upstream.requests() >= 8);
}

//! Forged identities: every identity header of known upstreams, in every spelling, as header and as
//! trailer, over every protocol.

use bytes::Bytes;
use e2e::client::{Body, Http, HttpConnection, full};
use futures_util::stream;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use serde_json::{Value, json};

use super::{any_host, three_sites};

/// Identity headers of known upstreams in the spellings that CGI maps to them, and headers that a
/// route sets.
fn spellings() -> Vec<HeaderName> {
    let names = [
        "Client-Cert",
        "Client-Cert-Chain",
        "X-Forwarded-Client-Cert",
        "X-SSL-Client-Verify",
        "X-SSL-Client-S-DN",
        "X-SSL-Client-I-DN",
        "X-SSL-Client-Serial",
        "X-SSL-Client-Fingerprint",
        "X-SSL-Client-V-Start",
        "X-SSL-Client-V-End",
        "X-SSL-Client-Cert",
        "SSL-Client-S-DN",
        "X-Client-Cert",
        "X-User-DN",
    ];
    let turned = |name: &str, with: &str| name.replace('-', with);
    names
        .iter()
        .flat_map(|name| {
            [turned(name, "-"), turned(name, "_"), turned(name, "."), name.replacen('-', "_", 1)]
        })
        .map(|name| name.to_lowercase().parse().unwrap())
        .collect()
}

/// As many names as fit into one request beside its own headers.
const AT_A_TIME: usize = 28;

fn forged(names: &[HeaderName]) -> HeaderMap {
    let mut fields = HeaderMap::new();
    for name in names {
        for value in ["SUCCESS forged", "CN=forged"] {
            fields.append(name, HeaderValue::from_static(value));
        }
    }
    fields
}

/// A body with forged trailers.
fn with_trailers(names: &[HeaderName]) -> Body {
    let frames = [Ok(Frame::data(Bytes::from_static(b"body"))), Ok(Frame::trailers(forged(names)))];
    BodyExt::boxed(StreamBody::new(stream::iter(frames)))
}

/// Sends forged headers, listed in `Connection`, and trailers; returns what the upstream received
/// with the last request.
async fn forge(session: &mut HttpConnection, http: Http) -> Value {
    let mut seen = Value::Null;
    for names in spellings().chunks(AT_A_TIME) {
        let mut request = session.request(Method::POST, "/free/x", with_trailers(names));
        let fields = request.headers_mut();
        fields.extend(forged(names));
        let list = names.iter().map(HeaderName::as_str).collect::<Vec<_>>().join(", ");
        // HTTP/2 forbids Connection; the list of trailers makes this client send them.
        if http == Http::One {
            fields.insert("connection", HeaderValue::from_str(&format!("keep-alive, {list}")).unwrap());
        }
        fields.insert("trailer", HeaderValue::from_str(&list).unwrap());
        let reply = session.fetch(request).await.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(reply.status, StatusCode::OK, "{}", reply.text());
        seen = reply.json();
        assert!(!seen.to_string().contains("forged"), "{seen:#}");
        assert!(seen["trailers"].is_null(), "{seen:#}");
    }
    seen
}

#[tokio::test]
async fn no_spelling_of_a_forged_identity_is_forwarded() {
    let (world, upstream) = three_sites().await;
    let telling = json!({
        "client_identity": {"forward": ["client_cert", "client_cert_chain", "xfcc", "x_ssl_client"]},
        "plugins": {"proxy-rewrite": {"headers": {"set": {"X-User-DN": "$ssl_client_s_dn"}}}},
    });
    let adding =
        json!({"plugins": {"proxy-rewrite": {"headers": {"add": {"X-User-DN": "$ssl_client_s_dn"}}}}});
    for (number, more) in (0..).zip([telling, adding]) {
        world.apply(&[("routes/1", any_host(&upstream, "/*", more))]).await;
        for http in [Http::One, Http::Two] {
            for (client, known) in [
                (world.verified_client("mtls.test"), true),
                (world.verified_client("skip.test"), true),
                (world.client("skip.test"), false),
                (world.verified_client("open.test"), false),
            ] {
                let mut session = client.http(http).connect().await.unwrap();
                let headers = forge(&mut session, http).await["headers"].clone();
                let dn = headers["x-user-dn"].as_str();
                assert_eq!(dn, known.then_some("CN=good-client"), "{headers:#}");
                if number == 0 {
                    let verify = if known { "SUCCESS" } else { "NONE" };
                    assert_eq!(headers["x-ssl-client-verify"], verify);
                    assert_eq!(headers["client-cert"].is_string(), known);
                }
            }
        }
        let headers = forge(&mut world.plain("mtls.test").await, Http::One).await["headers"].clone();
        assert!(headers["x-user-dn"].is_null(), "{headers}");
    }
}

#[tokio::test]
async fn a_route_without_forwarding_also_strips_claims() {
    let (world, upstream) = three_sites().await;
    world.apply(&[("routes/1", any_host(&upstream, "/*", json!({})))]).await;
    for (client, http) in [
        (world.verified_client("mtls.test"), Http::One),
        (world.verified_client("mtls.test"), Http::Two),
        (world.client("skip.test"), Http::One),
        (world.client("open.test"), Http::Two),
    ] {
        let mut session = client.http(http).connect().await.unwrap();
        // A name that only other routes set is an ordinary header here.
        let mut names = spellings();
        names.retain(|name| !name.as_str().replace(['_', '.'], "-").starts_with("x-user"));
        for names in names.chunks(AT_A_TIME) {
            let mut request = session.request(Method::GET, "/free", full(""));
            request.headers_mut().extend(forged(names));
            let seen = session.fetch(request).await.unwrap().text();
            assert!(!seen.contains("forged"), "{seen}");
        }
    }
}

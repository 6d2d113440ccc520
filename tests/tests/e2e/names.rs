//! SNI x Host: the hosts that a connection may request.
//!
//! A hand-written table over exact and wildcard names. A Host whose site requires client
//! certificates is served only over a connection of that site; one without is served over any. The
//! same over HTTP/1.1 and HTTP/2.

use e2e::client::Http;
use e2e::documents::{protected, site};
use e2e::upstream::Upstream;
use e2e::world::World;
use http::StatusCode;
use serde_json::json;

const OK: StatusCode = StatusCode::OK;
const MISDIRECTED: StatusCode = StatusCode::MISDIRECTED_REQUEST;

/// SNI, Host, status, reason.
#[rustfmt::skip]
const TABLE: &[(&str, &str, StatusCode, &str)] = &[
    ("open.test", "open.test", OK, "its own"),
    ("open.test", "free.open.test", OK, "demands nothing"),
    ("open.test", "shut.test", MISDIRECTED, "requires a certificate, and none was requested"),
    ("open.test", "SHUT.Test", MISDIRECTED, "case is no difference"),
    ("open.test", "shut.test.", MISDIRECTED, "nor is a trailing dot"),
    ("open.test", "shut.test:9443", MISDIRECTED, "nor a port"),
    ("open.test", "a.wild.test", MISDIRECTED, "a wildcard site demands as an exact one does"),
    ("open.test", "vip.wild.test", MISDIRECTED, "exact name within a wildcard"),
    ("open.test", "a.b.wild.test", OK, "a wildcard is one label: no site has the name"),
    ("open.test", "wild.test", OK, "a wildcard is one label, not none"),
    ("open.test", "unknown.example", OK, "no site has the name"),
    ("free.open.test", "open.test", OK, "demands nothing"),
    ("free.open.test", "shut.test", MISDIRECTED, "requires a certificate, and none was requested"),
    ("shut.test", "shut.test", OK, "its own"),
    ("shut.test", "SHUT.test.", OK, "its own, spelled otherwise"),
    ("shut.test", "shut.test:443", OK, "its own, with a port"),
    ("shut.test", "open.test", OK, "demands nothing"),
    ("shut.test", "a.wild.test", MISDIRECTED, "the same demand, but another site's"),
    ("a.wild.test", "a.wild.test", OK, "its own"),
    ("a.wild.test", "b.wild.test", OK, "one site, one policy"),
    ("a.wild.test", "vip.wild.test", MISDIRECTED, "the exact name is another site with another CA"),
    ("a.wild.test", "shut.test", MISDIRECTED, "another site"),
    ("a.wild.test", "open.test", OK, "demands nothing"),
    ("vip.wild.test", "vip.wild.test", OK, "its own"),
    ("vip.wild.test", "a.wild.test", MISDIRECTED, "the wildcard is another site with another CA"),
    ("vip.wild.test", "open.test", OK, "demands nothing"),
];

#[tokio::test]
async fn a_protected_host_is_served_over_its_own_site_only() {
    let world = World::start().await;
    let upstream = Upstream::plain("plain").await;
    let credentials = &world.credentials;
    let server = |name: &str| site(&credentials.servers.server(&[name]), name);
    let guarded = |name: &str| protected(server(name), &credentials.clients);
    world
        .apply(&[
            ("ssls/open", server("open.test")),
            ("ssls/free", server("*.open.test")),
            ("ssls/shut", guarded("shut.test")),
            ("ssls/wild", guarded("*.wild.test")),
            ("ssls/vip", protected(server("vip.wild.test"), &credentials.untrusted)),
            ("routes/all", json!({"uri": "/*", "upstream": {"nodes": {upstream.address().to_string(): 1}}})),
        ])
        .await;
    let vip = credentials.untrusted.client("vip");
    let mut served = 0;
    for (sni, host, expected, because) in TABLE {
        for http in [Http::One, Http::Two] {
            let identity = if *sni == "vip.wild.test" { &vip } else { &credentials.client };
            let client = world.client(host).sni(sni).identity(identity).http(http);
            let reply = client.get("/").await.unwrap_or_else(|error| panic!("{sni}, {host}: {error}"));
            assert_eq!(reply.status, *expected, "{sni} asked for {host}: {because} ({http:?})");
            served += u64::from(reply.status == OK);
        }
    }
    assert_eq!(upstream.requests(), served, "the upstream sees what is served and nothing else");
}

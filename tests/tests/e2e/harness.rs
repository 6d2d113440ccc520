//! Tests of the test harness: the scripted upstream and the clients behave as the suites expect.
//!
//! They run without a gateway, so a failure is the harness's own.

use e2e::client::{Http, HttpClient, HttpConnection, Tls};
use e2e::credentials::{Authority, certificates};
use e2e::ports::{BlackHole, Reservation};
use e2e::upstream::{FIRST_HALF, Upstream, pattern, pattern_body, sha256};
use e2e::world::World;
use http::{Method, StatusCode};
use http_body_util::BodyExt;
use rustls::{AlertDescription, ProtocolVersion};
use tokio::net::TcpStream;

#[tokio::test]
async fn a_plain_upstream_reports_the_request() {
    let upstream = Upstream::plain("one").await;
    let mut session = HttpConnection::plain(upstream.address(), "app.test").await.unwrap();
    let reply = session.get("/some/path?x=1").await.unwrap();
    assert_eq!(reply.status, StatusCode::OK);
    let seen = reply.json();
    assert_eq!(seen["upstream"], "one");
    assert_eq!(seen["uri"], "/some/path?x=1");
    assert_eq!(seen["headers"]["host"], "app.test");
    assert_eq!(seen["client_subject"], serde_json::Value::Null);
    assert_eq!((upstream.connections(), upstream.requests()), (1, 1));
}

#[tokio::test]
async fn an_mtls_upstream_names_its_client_and_rejects_others() {
    let servers = Authority::root("Servers");
    let clients = Authority::root("Clients");
    let untrusted = Authority::root("Untrusted");
    let upstream = Upstream::demanding("strict", &servers.server(&["up.test"]), &clients).await;
    let client = HttpClient::new(upstream.address(), "up.test", certificates(servers.certificate_pem()));
    for http in [Http::One, Http::Two] {
        for (tls, version) in [(Tls::V12, ProtocolVersion::TLSv1_2), (Tls::V13, ProtocolVersion::TLSv1_3)] {
            let client = client.clone().http(http).tls(tls);
            let mut session = client.clone().identity(&clients.client("gateway")).connect().await.unwrap();
            assert_eq!(session.protocol(), Some(version));
            let seen = session.get("/").await.unwrap().json();
            assert_eq!(seen["client_subject"], "CN=gateway");
            assert_eq!(seen["sni"], "up.test");
            assert_eq!(client.expect_alert().await, AlertDescription::CertificateRequired);
            let wrong = client.clone().identity(&untrusted.client("gateway"));
            assert!(matches!(
                wrong.expect_alert().await,
                AlertDescription::UnknownCA | AlertDescription::DecryptError
            ));
            let expired = client.identity(&clients.expired_client("gateway"));
            assert_eq!(expired.expect_alert().await, AlertDescription::CertificateExpired);
        }
    }
}

#[tokio::test]
async fn bodies_stream_and_can_be_checked() {
    let upstream = Upstream::plain("bodies").await;
    let mut session = HttpConnection::plain(upstream.address(), "app.test").await.unwrap();
    let expected = pattern(300_000);
    let reply = session.get("/sized?bytes=300000").await.unwrap();
    assert_eq!(sha256(&reply.body), sha256(&expected));
    let request = session.request(Method::POST, "/sink", pattern_body(300_000));
    let seen = session.fetch(request).await.unwrap().json();
    assert_eq!((&seen["bytes"], &seen["sha256"]), (&300_000.into(), &sha256(&expected).into()));
    let request = session.request(Method::POST, "/echo", pattern_body(300_000));
    assert_eq!(session.fetch(request).await.unwrap().body, expected);

    let request = session.request(Method::GET, "/halves", e2e::client::full(""));
    let mut body = session.send(request).await.unwrap().into_body();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), FIRST_HALF.as_bytes());
    upstream.open_gate();
    assert!(!body.collect().await.unwrap().to_bytes().is_empty());
}

#[tokio::test]
async fn the_settings_of_a_world_are_valid() {
    let world = World::builder().without_control().nodes(&[]).start().await;
    for name in ["control", "node-1"] {
        let settings = conf::load(&world.write_config(name)).unwrap_or_else(|problem| panic!("{problem}"));
        // Worlds have APISIX's public keys, like its documents and its tests.
        let public = |text: &str| text.contains("public default") || text.contains("published with APISIX");
        let others: Vec<_> = settings.warnings.iter().filter(|text| !public(text)).collect();
        assert_eq!(others, Vec::<&String>::new());
        assert_eq!(settings.countersign.push.listen, world.push_address());
        assert_eq!(settings.countersign.node.name, name);
        assert_eq!(settings.countersign.node.control_planes, [world.push_address().to_string()]);
        assert_eq!(settings.countersign.workers, 2);
        let tls = settings.deployment.admin.listeners[0].tls.as_ref();
        assert!(tls.is_some_and(|tls| tls.ca.as_ref().is_some_and(|ca| ca.exists())));
    }
}

#[tokio::test]
async fn a_reserved_port_refuses_until_its_owner_listens() {
    let kept = Reservation::any();
    let refused = TcpStream::connect(kept.address()).await.unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    let upstream = Upstream::plain_at("owner", kept.address()).await;
    drop(kept);
    assert!(TcpStream::connect(upstream.address()).await.is_ok());
}

#[tokio::test]
async fn a_black_hole_neither_accepts_nor_refuses() {
    let hole = BlackHole::open();
    let connecting = TcpStream::connect(hole.address());
    let waited = tokio::time::timeout(std::time::Duration::from_millis(300), connecting).await;
    assert!(waited.is_err(), "{waited:?}");
}

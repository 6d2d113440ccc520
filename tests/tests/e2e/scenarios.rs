//! The main scenarios: a protected route, mutual TLS to the upstream, and both at once.
//!
//! Every rejection happens in the handshake: no HTTP response, and an alert about the certificate.

use e2e::client::{Http, Tls};
use e2e::documents::route;
use e2e::tools::curl;
use e2e::upstream::Upstream;
use e2e::world::World;
use http::{StatusCode, Version};
use rustls::{AlertDescription, ProtocolVersion};
use serde_json::{Value, json};

/// Every pair of protocols that a site serves by default.
const PROTOCOLS: [(Tls, Http); 4] =
    [(Tls::V12, Http::One), (Tls::V12, Http::Two), (Tls::V13, Http::One), (Tls::V13, Http::Two)];

fn is_about_the_certificate(alert: AlertDescription) -> bool {
    matches!(
        alert,
        AlertDescription::CertificateRequired
            | AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::UnknownCA
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::AccessDenied
            | AlertDescription::DecryptError
            | AlertDescription::HandshakeFailure
    )
}

#[tokio::test]
async fn a_protected_route_serves_good_clients_over_every_protocol() {
    let (world, _upstream) = World::protected(json!({})).await;
    for (tls, http) in PROTOCOLS {
        let client = world.verified_client("app.test").tls(tls).http(http);
        let mut session = client.connect().await.unwrap_or_else(|error| panic!("{tls:?} {http:?}: {error}"));
        let expected = if tls == Tls::V12 { ProtocolVersion::TLSv1_2 } else { ProtocolVersion::TLSv1_3 };
        assert_eq!(session.protocol(), Some(expected));
        let reply = session.get("/hello").await.unwrap_or_else(|error| panic!("{tls:?} {http:?}: {error}"));
        assert_eq!(reply.status, StatusCode::OK);
        assert_eq!(reply.version, if http == Http::One { Version::HTTP_11 } else { Version::HTTP_2 });
        assert_eq!(reply.json()["uri"], "/hello");
    }
}

#[tokio::test]
async fn a_protected_route_rejects_other_clients_in_the_handshake() {
    let (world, upstream) = World::protected(json!({})).await;
    let credentials = &world.credentials;
    let untrusted = [
        ("no certificate", None),
        ("a certificate of another authority", Some(credentials.untrusted.client("good-client"))),
        ("an expired certificate", Some(credentials.clients.expired_client("good-client"))),
        ("a server's certificate", Some(credentials.clients.server(&["good-client"]))),
    ];
    for (what, identity) in &untrusted {
        for (tls, http) in PROTOCOLS {
            let client = world.client("app.test").tls(tls).http(http);
            let client = identity.iter().fold(client, |client, identity| client.identity(identity));
            let alert = client.expect_alert().await;
            assert!(is_about_the_certificate(alert), "{what}, {tls:?}, {http:?}: {alert:?}");
        }
    }
    assert_eq!(upstream.requests(), 0);
}

#[tokio::test]
async fn curl_gets_the_same_results() {
    let (world, _upstream) = World::protected(json!({})).await;
    let port = world.https().port();
    let (resolve, url) = (format!("app.test:{port}:127.0.0.1"), format!("https://app.test:{port}/hello"));
    let base = ["--cacert", "server-ca.crt", "--resolve", &resolve, &url];
    let with = |more: &[&'static str]| -> Vec<String> {
        base.iter().copied().chain(more.iter().copied()).map(str::to_owned).collect()
    };
    let good = ["--cert", "client.crt", "--key", "client.key"];
    for (tls, http, version) in [
        ("--tlsv1.3", "--http2", "2"),
        ("--tlsv1.3", "--http1.1", "1.1"),
        ("--tls-max=1.2", "--http2", "2"),
        ("--tls-max=1.2", "--http1.1", "1.1"),
    ] {
        let protocol: Vec<&'static str> =
            if tls == "--tlsv1.3" { vec![tls, http] } else { vec!["--tls-max", "1.2", http] };
        let arguments = with(&[&good[..], &protocol].concat());
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let answered = curl(world.folder(), &arguments).await;
        assert_eq!(
            (answered.exit, answered.status, answered.http.as_str()),
            (0, 200, version),
            "{answered:?}"
        );

        let arguments = with(&protocol);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let refused = curl(world.folder(), &arguments).await;
        assert_ne!(refused.exit, 0, "{refused:?}");
        assert_eq!(refused.status, 0, "{refused:?}");
    }
}

#[tokio::test]
async fn an_mtls_upstream_gets_the_gateways_certificate() {
    let world = World::start().await;
    let credentials = &world.credentials;
    let strict =
        Upstream::demanding("strict", &credentials.upstreams.server(&["up.test"]), &credentials.upstreams)
            .await;
    let node = strict.address().to_string();
    let gateway = credentials.upstreams.client("the-gateway");
    let bare =
        json!({"scheme": "https", "nodes": {&node: 1}, "pass_host": "rewrite", "upstream_host": "up.test"});
    let mut with_certificate = bare.clone();
    with_certificate["tls"] = json!({"client_cert": gateway.certificate_pem, "client_key": gateway.key_pem});
    world
        .apply(&[
            ("ssls/app", world.protected_site()),
            ("upstreams/strict", with_certificate),
            ("routes/app", json!({"uri": "/*", "host": "app.test", "upstream_id": "strict"})),
        ])
        .await;
    for (tls, http) in PROTOCOLS {
        let reply = world.verified_client("app.test").tls(tls).http(http).get("/hello").await.unwrap();
        assert_eq!(reply.status, StatusCode::OK, "{}", reply.text());
        let seen = reply.json();
        assert_eq!(seen["client_subject"], "CN=the-gateway");
        assert_eq!((&seen["sni"], &seen["headers"]["host"]), (&json!("up.test"), &json!("up.test")));
    }

    // Without a certificate the node ends the handshake: the gateway's failure, not the client's.
    world.apply(&[("upstreams/strict", bare)]).await;
    let reply = world.verified_client("app.test").get("/hello").await.unwrap();
    assert_eq!(reply.status, StatusCode::BAD_GATEWAY, "{}", reply.text());

    // PATCH restores it; a certificate of an authority unknown to the node does not help.
    let admin = world.admin();
    let patch = |identity: &e2e::credentials::Credential| -> Value {
        json!({"tls": {"client_cert": identity.certificate_pem, "client_key": identity.key_pem}})
    };
    let revision = admin.write(http::Method::PATCH, "upstreams/strict", Some(&patch(&gateway))).await;
    world.wait_acknowledged(revision).await;
    assert_eq!(world.verified_client("app.test").get("/hello").await.unwrap().status, StatusCode::OK);
    let wrong = credentials.untrusted.client("the-gateway");
    let revision = admin.write(http::Method::PATCH, "upstreams/strict", Some(&patch(&wrong))).await;
    world.wait_acknowledged(revision).await;
    assert_eq!(
        world.verified_client("app.test").get("/hello").await.unwrap().status,
        StatusCode::BAD_GATEWAY
    );
}

#[tokio::test]
async fn an_upstream_may_refer_to_an_ssl_of_type_client() {
    let world = World::start().await;
    let credentials = &world.credentials;
    let strict =
        Upstream::demanding("strict", &credentials.upstreams.server(&["up.test"]), &credentials.upstreams)
            .await;
    let gateway = credentials.upstreams.client("kept-once");
    world
        .apply(&[
            ("ssls/app", world.open_site()),
            (
                "ssls/gateway",
                json!({"type": "client", "cert": gateway.certificate_pem, "key": gateway.key_pem}),
            ),
            (
                "routes/app",
                json!({"uri": "/*", "host": "app.test", "upstream": {
                    "scheme": "https", "nodes": {strict.address().to_string(): 1},
                    "tls": {"client_cert_id": "gateway"},
                }}),
            ),
        ])
        .await;
    let seen = world.client("app.test").get("/").await.unwrap().json();
    assert_eq!(seen["client_subject"], "CN=kept-once");
}

#[tokio::test]
async fn a_name_without_a_site_gets_no_certificate() {
    let (world, _upstream) = World::protected(json!({})).await;
    for tls in [Tls::V12, Tls::V13] {
        let unknown = world.verified_client("other.test").tls(tls).expect_alert().await;
        assert!(
            matches!(unknown, AlertDescription::UnrecognisedName | AlertDescription::HandshakeFailure),
            "{unknown:?}"
        );
        let nameless = world.verified_client("app.test").tls(tls).no_sni().expect_alert().await;
        assert!(
            matches!(
                nameless,
                AlertDescription::UnrecognisedName
                    | AlertDescription::HandshakeFailure
                    | AlertDescription::MissingExtension
            ),
            "{nameless:?}"
        );
    }
}

#[tokio::test]
async fn a_protected_host_is_not_served_through_another_name() {
    let world = World::start().await;
    let credentials = &world.credentials;
    let upstream = Upstream::plain("plain").await;
    let open = e2e::documents::site(&credentials.servers.server(&["open.test"]), "open.test");
    world
        .apply(&[
            ("ssls/app", world.protected_site()),
            ("ssls/open", open),
            ("routes/app", route("app.test", "/*", &[upstream.address()])),
            ("routes/open", route("open.test", "/*", &[upstream.address()])),
        ])
        .await;
    for http in [Http::One, Http::Two] {
        let through = world.client("app.test").sni("open.test").http(http);
        let reply = through.get("/secret").await.unwrap();
        assert_eq!(reply.status, StatusCode::MISDIRECTED_REQUEST, "{}", reply.text());
        let own = world.client("open.test").http(http).get("/public").await.unwrap();
        assert_eq!(own.status, StatusCode::OK);
    }
    assert_eq!(upstream.requests(), 2);
}

/// Without io_uring the gateway runs on epoll with the same results.
#[tokio::test]
async fn epoll_serves_the_same_as_io_uring() {
    let upstream = Upstream::plain("plain").await;
    let builder = World::builder().node_environment("COUNTERSIGN_DRIVER", "epoll");
    let mut world = builder.protected(upstream.address()).start().await;
    assert_eq!(world.node_ready()["driver"], "epoll");
    for (tls, http) in PROTOCOLS {
        let good = world.verified_client("app.test").tls(tls).http(http);
        let mut session = good.connect().await.unwrap();
        let body = vec![7_u8; 1 << 20];
        let request = session.request(http::Method::POST, "/echo", e2e::client::full(body.clone()));
        assert!(session.fetch(request).await.unwrap().body == body, "{tls:?} {http:?}");
        world.client("app.test").tls(tls).http(http).expect_alert().await;
    }
    assert!(world.stop_node().await.success());
}

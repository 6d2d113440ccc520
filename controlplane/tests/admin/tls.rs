//! The Admin API's TLS: cases R1 and R2, and the contract's rules for certificates (2.1).

use std::fs;
use std::time::Duration;

use controlplane::testing::admin::ReloadingTls;
use http::Method;
use pki::ca::{Authority, AuthoritySpec, LeafSpec};
use rustls_pki_types::UnixTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::world::{KEY, Response, World, exchange, request};

fn is_page(response: &Response, why: &str) {
    assert_eq!(response.status, 400);
    assert!(response.text.contains(&format!("<title>400 {why}</title>")), "{response:?}");
    assert_eq!(response.header("content-type"), Some("text/html; charset=utf-8"));
    assert_eq!(response.header("connection"), Some("close"));
}

#[tokio::test]
async fn r1_a_valid_certificate_is_accepted_by_every_version() {
    let world = World::start().await;
    for versions in [&[&rustls::version::TLS13], &[&rustls::version::TLS12]] {
        let stream = world.connect_by(Some(&world.identity), versions).await.unwrap();
        let response = exchange(stream, request(Method::GET, "/routes", Some(KEY), "".into())).await;
        assert_eq!((response.status.as_u16(), response.text.as_str()), (200, "{\"list\":[],\"total\":0}\n"));
    }
}

#[tokio::test]
async fn r2_without_a_certificate_the_response_is_400() {
    let world = World::start().await;
    for versions in [&[&rustls::version::TLS13], &[&rustls::version::TLS12]] {
        let stream = world.connect_by(None, versions).await.unwrap();
        let response = exchange(stream, request(Method::GET, "/routes", Some(KEY), "".into())).await;
        is_page(&response, "No required SSL certificate was sent");
    }
    // A valid key does not replace the certificate.
    let body = serde_json::json!({"nodes": {"127.0.0.1:1980": 1}});
    let response = world.send(None, request(Method::PUT, "/upstreams/1", Some(KEY), body.into())).await;
    is_page(&response, "No required SSL certificate was sent");
    assert!(world.store.load().await.unwrap().items.is_empty());
}

#[tokio::test]
async fn with_an_invalid_certificate_the_response_is_400() {
    let world = World::start().await;
    let other_ca = Authority::root(&AuthoritySpec::new("Other")).unwrap();
    // Another CA with the same name is another CA.
    let impostor = Authority::root(&AuthoritySpec::new("clients")).unwrap();
    let first = world.clients.intermediate(&AuthoritySpec::new("first")).unwrap();
    let second = first.intermediate(&AuthoritySpec::new("second")).unwrap();
    let client = LeafSpec::client("tester");
    let day = |n: u64| UnixTime::since_unix_epoch(Duration::from_secs(n * 86_400));
    let bad = [
        ("of another authority", other_ca.issue(&client).unwrap()),
        ("of an authority of the same name", impostor.issue(&client).unwrap()),
        ("expired", world.clients.issue(&client.clone().between(day(1), day(2))).unwrap()),
        ("not valid yet", world.clients.issue(&client.clone().between(day(28_000), day(28_001))).unwrap()),
        ("for servers", world.clients.issue(&LeafSpec::server("tester")).unwrap()),
        ("too deep", second.issue(&client).unwrap()),
    ];
    for versions in [&[&rustls::version::TLS13], &[&rustls::version::TLS12]] {
        for (what, identity) in &bad {
            let stream =
                world.connect_by(Some(identity), versions).await.unwrap_or_else(|e| panic!("{what}: {e}"));
            let response = exchange(stream, request(Method::GET, "/routes", Some(KEY), "".into())).await;
            assert!(response.text.contains("400 The SSL certificate error"), "{what}: {response:?}");
            is_page(&response, "The SSL certificate error");
        }
        // One intermediate is within nginx's depth; APISIX's tutorial creates v1 certificates.
        for good in [first.issue(&client).unwrap(), world.clients.issue(&client.clone().v1()).unwrap()] {
            let stream = world.connect_by(Some(&good), versions).await.unwrap();
            assert_eq!(
                exchange(stream, request(Method::GET, "/routes", Some(KEY), "".into())).await.status,
                200
            );
        }
    }
}

#[tokio::test]
async fn the_server_sends_its_client_ca_names() {
    let world = World::start().await;
    #[derive(Debug)]
    struct Asked(std::sync::Mutex<Vec<Vec<u8>>>);
    impl rustls::client::ResolvesClientCert for Asked {
        fn resolve(
            &self,
            hints: &[&[u8]],
            _: &[rustls::SignatureScheme],
        ) -> Option<std::sync::Arc<rustls::sign::CertifiedKey>> {
            *self.0.lock().unwrap() = hints.iter().map(|hint| hint.to_vec()).collect();
            None
        }
        fn has_certs(&self) -> bool {
            true
        }
    }
    let asked = std::sync::Arc::new(Asked(std::sync::Mutex::new(Vec::new())));
    let mut roots = rustls::RootCertStore::empty();
    roots.add(world.servers.certificate().der().clone()).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_cert_resolver(asked.clone());
    let stream = TcpStream::connect(world.address).await.unwrap();
    let name = rustls::pki_types::ServerName::try_from("admin.test").unwrap();
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
    connector.connect(name, stream).await.unwrap();
    let hints = asked.0.lock().unwrap().clone();
    assert_eq!(hints.len(), 1);
    assert!(hints[0].windows(7).any(|window| window == b"clients"));
}

#[tokio::test]
async fn plain_http_on_the_tls_port_gets_an_error_page() {
    let world = World::start().await;
    let mut stream = TcpStream::connect(world.address).await.unwrap();
    stream.write_all(b"GET /apisix/admin/routes HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).await.unwrap();
    assert!(response.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{response}");
    assert!(response.contains("400 The plain HTTP request was sent to HTTPS port"), "{response}");
}

#[tokio::test]
async fn garbage_on_the_tls_port_affects_no_other_client() {
    let world = World::start().await;
    for garbage in
        [&b"\x00\x01\x02\x03"[..], b"\x16\x03\x01\xff\xff garbage garbage", b"\x80\x2e\x01", b"\n\n\n"]
    {
        let mut stream = TcpStream::connect(world.address).await.unwrap();
        stream.write_all(garbage).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut response = Vec::new();
        // A reset also ends the connection.
        let _ = stream.read_to_end(&mut response).await;
        assert!(!response.starts_with(b"HTTP"), "{garbage:?}");
    }
    world.get("/routes").await.ok();
}

#[tokio::test]
async fn without_https_the_server_speaks_plain_http() {
    let mut builder = World::builder();
    builder.https = false;
    let world = builder.start().await;
    let stream = TcpStream::connect(world.address).await.unwrap();
    let response = exchange(stream, request(Method::GET, "/routes", Some(KEY), "".into())).await;
    assert_eq!(response.status, 200);
}

#[tokio::test]
async fn without_a_ca_no_certificate_is_requested() {
    let mut builder = World::builder();
    builder.ca = false;
    let world = builder.start().await;
    let response = world.send(None, request(Method::GET, "/routes", Some(KEY), "".into())).await;
    assert_eq!(response.status, 200);
}

#[tokio::test]
async fn a_ca_file_without_a_certificate_is_an_error() {
    let world = World::start().await;
    let versions = [conf::TlsVersion::V13];
    let mut files = world.files.clone();
    let ca = files.ca.clone().unwrap();
    for (content, what) in [("", "empty"), ("hello", "text"), (&*world.clients.key_pem(), "only a key")] {
        fs::write(&ca, content).unwrap();
        let error = ReloadingTls::load(&files, &versions, None).unwrap_err().to_string();
        assert!(error.contains("admin_ssl_ca_cert") && error.contains("ca.crt"), "{what}: {error}");
    }
    fs::remove_file(&ca).unwrap();
    assert!(ReloadingTls::load(&files, &versions, None).unwrap_err().to_string().contains("Check the path"));
    files.ca = None;
    ReloadingTls::load(&files, &versions, None).unwrap();
    // The key of another certificate.
    fs::write(&files.key, &*world.pair("other.test").key_pem).unwrap();
    let error = ReloadingTls::load(&files, &versions, None).unwrap_err().to_string();
    assert!(error.contains("It must be the key of"), "{error}");
    assert!(ReloadingTls::load(&files, &[conf::TlsVersion::V11], None).is_err());
}

#[tokio::test]
async fn a_rejected_client_that_is_sending_gets_the_response() {
    let world = World::start().await;
    let body = || "x".repeat(1 << 20).into();
    for _ in 0..5 {
        let response = world.send(None, request(Method::PUT, "/upstreams/1", Some(KEY), body())).await;
        is_page(&response, "No required SSL certificate was sent");
        let response =
            world.send(Some(&world.identity), request(Method::PUT, "/upstreams/1", None, body())).await;
        assert_eq!(response.status, 401);
    }
}

/// One kept connection; each call is a request on it.
struct KeptConnection {
    sender: hyper::client::conn::http1::SendRequest<http_body_util::Full<bytes::Bytes>>,
}

impl KeptConnection {
    async fn open(world: &World) -> Self {
        let stream = world.connect(Some(&world.identity)).await.unwrap();
        let (sender, connection) =
            hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Self { sender }
    }

    async fn get(&mut self) -> (u16, String) {
        use http_body_util::BodyExt;
        let request = request(Method::GET, "/routes", Some(KEY), "".into());
        let response = self.sender.send_request(request).await.unwrap();
        let status = response.status().as_u16();
        let text = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(text.to_vec()).unwrap())
    }
}

/// The serial number of the server certificate of a new connection.
async fn shown(world: &World) -> String {
    let stream = world.connect(Some(&world.identity)).await.unwrap();
    let chain = stream.get_ref().1.peer_certificates().unwrap();
    pki::Certificate::from_der(&chain[0]).unwrap().serial_hex()
}

#[tokio::test]
async fn a_renewed_certificate_is_used_without_a_restart() {
    let world = World::start().await;
    let first = shown(&world).await;
    let renewed = world.pair("admin.test");
    let serial = renewed.certificate.serial_hex();
    assert_ne!(first, serial);
    // The new certificate does not match the old key yet.
    fs::write(&world.files.cert, &renewed.chain_pem).unwrap();
    assert_eq!(shown(&world).await, first);
    fs::write(&world.files.key, &*renewed.key_pem).unwrap();
    assert_eq!(shown(&world).await, serial);
    // An invalid file is not loaded.
    fs::write(&world.files.key, "").unwrap();
    assert_eq!(shown(&world).await, serial);
    fs::remove_file(&world.files.cert).unwrap();
    assert_eq!(shown(&world).await, serial);
    world.get("/routes").await.ok();
}

#[tokio::test]
async fn a_replaced_client_ca_rejects_its_former_clients() {
    let world = World::start().await;
    let mut connection = KeptConnection::open(&world).await;
    assert_eq!(connection.get().await.0, 200);
    let ca = world.files.ca.clone().unwrap();
    let next = Authority::root(&AuthoritySpec::new("next clients")).unwrap();
    let next_client = next.issue(&LeafSpec::client("tester")).unwrap();

    // With both CAs in the file, clients of both are accepted, on kept connections, too.
    let both = format!("{}{}", world.clients.certificate_pem(), next.certificate_pem());
    fs::write(&ca, both).unwrap();
    let get = || request(Method::GET, "/routes", Some(KEY), "".into());
    assert_eq!(world.send(Some(&next_client), get()).await.status, 200);
    assert_eq!(world.send(Some(&world.identity), get()).await.status, 200);
    assert_eq!(connection.get().await.0, 200);

    // An empty file is not "no CA".
    fs::write(&ca, "").unwrap();
    is_page(&world.send(None, get()).await, "No required SSL certificate was sent");
    assert_eq!(world.send(Some(&world.identity), get()).await.status, 200);

    fs::write(&ca, next.certificate_pem()).unwrap();
    let (status, text) = connection.get().await;
    assert!(status == 400 && text.contains("The SSL certificate error"), "a kept connection: {text}");
    is_page(&world.send(Some(&world.identity), get()).await, "The SSL certificate error");
    assert_eq!(world.send(Some(&next_client), get()).await.status, 200);
}

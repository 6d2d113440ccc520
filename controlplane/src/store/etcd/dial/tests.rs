//! Every failure of a connection to a real etcd, and its message.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::PathBuf;
use std::time::Duration;

use conf::{EtcdTlsSettings, Settings};
use e2e::credentials::Authority;
use e2e::etcd::Etcd;
use e2e::ports::BlackHole;
use etcd_client::{Client, GetOptions};
use pki::ca::LeafSpec;
use tonic::transport::Channel;

use super::*;
use crate::store::etcd::tests::TestPki;

const TIMEOUT: Duration = Duration::from_secs(20);

type Pair = Option<(PathBuf, PathBuf)>;

fn settings(
    url: &str,
    ca: Option<PathBuf>,
    pair: Pair,
    change: impl FnOnce(&mut EtcdTlsSettings),
) -> Settings {
    let mut settings = Settings::default();
    settings.deployment.etcd.hosts = vec![url.to_owned()];
    settings.apisix.ssl.trusted_certificate = ca;
    let (cert, key) = pair.unzip();
    settings.deployment.etcd.tls = EtcdTlsSettings { cert, key, verify: true, sni: None };
    change(&mut settings.deployment.etcd.tls);
    settings
}

async fn connected(settings: &Settings) -> Result<(Endpoint, Channel), DialError> {
    let endpoint = Endpoint::from_config(&settings.deployment.etcd)?.remove(0);
    let channel = connect(&endpoint, &ClientTls::of(settings), TIMEOUT).await?;
    Ok((endpoint, channel))
}

async fn works(settings: &Settings) {
    let (_, channel) = connected(settings).await.expect("connects");
    let mut client =
        Client::from_channel(etcd_client::Channel::Tonic(channel), None).await.expect("a client");
    client.put("key", "value", None).await.expect("written");
    let read = client.get("k", Some(GetOptions::new().with_prefix())).await.expect("read");
    assert_eq!(read.count(), 1);
}

/// The cause of the failure, whose message must contain all of `words`.
async fn fails(settings: &Settings, words: &[&str]) -> Arc<DialFailure> {
    let error = connected(settings).await.expect_err("does not connect");
    let text = error.to_string();
    for word in words.iter().chain([&settings.deployment.etcd.hosts[0].as_str()]) {
        assert!(text.contains(word), "{word:?} is not in: {text}");
    }
    error.problem
}

#[tokio::test]
async fn connects_in_clear_with_tls_and_with_mutual_tls() {
    let pki = TestPki::new();
    works(&settings(&Etcd::plain().await.url(), None, None, |_| {})).await;
    works(&settings(&Etcd::tls(&pki.authorities).await.url(), Some(pki.ca_file()), None, |_| {})).await;
    works(&settings(
        &Etcd::mutual(&pki.authorities).await.url(),
        Some(pki.ca_file()),
        Some(pki.client()),
        |_| {},
    ))
    .await;
}

#[tokio::test]
async fn a_server_of_another_ca_is_rejected() {
    let pki = TestPki::new();
    let etcd = Etcd::tls(&pki.authorities).await;
    let other = pki.write("other.crt", Authority::root("Another CA").certificate_pem());
    let words = [
        "TLS: certificate verify failed",
        "CN=Test etcd CA",
        "CN=Another CA",
        "other.crt",
        "ssl_trusted_certificate",
    ];
    let failure = fails(&settings(&etcd.url(), Some(other.clone()), None, |_| {}), &words).await;
    assert!(matches!(*failure, DialFailure::Untrusted { .. }), "{failure:?}");

    works(&settings(&etcd.url(), Some(other.clone()), None, |tls| tls.verify = false)).await;
    // A missing CA does not mean `verify: false`.
    let failure = fails(&settings(&etcd.url(), None, None, |_| {}), &["no CA bundle"]).await;
    assert_eq!(failure.step(), DialStep::Settings);
}

/// The names of an untrusted server are not checked.
#[tokio::test]
async fn the_chain_is_verified_before_the_name() {
    let (pki, others) = (TestPki::new(), TestPki::new());
    let etcd = Etcd::tls(&pki.authorities).await;
    let url = etcd.url();
    let other_name = |tls: &mut EtcdTlsSettings| tls.sni = Some("elsewhere.test".to_owned());
    fails(&settings(&url, Some(others.ca_file()), None, other_name), &["certificate verify failed"]).await;
}

#[tokio::test]
async fn another_server_name_is_a_mismatch() {
    let pki = TestPki::new();
    let named = pki.authorities.servers.issue(&LeafSpec::server("etcd.test"));
    let etcd = Etcd::builder().certificate(&named).start().await;
    let words = ["TLS: certificate host mismatch", "127.0.0.1", "etcd.test", "the URL's host", "tls.sni"];
    let ca = Some(pki.ca_file());
    let failure = fails(&settings(&etcd.url(), ca.clone(), None, |_| {}), &words).await;
    assert!(matches!(*failure, DialFailure::NameMismatch { by_sni: false, .. }), "{failure:?}");

    let sni = |name: &'static str| move |tls: &mut EtcdTlsSettings| tls.sni = Some(name.to_owned());
    works(&settings(&etcd.url(), ca.clone(), None, sni("etcd.test"))).await;
    let words = ["certificate host mismatch", "other.test", "etcd.test"];
    fails(&settings(&etcd.url(), ca, None, sni("other.test")), &words).await;
}

#[tokio::test]
async fn an_expired_server_certificate_is_rejected() {
    let pki = TestPki::new();
    let old = pki.authorities.servers.expired_server(&["localhost"]);
    let etcd = Etcd::builder().certificate(&old).start().await;
    let words = ["TLS: certificate verify failed", "expired", "CN=localhost"];
    fails(&settings(&etcd.url(), Some(pki.ca_file()), None, |_| {}), &words).await;
}

#[tokio::test]
async fn a_rejected_client_certificate_is_described() {
    let (pki, others) = (TestPki::new(), TestPki::new());
    let etcd = Etcd::mutual(&pki.authorities).await;
    let with = |pair: Pair| settings(&etcd.url(), Some(pki.ca_file()), pair, |_| {});

    let words =
        ["TLS: bad certificate", "none is configured", "deployment.etcd.tls.cert", "CN=Test etcd Client CA"];
    fails(&with(None), &words).await;
    let words = [
        "TLS: bad certificate",
        "rejects our client certificate",
        "CN=controlplane",
        "EXPIRED",
        "expired.crt",
    ];
    fails(&with(Some(pki.expired_client())), &words).await;
    let words = ["TLS: bad certificate", "rejects our client certificate", "client.crt", "--trusted-ca-file"];
    fails(&with(Some(others.client())), &words).await;
    // `verify: false` is about the server, not about the client (case U2).
    let open = settings(&etcd.url(), None, None, |tls| tls.verify = false);
    fails(&open, &["bad certificate"]).await;
}

#[tokio::test]
async fn http_and_https_mixed_up_are_diagnosed() {
    let pki = TestPki::new();
    let (plain, tls) = (Etcd::plain().await, Etcd::tls(&pki.authorities).await);
    let to_tls = format!("http://127.0.0.1:{}", tls.address().port());
    let failure = fails(&settings(&to_tls, None, None, |_| {}), &["speaks TLS", "Write https://"]).await;
    assert!(matches!(*failure, DialFailure::UnexpectedTls), "{failure:?}");

    let to_plain = format!("https://127.0.0.1:{}", plain.address().port());
    let words = ["TLS: the server there does not speak TLS, but plain HTTP/2", "Write http://"];
    let failure = fails(&settings(&to_plain, Some(pki.ca_file()), None, |_| {}), &words).await;
    assert!(matches!(*failure, DialFailure::NotTls { http2: true }), "{failure:?}");
}

/// A server that answers every connection with `answer` and keeps it open.
fn server_that_says(answer: &'static [u8]) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
    let port = listener.local_addr().expect("bound").port();
    std::thread::spawn(move || {
        let mut kept = Vec::new();
        for mut stream in listener.incoming().map_while(Result::ok) {
            // After the first bytes of the client, as a web server does.
            let mut hello = [0; 16];
            let _ = stream.read(&mut hello);
            let _ = stream.write_all(answer);
            kept.push(stream);
        }
    });
    port
}

#[tokio::test]
async fn other_protocols_are_diagnosed() {
    let port = server_that_says(b"HTTP/1.1 400 Bad Request\r\n\r\n");
    let words = ["HTTP/2: the response is not HTTP/2", "HTTP/1.1"];
    fails(&settings(&format!("http://127.0.0.1:{port}"), None, None, |_| {}), &words).await;
    let pki = TestPki::new();
    let url = format!("https://127.0.0.1:{port}");
    fails(&settings(&url, Some(pki.ca_file()), None, |_| {}), &["does not speak TLS", "2379"]).await;
}

#[tokio::test]
async fn dns_and_tcp_failures_are_reported() {
    let words = ["DNS: the host \"etcd.invalid\" cannot be looked up"];
    let failure = fails(&settings("http://etcd.invalid:2379", None, None, |_| {}), &words).await;
    assert_eq!(failure.step(), DialStep::Dns);

    let free = TcpListener::bind("127.0.0.1:0").expect("bound").local_addr().expect("bound").port();
    let words = ["TCP: cannot connect to 127.0.0.1:", "Nothing listens there"];
    let failure = fails(&settings(&format!("http://127.0.0.1:{free}"), None, None, |_| {}), &words).await;
    assert_eq!(failure.step(), DialStep::Tcp);
}

/// The kernel accepts the connection, and no process reads it.
#[tokio::test]
async fn a_silent_endpoint_times_out() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
    let port = listener.local_addr().expect("bound").port();
    let pki = TestPki::new();
    for (scheme, step) in [("http", DialStep::Http2), ("https", DialStep::Tls)] {
        let url = format!("{scheme}://127.0.0.1:{port}");
        let settings = settings(&url, Some(pki.ca_file()), None, |_| {});
        let endpoint = Endpoint::parse(&url).expect("a URL");
        let timeout = Duration::from_millis(300);
        let started = std::time::Instant::now();
        let error = connect(&endpoint, &ClientTls::of(&settings), timeout).await.expect_err("a hole");
        assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
        assert!(
            matches!(*error.problem, DialFailure::Timeout { step: failed_step, .. } if failed_step == step),
            "{error}"
        );
        assert!(error.to_string().contains("no response within 0.3 s"), "{error}");
    }
    // The kernel does not even accept.
    let listener = BlackHole::open();
    let url = format!("http://{}", listener.address());
    let (settings, endpoint) = (settings(&url, None, None, |_| {}), Endpoint::parse(&url).expect("a URL"));
    let timeout = Duration::from_millis(300);
    let error = connect(&endpoint, &ClientTls::of(&settings), timeout).await.expect_err("a hole");
    assert!(
        matches!(&*error.problem, DialFailure::Tcp(attempts) if matches!(attempts[..], [(_, TcpFailure::TimedOut(_))])),
        "{error}"
    );
    assert!(error.to_string().contains("a firewall between"), "{error}");
}

#[tokio::test]
async fn an_error_of_a_call_has_the_dial_error() {
    let pki = TestPki::new();
    let mut etcd = Etcd::mutual(&pki.authorities).await;
    let settings = settings(&etcd.url(), Some(pki.ca_file()), Some(pki.client()), |_| {});
    let (endpoint, channel) = connected(&settings).await.expect("connects");
    let mut client =
        Client::from_channel(etcd_client::Channel::Tonic(channel), None).await.expect("a client");
    let error = client.role_get("unknown").await.expect_err("no such role");
    assert!(find_dial_error(&error, &endpoint).is_none(), "{error} is etcd's own answer");

    etcd.kill().await;
    // The first call may still use the old connection; the second one dials.
    let _ = client.get("key", None).await.expect_err("gone");
    let error = client.get("key", None).await.expect_err("gone");
    let dial_error = find_dial_error(&error, &endpoint).expect("a cause").to_string();
    assert!(dial_error.contains("TCP: cannot connect"), "{dial_error}");
}

#[tokio::test]
async fn http_endpoints_read_no_files() {
    let etcd = Etcd::plain().await;
    let settings = settings(&etcd.url(), Some("/nowhere/ca.crt".into()), None, |_| {});
    let client_tls = ClientTls::of(&settings);
    connect(&Endpoint::parse(&etcd.url()).expect("a URL"), &client_tls, TIMEOUT).await.expect("connects");
    assert!(client_tls.files().in_use().is_none() && client_tls.files().problem().is_none());
}

/// The next connection uses changed files; invalid files are not used.
#[tokio::test]
async fn changed_files_are_reloaded() {
    let pki = TestPki::new();
    let etcd = Etcd::mutual(&pki.authorities).await;
    let (cert, key) = pki.client();
    let settings = settings(&etcd.url(), Some(pki.ca_file()), Some((cert.clone(), key.clone())), |_| {});
    let client_tls = ClientTls::of(&settings);
    let mut changes = client_tls.files().subscribe();
    let endpoint = Endpoint::parse(&etcd.url()).expect("a URL");
    connect(&endpoint, &client_tls, TIMEOUT).await.expect("connects");
    changes.mark_unchanged();

    // Half written: the certificate of the new pair, the key of the old one.
    let renewed = pki.authorities.clients.issue(&LeafSpec::client("renewed"));
    std::fs::write(&cert, &renewed.certificate_pem).expect("written");
    connect(&endpoint, &client_tls, TIMEOUT).await.expect("with what the files held before");
    let error = client_tls.load().err().expect("a pair that does not fit").to_string();
    assert!(error.contains("deployment.etcd.tls.key") && error.contains("It must be the key of"), "{error}");
    assert!(!changes.has_changed().expect("open"));

    std::fs::write(&key, &renewed.key_pem).expect("written");
    connect(&endpoint, &client_tls, TIMEOUT).await.expect("connects");
    assert!(changes.has_changed().expect("open"));
    let loaded = client_tls.load().expect("a pair again");
    let subject =
        loaded.certificate.as_ref().and_then(|shown| shown.certificate()).map(|leaf| leaf.subject());
    assert_eq!(subject, Some("CN=renewed"));
}

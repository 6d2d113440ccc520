//! Every way of not reaching etcd, with a real one, and what is said about it.

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
use crate::store::etcd::testing::Pki;

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

async fn dialled(settings: &Settings) -> Result<(Endpoint, Channel), DialError> {
    let endpoint = Endpoint::from_config(&settings.deployment.etcd)?.remove(0);
    let channel = connect(&endpoint, &ClientTls::of(settings), TIMEOUT).await?;
    Ok((endpoint, channel))
}

async fn works(settings: &Settings) {
    let (_, channel) = dialled(settings).await.expect("connects");
    let mut client =
        Client::from_channel(etcd_client::Channel::Tonic(channel), None).await.expect("a client");
    client.put("key", "value", None).await.expect("written");
    let read = client.get("k", Some(GetOptions::new().with_prefix())).await.expect("read");
    assert_eq!(read.count(), 1);
}

/// The text of the failure, which must hold all of `words`.
async fn fails(settings: &Settings, words: &[&str]) -> Arc<DialFailure> {
    let error = dialled(settings).await.expect_err("does not connect");
    let text = error.to_string();
    for word in words.iter().chain([&settings.deployment.etcd.hosts[0].as_str()]) {
        assert!(text.contains(word), "{word:?} is not in: {text}");
    }
    error.problem
}

#[tokio::test]
async fn in_clear_within_tls_and_with_our_certificate() {
    let pki = Pki::new();
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
async fn a_server_of_another_ca_is_not_trusted() {
    let pki = Pki::new();
    let etcd = Etcd::tls(&pki.authorities).await;
    let other = pki.write("other.crt", Authority::root("Another CA").certificate_pem());
    let words = [
        "TLS: certificate verify failed",
        "CN=Test etcd CA",
        "CN=Another CA",
        "other.crt",
        "ssl_trusted_certificate",
    ];
    let problem = fails(&settings(&etcd.url(), Some(other.clone()), None, |_| {}), &words).await;
    assert!(matches!(*problem, DialFailure::Untrusted { .. }), "{problem:?}");

    works(&settings(&etcd.url(), Some(other.clone()), None, |tls| tls.verify = false)).await;
    // and no CA at all is not "verify nothing"
    let problem = fails(&settings(&etcd.url(), None, None, |_| {}), &["no CA bundle"]).await;
    assert_eq!(problem.step(), DialStep::Settings);
}

/// A stranger with a wrong name is a stranger: its names say nothing.
#[tokio::test]
async fn trust_is_judged_before_the_name() {
    let (pki, others) = (Pki::new(), Pki::new());
    let etcd = Etcd::tls(&pki.authorities).await;
    let url = etcd.url();
    let wrong = |tls: &mut EtcdTlsSettings| tls.sni = Some("elsewhere.test".to_owned());
    fails(&settings(&url, Some(others.ca_file()), None, wrong), &["certificate verify failed"]).await;
}

#[tokio::test]
async fn a_server_with_another_name_is_a_mismatch() {
    let pki = Pki::new();
    let named = pki.authorities.servers.issue(&LeafSpec::server("etcd.test"));
    let etcd = Etcd::builder().certificate(&named).start().await;
    let words = ["TLS: certificate host mismatch", "127.0.0.1", "etcd.test", "the URL's host", "tls.sni"];
    let ca = Some(pki.ca_file());
    let problem = fails(&settings(&etcd.url(), ca.clone(), None, |_| {}), &words).await;
    assert!(matches!(*problem, DialFailure::NameMismatch { by_sni: false, .. }), "{problem:?}");

    let sni = |name: &'static str| move |tls: &mut EtcdTlsSettings| tls.sni = Some(name.to_owned());
    works(&settings(&etcd.url(), ca.clone(), None, sni("etcd.test"))).await;
    let words = ["certificate host mismatch", "other.test", "etcd.test"];
    fails(&settings(&etcd.url(), ca, None, sni("other.test")), &words).await;
}

#[tokio::test]
async fn an_expired_server_is_refused() {
    let pki = Pki::new();
    let old = pki.authorities.servers.expired_server(&["localhost"]);
    let etcd = Etcd::builder().certificate(&old).start().await;
    let words = ["TLS: certificate verify failed", "expired", "CN=localhost"];
    fails(&settings(&etcd.url(), Some(pki.ca_file()), None, |_| {}), &words).await;
}

#[tokio::test]
async fn mutual_tls_says_which_certificate_was_shown() {
    let (pki, others) = (Pki::new(), Pki::new());
    let etcd = Etcd::mutual(&pki.authorities).await;
    let with = |pair: Pair| settings(&etcd.url(), Some(pki.ca_file()), pair, |_| {});

    let words =
        ["TLS: bad certificate", "none is configured", "deployment.etcd.tls.cert", "CN=Test etcd Client CA"];
    fails(&with(None), &words).await;
    let words = [
        "TLS: bad certificate",
        "refuses our client certificate",
        "CN=controlplane",
        "EXPIRED",
        "expired.crt",
    ];
    fails(&with(Some(pki.expired_client())), &words).await;
    let words = ["TLS: bad certificate", "refuses our client certificate", "client.crt", "--trusted-ca-file"];
    fails(&with(Some(others.client())), &words).await;
    // `verify: false` is about the server, not about us (case U2)
    let open = settings(&etcd.url(), None, None, |tls| tls.verify = false);
    fails(&open, &["bad certificate"]).await;
}

#[tokio::test]
async fn the_two_ways_of_mixing_up_http_and_https() {
    let pki = Pki::new();
    let (plain, tls) = (Etcd::plain().await, Etcd::tls(&pki.authorities).await);
    let to_tls = format!("http://127.0.0.1:{}", tls.address().port());
    let problem = fails(&settings(&to_tls, None, None, |_| {}), &["speaks TLS", "Write https://"]).await;
    assert!(matches!(*problem, DialFailure::UnexpectedTls), "{problem:?}");

    let to_plain = format!("https://127.0.0.1:{}", plain.address().port());
    let words = ["TLS: what answers there does not speak TLS, but plain HTTP/2", "Write http://"];
    let problem = fails(&settings(&to_plain, Some(pki.ca_file()), None, |_| {}), &words).await;
    assert!(matches!(*problem, DialFailure::NotTls { http2: true }), "{problem:?}");
}

/// A server that answers every connection with `answer`, and keeps it open.
fn server_that_says(answer: &'static [u8]) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
    let port = listener.local_addr().expect("bound").port();
    std::thread::spawn(move || {
        let mut kept = Vec::new();
        for mut stream in listener.incoming().map_while(Result::ok) {
            // only after the client said something, as a web server does
            let mut hello = [0; 16];
            let _ = stream.read(&mut hello);
            let _ = stream.write_all(answer);
            kept.push(stream);
        }
    });
    port
}

#[tokio::test]
async fn what_is_not_etcd_at_all() {
    let port = server_that_says(b"HTTP/1.1 400 Bad Request\r\n\r\n");
    let words = ["HTTP/2: the answer is not HTTP/2", "HTTP/1.1"];
    fails(&settings(&format!("http://127.0.0.1:{port}"), None, None, |_| {}), &words).await;
    let pki = Pki::new();
    let url = format!("https://127.0.0.1:{port}");
    fails(&settings(&url, Some(pki.ca_file()), None, |_| {}), &["does not speak TLS", "2379"]).await;
}

#[tokio::test]
async fn names_without_addresses_and_ports_without_listeners() {
    let words = ["DNS: the host \"etcd.invalid\" cannot be looked up"];
    let problem = fails(&settings("http://etcd.invalid:2379", None, None, |_| {}), &words).await;
    assert_eq!(problem.step(), DialStep::Dns);

    let free = TcpListener::bind("127.0.0.1:0").expect("bound").local_addr().expect("bound").port();
    let words = ["TCP: cannot connect to 127.0.0.1:", "Nothing listens there"];
    let problem = fails(&settings(&format!("http://127.0.0.1:{free}"), None, None, |_| {}), &words).await;
    assert_eq!(problem.step(), DialStep::Tcp);
}

/// The connection is accepted by the system, and nobody answers.
#[tokio::test]
async fn a_black_hole_is_given_up_in_time() {
    let hole = TcpListener::bind("127.0.0.1:0").expect("bound");
    let port = hole.local_addr().expect("bound").port();
    let pki = Pki::new();
    for (scheme, step) in [("http", DialStep::Http2), ("https", DialStep::Tls)] {
        let url = format!("{scheme}://127.0.0.1:{port}");
        let settings = settings(&url, Some(pki.ca_file()), None, |_| {});
        let endpoint = Endpoint::parse(&url).expect("a URL");
        let patience = Duration::from_millis(300);
        let began = std::time::Instant::now();
        let error = connect(&endpoint, &ClientTls::of(&settings), patience).await.expect_err("a hole");
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        assert!(
            matches!(*error.problem, DialFailure::Timeout { step: found, .. } if found == step),
            "{error}"
        );
        assert!(error.to_string().contains("no answer within 0.3 s"), "{error}");
    }
    // one that does not even do that
    let hole = BlackHole::open();
    let url = format!("http://{}", hole.address());
    let (settings, endpoint) = (settings(&url, None, None, |_| {}), Endpoint::parse(&url).expect("a URL"));
    let patience = Duration::from_millis(300);
    let error = connect(&endpoint, &ClientTls::of(&settings), patience).await.expect_err("a hole");
    assert!(
        matches!(&*error.problem, DialFailure::Tcp(tried) if matches!(tried[..], [(_, TcpFailure::TimedOut(_))])),
        "{error}"
    );
    assert!(error.to_string().contains("a firewall between"), "{error}");
}

#[tokio::test]
async fn a_later_failure_has_its_cause() {
    let pki = Pki::new();
    let mut etcd = Etcd::mutual(&pki.authorities).await;
    let settings = settings(&etcd.url(), Some(pki.ca_file()), Some(pki.client()), |_| {});
    let (endpoint, channel) = dialled(&settings).await.expect("connects");
    let mut client =
        Client::from_channel(etcd_client::Channel::Tonic(channel), None).await.expect("a client");
    let refused = client.role_get("nobody").await.expect_err("no such role");
    assert!(find_dial_error(&refused, &endpoint).is_none(), "{refused} is etcd's own answer");

    etcd.kill().await;
    // The first call may still meet the old connection; the second dials.
    let _ = client.get("key", None).await.expect_err("gone");
    let error = client.get("key", None).await.expect_err("gone");
    let found = find_dial_error(&error, &endpoint).expect("a cause").to_string();
    assert!(found.contains("TCP: cannot connect"), "{found}");
}

#[tokio::test]
async fn without_tls_no_file_is_read() {
    let etcd = Etcd::plain().await;
    let settings = settings(&etcd.url(), Some("/nowhere/ca.crt".into()), None, |_| {});
    let security = ClientTls::of(&settings);
    connect(&Endpoint::parse(&etcd.url()).expect("a URL"), &security, TIMEOUT).await.expect("connects");
    assert!(security.files().in_use().is_none() && security.files().problem().is_none());
}

/// What the files hold is taken with the next connection; what cannot be used is not.
#[tokio::test]
async fn files_are_read_again_when_they_change() {
    let pki = Pki::new();
    let etcd = Etcd::mutual(&pki.authorities).await;
    let (cert, key) = pki.client();
    let settings = settings(&etcd.url(), Some(pki.ca_file()), Some((cert.clone(), key.clone())), |_| {});
    let security = ClientTls::of(&settings);
    let mut changes = security.files().subscribe();
    let endpoint = Endpoint::parse(&etcd.url()).expect("a URL");
    connect(&endpoint, &security, TIMEOUT).await.expect("connects");
    changes.mark_unchanged();

    // half written: the certificate of the new pair, the key of the old one
    let renewed = pki.authorities.clients.issue(&LeafSpec::client("renewed"));
    std::fs::write(&cert, &renewed.certificate_pem).expect("written");
    connect(&endpoint, &security, TIMEOUT).await.expect("with what the files held before");
    let error = security.load().err().expect("a pair that does not fit").to_string();
    assert!(error.contains("deployment.etcd.tls.key") && error.contains("It must be the key of"), "{error}");
    assert!(!changes.has_changed().expect("open"));

    std::fs::write(&key, &renewed.key_pem).expect("written");
    connect(&endpoint, &security, TIMEOUT).await.expect("connects");
    assert!(changes.has_changed().expect("open"));
    let loaded = security.load().expect("a pair again");
    let subject =
        loaded.certificate.as_ref().and_then(|shown| shown.certificate()).map(|leaf| leaf.subject());
    assert_eq!(subject, Some("CN=renewed"));
}

//! Probes of real etcd servers.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use e2e::etcd::Etcd;
use etcd_client::Permission;

use super::*;
use crate::store::etcd::tests::TestPki;

fn etcd_settings(urls: &[String]) -> conf::EtcdSettings {
    conf::EtcdSettings {
        hosts: urls.to_vec(),
        prefix: "/apisix".to_owned(),
        timeout: Duration::from_secs(20),
        startup_retry: 2,
        ..conf::EtcdSettings::default()
    }
}

fn client_tls(settings: &conf::EtcdSettings, ca: Option<PathBuf>) -> ClientTls {
    let mut all = conf::Settings::default();
    all.deployment.etcd = settings.clone();
    all.apisix.ssl.trusted_certificate = ca;
    ClientTls::of(&all)
}

async fn probed(settings: &conf::EtcdSettings) -> Result<EndpointStatus, ProbeError> {
    let endpoint = Endpoint::from_config(settings).expect("URLs").remove(0);
    let client_tls = client_tls(settings, None);
    let settings_of = ProbeSettings::of(settings, &client_tls);
    let status = probe(&endpoint, settings_of).await?;
    check_permissions(&endpoint, settings_of).await?;
    Ok(status)
}

async fn root_client(etcd: &Etcd) -> Client {
    Client::connect([etcd.url()], None).await.expect("a client")
}

/// Users `root` and `reader`, who may read `/apisix/` only; authentication on.
async fn with_users(etcd: &Etcd) {
    let mut client = root_client(etcd).await;
    client.user_add("root", "secret", None).await.expect("added");
    client.user_grant_role("root", "root").await.expect("granted");
    client.user_add("reader", "words", None).await.expect("added");
    client.role_add("reads").await.expect("added");
    let all = Permission::read("/apisix/").with_prefix();
    client.role_grant_permission("reads", all).await.expect("granted");
    client.user_grant_role("reader", "reads").await.expect("granted");
    client.auth_enable().await.expect("enabled");
}

fn login(settings: &conf::EtcdSettings, user: &str, password: &str) -> conf::EtcdSettings {
    conf::EtcdSettings {
        user: Some(user.to_owned()),
        password: Some(Secret::new(password.to_owned())),
        ..settings.clone()
    }
}

#[tokio::test]
async fn a_probe_reports_the_member() {
    let etcd = Etcd::plain().await;
    let settings = etcd_settings(&[etcd.url()]);
    let mut client = root_client(&etcd).await;
    client.put("/apisix/routes/1", "{}", None).await.expect("written");
    let before = client.get("/", None).await.expect("read").header().expect("a header").revision();

    let status = probed(&settings).await.expect("fit");
    assert!(version::is_supported(&status.version), "{status:?}");
    assert_eq!((status.leader, status.revision), (status.member, before));
    assert!(status.cluster != 0 && status.size > 0 && !status.is_learner && status.alarms.is_empty());

    // The check of write permission changed nothing.
    let after = client.get("/apisix", Some(GetOptions::new().with_prefix())).await.expect("read");
    assert_eq!((after.count(), after.header().expect("a header").revision()), (1, before));
}

#[tokio::test]
async fn failed_logins_have_messages() {
    let etcd = Etcd::plain().await;
    let settings = etcd_settings(&[etcd.url()]);
    let error = probed(&login(&settings, "root", "secret")).await.expect_err("authentication is off");
    assert!(error.to_string().contains("authentication is not enabled") && error.is_permanent(), "{error}");

    with_users(&etcd).await;
    probed(&login(&settings, "root", "secret")).await.expect("root may all");
    for (settings, words) in [
        (login(&settings, "root", "guess"), ["invalid user ID or password", "deployment.etcd.user"]),
        (login(&settings, "unknown", "secret"), ["invalid user ID or password", "unknown"]),
        (settings.clone(), ["insufficient credentials code: 401", "deployment.etcd.user"]),
        (
            login(&settings, "reader", "words"),
            ["etcd forbidden code: 403", "\"reader\" may not write below /apisix/"],
        ),
    ] {
        let error = probed(&settings).await.expect_err("refused");
        let text = error.to_string();
        assert!(error.is_permanent() && words.iter().all(|word| text.contains(word)), "{words:?}: {text}");
        assert!(!text.contains("guess") && !text.contains("secret"), "{text}");
    }
    let elsewhere = conf::EtcdSettings { prefix: "/other".to_owned(), ..login(&settings, "reader", "words") };
    let error = probed(&elsewhere).await.expect_err("refused").to_string();
    assert!(error.contains("may not read below /other/"), "{error}");
}

#[tokio::test]
async fn the_clock_is_measured_in_clear_and_with_tls() {
    let pki = TestPki::new();
    for etcd in [Etcd::plain().await, Etcd::tls(&pki.authorities).await] {
        let mut settings = etcd_settings(&[etcd.url()]);
        settings.tls.verify = true;
        let endpoint = Endpoint::parse(&etcd.url()).expect("a URL");
        let client_tls = client_tls(&settings, Some(pki.ca_file()));
        let clock = clock::measure(&endpoint, &client_tls, settings.timeout).await.expect("a date");
        assert!(!clock.exceeds(Duration::ZERO), "it is this machine's: {clock:?}");
    }
}

/// Captures the log of this thread.
fn logged() -> (Arc<Mutex<Vec<u8>>>, tracing::subscriber::DefaultGuard) {
    #[derive(Clone)]
    struct CapturedLog(Arc<Mutex<Vec<u8>>>);
    impl std::io::Write for CapturedLog {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("sound").extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let lines = Arc::new(Mutex::new(Vec::new()));
    let captured = CapturedLog(Arc::clone(&lines));
    let subscriber =
        tracing_subscriber::fmt().with_ansi(false).with_writer(move || captured.clone()).finish();
    (lines, tracing::subscriber::set_default(subscriber))
}

async fn probe_at_start(
    settings: &conf::EtcdSettings,
) -> (Result<Vec<EndpointStatus>, startup::StartError>, String) {
    let (lines, guard) = logged();
    let result = startup::probe_all(settings, &client_tls(settings, None)).await;
    drop(guard);
    let text = String::from_utf8(lines.lock().expect("sound").clone()).expect("UTF-8");
    (result, text)
}

fn closed_port_url() -> String {
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
    format!("http://{}", free.local_addr().expect("bound"))
}

#[tokio::test]
async fn a_start_needs_a_majority_of_the_endpoints() {
    let (etcd, closed) = (Etcd::plain().await, closed_port_url());
    let (result, _) = probe_at_start(&etcd_settings(&[etcd.url()])).await;
    assert_eq!(result.expect("one of one").len(), 1);

    let (result, log) = probe_at_start(&etcd_settings(std::slice::from_ref(&closed))).await;
    let error = result.expect_err("no endpoint answers").to_string();
    assert!(
        error.starts_with("all etcd nodes are unavailable") && error.contains("TCP: cannot connect"),
        "{error}"
    );
    for n in 1..=2 {
        let begin = format!("Warning! Request etcd endpoint '{closed}' error, TCP: cannot connect to ");
        assert!(log.contains(&begin) && log.contains(&format!(", retry time={n}")), "{log}");
    }
    assert!(log.contains(&format!("request etcd endpoint '{closed}' error, ")), "{log}");

    let (result, _) = probe_at_start(&etcd_settings(&[etcd.url(), closed.clone()])).await;
    let error = result.expect_err("one of two").to_string();
    let expected = "the etcd cluster needs at least 50% and above healthy nodes: 1 of 2 respond";
    assert!(error.starts_with(expected) && error.contains(&closed), "{error}");

    let (result, _) = probe_at_start(&etcd_settings(&[etcd.url(), etcd.url(), closed])).await;
    assert_eq!(result.expect("two of three").len(), 2);
}

#[tokio::test]
async fn permanent_errors_are_not_retried() {
    let etcd = Etcd::plain().await;
    let settings = login(&etcd_settings(&[etcd.url()]), "root", "secret");
    let (result, log) = probe_at_start(&settings).await;
    let error = result.expect_err("authentication is off").to_string();
    assert!(error.contains("authentication is not enabled") && !log.contains("retry time"), "{error} {log}");
}

#[tokio::test]
async fn a_waiting_start_logs_its_endpoints() {
    let hole = e2e::ports::BlackHole::open();
    let url = format!("http://{}", hole.address());
    let timeout = Duration::from_secs(4);
    let settings =
        conf::EtcdSettings { timeout, startup_retry: 1, ..etcd_settings(std::slice::from_ref(&url)) };
    let (result, log) = probe_at_start(&settings).await;
    assert!(result.expect_err("a hole").to_string().contains("no response within 4 s"));
    assert!(log.contains(&format!("waiting for etcd since 3 s: {url} (up to 4 s a try, 1 tries)")), "{log}");
}

#[test]
fn server_messages_are_sanitized() {
    assert_eq!(printable("a\nWARN b\u{1b}[31m"), "a\u{fffd}WARN b\u{fffd}[31m");
    assert_eq!(printable(&"x".repeat(1000)).len(), MESSAGE_LETTERS_MAX);
}

#[tokio::test]
async fn endpoints_of_two_clusters_end_the_start() {
    let (one, other) = (Etcd::plain().await, Etcd::plain().await);
    let (result, _) = probe_at_start(&etcd_settings(&[one.url(), other.url()])).await;
    let error = result.expect_err("two clusters").to_string();
    assert!(error.contains("members of 2 different clusters") && error.contains(&other.url()), "{error}");
}

#[test]
fn an_endpoint_status_has_its_warnings() {
    let status = EndpointStatus {
        endpoint: Endpoint::parse("http://etcd:2379").expect("a URL"),
        version: "3.5.29".to_owned(),
        cluster: 1,
        member: 1,
        leader: 0,
        is_learner: true,
        revision: 7,
        alarms: vec!["memberID:1 alarm:NOSPACE".to_owned(), "etcdserver: no leader".to_owned()],
        size: 90 << 20,
        quota: Some(100 << 20),
        elapsed: Duration::ZERO,
    };
    let text = status.warnings().join("\n");
    for word in ["CVE-2026-44283", "3.5.30", "no leader", "learner", "NOSPACE", "defrag", "90 MB of 100 MB"] {
        assert!(text.contains(word), "{word:?}: {text}");
    }
    let fine = EndpointStatus {
        version: "3.6.11".to_owned(),
        leader: 1,
        is_learner: false,
        alarms: Vec::new(),
        size: 1,
        quota: None,
        ..status
    };
    assert_eq!(fine.warnings(), Vec::<String>::new());
}

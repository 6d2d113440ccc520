//! Probes of real etcd servers.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use e2e::etcd::Etcd;
use etcd_client::Permission;

use super::*;
use crate::store::etcd::testing::Pki;

fn etcd_settings(urls: &[String]) -> conf::EtcdSettings {
    conf::EtcdSettings {
        hosts: urls.to_vec(),
        prefix: "/apisix".to_owned(),
        timeout: Duration::from_secs(20),
        startup_retry: 2,
        ..conf::EtcdSettings::default()
    }
}

fn security(settings: &conf::EtcdSettings, ca: Option<PathBuf>) -> ClientTls {
    let mut all = conf::Settings::default();
    all.deployment.etcd = settings.clone();
    all.apisix.ssl.trusted_certificate = ca;
    ClientTls::of(&all)
}

async fn asked(settings: &conf::EtcdSettings) -> Result<EndpointStatus, ProbeError> {
    let endpoint = Endpoint::from_config(settings).expect("URLs").remove(0);
    let security = security(settings, None);
    let asking = ProbeSettings::of(settings, &security);
    let report = probe(&endpoint, asking).await?;
    permissions::check(&endpoint, asking).await?;
    Ok(report)
}

async fn root(etcd: &Etcd) -> Client {
    Client::connect([etcd.url()], None).await.expect("a client")
}

/// Users `root` and `reader`, who may read `/apisix/` only; authentication on.
async fn with_users(etcd: &Etcd) {
    let mut client = root(etcd).await;
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
    let mut client = root(&etcd).await;
    client.put("/apisix/routes/1", "{}", None).await.expect("written");
    let before = client.get("/", None).await.expect("read").header().expect("a header").revision();

    let report = asked(&settings).await.expect("fit");
    assert!(version::is_supported(&report.version), "{report:?}");
    assert_eq!((report.leader, report.revision), (report.member, before));
    assert!(report.cluster != 0 && report.size > 0 && !report.is_learner && report.alarms.is_empty());

    // The check of write permission changed nothing.
    let after = client.get("/apisix", Some(GetOptions::new().with_prefix())).await.expect("read");
    assert_eq!((after.count(), after.header().expect("a header").revision()), (1, before));
}

#[tokio::test]
async fn failed_logins_have_messages() {
    let etcd = Etcd::plain().await;
    let settings = etcd_settings(&[etcd.url()]);
    let error = asked(&login(&settings, "root", "secret")).await.expect_err("nobody is asked");
    assert!(error.to_string().contains("authentication is not enabled") && error.is_permanent(), "{error}");

    with_users(&etcd).await;
    asked(&login(&settings, "root", "secret")).await.expect("root may all");
    for (settings, words) in [
        (login(&settings, "root", "guess"), ["invalid user ID or password", "deployment.etcd.user"]),
        (login(&settings, "nobody", "secret"), ["invalid user ID or password", "nobody"]),
        (settings.clone(), ["insufficient credentials code: 401", "deployment.etcd.user"]),
        (
            login(&settings, "reader", "words"),
            ["etcd forbidden code: 403", "\"reader\" may not write below /apisix/"],
        ),
    ] {
        let error = asked(&settings).await.expect_err("refused");
        let text = error.to_string();
        assert!(error.is_permanent() && words.iter().all(|word| text.contains(word)), "{words:?}: {text}");
        assert!(!text.contains("guess") && !text.contains("secret"), "{text}");
    }
    let elsewhere = conf::EtcdSettings { prefix: "/other".to_owned(), ..login(&settings, "reader", "words") };
    let error = asked(&elsewhere).await.expect_err("refused").to_string();
    assert!(error.contains("may not read below /other/"), "{error}");
}

#[tokio::test]
async fn the_clock_is_measured_in_clear_and_with_tls() {
    let pki = Pki::new();
    for etcd in [Etcd::plain().await, Etcd::tls(&pki.authorities).await] {
        let mut settings = etcd_settings(&[etcd.url()]);
        settings.tls.verify = true;
        let endpoint = Endpoint::parse(&etcd.url()).expect("a URL");
        let security = security(&settings, Some(pki.ca_file()));
        let clock = clock::measure(&endpoint, &security, settings.timeout).await.expect("a date");
        assert!(!clock.exceeds(Duration::ZERO), "it is this machine's: {clock:?}");
    }
}

/// Captures the log of this thread.
fn logged() -> (Arc<Mutex<Vec<u8>>>, tracing::subscriber::DefaultGuard) {
    #[derive(Clone)]
    struct Kept(Arc<Mutex<Vec<u8>>>);
    impl std::io::Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("sound").extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let lines = Arc::new(Mutex::new(Vec::new()));
    let kept = Kept(Arc::clone(&lines));
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || kept.clone()).finish();
    (lines, tracing::subscriber::set_default(subscriber))
}

async fn started(
    settings: &conf::EtcdSettings,
) -> (Result<Vec<EndpointStatus>, startup::StartError>, String) {
    let (lines, guard) = logged();
    let found = startup::probe_all(settings, &security(settings, None)).await;
    drop(guard);
    let text = String::from_utf8(lines.lock().expect("sound").clone()).expect("UTF-8");
    (found, text)
}

fn nobodys_url() -> String {
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
    format!("http://{}", free.local_addr().expect("bound"))
}

#[tokio::test]
async fn a_start_needs_a_majority_of_the_endpoints() {
    let (etcd, nobody) = (Etcd::plain().await, nobodys_url());
    let (found, _) = started(&etcd_settings(&[etcd.url()])).await;
    assert_eq!(found.expect("one of one").len(), 1);

    let (found, log) = started(&etcd_settings(std::slice::from_ref(&nobody))).await;
    let error = found.expect_err("nobody is there").to_string();
    assert!(
        error.starts_with("all etcd nodes are unavailable") && error.contains("TCP: cannot connect"),
        "{error}"
    );
    for n in 1..=2 {
        let begin = format!("Warning! Request etcd endpoint '{nobody}' error, TCP: cannot connect to ");
        assert!(log.contains(&begin) && log.contains(&format!(", retry time={n}")), "{log}");
    }
    assert!(log.contains(&format!("request etcd endpoint '{nobody}' error, ")), "{log}");

    let (found, _) = started(&etcd_settings(&[etcd.url(), nobody.clone()])).await;
    let error = found.expect_err("one of two").to_string();
    let expected = "the etcd cluster needs at least 50% and above healthy nodes: 1 of 2 answer";
    assert!(error.starts_with(expected) && error.contains(&nobody), "{error}");

    let (found, _) = started(&etcd_settings(&[etcd.url(), etcd.url(), nobody])).await;
    assert_eq!(found.expect("two of three").len(), 2);
}

#[tokio::test]
async fn permanent_errors_are_not_retried() {
    let etcd = Etcd::plain().await;
    let settings = login(&etcd_settings(&[etcd.url()]), "root", "secret");
    let (found, log) = started(&settings).await;
    let error = found.expect_err("nobody is asked").to_string();
    assert!(error.contains("authentication is not enabled") && !log.contains("retry time"), "{error} {log}");
}

#[tokio::test]
async fn a_waiting_start_logs_its_endpoints() {
    let hole = e2e::ports::BlackHole::open();
    let url = format!("http://{}", hole.address());
    let timeout = Duration::from_secs(4);
    let settings =
        conf::EtcdSettings { timeout, startup_retry: 1, ..etcd_settings(std::slice::from_ref(&url)) };
    let (found, log) = started(&settings).await;
    assert!(found.expect_err("a hole").to_string().contains("no answer within 4 s"));
    assert!(log.contains(&format!("waiting for etcd since 3 s: {url} (up to 4 s a try, 1 tries)")), "{log}");
}

#[test]
fn server_messages_are_sanitized() {
    assert_eq!(printable("a\nWARN b\u{1b}[31m"), "a\u{fffd}WARN b\u{fffd}[31m");
    assert_eq!(printable(&"x".repeat(1000)).len(), QUOTED);
}

#[tokio::test]
async fn endpoints_of_two_clusters_end_the_start() {
    let (one, other) = (Etcd::plain().await, Etcd::plain().await);
    let (found, _) = started(&etcd_settings(&[one.url(), other.url()])).await;
    let error = found.expect_err("two clusters").to_string();
    assert!(error.contains("members of 2 different clusters") && error.contains(&other.url()), "{error}");
}

#[test]
fn an_endpoint_status_has_its_warnings() {
    let report = EndpointStatus {
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
    let text = report.warnings().join("\n");
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
        ..report
    };
    assert_eq!(fine.warnings(), Vec::<String>::new());
}

//! `/metrics` and `/status` of the program: each fact moves its own series, and no other.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::listeners::curl;
use crate::site::{Running, Site};

const KEY: [&str; 2] = ["-H", "X-API-KEY: sixteen-characters"];
const CERTIFICATE: [&str; 4] = ["--cert", "admin-client.crt", "--key", "admin-client.key"];
const UPSTREAM: [&str; 4] = ["-X", "PUT", "-d", r#"{"nodes": {}}"#];

/// The samples of a family, by series.
fn samples(site: &Site, running: &Running, family: &str) -> BTreeMap<String, f64> {
    let status = running.ready["status"].as_str().unwrap();
    let (_, text) = curl(site, &[&format!("http://{status}/metrics")]);
    let samples = text.lines().filter_map(|line| line.rsplit_once(' '));
    let samples = samples.filter(|(series, _)| series.split('{').next() == Some(family));
    samples.map(|(series, value)| (series.to_owned(), value.parse().unwrap())).collect()
}

/// The series that `fact` moves.
fn moved(site: &Site, running: &Running, family: &str, fact: impl FnOnce()) -> Vec<String> {
    let before = samples(site, running, family);
    fact();
    let after = samples(site, running, family);
    after
        .into_iter()
        .filter(|(series, value)| before.get(series) != Some(value))
        .map(|(series, _)| series)
        .collect()
}

fn https(address: SocketAddr, path: &str) -> Vec<String> {
    let resolve = format!("localhost:{}:{}", address.port(), address.ip());
    let url = format!("https://localhost:{}/apisix/admin/{path}", address.port());
    ["--cacert", "admin-ca.crt", "--resolve", &resolve, &url].map(str::to_owned).to_vec()
}

fn call(site: &Site, base: &[String], more: &[&[&str]]) -> u16 {
    let arguments: Vec<&str> = base.iter().map(String::as_str).chain(more.concat()).collect();
    curl(site, &arguments).0
}

/// Mutual TLS, plain HTTP for one address that no client has, and a role for the certificate.
fn site(role: &str) -> Site {
    let mut site = Site::new();
    let admin = &mut site.settings["deployment"]["admin"];
    admin["admin_listen"] = json!([
        {"ip": "127.0.0.1", "port": 0},
        {"ip": "127.0.0.1", "port": 0, "https_admin": false, "allow_admin": ["192.0.2.1"]},
    ]);
    admin["admin_key"] = json!([{"name": "admin", "key": "sixteen-characters", "role": "admin"}]);
    admin["client_roles"] = json!([{"match": {"subject": "CN=admin"}, "role": role}]);
    site
}

#[test]
fn each_cause_of_a_failed_login_is_counted_and_logged() {
    let site = site("viewer");
    let running = site.start();
    let [mutual, closed] = running.admin()[..] else { panic!("two listeners") };
    let (base, closed) = (https(mutual, "upstreams/1"), [format!("http://{closed}/apisix/admin/routes")]);
    let plain = [format!("http://{mutual}/apisix/admin/routes")];
    let wrong = ["-H", "X-API-KEY: guessed-guessed-guessed"];
    let of_another_ca = ["--cert", "node.crt", "--key", "node.key"];
    #[expect(clippy::type_complexity, reason = "a table")]
    let causes: [(&str, &[String], &[&[&str]], u16); 7] = [
        ("admin_handshake", &plain, &[], 400),
        ("admin_address", &closed, &[&KEY], 403),
        ("admin_certificate", &base, &[&KEY], 400),
        ("admin_certificate", &base, &[&of_another_ca, &KEY], 400),
        ("admin_key", &base, &[&CERTIFICATE, &wrong], 401),
        ("admin_role", &base, &[&CERTIFICATE, &UPSTREAM], 401),
        ("admin_role", &base, &[&CERTIFICATE, &["-X", "DELETE"]], 401),
    ];
    for (reason, base, arguments, code) in causes {
        let series = moved(&site, &running, "countersign_errors_total", || {
            assert_eq!(call(&site, base, arguments), code, "{reason}");
        });
        assert_eq!(series, [format!("countersign_errors_total{{reason=\"{reason}\"}}")]);
    }
    let none = moved(&site, &running, "countersign_errors_total", || {
        assert_eq!(call(&site, &https(mutual, "routes"), &[&CERTIFICATE, &KEY]), 200);
        assert_eq!(call(&site, &https(mutual, "routes"), &[&CERTIFICATE]), 200);
        assert_eq!(call(&site, &base, &[&CERTIFICATE, &KEY]), 404);
        // As the health check of a load balancer.
        drop(std::net::TcpStream::connect(mutual).unwrap());
    });
    assert!(none.is_empty(), "{none:?}");
    let status = running.ready["status"].as_str().unwrap();
    let (_, body) = curl(&site, &[&format!("http://{status}/status")]);
    let errors = serde_json::from_str::<Value>(&body).unwrap()["errors"].clone();
    assert_eq!(errors["admin_certificate"]["total"], 2, "{errors}");
    assert!(errors["admin_key"]["last_at"].as_u64().unwrap() > 1_700_000_000, "{errors}");
    assert!(errors.get("push_node").is_none(), "{errors}");
    let (code, log) = running.stop();
    assert_eq!(code, Some(0), "{log}");
    for line in [
        "a TLS handshake with the Admin API failed",
        "denied by allow_admin",
        "no client certificate",
        "rejected a client certificate",
        "wrong apikey",
        "invalid method for role viewer",
    ] {
        let found = log.lines().find(|logged| logged.contains(line));
        assert!(found.is_some_and(|logged| logged.contains("127.0.0.1:")), "{line}: {log}");
    }
    assert!(!log.contains("guessed") && !log.contains("sixteen-characters"), "{log}");
}

#[test]
fn a_cross_site_request_is_counted() {
    let site = site("admin");
    let running = site.start();
    let base = https(running.admin()[0], "upstreams/1");
    let origin = ["-H", "Origin: https://evil.test"];
    let series = moved(&site, &running, "countersign_errors_total", || {
        assert_eq!(call(&site, &base, &[&CERTIFICATE, &origin, &UPSTREAM]), 403);
    });
    assert_eq!(series, [r#"countersign_errors_total{reason="admin_cross_site"}"#]);
    assert_eq!(call(&site, &base, &[&CERTIFICATE, &UPSTREAM]), 201);
    assert_eq!(running.stop().0, Some(0));
}

#[test]
fn requests_are_counted_by_resource_method_and_code() {
    let site = site("viewer");
    let running = site.start();
    let to = |path: &str| https(running.admin()[0], path);
    let series = |labels: &str| format!("countersign_admin_requests_total{{{labels}}}");
    for (path, arguments, code, labels) in [
        ("routes", &[][..], 200, r#"resource="routes",method="GET",code="200""#),
        ("upstreams/1", &UPSTREAM, 201, r#"resource="upstreams",method="PUT",code="201""#),
        ("upstreams/1", &UPSTREAM, 200, r#"resource="upstreams",method="PUT",code="200""#),
        ("upstreams/1", &["-X", "PURGE"], 404, r#"resource="upstreams",method="other",code="404""#),
        ("routes/none", &[], 404, r#"resource="routes",method="GET",code="404""#),
        ("made-up/1", &[], 404, r#"resource="other",method="GET",code="404""#),
        ("../../elsewhere", &["--path-as-is"], 404, r#"resource="other",method="GET",code="404""#),
    ] {
        let moved = moved(&site, &running, "countersign_admin_requests_total", || {
            assert_eq!(call(&site, &to(path), &[&CERTIFICATE, &KEY, arguments]), code, "{path}");
        });
        assert_eq!(moved, [series(labels)], "{path}");
    }
    let durations = samples(&site, &running, "countersign_admin_request_duration_seconds_count");
    let total: f64 = durations.values().sum();
    assert!((total - 7.0).abs() < f64::EPSILON, "{durations:?}");
    let commits = samples(&site, &running, "countersign_store_commit_seconds_count");
    assert!(commits.values().all(|commits| *commits >= 2.0), "{commits:?}");
    assert_eq!(running.stop().0, Some(0));
}

#[test]
fn stored_certificates_have_their_ends() {
    let site = site("admin");
    let running = site.start();
    let family = "countersign_stored_certificate_not_after_timestamp_seconds";
    assert!(samples(&site, &running, family).is_empty());
    let pem = |name: &str| std::fs::read_to_string(site.path("pki").join(name)).unwrap();
    let document = json!({
        "cert": pem("admin-server.crt"), "key": pem("admin-server.key"), "snis": ["a.test"],
        "client": {"ca": pem("admin-ca.crt")},
    });
    std::fs::write(site.path("pki/ssl.json"), document.to_string()).unwrap();
    let base = https(running.admin()[0], "ssls/1");
    let moved = moved(&site, &running, family, || {
        assert_eq!(call(&site, &base, &[&CERTIFICATE, &["-X", "PUT", "-d", "@ssl.json"]]), 201);
    });
    let of = |kind: &str| {
        let start = format!("{family}{{kind=\"{kind}\",resource=\"ssls/1\",subject=\"CN=");
        moved.iter().filter(|series| series.starts_with(&start)).count()
    };
    assert!(of("server") >= 1 && of("client_ca") == 1, "{moved:?}");
    assert_eq!(moved.len(), of("server") + of("client_ca"), "{moved:?}");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    assert!(samples(&site, &running, family).values().all(|end| *end > now));
    let text = format!("{:?}", samples(&site, &running, family));
    assert!(!text.contains("PRIVATE"), "{text}");
    assert_eq!(call(&site, &base, &[&CERTIFICATE, &["-X", "DELETE"]]), 200);
    assert!(samples(&site, &running, family).is_empty(), "series end with their document");
    assert_eq!(running.stop().0, Some(0));
}

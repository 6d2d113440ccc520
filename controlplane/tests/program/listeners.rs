//! Several listeners of the Admin API in one control plane, called by curl: mutual TLS, plain HTTP
//! on a loopback address, and IPv6.

use std::net::{SocketAddr, TcpListener};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::refused;
use crate::site::{Site, program, run};

/// What curl got: the status and the body. 0: no response.
pub(crate) fn curl(site: &Site, arguments: &[&str]) -> (u16, String) {
    let output = Command::new("curl")
        .args(["-sS", "--max-time", "60", "-w", "\n%{http_code}"])
        .args(arguments)
        .current_dir(site.path("pki"))
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|problem| panic!("cannot run curl ({problem}): `make setup` installs it"));
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let (body, status) = stdout.rsplit_once('\n').unwrap_or_default();
    (status.parse().unwrap_or_default(), body.to_owned())
}

/// A site whose Admin API has these listeners, and the key `sixteen-characters`.
fn site_with(listeners: Value) -> Site {
    let mut site = Site::new();
    let admin = &mut site.settings["deployment"]["admin"];
    admin["admin_listen"] = listeners;
    admin["admin_key"] = json!([{"name": "admin", "key": "sixteen-characters", "role": "admin"}]);
    site
}

const KEY: [&str; 2] = ["-H", "X-API-KEY: sixteen-characters"];
const CERTIFICATE: [&str; 4] = ["--cert", "admin-client.crt", "--key", "admin-client.key"];

/// The arguments for a GET of the routes over HTTPS.
fn https(address: SocketAddr) -> Vec<String> {
    let ip = if address.is_ipv6() { format!("[{}]", address.ip()) } else { address.ip().to_string() };
    let resolve = format!("localhost:{}:{ip}", address.port());
    let url = format!("https://localhost:{}/apisix/admin/routes", address.port());
    ["--cacert", "admin-ca.crt", "--resolve", &resolve, &url].map(str::to_owned).to_vec()
}

fn call(site: &Site, base: &[String], more: &[&[&str]]) -> (u16, String) {
    let arguments: Vec<&str> = base.iter().map(String::as_str).chain(more.concat()).collect();
    curl(site, &arguments)
}

#[test]
fn listeners_have_their_own_tls_and_addresses() {
    let mut site = site_with(json!([
        {"ip": "127.0.0.1", "port": 0},
        {"ip": "127.0.0.1", "port": 0, "https_admin": false},
        {"ip": "127.0.0.1", "port": 0, "https_admin": false, "allow_admin": ["192.0.2.1"]},
        {"ip": "127.0.0.1", "port": 0, "admin_api_mtls": {"admin_ssl_ca_cert": ""}},
    ]));
    let roles = json!([{"match": {"subject": "CN=admin"}, "role": "viewer"}]);
    site.settings["deployment"]["admin"]["client_roles"] = roles;
    let checked = run(&["check"], &site.config());
    assert!(checked.status.success(), "{checked:?}");
    let running = site.start();
    let all = running.admin();
    assert_eq!((all.len(), running.ready["admin"].as_str()), (4, Some(&*all[0].to_string())));
    let [mutual, plain, closed, one_way] = all[..] else { panic!("{all:?}") };

    let mutual = https(mutual);
    assert_eq!(call(&site, &mutual, &[&CERTIFICATE, &KEY]).0, 200);
    assert_eq!(call(&site, &mutual, &[&CERTIFICATE]).0, 200, "the certificate has a role");
    let put = ["-X", "PUT", "-d", "{\"nodes\": {}}"];
    let (status, body) = call(&site, &mutual, &[&CERTIFICATE, &put]);
    assert!(status == 401 && body.contains("invalid method for role viewer"), "{status} {body}");
    let (status, body) = call(&site, &mutual, &[&CERTIFICATE, &["-H", "X-API-KEY: wrong"]]);
    assert!(status == 401 && body.contains("wrong apikey"), "{status} {body}");
    let (status, body) = call(&site, &mutual, &[&KEY]);
    assert!(status == 400 && body.contains("No required SSL certificate was sent"), "{status} {body}");

    let plain = [format!("http://{plain}/apisix/admin/routes")];
    assert_eq!(call(&site, &plain, &[&KEY]).0, 200);
    assert_eq!(call(&site, &plain, &[]).0, 401);
    let closed = [format!("http://{closed}/apisix/admin/routes")];
    assert_eq!(call(&site, &closed, &[&KEY]).0, 403);
    let one_way = https(one_way);
    assert_eq!(call(&site, &one_way, &[&KEY]).0, 200);
    assert_eq!(call(&site, &one_way, &[&CERTIFICATE]).0, 401, "its certificate is not verified");

    let status = running.ready["status"].as_str().unwrap();
    let (_, body) = curl(&site, &[&format!("http://{status}/metrics")]);
    for name in ["admin", "admin-2", "admin-3", "admin-4"] {
        assert!(body.contains(&format!("\"{name}\"")), "{name}: {body}");
    }
    let (_, body) = curl(&site, &[&format!("http://{status}/status")]);
    let certificates = serde_json::from_str::<Value>(&body).unwrap()["certificates"].clone();
    let names = certificates.as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap());
    assert_eq!(names.collect::<Vec<_>>(), ["admin", "admin-2", "push"], "equal files are loaded once");
    let (code, stderr) = running.stop();
    assert_eq!(code, Some(0), "{stderr}");
    assert!(all.iter().all(|address| stderr.contains(&address.to_string())), "{stderr}");
    assert!(!stderr.contains("sixteen-characters"), "{stderr}");
}

#[test]
fn a_listener_may_be_ipv6() {
    if let Err(problem) = TcpListener::bind("[::1]:0") {
        return eprintln!("skipped: this machine has no IPv6 ({problem})");
    }
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    // Both families on one port: the second listener must leave IPv4 to the first.
    let site = site_with(json!([
        {"ip": "0.0.0.0", "port": free},
        {"ip": "[::]", "port": free, "allow_admin": ["::1"]},
        {"ip": "::1", "port": 0, "https_admin": false, "allow_admin": ["::1/128"]},
    ]));
    let running = site.start();
    let all = running.admin();
    for address in [format!("127.0.0.1:{free}"), format!("[::1]:{free}")] {
        let address = address.parse().unwrap();
        assert_eq!(call(&site, &https(address), &[&CERTIFICATE, &KEY]).0, 200, "{address}");
    }
    let plain = format!("http://{}/apisix/admin/routes", all[2]);
    assert_eq!(call(&site, &["-g".to_owned(), plain], &[&KEY]).0, 200);
    assert_eq!(running.stop().0, Some(0));
}

#[test]
fn a_listener_reloads_its_own_certificate() {
    let site = site_with(json!([
        {"ip": "127.0.0.1", "port": 0},
        {"ip": "127.0.0.1", "port": 0, "admin_api_mtls": {
            "admin_ssl_cert": "pki/second.crt", "admin_ssl_cert_key": "pki/second.key",
        }},
    ]));
    let issue = |name: &str| {
        let ca = site.path("pki/admin-ca");
        let mut issued = program();
        issued.args(["pki", "issue", "server", name, "--force", "--ca"]).arg(ca);
        assert!(issued.arg("--out").arg(site.path("pki/second")).status().unwrap().success());
    };
    issue("old.test");
    let running = site.start();
    let port = running.admin()[1].port();
    let status = |name: &str| {
        let base = ["--cacert", "admin-ca.crt", "--resolve", &format!("{name}:{port}:127.0.0.1")];
        let url = format!("https://{name}:{port}/apisix/admin/routes");
        let base: Vec<String> = base.into_iter().chain([&*url]).map(str::to_owned).collect();
        call(&site, &base, &[&CERTIFICATE, &KEY]).0
    };
    assert_eq!((status("old.test"), status("new.test")), (200, 0));
    issue("new.test");
    assert_eq!((status("old.test"), status("new.test")), (0, 200));
    assert_eq!(running.stop().0, Some(0));
}

#[test]
fn a_hashed_key_is_not_in_the_file() {
    let hashed = Command::new("sh")
        .args(["-c", "printf '%s\\n' \"$KEY\" | \"$0\" hash-key", program().get_program().to_str().unwrap()])
        .env("KEY", "sixteen-characters")
        .output()
        .unwrap();
    let hash = String::from_utf8(hashed.stdout).unwrap();
    assert!(hash.starts_with("sha256:") && hash.len() == 72, "{hash}");
    let mut site = site_with(json!({"ip": "127.0.0.1", "port": 0}));
    site.settings["deployment"]["admin"]["admin_key"][0]["key"] = hash.trim().into();
    let running = site.start();
    let base = https(running.admin()[0]);
    assert_eq!(call(&site, &base, &[&CERTIFICATE, &KEY]).0, 200);
    let as_key = format!("X-API-KEY: {}", hash.trim());
    assert_eq!(call(&site, &base, &[&CERTIFICATE, &["-H", &as_key]]).0, 401, "the hash is no key");
    assert_eq!(running.stop().0, Some(0));
    assert!(!site.path("data/admin.key").exists());
}

#[test]
fn wrong_keys_are_limited_and_counted() {
    let mut site = site_with(json!({"ip": "127.0.0.1", "port": 0}));
    site.settings["deployment"]["admin"]["https_admin"] = json!(false);
    site.settings["countersign"]["admin"] = json!({"wrong_keys_per_minute": 2});
    let running = site.start();
    let base = ["-i".to_owned(), format!("http://{}/apisix/admin/routes", running.admin()[0])];
    let wrong = ["-H", "X-API-KEY: guessed-guessed-guessed"];
    let statuses = [(); 4].map(|()| call(&site, &base, &[&wrong]));
    assert_eq!(statuses.clone().map(|(status, _)| status), [401, 401, 429, 429]);
    assert!(statuses[3].1.contains("retry-after: "), "{statuses:?}");
    assert_eq!(call(&site, &base, &[&KEY]).0, 200);
    let status = running.ready["status"].as_str().unwrap();
    let (_, metrics) = curl(&site, &[&format!("http://{status}/metrics")]);
    assert!(metrics.contains("countersign_errors_total{reason=\"admin_wrong_keys\"} 2"), "{metrics}");
    let (code, stderr) = running.stop();
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stderr.contains("too many of them from this address"), "{stderr}");
    assert!(!stderr.contains("guessed"), "{stderr}");
}

#[test]
fn a_busy_listener_keeps_the_start_from_listening() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let site = site_with(json!([{"ip": "127.0.0.1", "port": 0}, {"ip": "127.0.0.1", "port": port}]));
    let address = format!("deployment.admin.admin_listen: cannot listen on 127.0.0.1:{port}");
    refused(&site.config(), &[&address, "another program listens there"]);
    let site = site_with(json!([{"ip": "0.0.0.0", "port": 0, "https_admin": false}]));
    refused(&site.config(), &["plain HTTP on 0.0.0.0:0", "write plain_http: true"]);
}

#[test]
fn check_warns_of_an_open_listener_without_a_key_check() {
    let listener = json!({"ip": "0.0.0.0", "port": 0, "https_admin": false, "plain_http": true});
    let mut site = site_with(json!([{"ip": "127.0.0.1", "port": 0}, listener]));
    let admin = &mut site.settings["deployment"]["admin"];
    admin["admin_key_required"] = json!(false);
    admin["allow_admin"] = json!(["127.0.0.0/8", "10.0.0.0/8"]);
    let checked = run(&["check"], &site.config());
    let out = String::from_utf8_lossy(&checked.stdout);
    assert!(checked.status.success(), "{checked:?}");
    let warnings: Vec<_> = out.lines().filter(|line| line.contains("takes every change")).collect();
    assert_eq!(warnings.len(), 1, "{out}");
    assert!(warnings[0].starts_with("warning: ") && warnings[0].contains(" 0.0.0.0:0 takes"), "{out}");
    // All that is wrong with the roles comes at once.
    let admin = &mut site.settings["deployment"]["admin"];
    admin["client_roles"] = json!([{"match": {"cn": "a"}, "role": "root"}, {"role": "viewer"}]);
    refused(
        &site.config(),
        &["match names a client", "expected admin or viewer", "has no match", "lets every client"],
    );
}

//! Bad input gets an error that names the file or resource, the field and the remedy, and changes
//! nothing.
//!
//! A failed start exits with 1 (2 for a bad command line) and writes the message to standard error;
//! the Admin API answers 4xx.

use std::fs;
use std::io::Write;
use std::net::TcpListener;

use e2e::credentials::Credential;
use e2e::documents::{route, site};
use e2e::process::{ExitOutput, Launch, run_to_end};
use e2e::upstream::Upstream;
use e2e::world::World;
use http::{Method, StatusCode};
use serde_json::{Value, json};

/// Files for both programs, which are not running.
async fn files_only() -> World {
    let world = World::builder().without_control().nodes(&[]).start().await;
    world.write_credential("node-1", &world.credentials.node("node-1"));
    world
}

async fn start(world: &World, program: &str, more: Value) -> ExitOutput {
    let mut changed = serde_json::from_str::<Value>(
        &fs::read_to_string(world.write_config(if program == "dataplane" { "node-1" } else { "control" }))
            .unwrap(),
    )
    .unwrap();
    e2e::settings::merge(&mut changed, more);
    let config = world.write("bad.yaml", &format!("{changed:#}\n"));
    run_to_end(program, &["-c", config.to_str().unwrap()], world.folder()).await
}

/// Asserts exit code 1, no ready line, and one message with every word.
fn assert_explained(what: &str, ended: &ExitOutput, words: &[&str]) {
    assert_eq!(ended.status.code(), Some(1), "{what}: {ended:?}");
    assert!(!ended.stdout.contains("ready "), "{what}: {ended:?}");
    let output = ended.stderr.to_lowercase();
    for word in words {
        assert!(output.contains(&word.to_lowercase()), "{what}: no `{word}` in:\n{}", ended.stderr);
    }
    assert!(!output.contains("panicked"), "{what}:\n{}", ended.stderr);
}

#[tokio::test]
async fn unusable_control_plane_files_fail_the_start() {
    let world = files_only().await;
    let other = world.credentials.servers.server(&["admin.test"]);
    let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIIBpjBABgkqhkiG9w0BBQ0wMzAbBgkq\n-----END ENCRYPTED PRIVATE KEY-----\n";
    for (file, text, words) in [
        ("admin.key", "", &["admin.key", "admin_ssl_cert_key"][..]),
        ("admin.key", "not a key\n", &["admin.key"]),
        ("admin.key", encrypted, &["admin.key", "encrypted"]),
        ("admin.key", other.key_pem.as_str(), &["admin.key", "admin.crt"]),
        ("admin.crt", "not a certificate\n", &["admin.crt"]),
        ("client-ca.crt", "", &["client-ca.crt", "certificate"]),
        ("client-ca.crt", "# a bundle with nothing in it\n", &["client-ca.crt", "certificate"]),
        ("push-server.key", other.key_pem.as_str(), &["push-server.key", "push-server.crt"]),
        ("push-ca.crt", "# nothing\n", &["push-ca.crt", "certificate"]),
    ] {
        let path = world.folder().join(file);
        let good = fs::read(&path).unwrap();
        fs::write(&path, text).unwrap();
        let ended = start(&world, "controlplane", json!({})).await;
        assert_explained(&format!("{file} with {} bytes of something else", text.len()), &ended, words);
        let secret = text.lines().nth(1).filter(|line| line.len() > 20);
        assert!(
            secret.is_none_or(|secret| !ended.stderr.contains(secret)),
            "a key is printed: {}",
            ended.stderr
        );
        fs::remove_file(&path).unwrap();
        let ended = start(&world, "controlplane", json!({})).await;
        assert_explained(&format!("{file} is missing"), &ended, &[file]);
        fs::write(&path, good).unwrap();
    }
}

#[tokio::test]
async fn unusable_data_plane_files_fail_the_start() {
    let world = files_only().await;
    let other = world.credentials.node("node-1");
    for (file, text, words) in [
        ("node-1.key", "not a key\n", &["node-1.key"][..]),
        ("node-1.key", other.key_pem.as_str(), &["node-1.key", "node-1.crt"]),
        ("node-1.crt", "", &["node-1.crt", "certificate"]),
        ("push-ca.crt", "# nothing\n", &["push-ca.crt", "certificate"]),
    ] {
        let path = world.folder().join(file);
        let good = fs::read(&path).unwrap();
        fs::write(&path, text).unwrap();
        let ended = start(&world, "dataplane", json!({})).await;
        assert_explained(&format!("{file} with {} bytes of something else", text.len()), &ended, words);
        fs::remove_file(&path).unwrap();
        let ended = start(&world, "dataplane", json!({})).await;
        assert_explained(&format!("{file} is missing"), &ended, &[file]);
        fs::write(&path, good).unwrap();
    }
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    let world = files_only().await;
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let (port, text) = (address.port(), address.to_string());
    for (program, more) in [
        (
            "controlplane",
            json!({"deployment": {"admin": {"admin_listen": {"ip": "127.0.0.1", "port": port}}}}),
        ),
        ("controlplane", json!({"countersign": {"push": {"listen": text}}})),
        ("controlplane", json!({"countersign": {"control_plane": {"status": text}}})),
        ("dataplane", json!({"apisix": {"node_listen": [{"ip": "127.0.0.1", "port": port}]}})),
        ("dataplane", json!({"apisix": {"ssl": {"listen": [{"ip": "127.0.0.1", "port": port}]}}})),
        ("dataplane", json!({"apisix": {"status": {"ip": "127.0.0.1", "port": port}}})),
    ] {
        let ended = start(&world, program, more.clone()).await;
        assert_explained(&format!("{program} {more}"), &ended, &[&text, "in use"]);
    }
}

#[tokio::test]
async fn a_second_data_plane_on_the_same_ports_fails() {
    let world = World::start().await;
    let config = world.write_config("node-1");
    let ended = run_to_end("dataplane", &["-c", config.to_str().unwrap()], world.folder()).await;
    assert_explained("a second data plane", &ended, &["in use"]);
    assert_eq!(world.status("/status").await.status, StatusCode::OK);
}

#[tokio::test]
async fn invalid_settings_fail_the_start() {
    let world = files_only().await;
    for (what, text, words) in [
        (
            "a key that does not exist",
            "deployment:\n  admin:\n    admin_lsten: {port: 1}\n",
            &["bad.yaml:3", "admin_lsten", "admin_listen"][..],
        ),
        ("a wrong type", "apisix:\n  ssl:\n    enable: [1]\n", &["bad.yaml:3", "enable"]),
        ("no YAML", "apisix:\n  ssl: {\n", &["bad.yaml"]),
        (
            "a variable without a value",
            "apisix:\n  node_listen: ${{NO_SUCH_VARIABLE}}\n",
            &["NO_SUCH_VARIABLE"],
        ),
        ("a port out of range", "apisix:\n  node_listen: 70000\n", &["bad.yaml:2", "node_listen", "70000"]),
        (
            "HTTPS without a certificate",
            "deployment:\n  admin:\n    https_admin: true\n",
            &["missing ssl cert for https admin"],
        ),
    ] {
        let config = world.write("bad.yaml", text);
        for program in ["controlplane", "dataplane"] {
            let ended = run_to_end(program, &["-c", config.to_str().unwrap()], world.folder()).await;
            assert_explained(&format!("{program}: {what}"), &ended, words);
        }
    }
    // All mistakes are reported at once.
    let config = world.write("bad.yaml", "apisix:\n  node_lsten: 1\ndeployment:\n  admn: {}\n");
    let ended = run_to_end("controlplane", &["-c", config.to_str().unwrap()], world.folder()).await;
    assert_explained("two problems", &ended, &["bad.yaml:2", "bad.yaml:4"]);
}

#[tokio::test]
async fn a_bad_command_line_is_2_and_a_missing_file_is_1() {
    let world = files_only().await;
    for program in ["controlplane", "dataplane"] {
        let ended = run_to_end(program, &["--no-such-option"], world.folder()).await;
        assert_eq!(ended.status.code(), Some(2), "{program}: {ended:?}");
        assert!(ended.stderr.contains("--help"), "{program}: {ended:?}");
        let ended = run_to_end(program, &["-c", "nowhere.yaml"], world.folder()).await;
        assert_explained(program, &ended, &["nowhere.yaml"]);
    }
}

#[tokio::test]
async fn check_reports_problems_and_starts_nothing() {
    let world = files_only().await;
    let good = world.write_config("control");
    let checked = run_to_end("controlplane", &["check", "-c", good.to_str().unwrap()], world.folder()).await;
    assert!(checked.status.success(), "{checked:?}");
    assert!(!world.store().exists(), "a check makes no store");
    let bad = world.write("bad.yaml", "apisix:\n  ssll: {}\n");
    let checked = run_to_end("controlplane", &["check", "-c", bad.to_str().unwrap()], world.folder()).await;
    assert_explained("check", &checked, &["bad.yaml:2", "ssl"]);
}

#[tokio::test]
async fn a_damaged_store_fails_the_start_and_is_unchanged() {
    let mut world = World::builder().nodes(&[]).start().await;
    world.admin().put("upstreams/u", &json!({"nodes": {"127.0.0.1:1": 1}})).await;
    world.stop_control().await;
    let whole = fs::read(world.store()).unwrap();
    for (what, bytes) in [
        ("something else", b"this is a text and no store\n".repeat(200)),
        ("cut short", whole[..whole.len() / 3].to_vec()),
    ] {
        fs::write(world.store(), &bytes).unwrap();
        let ended = start(&world, "controlplane", json!({})).await;
        assert_explained(what, &ended, &["store.redb"]);
        assert_eq!(fs::read(world.store()).unwrap(), bytes, "{what}: the file was changed");
    }
    fs::write(world.store(), whole).unwrap();
    world.start_control().await;
    assert_eq!(world.admin().get("upstreams/u").await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_store_in_use_is_not_opened_twice() {
    let world = World::builder().nodes(&[]).start().await;
    let free = json!({
        "deployment": {"admin": {"admin_listen": {"port": 0}}},
        "countersign": {"push": {"listen": "127.0.0.1:0"}, "control_plane": {"status": "127.0.0.1:0"}},
    });
    let ended = start(&world, "controlplane", free).await;
    assert_explained("a second control plane", &ended, &["store.redb"]);
    assert_eq!(world.admin().get("routes").await.status, StatusCode::OK);
}

#[tokio::test]
async fn invalid_documents_change_nothing() {
    let world = World::builder().nodes(&[]).start().await;
    let admin = world.admin();
    let other = world.credentials.servers.server(&["app.test"]);
    let good = world.open_site();
    let with = |field: &str, value: Value| {
        let mut document = good.clone();
        document[field] = value;
        document
    };
    admin.put("ssls/kept", &good).await;
    let before = admin.get("ssls/kept").await.reply.body;
    let parse_ca = "failed to validate client_cert: failed to parse cert: PEM_read_bio_X509_AUX() failed";
    for (what, document, words) in [
        (
            "a truncated certificate",
            with("cert", json!(good["cert"].as_str().unwrap()[..200])),
            &["failed to parse cert: PEM_read_bio_X509_AUX() failed"][..],
        ),
        ("no key", with("key", json!("x".repeat(200))), &["failed to decrypt previous encrypted key"]),
        ("another certificate's key", with("key", json!(other.key_pem)), &["key"]),
        (
            "a CA bundle without a certificate",
            with("client", json!({"ca": "test.com".repeat(128)})),
            &[parse_ca],
        ),
        (
            "an unknown field",
            with("certificat", json!("x")),
            &["additional properties forbidden, found certificat"],
        ),
        ("no names", with("snis", json!([])), &["expect array to have at least 1 items"]),
        ("client without a CA", with("client", json!({})), &["property \"ca\" is required"]),
    ] {
        for (method, path) in [(Method::PUT, "ssls/kept"), (Method::PUT, "ssls/new"), (Method::POST, "ssls")]
        {
            let answer = admin.call(method, path, Some(&document)).await.unwrap();
            assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{what}: {answer:?}");
            let text = answer.body["error_msg"].as_str().unwrap();
            assert!(words.iter().all(|word| text.contains(word)), "{what}: {text}");
            assert!(answer.revision.is_none(), "{what}");
        }
    }
    assert_eq!(admin.get("ssls/kept").await.reply.body, before);
    assert_eq!(admin.get("ssls").await.body["total"], 1);
}

#[tokio::test]
async fn malformed_admin_requests_get_the_contracts_messages() {
    let world = World::builder().nodes(&[]).start().await;
    let admin = world.admin();
    let send = |method: Method, path: &'static str, body: Option<Value>| {
        let admin = admin.clone();
        async move { admin.call(method, path, body.as_ref()).await.unwrap() }
    };
    let upstream = json!({"nodes": {"127.0.0.1:1": 1}});
    for (method, path, body, status, expected) in [
        (Method::PUT, "upstreams", Some(upstream.clone()), 400, "missing upstream id"),
        (Method::PUT, "upstreams/1", None, 400, "missing configurations"),
        (Method::POST, "upstreams/1", Some(upstream.clone()), 400, "wrong upstream id, do not need it"),
        (Method::PUT, "upstreams/1", Some(json!({"id": "2", "nodes": {}})), 400, "wrong upstream id"),
        (Method::PUT, "upstreams/*bad", Some(upstream.clone()), 400, "property \"id\" validation failed"),
        (Method::PATCH, "upstreams/1", Some(json!(3)), 400, "invalid configuration"),
        (Method::PUT, "nonsense/1", Some(upstream.clone()), 404, "Unsupported resource type: nonsense"),
    ] {
        let answer = send(method.clone(), path, body).await;
        let text = answer.reply.text();
        assert_eq!(answer.status.as_u16(), status, "{method} {path}: {text}");
        assert!(
            answer.body["error_msg"].as_str().is_some_and(|found| found.contains(expected)),
            "{method} {path}: {text}"
        );
    }
    for (method, path) in
        [(Method::GET, "upstreams/1"), (Method::DELETE, "upstreams/1"), (Method::PATCH, "upstreams/1")]
    {
        let answer =
            send(method.clone(), path, (method == Method::PATCH).then(|| json!({"retries": 1}))).await;
        assert_eq!(
            (answer.status, &answer.body),
            (StatusCode::NOT_FOUND, &json!({"message": "Key not found"})),
            "{method}"
        );
    }
}

#[tokio::test]
async fn an_expired_server_certificate_is_served_and_warned_about() {
    let world = World::start().await;
    let upstream = Upstream::plain("plain").await;
    let expired = world.credentials.servers.expired_server(&["old.test"]);
    world
        .apply(&[
            ("ssls/old", site(&expired, "old.test")),
            ("routes/old", route("old.test", "/*", &[upstream.address()])),
        ])
        .await;
    let port = world.https().port();
    let answered = e2e::tools::curl(
        world.folder(),
        &["-k", "--resolve", &format!("old.test:{port}:127.0.0.1"), &format!("https://old.test:{port}/")],
    )
    .await;
    assert_eq!((answered.exit, answered.status), (0, 200), "{answered:?}");
    world.control_log().line_with(&["WARN", "old", "expired"]).await;
}

#[tokio::test]
async fn a_control_plane_with_the_wrong_name_is_rejected() {
    let world = World::builder().without_control().start().await;
    let wrong = world.credentials.push.server(&["someone-else"]);
    start_with_push(world, &wrong, &["WARN", "controlplane"]).await;
}

#[tokio::test]
async fn a_control_plane_of_another_authority_is_rejected() {
    let world = World::builder().without_control().start().await;
    let wrong = world.credentials.untrusted.server(&["controlplane"]);
    start_with_push(world, &wrong, &["WARN"]).await;
}

async fn start_with_push(mut world: World, push: &Credential, words: &[&str]) {
    world.write_credential("push-server", push);
    world.start_control().await;
    let revision = world.admin().put("upstreams/u", &json!({"nodes": {"127.0.0.1:1": 1}})).await;
    world.node_log().line_with(&[words, &["certificate"]].concat()).await;
    let waited = world.admin().get(&format!("dataplanes?acknowledged={revision}&timeout=1")).await;
    assert_eq!(waited.status, StatusCode::GATEWAY_TIMEOUT, "{waited:?}");
    assert_eq!(world.status("/status/ready").await.status, StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn a_node_with_a_wrong_authority_or_name_is_rejected() {
    for (what, credential_of) in [("another authority", true), ("another node's certificate", false)] {
        let mut world = World::builder().nodes(&[]).start().await;
        let revision = world.admin().put("upstreams/u", &json!({"nodes": {"127.0.0.1:1": 1}})).await;
        let credential = if credential_of {
            world.credentials.untrusted.client("node-1")
        } else {
            world.credentials.node("node-2")
        };
        world.add_node_with("node-1", &credential).await;
        world.node_log().line_with(&["WARN"]).await;
        let waited = world.admin().get(&format!("dataplanes?acknowledged={revision}&timeout=1")).await;
        assert_eq!(waited.status, StatusCode::GATEWAY_TIMEOUT, "{what}: {waited:?}");
        assert_eq!(world.node_ready()["revision"], json!(0), "{what}");
    }
}

#[tokio::test]
async fn a_full_disk_fails_writes_and_loses_none() {
    // A file system of four megabytes in a mount namespace that ends with the process.
    let world = files_only().await;
    let small = world.folder().join("small");
    fs::create_dir(&small).unwrap();
    let script = format!("mount -t tmpfs -o size=4m none {} && exec \"$@\"", small.display());
    let launcher = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", &script, "sh"];
    let possible = std::process::Command::new(launcher[0]).args(&launcher[1..]).arg("true").status();
    if !possible.is_ok_and(|status| status.success()) {
        // Written past the test runner's capture, so that a skipped test does not look like a
        // passed one.
        let text =
            b"skipped: a_full_disk: this machine gives no mount namespace, so there is no disk to fill\n";
        std::io::stderr().write_all(text).unwrap();
        return;
    }
    let mut settings: Value =
        serde_json::from_str(&fs::read_to_string(world.write_config("control")).unwrap()).unwrap();
    settings["countersign"]["store"]["path"] = json!("small/store.redb");
    settings["deployment"]["admin"]["admin_listen"]["port"] = json!(0);
    settings["countersign"]["push"]["listen"] = json!("127.0.0.1:0");
    settings["countersign"]["control_plane"]["status"] = json!("127.0.0.1:0");
    let config = world.write("small.yaml", &settings.to_string());
    let log = e2e::process::Log::default();
    let control = Launch::new("controlplane", &config).through(&launcher).start(&log).await;
    let address = control.ready()["admin"].as_str().unwrap().parse().unwrap();
    let admin = e2e::admin::Admin::new(address, &world.credentials);
    // About 60 kB each, so that few are needed.
    let large = |number: usize| {
        let labels: serde_json::Map<String, Value> =
            (0..240).map(|label| (format!("label-{label}"), json!("x".repeat(240)))).collect();
        json!({"nodes": {"127.0.0.1:1": 1}, "labels": labels, "desc": number.to_string()})
    };
    let mut written = 0;
    let refused = loop {
        let answer =
            admin.call(Method::PUT, &format!("upstreams/{written}"), Some(&large(written))).await.unwrap();
        if !answer.status.is_success() {
            break answer;
        }
        written += 1;
        assert!(written < 1000, "the disk never fills up");
    };
    assert!(refused.status.is_server_error(), "{refused:?}");
    assert!(refused.body["error_msg"].as_str().is_some_and(|text| !text.is_empty()), "{refused:?}");
    for number in [0, written / 2, written - 1] {
        let kept = admin.get(&format!("upstreams/{number}")).await;
        assert_eq!(kept.body["value"]["desc"], number.to_string(), "{kept:?}");
    }
    assert_eq!(admin.get("upstreams").await.body["total"], written);
}

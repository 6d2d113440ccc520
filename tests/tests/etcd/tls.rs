//! The connection to etcd: trust, client certificates, the messages for operators, and certificate
//! rotation while it runs.

use e2e::client::bounded;
use e2e::credentials::Authority;
use e2e::etcd::{Access, Authorities, Etcd, PASSWORD};
use e2e::world::World;
use http::{Method, StatusCode};
use pki::ca::LeafSpec;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::stage::{Stage, assert_reported, attempt, entry, name, refused_start, route};

fn with_authority(etcd: &Etcd, authority: &Authority) -> Access {
    Access { authority_pem: Some(authority.certificate_pem().to_owned()), ..etcd.access() }
}

/// The line of the message about this etcd: endpoint, step, cause and advice.
fn assert_explained(ended: &e2e::process::ExitOutput, etcd: &Etcd, words: &[&str]) {
    let url = etcd.url();
    let about = |line: &&str| line.contains(&url) && words.iter().all(|word| line.contains(word));
    assert!(
        ended.stderr.lines().any(|line| about(&line)),
        "no line with {url} and {words:?}:\n{}",
        ended.stderr
    );
}

#[tokio::test]
async fn an_untrusted_server_is_reported_by_its_certificate() {
    let (authorities, untrusted) = (Authorities::generate(), Authority::root("Untrusted CA"));
    let etcd = Etcd::mutual(&authorities).await;

    let ended = refused_start(with_authority(&etcd, &untrusted), json!({})).await;
    assert_explained(&ended, &etcd, &["TLS", "certificate verify failed", "Test etcd CA", "Untrusted CA"]);

    etcd.replace_certificate(&authorities.servers.issue(&LeafSpec::server("elsewhere.test")));
    let ended = refused_start(&etcd, json!({})).await;
    assert_explained(
        &ended,
        &etcd,
        &["TLS", "certificate host mismatch", "127.0.0.1", "elsewhere.test", "tls.sni"],
    );

    etcd.replace_certificate(&authorities.servers.expired_server(&["etcd.test"]));
    let ended = refused_start(&etcd, json!({})).await;
    assert_explained(&ended, &etcd, &["TLS", "certificate verify failed", "expired"]);

    // No password or document is sent before that.
    etcd.replace_certificate(&untrusted.server(&["etcd.test"]));
    let access = Access { user: Some(("root".to_owned(), PASSWORD.to_owned())), ..etcd.access() };
    let ended = refused_start(access, json!({})).await;
    assert_explained(&ended, &etcd, &["certificate verify failed"]);
    assert!(!ended.stderr.contains(PASSWORD));
}

#[tokio::test]
async fn a_rejected_client_is_reported_with_its_certificate() {
    let (authorities, untrusted) = (Authorities::generate(), Authority::root("Untrusted CA"));
    let etcd = Etcd::mutual(&authorities).await;

    let ended = refused_start(Access { client: None, ..etcd.access() }, json!({})).await;
    assert_explained(&ended, &etcd, &["TLS", "bad certificate", "none is configured"]);

    for (what, client) in [
        ("expired", authorities.clients.expired_client("countersign")),
        ("an untrusted CA", untrusted.client("countersign")),
    ] {
        let ended = refused_start(Access { client: Some(client), ..etcd.access() }, json!({})).await;
        assert_explained(&ended, &etcd, &["TLS", "bad certificate", "etcd-client.crt", "countersign"]);
        assert!(!ended.stderr.contains("PRIVATE"), "{what}");
    }
}

/// Without a CA of its own, and with the machine's by name: an etcd with a private CA is not
/// trusted.
#[tokio::test]
async fn the_machines_cas_do_not_trust_a_private_etcd() {
    let etcd = Etcd::tls(&Authorities::generate()).await;
    for trusted in [json!({}), json!({"apisix": {"ssl": {"ssl_trusted_certificate": "system"}}})] {
        let access = Access { authority_pem: None, ..etcd.access() };
        assert_reported(&refused_start(access, trusted).await, &[&etcd.url(), "ssl_trusted_certificate"]);
    }
}

#[tokio::test]
async fn disabled_verification_is_logged() {
    let authorities = Authorities::generate();
    let etcd = Etcd::tls(&authorities).await;
    let access = Access { authority_pem: None, ..etcd.access() };
    let builder =
        World::builder().etcd(access).settings(json!({"deployment": {"etcd": {"tls": {"verify": false}}}}));
    let stage = Stage::with(etcd, builder).await;
    stage.world.apply(&[("routes/a", stage.route("/a"))]).await;
    assert_eq!(stage.status("/a").await, StatusCode::OK);
    stage.world.control_log().line_with(&["WARN", "verify"]).await;
}

#[tokio::test]
async fn mixed_up_http_and_https_are_reported() {
    let authorities = Authorities::generate();
    let (tls, plain) = (Etcd::tls(&authorities).await, Etcd::plain().await);
    let hosts = |etcd: &Etcd, from: &str, to: &str| vec![etcd.url().replace(from, to)];
    let wrong = Access { hosts: hosts(&tls, "https:", "http:"), ..Access::default() };
    assert_reported(&refused_start(wrong, json!({})).await, &["speaks TLS", "https://"]);
    let wrong = Access { hosts: hosts(&plain, "http:", "https:"), ..tls.access() };
    assert_reported(&refused_start(wrong, json!({})).await, &["does not speak TLS", "http://"]);
}

#[tokio::test]
async fn an_endpoint_by_name_is_verified_by_that_name() {
    let authorities = Authorities::generate();
    let etcd = Etcd::mutual(&authorities).await;
    // It listens at one of the addresses of the name.
    let access = etcd.access().named("localhost");
    let stage = Stage::with(etcd, World::builder().etcd(access.clone())).await;
    stage.world.apply(&[("routes/a", stage.route("/a"))]).await;
    assert_eq!(stage.status("/a").await, StatusCode::OK);
    stage.etcd.replace_certificate(&authorities.servers.server(&["etcd.test"]));
    let ended = refused_start(access, json!({})).await;
    assert_reported(&ended, &["certificate host mismatch", "localhost", "etcd.test"]);
}

#[tokio::test]
async fn password_authentication_works() {
    let etcd = Etcd::with_password().await;
    let mut stage = Stage::of(etcd).await;
    stage.world.apply(&[("routes/a", stage.route("/a"))]).await;
    assert_eq!(stage.status("/a").await, StatusCode::OK);
    // A restarted etcd has no sessions.
    let mark = stage.world.control_log().mark();
    stage.etcd.kill().await;
    stage.etcd.start().await;
    stage.world.control_log().line_after(mark, &["reconnected to etcd"]).await;
    stage.world.apply(&[("routes/b", stage.route("/b"))]).await;
    let revision = stage.etcd.keys().await.put(&name("routes/c"), stage.route("/c").to_string()).await;
    stage.world.wait_acknowledged(revision).await;
    assert_eq!(stage.status("/c").await, StatusCode::OK);

    let user = |password: &str| Some(("root".to_owned(), password.to_owned()));
    let wrong = Access { user: user("wrong-password"), ..stage.etcd.access() };
    let ended = refused_start(wrong, json!({})).await;
    assert_reported(&ended, &["invalid user ID or password", "deployment.etcd.user"]);
    assert!(!ended.stderr.contains("wrong-password"));
    let ended = refused_start(Access { user: None, ..stage.etcd.access() }, json!({})).await;
    assert_reported(&ended, &["deployment.etcd.user"]);

    let open = Etcd::plain().await;
    let ended = refused_start(Access { user: user(PASSWORD), ..open.access() }, json!({})).await;
    assert_reported(&ended, &["authentication is not enabled"]);
}

#[tokio::test]
async fn missing_permissions_of_a_user_are_reported() {
    let etcd = Etcd::with_password().await;
    let mut keys = etcd.keys().await;
    for directory in ["routes", "ssls"] {
        keys.put(&name(&format!("{directory}/")), "init_dir").await;
    }
    for (user, granted) in [("reader", true), ("outsider", false)] {
        etcd.ctl(&["user", "add", &format!("{user}:{PASSWORD}")]).await;
        etcd.ctl(&["role", "add", user]).await;
        if granted {
            etcd.ctl(&["role", "grant-permission", user, "read", "--prefix=true", "/apisix/"]).await;
        }
        etcd.ctl(&["user", "grant-role", user, user]).await;
    }
    let as_user = |user: &str| Access { user: Some((user.to_owned(), PASSWORD.to_owned())), ..etcd.access() };
    let ended = refused_start(as_user("outsider"), json!({})).await;
    assert_reported(&ended, &["etcd forbidden code: 403", "outsider", "grant-permission"]);

    let builder = World::builder().etcd(as_user("reader"));
    let stage = Stage::with(etcd, builder).await;
    stage.etcd_put("routes/a", &stage.route("/a")).await;
    assert_eq!(stage.status("/a").await, StatusCode::OK);
    let (refused, text) = attempt(&stage.world, Method::PUT, "routes/b", Some(&stage.route("/b"))).await;
    assert_eq!(refused, StatusCode::SERVICE_UNAVAILABLE, "{text}");
    assert!(text.contains("etcd forbidden code: 403") && !text.contains("not known"), "{text}");
}

/// Writes numbered routes through the Admin API until it is stopped; a failed write is repeated
/// under the next number.
async fn write_on(
    world: &World,
    upstream: Value,
    mut end: watch::Receiver<bool>,
    made: watch::Sender<u64>,
) -> Vec<u64> {
    let mut acknowledged = Vec::new();
    for number in 1.. {
        if *end.borrow_and_update() {
            break;
        }
        let mut document = upstream.clone();
        document["uri"] = json!(format!("/load-{number}"));
        let path = format!("routes/load-{}", number % 50);
        let answer =
            world.admin().call(Method::PUT, &path, Some(&document)).await.expect("the Admin API answers");
        match answer.status {
            status if status.is_success() => {
                acknowledged.push(answer.revision.expect("a write has a revision"));
                made.send_modify(|made| *made += 1);
            }
            StatusCode::SERVICE_UNAVAILABLE => {}
            status => panic!("{status} {}", answer.reply.text()),
        }
    }
    acknowledged
}

#[tokio::test]
async fn certificates_of_both_sides_are_rotated_under_load() {
    let (old, new) = (Authorities::generate(), Authorities::generate());
    let bundle = |a: &Authority, b: &Authority| format!("{}{}", a.certificate_pem(), b.certificate_pem());
    let both = bundle(&old.clients, &new.clients);
    let etcd = Etcd::builder().mutual(&old).clients(&both).start().await;
    let access = Access { authority_pem: Some(bundle(&old.servers, &new.servers)), ..etcd.access() };
    let mut stage = Stage::with(etcd, World::builder().etcd(access)).await;
    let process = stage.world.control_process(0).id();
    let ((end, ended), (made, mut progress)) = (watch::channel(false), watch::channel(0));
    let document = route(&stage.upstream, "/");
    let (world, etcd) = (&stage.world, &mut stage.etcd);

    let rotation = async {
        let mut after = async |count: u64| {
            let target = *progress.borrow() + count;
            bounded("the load goes on", progress.wait_for(|made| *made >= target)).await.expect("it runs");
        };
        after(20).await;
        // etcd's own certificate: it reads the files at every handshake, so nothing changes until
        // connections break.
        etcd.replace_certificate(&new.server());
        after(20).await;
        etcd.kill().await;
        etcd.start().await;
        after(20).await;
        // The control plane's own, file by file; then the old authority is not trusted any more.
        world.write_credential("etcd-client", &new.client());
        world.write("etcd-ca.crt", new.servers.certificate_pem());
        after(20).await;
        etcd.kill().await;
        etcd.replace_clients(new.clients.certificate_pem());
        etcd.start().await;
        after(20).await;
        end.send_replace(true);
    };
    let (acknowledged, ()) = tokio::join!(write_on(world, document, ended, made), rotation);

    assert!(acknowledged.is_sorted() && acknowledged.len() >= 100);
    let last = *acknowledged.last().unwrap();
    stage.world.wait_acknowledged(last).await;
    let mut keys = stage.etcd.keys().await;
    let held = keys.with_prefix("/apisix/routes/load-").await;
    for entry in &held {
        let uri = entry.json()["uri"].as_str().unwrap().to_owned();
        assert_eq!(stage.status(&uri).await, StatusCode::OK, "{uri}");
    }
    assert_eq!(stage.world.control_process(0).id(), process, "it was never restarted");
    assert_eq!(entry(&mut keys, "routes/load-1").await["id"], "load-1");
}

#[tokio::test]
async fn mismatched_files_leave_the_old_ones_in_use() {
    let (authorities, untrusted) = (Authorities::generate(), Authority::root("Untrusted CA"));
    let mut stage = Stage::of(Etcd::mutual(&authorities).await).await;
    let mark = stage.world.control_log().mark();
    // Half of a rotation: the certificate is new, the key is not.
    stage.world.write("etcd-client.crt", &untrusted.client("countersign").certificate_pem);
    stage.world.control_log().line_after(mark, &["WARN", "etcd-client"]).await;
    stage.etcd.kill().await;
    stage.etcd.start().await;
    stage.world.control_log().line_after(mark, &["reconnected to etcd"]).await;
    stage.world.apply(&[("routes/a", stage.route("/a"))]).await;
    assert_eq!(stage.status("/a").await, StatusCode::OK);
}

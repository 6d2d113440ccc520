//! An APISIX on the same etcd: it can read our documents, and what it writes back opens nothing.

use e2e::process::run_to_end;
use e2e::upstream::Upstream;
use http::StatusCode;
use serde_json::{Value, json};

use super::stage::{Stage, entry, linted, name};

const ROUTE_BESIDE: &str = "/apisix/countersign/extensions/routes/own";

/// A revoked client and one that is on no allow-list; each is rejected.
async fn guarded(stage: &Stage) {
    let credentials = &stage.world.credentials;
    let mut site = stage.world.protected_site();
    let revoked = credentials.clients.client("revoked");
    site["client"]["crl"] = json!([credentials.clients.crl(&[&revoked])]);
    let mut own = stage.route("/own");
    own["client_identity"] = json!({"allow": [{"dns": "allowed.test"}]});
    stage
        .world
        .apply(&[("ssls/app", site), ("routes/own", own), ("routes/open", stage.route("/open"))])
        .await;
}

async fn status(stage: &Stage, path: &str) -> StatusCode {
    stage.world.verified_client("app.test").get(path).await.unwrap().status
}

#[tokio::test]
async fn a_document_rewritten_by_an_apisix_stays_protected() {
    let mut stage = Stage::start().await;
    guarded(&stage).await;
    assert_eq!(
        (status(&stage, "/own").await, status(&stage, "/open").await),
        (StatusCode::FORBIDDEN, StatusCode::OK)
    );
    let mut keys = stage.etcd.keys().await;
    let (site, own) = (entry(&mut keys, "ssls/app").await, entry(&mut keys, "routes/own").await);
    assert_eq!(site["client"].as_object().unwrap().keys().collect::<Vec<_>>(), ["ca", "depth"]);
    assert_eq!(own.get("client_identity"), None, "an APISIX would refuse it: {own}");
    // It reads, changes a known member, and writes the whole back.
    for path in ["ssls/app", "routes/own"] {
        let mut document = entry(&mut keys, path).await;
        document["desc"] = json!("by an APISIX");
        stage.etcd_put(path, &document).await;
        let shown = stage.world.admin().get(path).await.body["value"].clone();
        assert_eq!(shown["desc"], "by an APISIX");
    }
    assert_eq!(status(&stage, "/own").await, StatusCode::FORBIDDEN);
    let shown = stage.world.admin().get("ssls/app").await.body["value"].clone();
    assert!(shown["client"]["crl"].is_array(), "{shown}");
    // Planes that start anew read it at once.
    stage.world.kill_control().await;
    stage.world.kill_node().await;
    stage.world.start_control().await;
    stage.world.start_node().await;
    stage.world.wait_acknowledged(keys.documents_revision().await).await;
    assert_eq!(status(&stage, "/own").await, StatusCode::FORBIDDEN);
}

/// Of an upstream that an APISIX writes back without `tls`, or with its default in it, the servers
/// are verified all the same.
#[tokio::test]
async fn an_upstream_rewritten_by_an_apisix_stays_verified() {
    let stage = Stage::start().await;
    let upstreams = &stage.world.credentials.upstreams;
    let server = Upstream::tls("server", &upstreams.server(&["node.test"])).await;
    let target = json!({"nodes": {server.address().to_string(): 1}, "scheme": "https",
        "tls": {"ca_certs": [upstreams.certificate_pem()], "verify_identity": [{"dns": "node.test"}]}});
    let route = |path: &str| json!({"uri": path, "host": "app.test", "upstream_id": "u"});
    stage
        .world
        .apply(&[("ssls/app", stage.world.open_site()), ("upstreams/u", target), ("routes/r", route("/r"))])
        .await;
    let status = async |stage: &Stage| stage.world.client("app.test").get("/r").await.unwrap().status;
    assert_eq!(status(&stage).await, StatusCode::OK);
    let mut keys = stage.etcd.keys().await;
    let stored = entry(&mut keys, "upstreams/u").await;
    assert!(stored["tls"].get("verify_identity").is_none(), "{stored}");
    // Its default beside the identity is passed over, and the anchors stay.
    let mut rewritten = stored.clone();
    rewritten["tls"]["verify"] = json!(false);
    stage.etcd_put("upstreams/u", &rewritten).await;
    assert_eq!(status(&stage).await, StatusCode::OK);
    assert_eq!(linted(&stage, "upstreams/u").await["field"], "tls.verify");
    // Without `tls` there are no anchors, and the settings have none: no server can be verified.
    rewritten.as_object_mut().unwrap().remove("tls");
    stage.etcd_put("upstreams/u", &rewritten).await;
    assert_eq!(status(&stage).await, StatusCode::BAD_GATEWAY);
    let shown = stage.world.admin().get("upstreams/u").await.body["value"].clone();
    assert_eq!(shown["tls"], json!({"verify_identity": [{"dns": "node.test"}]}));
}

#[tokio::test]
async fn replacing_a_bundle_keeps_its_revocation_lists() {
    let stage = Stage::start().await;
    guarded(&stage).await;
    let mut keys = stage.etcd.keys().await;
    let mut site = entry(&mut keys, "ssls/app").await;
    let untrusted = &stage.world.credentials.untrusted;
    site["client"]["ca"] = json!(untrusted.certificate_pem());
    stage.etcd_put("ssls/app", &site).await;
    // The new authority is in force, the old one is not.
    stage.world.verified_client("app.test").expect_alert().await;
    let other = untrusted.client("other");
    let reply = stage.world.client("app.test").identity(&other).get("/open").await.unwrap();
    assert_eq!(reply.status, StatusCode::OK);
    let finding = linted(&stage, "ssls/app").await;
    assert!(finding["message"].as_str().unwrap().contains("no certificate of it has signed it"), "{finding}");
    stage.world.control_log().line_with(&["weakens the protection", "client.ca"]).await;
}

#[tokio::test]
async fn removed_extension_fields_are_reported() {
    let stage = Stage::start().await;
    guarded(&stage).await;
    let mut keys = stage.etcd.keys().await;
    // An unreadable one is not "none".
    let revision = keys.put(ROUTE_BESIDE, "{").await;
    stage.world.wait_acknowledged(revision).await;
    assert_ne!(status(&stage, "/own").await, StatusCode::OK);
    linted(&stage, "routes/own").await;
    let identity = json!({"client_identity": {"allow": [{"dns": "allowed.test"}]}});
    let revision = keys.put(ROUTE_BESIDE, identity.to_string()).await;
    stage.world.wait_acknowledged(revision).await;
    assert_eq!(status(&stage, "/own").await, StatusCode::FORBIDDEN);
    // Removed by hand: in force, and reported.
    let revision = keys.delete(ROUTE_BESIDE).await;
    stage.world.wait_acknowledged(revision).await;
    stage
        .world
        .control_log()
        .line_with(&["weakens the protection", "client_identity.allow", "routes/own"])
        .await;
    assert_eq!(status(&stage, "/own").await, StatusCode::OK);
}

#[tokio::test]
async fn a_copy_includes_extension_fields() {
    let stage = Stage::start().await;
    guarded(&stage).await;
    let config = stage.world.write_config("copy");
    let copy = async |from: &str, to: &str| {
        let line = ["-c", config.to_str().unwrap(), "copy", "--from", from, "--to", to, "--overwrite"];
        let ended = run_to_end("controlplane", &line, stage.world.folder()).await;
        assert!(ended.status.success(), "{ended:?}");
        ended.stdout
    };
    copy("etcd", "yaml:rules.yaml").await;
    let rules = std::fs::read_to_string(stage.world.folder().join("rules.yaml")).unwrap();
    let (documents, beside) = rules.split_once("countersign_extensions:").unwrap();
    assert!(!documents.contains("client_identity") && beside.contains("client_identity"), "{rules}");
    // An APISIX deletes and recreates a route: it has no extension until the copy restores it.
    let mut keys = stage.etcd.keys().await;
    let document: Value = entry(&mut keys, "routes/own").await;
    keys.delete(&name("routes/own")).await;
    stage.etcd_put("routes/own", &document).await;
    assert_eq!(status(&stage, "/own").await, StatusCode::OK);
    copy("yaml:rules.yaml", "etcd").await;
    stage.world.wait_acknowledged(keys.documents_revision().await).await;
    assert_eq!(status(&stage, "/own").await, StatusCode::FORBIDDEN);
    copy("etcd", "embedded:again.redb").await;
    assert!(copy("embedded:again.redb", "etcd").await.contains("0 are new, 0 differ"));
}

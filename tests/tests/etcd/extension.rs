//! An APISIX on the same etcd: our documents have nothing that it would refuse, and what it writes back opens nothing.

use e2e::process::run_to_end;
use http::StatusCode;
use serde_json::{Value, json};

use super::stage::{Stage, entry, linted, name};

const ROUTE_BESIDE: &str = "/apisix/countersign/extensions/routes/own";

/// A revoked client and one that no allow-list names; each is refused.
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
    stage.world.good_caller("app.test").get(path).await.unwrap().status
}

#[tokio::test]
async fn what_an_apisix_writes_back_opens_nothing() {
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
    // It reads, changes a member that it knows, and writes the whole back.
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
    // Read at once by planes that start anew.
    stage.world.kill_control().await;
    stage.world.kill_node().await;
    stage.world.start_control().await;
    stage.world.start_node().await;
    stage.world.settled(keys.documents_revision().await).await;
    assert_eq!(status(&stage, "/own").await, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn another_bundle_takes_the_lists_of_the_old_one_along() {
    let stage = Stage::start().await;
    guarded(&stage).await;
    let mut keys = stage.etcd.keys().await;
    let mut site = entry(&mut keys, "ssls/app").await;
    let strangers = &stage.world.credentials.strangers;
    site["client"]["ca"] = json!(strangers.certificate_pem());
    stage.etcd_put("ssls/app", &site).await;
    // The new authority is in force, the old one is not.
    stage.world.good_caller("app.test").refusal().await;
    let other = strangers.client("other");
    let reply = stage.world.caller("app.test").identity(&other).get("/open").await.unwrap();
    assert_eq!(reply.status, StatusCode::OK);
    let finding = linted(&stage, "ssls/app").await;
    assert!(finding["message"].as_str().unwrap().contains("no certificate of it has signed it"), "{finding}");
    stage.world.control_log().line_with(&["weakens the protection", "client.ca"]).await;
}

#[tokio::test]
async fn what_lies_beside_never_falls_silently() {
    let stage = Stage::start().await;
    guarded(&stage).await;
    let mut keys = stage.etcd.keys().await;
    // One that cannot be read is not "none".
    let revision = keys.put(ROUTE_BESIDE, "{").await;
    stage.world.settled(revision).await;
    assert_ne!(status(&stage, "/own").await, StatusCode::OK);
    linted(&stage, "routes/own").await;
    let identity = json!({"client_identity": {"allow": [{"dns": "allowed.test"}]}});
    let revision = keys.put(ROUTE_BESIDE, identity.to_string()).await;
    stage.world.settled(revision).await;
    assert_eq!(status(&stage, "/own").await, StatusCode::FORBIDDEN);
    // Taken away by hand: in force, and told.
    let revision = keys.delete(ROUTE_BESIDE).await;
    stage.world.settled(revision).await;
    stage
        .world
        .control_log()
        .line_with(&["weakens the protection", "client_identity.allow", "routes/own"])
        .await;
    assert_eq!(status(&stage, "/own").await, StatusCode::OK);
}

#[tokio::test]
async fn a_copy_takes_what_lies_beside_along() {
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
    // An APISIX deletes and makes a route anew: it starts clean, until the copy brings back what was saved.
    let mut keys = stage.etcd.keys().await;
    let document: Value = entry(&mut keys, "routes/own").await;
    keys.delete(&name("routes/own")).await;
    stage.etcd_put("routes/own", &document).await;
    assert_eq!(status(&stage, "/own").await, StatusCode::OK);
    copy("yaml:rules.yaml", "etcd").await;
    stage.world.settled(keys.documents_revision().await).await;
    assert_eq!(status(&stage, "/own").await, StatusCode::FORBIDDEN);
    copy("etcd", "embedded:again.redb").await;
    assert!(copy("embedded:again.redb", "etcd").await.contains("0 are new, 0 differ"));
}

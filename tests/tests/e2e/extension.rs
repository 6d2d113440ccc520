//! Tools that know only APISIX's schema read a document and save it unchanged: no client gains
//! access.
//!
//! The requests are those of the dashboard (*Edit*, *Save*) and of ADC, sent by curl from a shell,
//! followed by requests to the data plane.

use std::fs;
use std::process::Command;

use e2e::admin::ADMIN_KEY;
use e2e::documents::route;
use e2e::upstream::Upstream;
use e2e::world::World;
use http::StatusCode;
use serde_json::{Value, json};

/// Runs curl against the Admin API in a shell in the world's folder; returns head and body.
fn admin_curl(world: &World, arguments: &str) -> (String, Value) {
    let (folder, credentials) = (world.folder(), &world.credentials);
    for (name, text) in [
        ("tool-ca.crt", credentials.servers.certificate_pem()),
        ("tool.crt", credentials.admin_client.certificate_pem.as_str()),
        ("tool.key", credentials.admin_client.key_pem.as_str()),
    ] {
        fs::write(folder.join(name), text).unwrap();
    }
    let port = world.admin_address().port();
    let script = format!(
        "curl -sS -i --cacert tool-ca.crt --cert tool.crt --key tool.key --resolve admin.test:{port}:127.0.0.1 \
         -H 'X-API-KEY: {ADMIN_KEY}' https://admin.test:{port}/apisix/admin/{arguments}"
    );
    let output = Command::new("sh").args(["-c", &script]).current_dir(folder).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (head.to_lowercase(), serde_json::from_str(body).unwrap())
}

/// Reads a document, drops members that APISIX's schema lacks, and saves it. Returns the response
/// head.
async fn saved_by_a_tool(world: &World, path: &str, key: Option<&str>) -> String {
    let mut document = admin_curl(world, path).1["value"].clone();
    let members = document.as_object_mut().unwrap();
    members.retain(|name, _| !["create_time", "update_time", "client_identity"].contains(&name.as_str()));
    if let Some(client) = members.get_mut("client").and_then(Value::as_object_mut) {
        client.retain(|name, _| !name.starts_with("crl"));
    }
    // The API returns no private key; the tool has it in a file.
    members.extend(key.map(|key| ("key".to_owned(), json!(key))));
    fs::write(world.folder().join("saved.json"), document.to_string()).unwrap();
    let (head, _) = admin_curl(world, &format!("{path} -X PUT -d @saved.json"));
    assert!(head.starts_with("http/1.1 200"), "{head}");
    let revision = head.lines().find_map(|line| line.strip_prefix("x-countersign-revision: ")).unwrap();
    world.wait_acknowledged(revision.trim().parse().unwrap()).await;
    head
}

#[tokio::test]
async fn a_revoked_client_stays_rejected_after_a_tool_saves() {
    let (world, upstream) = (World::start().await, Upstream::plain("plain").await);
    let credentials = &world.credentials;
    let mut site = world.protected_site();
    site["client"]["crl"] = json!([credentials.clients.crl(&[&credentials.client])]);
    let app = route("app.test", "/*", &[upstream.address()]);
    world.apply(&[("ssls/app", site), ("routes/app", app)]).await;
    world.verified_client("app.test").expect_alert().await;
    for _ in 0..2 {
        let head = saved_by_a_tool(&world, "ssls/app", Some(&credentials.site.key_pem)).await;
        assert!(head.contains("x-countersign-kept: client.crl"), "{head}");
        world.verified_client("app.test").expect_alert().await;
    }
    world.control_log().line_with(&["kept fields", "client.crl", "ssls/app"]).await;
    assert_eq!(upstream.requests(), 0);
    // Other clients gain access, and this one when the list is removed explicitly.
    let other = credentials.clients.client("other");
    let reply = world.client("app.test").identity(&other).get("/").await.unwrap();
    assert_eq!(reply.status, StatusCode::OK);
    let (head, _) = admin_curl(&world, "ssls/app -X PATCH -d '{\"client\": {\"crl\": null}}'");
    assert!(head.contains("x-countersign-warning: client.crl: removed"), "{head}");
    world.control_log().line_with(&["weakens the protection", "client.crl", "ssls/app"]).await;
    let revision = head.lines().find_map(|line| line.strip_prefix("x-countersign-revision: ")).unwrap();
    world.wait_acknowledged(revision.trim().parse().unwrap()).await;
    assert_eq!(world.verified_client("app.test").get("/").await.unwrap().status, StatusCode::OK);
}

#[tokio::test]
async fn an_allow_list_stays_after_a_tool_saves() {
    let (world, upstream) = (World::start().await, Upstream::plain("plain").await);
    let identity = json!({"allow": [{"dns": "allowed.test"}]});
    let mut own = route("app.test", "/own", &[upstream.address()]);
    own["client_identity"] = identity.clone();
    let service = json!({"client_identity": identity, "upstream": own["upstream"]});
    world
        .apply(&[
            ("ssls/app", world.protected_site()),
            ("routes/own", own),
            ("services/s", service),
            ("routes/of-service", json!({"uri": "/of-service", "host": "app.test", "service_id": "s"})),
        ])
        .await;
    let client = world.verified_client("app.test");
    for path in ["routes/own", "services/s", "routes/of-service"] {
        let head = saved_by_a_tool(&world, path, None).await;
        assert_eq!(
            head.contains("x-countersign-kept: client_identity"),
            path != "routes/of-service",
            "{head}"
        );
    }
    for path in ["/own", "/of-service"] {
        assert_eq!(client.get(path).await.unwrap().status, StatusCode::FORBIDDEN, "{path}");
    }
    assert_eq!(upstream.requests(), 0);
    let revision = world
        .admin()
        .put(
            "routes/own",
            &json!({
                "uri": "/own", "host": "app.test", "client_identity": null,
                "upstream": {"nodes": {upstream.address().to_string(): 1}},
            }),
        )
        .await;
    world.wait_acknowledged(revision).await;
    assert_eq!(client.get("/own").await.unwrap().status, StatusCode::OK);
}

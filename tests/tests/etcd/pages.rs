//! The commands of APISIX's pages that need an etcd, as users copy them, run by a shell with the
//! system's curl.
//!
//! The suite `e2e` has the others. Host, port, key and paths are shell variables; nothing else is
//! changed.

use e2e::admin::ADMIN_KEY;
use e2e::etcd::{Authorities, Etcd};
use e2e::shell::Shell;
use e2e::upstream::Upstream;
use e2e::world::World;
use serde_json::json;

/// "Certificate", its last example: one bundle of authorities for the Admin API's clients, its
/// server and etcd; and the command of "Admin API" about a time to live.
#[tokio::test]
async fn one_bundle_of_authorities_and_a_time_to_live() {
    let etcd = Etcd::mutual(&Authorities::generate()).await;
    let bundle = json!({
        "apisix": {"ssl": {"ssl_trusted_certificate": "apisix.ca-bundle"}},
        "deployment": {"admin": {"admin_api_mtls": {"admin_ssl_ca_cert": "apisix.ca-bundle"}}},
    });
    let builder = World::builder().etcd(etcd.access()).settings(bundle).nodes(&[]).without_control();
    let mut world = builder.start().await;
    let upstream = Upstream::plain("httpbin").await;
    let certs = world.folder().display().to_string();
    let shell = Shell::new(world.folder()).set("certs", certs).set("admin_key", ADMIN_KEY);
    let made = shell
        .run("cat $certs/client-ca.crt $certs/server-ca.crt $certs/etcd-ca.crt > apisix.ca-bundle")
        .await;
    assert_eq!(made.exit, 0, "{made:?}");
    world.start_control().await;
    world.add_node("node-1").await;
    let shell = shell
        .set("port", world.admin_address().port())
        .set("http", world.http().port())
        .set("httpbin", upstream.address());
    let output = shell
        .run(
            r#"curl -vvv \
    --resolve "admin.test:$port:127.0.0.1" https://admin.test:$port/apisix/admin/routes/1 \
    --cert $certs/administrator.crt \
    --key $certs/administrator.key \
    --cacert $certs/apisix.ca-bundle \
    -H "X-API-KEY: $admin_key" -X PUT -i -d '
{
    "uri": "/get",
    "upstream": {
        "type": "roundrobin",
        "nodes": {
            "'$httpbin'": 1
        }
    }
}'"#,
        )
        .await;
    assert!(output.status() == 201 && output.err.contains("Request CERT"), "{output:?}");
    let revision = world.admin().get("routes/1").await.body["modifiedIndex"].as_u64().unwrap();
    world.wait_acknowledged(revision).await;
    let output = shell.run("curl http://127.0.0.1:$http/get -i").await;
    assert!(output.status() == 200 && output.out.contains("\"upstream\":\"httpbin\""), "{output:?}");

    let output = shell
        .run(
            r#"admin() { curl --resolve "admin.test:$port:127.0.0.1" --cert $certs/administrator.crt --key $certs/administrator.key --cacert $certs/apisix.ca-bundle "$@"; }
admin "https://admin.test:$port/apisix/admin/routes/2?ttl=60" \
    -H "X-API-KEY: $admin_key" -X PUT -i -d '
    {
        "uri": "/aa/index.html",
        "upstream": {
            "type": "roundrobin",
            "nodes": {
                "127.0.0.1:1980": 1
            }
        }
    }'"#,
        )
        .await;
    assert_eq!(output.status(), 201, "{output:?}");
}

/// Documents written into etcd by hand are read like those of the Admin API.
#[tokio::test]
async fn documents_pasted_into_etcd_are_served() {
    let stage = super::stage::Stage::of(Etcd::plain().await).await;
    let world = &stage.world;
    world.write_credential("site", &world.credentials.site);
    let shell = Shell::new(world.folder());
    let document = r#"echo -n '{"id": "1", "snis": ["app.test"], "cert": "'"$(cat site.crt)"'", "key": "'"$(cat site.key)"'",
        "client": {"ca": "'"$(cat client-ca.crt)"'", "depth": 1}}'"#;
    let pasted = shell.run(document).await.out;
    assert!(pasted.contains("CERTIFICATE-----\n"), "{pasted}");
    let mut keys = stage.etcd.keys().await;
    let revision = keys.put(&super::stage::name("ssls/1"), pasted).await;
    world.wait_acknowledged(revision).await;
    world.apply(&[("routes/a", stage.route("/a"))]).await;
    let reply = world.verified_client("app.test").get("/a").await.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(reply.status, http::StatusCode::OK);
    world.client("app.test").expect_alert().await;
}

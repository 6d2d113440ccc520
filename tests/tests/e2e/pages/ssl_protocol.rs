//! "SSL Protocol".

use serde_json::json;

use super::{Page, step};

async fn page() -> Page {
    // The page's settings name ciphers of TLSv1.1, too, which need another build: `boring` tests
    // them.
    let page = Page::open(json!({"apisix": {"ssl": {"ssl_protocols": "TLSv1.3"}}})).await;
    page.world.write_credential("server", &page.world.credentials.servers.server(&["test.com", "test2.com"]));
    page.world.write_credential("server2", &page.world.credentials.servers.server(&["test2.com"]));
    page
}

#[tokio::test]
async fn a_name_of_its_own_versions() {
    let page = page().await;
    page.follow(&[
        // Deliberate: TLSv1.1 needs a build with its engine, which the error names.
        step(
            400,
            "engine-boring",
            r#"curl http://$admin/apisix/admin/ssls/1 \
-H "X-API-KEY: $admin_key" -X PUT -d '
{
     "cert" : "'"$(cat server.crt)"'",
     "key": "'"$(cat server.key)"'",
     "snis": ["test.com"],
     "ssl_protocols": [
         "TLSv1.1"
     ]
}'"#,
        ),
        step(
            201,
            "/apisix/ssls/1",
            r#"curl http://$admin/apisix/admin/ssls/1 \
-H "X-API-KEY: $admin_key" -X PUT -d '
{
     "cert" : "'"$(cat server2.crt)"'",
     "key": "'"$(cat server2.key)"'",
     "snis": ["test2.com"]
}'"#,
        ),
        // Nothing is routed there: any response proves the handshake.
        step(
            404,
            "",
            r#"curl --resolve "test2.com:$https:127.0.0.1" --tls-max 1.3 --tlsv1.3  https://test2.com:$https -v -k -I"#,
        ),
        step(
            0,
            "",
            r#"curl --resolve "test2.com:$https:127.0.0.1" --tls-max 1.1 --tlsv1.1  https://test2.com:$https -v -k -I"#,
        ),
    ])
    .await;
}

#[tokio::test]
async fn one_certificate_and_two_versions() {
    let page = page().await;
    page.follow(&[
        step(
            201,
            "/apisix/ssls/1",
            r#"curl http://$admin/apisix/admin/ssls/1 \
-H "X-API-KEY: $admin_key" -X PUT -d '
{
     "cert" : "'"$(cat server.crt)"'",
     "key": "'"$(cat server.key)"'",
     "snis": ["test.com"],
     "ssl_protocols": [
         "TLSv1.2"
     ]
}'"#,
        ),
        step(
            201,
            "/apisix/ssls/2",
            r#"curl http://$admin/apisix/admin/ssls/2 \
-H "X-API-KEY: $admin_key" -X PUT -d '
{
     "cert" : "'"$(cat server.crt)"'",
     "key": "'"$(cat server.key)"'",
     "snis": ["test2.com"],
     "ssl_protocols": [
         "TLSv1.3"
     ]
}'"#,
        ),
        step(
            404,
            "",
            r#"curl --resolve "test.com:$https:127.0.0.1" --tls-max 1.2 --tlsv1.2  https://test.com:$https -v -k -I"#,
        ),
        step(
            0,
            "",
            r#"curl --resolve "test.com:$https:127.0.0.1" --tls-max 1.3 --tlsv1.3  https://test.com:$https -v -k -I"#,
        ),
        step(
            404,
            "",
            r#"curl --resolve "test2.com:$https:127.0.0.1" --tls-max 1.3 --tlsv1.3  https://test2.com:$https -v -k -I"#,
        ),
        step(
            0,
            "",
            r#"curl --resolve "test2.com:$https:127.0.0.1" --tls-max 1.2 --tlsv1.2  https://test2.com:$https -v -k -I"#,
        ),
    ])
    .await;
}

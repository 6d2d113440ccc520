//! "Certificate". Its last example, one bundle of authorities for the Admin API and for etcd, is in
//! the suite about etcd.

use serde_json::json;

use super::{Page, step};

const ONE_NAME: &str = r#"curl http://$admin/apisix/admin/ssls/1 \
-H "X-API-KEY: $admin_key" -X PUT -d '
{
     "cert" : "'"$(cat $certs/apisix.crt)"'",
     "key": "'"$(cat $certs/apisix.key)"'",
     "snis": ["test.com"]
}'"#;

const WILDCARD: &str = r#"curl http://$admin/apisix/admin/ssls/1 \
 -H "X-API-KEY: $admin_key" -X PUT -d '
 {
      "cert" : "'"$(cat $certs/apisix.crt)"'",
      "key": "'"$(cat $certs/apisix.key)"'",
      "snis": ["*.test.com"]
 }'"#;

#[tokio::test]
async fn one_name_then_a_wildcard() {
    let page = Page::open(json!({})).await;
    page.world
        .write_credential("apisix", &page.world.credentials.servers.server(&["test.com", "*.test.com"]));
    page.follow(&[
        step(201, "/apisix/ssls/1", ONE_NAME),
        step(
            201,
            "201 Created",
            r#"curl http://$admin/apisix/admin/routes/1 -H "X-API-KEY: $admin_key" -X PUT -i -d '
{
    "uri": "/get",
    "hosts": ["test.com"],
    "methods": ["GET"],
    "upstream": {
        "type": "roundrobin",
        "nodes": {
            "'$httpbin'": 1
        }
    }
}'"#,
        ),
        step(
            200,
            "\"uri\":\"/get\"",
            r#"curl --resolve "test.com:$https:127.0.0.1" https://test.com:$https/get -k -vvv"#,
        ),
        step(200, "/apisix/ssls/1", WILDCARD),
        step(
            200,
            "200 OK",
            r#"curl http://$admin/apisix/admin/routes/1 -H "X-API-KEY: $admin_key" -X PUT -i -d '
{
    "uri": "/get",
    "hosts": ["*.test.com"],
    "methods": ["GET"],
    "upstream": {
        "type": "roundrobin",
        "nodes": {
            "'$httpbin'": 1
        }
    }
}'"#,
        ),
        step(
            200,
            "\"uri\":\"/get\"",
            r#"curl --resolve "www.test.com:$https:127.0.0.1" https://www.test.com:$https/get -k -vvv"#,
        ),
        // The name has no site any more.
        step(0, "", r#"curl --resolve "test.com:$https:127.0.0.1" https://test.com:$https/get -k -vvv"#),
    ])
    .await;
}

/// As on the page: a node by its name, without a port.
#[tokio::test]
async fn a_node_by_name_without_a_port() {
    let page = Page::open(json!({})).await;
    page.follow(&[step(
        201,
        "201 Created",
        r#"curl http://$admin/apisix/admin/routes/2 -H "X-API-KEY: $admin_key" -X PUT -i -d '
{
    "uri": "/elsewhere",
    "hosts": ["test.com"],
    "methods": ["GET"],
    "upstream": {
        "type": "roundrobin",
        "nodes": {
            "httpbin.org": 1
        }
    }
}'"#,
    )])
    .await;
}

/// The page describes `certs` and `keys` without a command.
#[tokio::test]
async fn several_certificates_for_one_name() {
    let page = Page::open(json!({})).await;
    let made = page
        .shell
        .run(
            "openssl req -x509 -newkey rsa:2048 -nodes -keyout rsa.key -out rsa.crt -days 30 -subj /CN=test.com 2>&1 &&
             openssl ecparam -name prime256v1 -genkey -out ec.key &&
             openssl req -x509 -key ec.key -out ec.crt -days 30 -subj /CN=test.com",
        )
        .await;
    assert_eq!(made.exit, 0, "{made:?}");
    page.follow(&[
        step(
            201,
            "/apisix/ssls/1",
            r#"curl http://$admin/apisix/admin/ssls/1 \
-H "X-API-KEY: $admin_key" -X PUT -d '
{
    "cert": "'"$(cat rsa.crt)"'",
    "key": "'"$(cat rsa.key)"'",
    "certs": ["'"$(cat ec.crt)"'"],
    "keys": ["'"$(cat ec.key)"'"],
    "snis": ["www.test.com", "mail.test.com"]
}'"#,
        ),
        step(
            404,
            "",
            r#"curl --resolve "mail.test.com:$https:127.0.0.1" https://mail.test.com:$https/ -k --tls-max 1.2 --ciphers ECDHE-ECDSA-AES128-GCM-SHA256"#,
        ),
        step(
            404,
            "",
            r#"curl --resolve "mail.test.com:$https:127.0.0.1" https://mail.test.com:$https/ -k --tls-max 1.2 --ciphers ECDHE-RSA-AES128-GCM-SHA256"#,
        ),
    ])
    .await;
}

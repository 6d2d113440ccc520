//! "Mutual TLS Authentication", and "Configure mTLS for client to APISIX", which it links to.

use e2e::shell::Shell;
use e2e::upstream::Upstream;
use e2e::world::World;
use serde_json::json;

use super::{Page, Step, step};

#[tokio::test]
async fn protect_the_admin_api() {
    let world = World::builder().nodes(&[]).start().await;
    let shell = Shell::new(world.folder())
        .set("certs", world.folder().display())
        .set("port", world.admin_address().port())
        .set("admin_key", e2e::admin::ADMIN_KEY);
    let output = shell
        .run(
            r#"curl --cacert $certs/server-ca.crt --key $certs/administrator.key --cert $certs/administrator.crt  https://127.0.0.1:$port/apisix/admin/routes -H "X-API-KEY: $admin_key""#,
        )
        .await;
    assert_eq!(
        (output.status(), output.out.lines().next()),
        (200, Some(r#"{"list":[],"total":0}"#)),
        "{output:?}"
    );
}

const PROTECT_A_ROUTE: &str = r#"curl http://$admin/apisix/admin/ssls/1 \
-H "X-API-KEY: $admin_key" -X PUT -d '
{
    "cert": "'"$(cat $certs/mtls_server.crt)"'",
    "key": "'"$(cat $certs/mtls_server.key)"'",
    "snis": [
        "admin.apisix.dev"
    ],
    "client": {
        "ca": "'"$(cat $certs/client-ca.crt)"'",
        "depth": 10
    }
}'"#;

/// A route for the request of the page, which has none.
const A_ROUTE: Step = step(
    201,
    "/apisix/routes/1",
    r#"curl http://$admin/apisix/admin/routes/1 -H "X-API-KEY: $admin_key" -X PUT -d '{"uri": "/*", "upstream": {"type": "roundrobin", "nodes": {"'"$httpbin"'": 1}}}'"#,
);

async fn page() -> Page {
    let page = Page::open(json!({})).await;
    let server = page.world.credentials.servers.server(&["admin.apisix.dev", "*.apisix.dev"]);
    page.world.write_credential("mtls_server", &server);
    page
}

#[tokio::test]
async fn protect_a_route() {
    let page = page().await;
    page.follow(&[
        step(201, "/apisix/ssls/1", PROTECT_A_ROUTE),
        A_ROUTE,
        step(
            200,
            "\"uri\":\"/hello\"",
            r#"curl --resolve "admin.apisix.dev:$https:127.0.0.1" "https://admin.apisix.dev:$https/hello" -k --cert $certs/client.crt --key $certs/client.key"#,
        ),
        step(
            0,
            "",
            r#"curl --resolve "admin.apisix.dev:$https:127.0.0.1" "https://admin.apisix.dev:$https/hello" -k"#,
        ),
    ])
    .await;
    let stored = page.value("ssls/1").await;
    let client = json!({"ca": page.world.credentials.clients.certificate_pem().trim_end(), "depth": 10});
    assert_eq!((&stored["client"], &stored["snis"]), (&client, &json!(["admin.apisix.dev"])));
}

/// The commands work in any shell, with any line ends in the files.
#[tokio::test]
async fn every_shell_and_every_line_end() {
    let mut page = page().await;
    page.shell = page.shell.program("sh");
    page.follow(&[step(201, "/apisix/ssls/1", PROTECT_A_ROUTE), A_ROUTE]).await;
    let ended = page.shell.run("sed -i 's/$/\\r/' mtls_server.crt mtls_server.key client-ca.crt").await;
    assert_eq!(ended.exit, 0, "{ended:?}");
    page.follow(&[
        step(200, "/apisix/ssls/1", PROTECT_A_ROUTE),
        step(
            200,
            "\"uri\":\"/hello\"",
            r#"curl --resolve "admin.apisix.dev:$https:127.0.0.1" "https://admin.apisix.dev:$https/hello" -k --cert $certs/client.crt --key $certs/client.key"#,
        ),
    ])
    .await;
    let stored = page.value("ssls/1").await;
    assert!(stored["cert"].as_str().unwrap().contains("\r\n"), "{stored}");
}

#[tokio::test]
async fn mutual_tls_to_the_upstream() {
    let page = page().await;
    let credentials = &page.world.credentials;
    let node = credentials.upstreams.server(&["node.test"]);
    let strict = Upstream::demanding("strict", &node, &credentials.upstreams).await;
    page.world.write_credential("mtls_client", &credentials.upstreams.client("apisix"));
    let page = page.with("strict", strict.address());
    page.follow(&[
        step(
            201,
            "",
            r#"curl http://$admin/apisix/admin/upstreams/1 -H "X-API-KEY: $admin_key" -X PUT -d '{"type": "roundrobin", "scheme": "https", "nodes": {"'"$strict"'": 1}}'"#,
        ),
        step(
            201,
            "",
            r#"curl http://$admin/apisix/admin/routes/1 -H "X-API-KEY: $admin_key" -X PUT -d '{"uri": "/*", "upstream_id": 1}'"#,
        ),
        step(502, "", r"curl http://127.0.0.1:$http/get"),
        step(
            200,
            "/apisix/upstreams/1",
            r#"curl http://$admin/apisix/admin/upstreams/1 \
-H "X-API-KEY: $admin_key" -X PATCH -d '
{
    "tls": {
        "client_cert": "'"$(cat $certs/mtls_client.crt)"'",
        "client_key": "'"$(cat $certs/mtls_client.key)"'"
    }
}'"#,
        ),
        step(200, "\"client_subject\":\"CN=apisix\"", r"curl http://127.0.0.1:$http/get"),
    ])
    .await;
}

/// The certificates of the tutorial are X.509 v1, with names in the subject only.
const GENERATE: &str = r#"
# For ROOT CA
openssl genrsa -out ca.key 2048
openssl req -new -sha256 -key ca.key -out ca.csr -subj "/CN=ROOTCA"
openssl x509 -req -days 36500 -sha256 -extensions v3_ca -signkey ca.key -in ca.csr -out ca.cer

# For server certificate
openssl genrsa -out server.key 2048
# Note: The `test.com` in the CN value is the domain name/hostname we want to test
openssl req -new -sha256 -key server.key -out server.csr -subj "/CN=test.com"
openssl x509 -req -days 36500 -sha256 -extensions v3_req  -CA  ca.cer -CAkey ca.key  -CAserial ca.srl  -CAcreateserial -in server.csr -out server.cer

# For client certificate
openssl genrsa -out client.key 2048
openssl req -new -sha256 -key client.key  -out client.csr -subj "/CN=CLIENT"
openssl x509 -req -days 36500 -sha256 -extensions v3_req  -CA  ca.cer -CAkey ca.key  -CAserial ca.srl  -CAcreateserial -in client.csr -out client.cer
"#;

/// The page requires `\
/// ` for the line ends of the files.
const WITH_ESCAPES: &str = r#"
content() { awk '{printf "%s\\n", $0}' $1; }
curl -X PUT "http://$admin/apisix/admin/ssls/1" \
--header "X-API-KEY: $admin_key" \
--header 'Content-Type: application/json' \
--data-raw '{
    "sni": "test.com",
    "cert": "'"$(content server.cer)"'",
    "key": "'"$(content server.key)"'",
    "client": {
        "ca": "'"$(content ca.cer)"'"
    }
}'"#;

/// Users paste the files.
const AS_PASTED: &str = r#"
curl -X PUT "http://$admin/apisix/admin/ssls/1" \
--header "X-API-KEY: $admin_key" \
--header 'Content-Type: application/json' \
--data-raw '{
    "sni": "test.com",
    "cert": "'"$(cat server.cer)"'",
    "key": "'"$(cat server.key)"'",
    "client": {
        "ca": "'"$(cat ca.cer)"'"
    }
}'"#;

const TUTORIAL_ROUTE: &str = r#"
curl -X PUT "http://$admin/apisix/admin/routes/1" \
--header "X-API-KEY: $admin_key" \
--header 'Content-Type: application/json' \
--data-raw '{
    "uri": "/anything",
    "plugins": {
        "proxy-rewrite": {
            "headers": {
                "X-Ssl-Client-Fingerprint": "$ssl_client_fingerprint",
                "X-Ssl-Client-Serial": "$ssl_client_serial",
                "X-Ssl-Client-S-DN": "$ssl_client_s_dn"
            }
        }
    },
    "upstream": {
        "nodes": {
            "'"$httpbin"'":1
        },
        "type":"roundrobin"
    }
}'"#;

const TUTORIAL_CALL: &str = r#"curl --resolve "test.com:$https:127.0.0.1" https://test.com:$https/anything -k --cert ./client.cer --key ./client.key"#;

#[tokio::test]
async fn the_tutorial_from_its_first_command_to_its_last() {
    let page = Page::open(json!({})).await;
    let made = page.shell.run(GENERATE).await;
    assert_eq!(made.exit, 0, "{made:?}");
    page.follow(&[
        // The page quotes the key so that no shell expands it.
        step(
            401,
            "wrong apikey",
            r#"curl -X PUT "http://$admin/apisix/admin/ssls/1" --header 'X-API-KEY: $admin_key' --data-raw '{}'"#,
        ),
        step(201, "/apisix/ssls/1", WITH_ESCAPES),
        step(200, "/apisix/ssls/1", AS_PASTED),
        step(201, "/apisix/routes/1", TUTORIAL_ROUTE),
        step(200, "\"x-ssl-client-s-dn\":\"CN=CLIENT\"", TUTORIAL_CALL),
        step(
            0,
            "",
            r#"curl --resolve "test.com:$https:127.0.0.1" https://test.com:$https/anything -k"#,
        ),
    ])
    .await;
    let seen = page.shell.run(TUTORIAL_CALL).await;
    let command = "openssl x509 -in client.cer -noout -serial | cut -d= -f2";
    let serial = page.shell.run(command).await.out.trim().to_owned();
    let command =
        "openssl x509 -in client.cer -noout -fingerprint -sha1 | cut -d= -f2 | tr -d : | tr A-F a-f";
    let fingerprint = page.shell.run(command).await.out.trim().to_owned();
    assert!(seen.out.contains(&format!("\"x-ssl-client-serial\":\"{serial}\"")), "{serial} {seen:?}");
    assert!(
        seen.out.contains(&format!("\"x-ssl-client-fingerprint\":\"{fingerprint}\"")),
        "{fingerprint} {seen:?}"
    );
}

#[tokio::test]
async fn a_path_without_mutual_tls() {
    let page = page().await;
    page.follow(&[
        step(
            201,
            "/apisix/ssls/1",
            r#"
curl http://$admin/apisix/admin/routes/1 \
-H "X-API-KEY: $admin_key" -X PUT -d '
{
    "uri": "/*",
    "upstream": {
        "nodes": {
            "'"$httpbin"'": 1
        }
    }
}'

curl http://$admin/apisix/admin/ssls/1 \
-H "X-API-KEY: $admin_key" -X PUT -d '
{
    "cert": "'"$(<$certs/mtls_server.crt)"'",
    "key": "'"$(<$certs/mtls_server.key)"'",
    "snis": [
        "*.apisix.dev"
    ],
    "client": {
        "ca": "'"$(<$certs/client-ca.crt)"'",
        "depth": 10,
        "skip_mtls_uri_regex": [
            "/anything.*"
        ]
    }
}'"#,
        ),
        step(
            400,
            "400 Bad Request",
            r#"curl https://admin.apisix.dev:$https/uuid -v \
--resolve "admin.apisix.dev:$https:127.0.0.1" --cacert $certs/server-ca.crt"#,
        ),
        step(
            200,
            "\"uri\":\"/anything/foobar\"",
            r#"curl https://admin.apisix.dev:$https/anything/foobar -i \
--resolve "admin.apisix.dev:$https:127.0.0.1" --cacert $certs/server-ca.crt"#,
        ),
    ])
    .await;
}

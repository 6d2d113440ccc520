//! "Stream Proxy", with a greeting upstream and client instead of MySQL's.

use e2e::raw;
use e2e::upstream::tcp::{Script, TcpUpstream};
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::{Page, step};
use crate::stream::{ask, ask_plain, hello, streaming};

#[tokio::test]
async fn streams_are_off_until_the_settings_name_them() {
    let page = Page::open(json!({})).await;
    page.follow(&[step(
        400,
        "stream mode is disabled, can not add stream routes",
        r#"curl http://$admin/apisix/admin/stream_routes/1 -H "X-API-KEY: $admin_key" -X PUT -d '{"upstream": {"nodes": {"127.0.0.1:1995": 1}}}'"#,
    )])
    .await;
}

async fn page(upstream: &TcpUpstream) -> Page {
    let page = Page::open(streaming()).await;
    page.world
        .write_credential("test", &page.world.credentials.servers.server(&["a.test.com", "b.test.com"]));
    let (plain, node) = (page.world.stream(1).port(), upstream.address());
    page.with("plain", plain).with("node", node)
}

#[tokio::test]
async fn addresses_choose_a_stream_route() {
    let upstream = TcpUpstream::plain("mysql", Script::Greet).await;
    let page = page(&upstream).await;
    page.follow(&[step(
        201,
        "/apisix/stream_routes/1",
        r#"curl http://$admin/apisix/admin/stream_routes/1 -H "X-API-KEY: $admin_key" -X PUT -d '
{
    "remote_addr": "192.168.5.3",
    "upstream": {
        "nodes": {
            "'$node'": 1
        },
        "type": "roundrobin"
    }
}'"#,
    )])
    .await;
    page.wait_acknowledged().await;
    let mut stream = TcpStream::connect(page.world.stream(1)).await.unwrap();
    // It may be closed already.
    let _ = stream.write_all(b"mmm").await;
    assert_eq!(raw::until_closed(&mut stream).await, b"");
    page.follow(&[step(
        200,
        "/apisix/stream_routes/1",
        r#"curl http://$admin/apisix/admin/stream_routes/1 -H "X-API-KEY: $admin_key" -X PUT -d '
   {
       "server_addr": "127.0.0.1",
       "server_port": '$plain',
       "upstream": {
           "nodes": {
               "'$node'": 1
           },
           "type": "roundrobin"
       }
   }'"#,
    )])
    .await;
    page.wait_acknowledged().await;
    assert_eq!(ask_plain(&page.world).await, hello("mysql"));
}

#[tokio::test]
async fn tls_over_tcp_by_name_and_towards_the_upstream() {
    let upstream = TcpUpstream::plain("one", Script::Greet).await;
    let page = page(&upstream).await;
    let credentials = &page.world.credentials;
    let secure = TcpUpstream::tls("two", Script::Greet, &credentials.upstreams.server(&["a.test.com"])).await;
    let page = page.with("secure", secure.address());
    page.follow(&[
        step(
            201,
            "",
            r#"curl http://$admin/apisix/admin/ssls/1 -H "X-API-KEY: $admin_key" -X PUT -d '
{
    "cert": "'"$(cat test.crt)"'",
    "key": "'"$(cat test.key)"'",
    "snis": ["a.test.com", "b.test.com"]
}'"#,
        ),
        step(
            201,
            "/apisix/stream_routes/1",
            r#"curl http://$admin/apisix/admin/stream_routes/1 -H "X-API-KEY: $admin_key" -X PUT -d '
{
    "upstream": {
        "nodes": {
            "'$node'": 1
        },
        "type": "roundrobin"
    }
}'"#,
        ),
    ])
    .await;
    page.wait_acknowledged().await;
    assert_eq!(ask(&page.world, "b.test.com").await, hello("one"));
    page.follow(&[step(
        201,
        "/apisix/stream_routes/2",
        r#"curl http://$admin/apisix/admin/stream_routes/2 -H "X-API-KEY: $admin_key" -X PUT -d '
{
    "sni": "a.test.com",
    "upstream": {
        "scheme": "tls",
        "nodes": {
            "'$secure'": 1
        },
        "type": "roundrobin"
    }
}'"#,
    )])
    .await;
    page.wait_acknowledged().await;
    assert_eq!(ask(&page.world, "a.test.com").await, hello("two"));
    assert_eq!(ask(&page.world, "b.test.com").await, hello("one"));
    assert_eq!(secure.saw(0, |_| true).await.sni.as_deref(), Some("a.test.com"));
}

/// Without TLS at the client, the name of the upstream is a dummy.
#[tokio::test]
async fn tls_towards_the_upstream_alone() {
    let credential = e2e::credentials::Authority::root("Upstream CA").server(&["a.test.com"]);
    let secure = TcpUpstream::tls("two", Script::Greet, &credential).await;
    let page = page(&secure).await;
    page.follow(&[step(
        201,
        "",
        r#"curl http://$admin/apisix/admin/stream_routes/1 -H "X-API-KEY: $admin_key" -X PUT -d '
{
    "upstream": {
        "scheme": "tls",
        "nodes": {
            "'$node'": 1
        },
        "type": "roundrobin"
    }
}'"#,
    )])
    .await;
    page.wait_acknowledged().await;
    assert_eq!(ask_plain(&page.world).await, hello("two"));
    assert_eq!(secure.saw(0, |_| true).await.sni.as_deref(), Some("apisix_backend"));
}

//! Cases D and X5: gRPC upstreams under mutual TLS, and beside HTTP/1 on one port.

use e2e::peers::{Peer, json_lines, run_python};
use e2e::upstream::Upstream;
use e2e::world::World;
use serde_json::json;

#[tokio::test]
async fn case_d01_d02_grpc_upstreams_under_mutual_tls() {
    let world = World::start().await;
    let authority = &world.credentials.upstreams;
    world.write_credential("echo", &authority.server(&["echo.test"]));
    let options = ["--certificate", "echo", "--authority", "upstream-ca"];
    let Some(server) = Peer::python(world.folder(), "grpc_echo.py", &options).await else { return };
    let gateway = authority.client("gateway.test");
    let tls = json!({"client_cert": gateway.certificate_pem, "client_key": gateway.key_pem});
    let nodes = json!({server.address().to_string(): 1});
    let upstream = json!({"scheme": "grpcs", "nodes": nodes, "tls": tls});
    let uris = json!(["/echo.Echo/Unary", "/echo.Echo/Chat"]);
    world.apply(&[("routes/1", json!({"uris": uris, "methods": ["POST"], "upstream": upstream}))]).await;
    // As grpcurl -plaintext: HTTP/2 with prior knowledge on the plain port.
    let address = world.http().to_string();
    let calls = [
        json!({"method": "Unary", "messages": ["apisix"]}),
        json!({"method": "Chat", "messages": ["Hello apisix", "stream ended"]}),
    ]
    .map(|call| call.to_string());
    let arguments = [address.as_str(), "--host", "app.test", &calls[0], &calls[1]];
    let lines = json_lines(&run_python(world.folder(), "grpc_client.py", &arguments).await.unwrap());
    assert_eq!((&lines[0]["code"], &lines[0]["messages"]), (&json!("OK"), &json!(["apisix"])), "{lines:#?}");
    assert_eq!(lines[0]["initial"]["x-client"], "gateway.test");
    assert_eq!(lines[1]["code"], "OK", "{lines:#?}");
    assert_eq!(lines[1]["messages"], json!(["Hello apisix", "stream ended"]));
}

#[tokio::test]
async fn case_x05_http_and_grpc_share_no_connection() {
    let world = World::builder().settings(json!({"countersign": {"workers": 1}})).start().await;
    let node = Upstream::plain("both").await;
    let route = |name: &str| {
        let upstream = json!({"scheme": name, "nodes": {node.address().to_string(): 1}});
        json!({"uri": format!("/{name}"), "upstream": upstream})
    };
    world.apply(&[("routes/http", route("http")), ("routes/grpc", route("grpc"))]).await;
    let mut session = world.plain("app.test").await;
    let mut used = Vec::new();
    for _ in 0..3 {
        for path in ["/http", "/grpc"] {
            let reply = session.get(path).await.unwrap();
            used.push(reply.json()["connection"].as_u64().unwrap());
        }
    }
    assert_eq!(used, [used[0], used[1]].repeat(3));
    assert_ne!(used[0], used[1]);
    assert_eq!(node.connections(), 2);
}

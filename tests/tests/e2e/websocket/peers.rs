//! Real WebSocket programs on either side: Python's `websockets`, Node's `ws`, and Node's HTTP/2,
//! under mutual TLS with the client and with the upstream.

use e2e::documents::route;
use e2e::peers::{Peer, json_lines, run_node, run_python};
use e2e::world::World;
use serde_json::{Value, json};

/// A gateway under mutual TLS on both sides, in front of this upstream.
async fn gateway(upstream: impl AsyncFnOnce(&World) -> Option<Peer>) -> Option<(World, Peer)> {
    let world = World::start().await;
    let (upstreams, identity) = (&world.credentials.upstreams, "gateway");
    world.write_credential("upstream", &upstreams.server(&["app.test"]));
    let peer = upstream(&world).await?;
    let identity = upstreams.client(identity);
    let mut route = route("app.test", "/*", &[peer.address()]);
    route["enable_websocket"] = json!(true);
    route["upstream"]["scheme"] = json!("https");
    route["upstream"]["tls"] =
        json!({"client_cert": identity.certificate_pem, "client_key": identity.key_pem});
    world.apply(&[("ssls/app", world.protected_site()), ("routes/app", route)]).await;
    Some((world, peer))
}

async fn python_server(world: &World) -> Option<Peer> {
    let arguments = ["--certificate", "upstream", "--authority", "upstream-ca"];
    Peer::python(world.folder(), "websocket_echo.py", &arguments).await
}

async fn node_server(world: &World) -> Option<Peer> {
    Peer::node(world.folder(), "websocket_echo.cjs", &["upstream", "upstream-ca"]).await
}

/// Python's client, with its certificate, at the gateway.
async fn python_client(world: &World, arguments: &[&str]) -> Vec<Value> {
    let address = world.https().to_string();
    let mut all = vec![address.as_str(), "--certificate", "client", "--authority", "server-ca"];
    all.extend(["--host", "app.test"]);
    all.extend(arguments);
    json_lines(&run_python(world.folder(), "websocket_client.py", &all).await.unwrap())
}

#[tokio::test]
async fn pythons_client_and_server_talk_through_the_gateway() {
    let Some((world, _server)) = gateway(python_server).await else { return };
    let options =
        ["--path", "/who?room=1", "--subprotocol", "superchat", "--subprotocol", "chat", "--compression"];
    let steps = ["receive", "send:hello", "receive", "bytes:1000000", "ping", "close"];
    let lines = python_client(&world, &[&options[..], &steps].concat()).await;
    let subprotocol = &lines[0]["subprotocol"];
    assert_eq!(lines[0]["extensions"], json!(["permessage-deflate"]), "{lines:?}");
    let who: Value = serde_json::from_str(lines[1]["result"].as_str().unwrap()).unwrap();
    assert_eq!((&who["client"], &who["path"]), (&json!("gateway"), &json!("/who?room=1")), "{who}");
    assert_eq!(&who["subprotocol"], subprotocol);
    assert_eq!(who["fields"]["host"], "app.test", "{who}");
    assert_eq!(lines[3]["result"], "hello");
    assert_eq!((&lines[4]["result"], &lines[5]["result"]), (&json!(true), &json!(true)), "{lines:?}");
    assert_eq!(lines.len(), 7);
}

#[tokio::test]
async fn the_servers_close_and_refusal_reach_the_client() {
    let Some((world, _server)) = gateway(python_server).await else { return };
    let closed = python_client(&world, &["--path", "/close", "send:x", "ended"]).await;
    assert_eq!(closed[2]["closed"], 4001, "{closed:?}");
    let aborted = python_client(&world, &["--path", "/abort", "send:x", "ended"]).await;
    assert_eq!(aborted[2], json!({"step": "ended", "closed": null}), "{aborted:?}");
    let refused = python_client(&world, &["--path", "/refuse"]).await;
    assert_eq!((&refused[0]["open"], &refused[0]["status"]), (&json!(false), &json!(403)), "{refused:?}");
}

#[tokio::test]
async fn nodes_client_and_server_talk_through_the_gateway() {
    for python in [false, true] {
        let served = if python { gateway(python_server).await } else { gateway(node_server).await };
        let Some((world, _server)) = served else { return };
        let address = world.https().to_string();
        let arguments = [&address, "app.test", "/", "200", "server-ca", "client"];
        let Some(output) = run_node(world.folder(), "websocket_client.cjs", &arguments).await else { return };
        let expected = json!({"open": true, "same": 200, "deflate": true, "code": 1000});
        assert_eq!(json_lines(&output), [expected], "{python}");
    }
}

#[tokio::test]
async fn nodes_http_2_opens_web_sockets() {
    let Some((world, _server)) = gateway(node_server).await else { return };
    let address = world.https().to_string();
    // A text message `hello`, masked with zeros, and a close with code 1000.
    let frames = "\u{81}\u{85}\0\0\0\0hello\u{88}\u{82}\0\0\0\0\u{3}\u{e8}";
    let request = json!({"path": "/", "protocol": "websocket", "body": frames}).to_string();
    let arguments = [&address, "app.test", "server-ca", "client", &request];
    let Some(output) = run_node(world.folder(), "http2_client.cjs", &arguments).await else { return };
    let lines = json_lines(&output);
    assert_eq!((&lines[0]["status"], &lines[0]["reset"]), (&json!(200), &Value::Null), "{lines:?}");
    assert_eq!(lines[0]["body"], "\u{81}\u{5}hello\u{88}\u{2}\u{3}\u{e8}");
}

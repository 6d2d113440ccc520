//! The programs of others that the suites use, without a gateway between: that each of them works
//! here, so that what fails with a gateway is the gateway's.

use std::path::Path;

use e2e::client::{Http, HttpClient};
use e2e::credentials::{Authority, Credential, certificates};
use e2e::peers::{Peer, json_lines, run_node, run_python};
use e2e::upstream::Upstream;
use http::StatusCode;
use serde_json::json;

/// Certificates in a folder, as the scripts read them.
struct Files {
    folder: tempfile::TempDir,
    servers: Authority,
    clients: Authority,
}

impl Files {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (servers, clients) = (Authority::root("Peers CA"), Authority::root("Peers Client CA"));
        let files = Self { folder, servers, clients };
        files.write("server", &files.servers.server(&["app.test"]));
        files.write("client", &files.clients.client("peer.test"));
        std::fs::write(files.path().join("servers.crt"), files.servers.certificate_pem()).unwrap();
        std::fs::write(files.path().join("clients.crt"), files.clients.certificate_pem()).unwrap();
        files
    }

    fn write(&self, name: &str, credential: &Credential) {
        std::fs::write(self.path().join(format!("{name}.crt")), &credential.certificate_pem).unwrap();
        std::fs::write(self.path().join(format!("{name}.key")), &credential.key_pem).unwrap();
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }
}

/// The options of a Python server that demands a client's certificate, and those of its client.
const SERVER: [&str; 4] = ["--certificate", "server", "--authority", "clients"];
const CLIENT: [&str; 6] = ["--certificate", "client", "--authority", "servers", "--host", "app.test"];

#[tokio::test]
async fn grpc_works_under_mutual_tls() {
    let files = Files::new();
    let Some(server) = Peer::python(files.path(), "grpc_echo.py", &SERVER).await else { return };
    let address = server.address().to_string();
    let calls = [
        json!({"method": "Unary", "messages": ["hello"], "metadata": {"x-one": "1"}}),
        json!({"method": "Unary", "sizes": [20_000_000]}),
        json!({"method": "Count", "messages": ["3"]}),
        json!({"method": "Collect", "messages": ["a", "bc"]}),
        json!({"method": "Chat", "messages": ["a", "b"]}),
        json!({"method": "Unary", "messages": [""], "metadata": {"x-status": "5", "x-message": "no such"}}),
        json!({"method": "Unary", "messages": [""], "metadata": {"x-delay": "20"}, "timeout": 0.2}),
    ]
    .map(|call| call.to_string());
    let mut arguments = vec![address.as_str()];
    arguments.extend(CLIENT);
    arguments.extend(calls.iter().map(String::as_str));
    let output = run_python(files.path(), "grpc_client.py", &arguments).await.unwrap();
    let lines = json_lines(&output);
    let codes: Vec<_> = lines.iter().map(|line| line["code"].as_str().unwrap()).collect();
    assert_eq!(codes, ["OK", "OK", "OK", "OK", "OK", "NOT_FOUND", "DEADLINE_EXCEEDED"]);
    assert_eq!(lines[0]["initial"]["x-client"], "peer.test");
    assert_eq!(lines[0]["trailing"]["x-trailing-bin"].as_str().map(str::len), Some(512));
    assert_eq!(lines[1]["messages"], json!([20_000_000]));
    assert_eq!(lines[2]["messages"], json!(["0", "1", "2"]));
    assert_eq!(lines[3]["messages"], json!(["2 3"]));
    assert_eq!(lines[4]["messages"], json!(["a", "b"]));
    assert_eq!(lines[5]["details"], "no such");
}

#[tokio::test]
async fn web_sockets_work_under_mutual_tls() {
    let files = Files::new();
    let Some(python) = Peer::python(files.path(), "websocket_echo.py", &SERVER).await else { return };
    let Some(node) = Peer::node(files.path(), "websocket_echo.cjs", &["server", "clients"]).await else {
        return;
    };
    let address = python.address().to_string();
    let mut arguments = vec![address.as_str()];
    arguments.extend(CLIENT);
    arguments.extend(["--path", "/who?x", "--subprotocol", "chat", "--compression"]);
    arguments.extend(["receive", "send:hello", "receive", "bytes:1000000", "ping", "close"]);
    let output = run_python(files.path(), "websocket_client.py", &arguments).await.unwrap();
    let lines = json_lines(&output);
    assert_eq!(lines[0], json!({"open": true, "subprotocol": "chat", "extensions": ["permessage-deflate"]}));
    assert!(lines[1]["result"].as_str().unwrap().contains("\"client\": \"peer.test\""), "{lines:?}");
    assert_eq!((&lines[3]["result"], &lines[4]["result"]), (&json!("hello"), &json!(true)));
    assert_eq!(lines[5]["result"], true, "{lines:?}");
    for peer in [&python, &node] {
        let address = peer.address().to_string();
        let arguments = [address.as_str(), "app.test", "/", "20", "servers", "client"];
        let output = run_node(files.path(), "websocket_client.cjs", &arguments).await.unwrap();
        assert_eq!(json_lines(&output), [json!({"open": true, "same": 20, "deflate": true, "code": 1000})]);
    }
    let address = python.address().to_string();
    let arguments = [address.as_str(), "app.test", "/refuse", "1", "servers", "client"];
    let output = run_node(files.path(), "websocket_client.cjs", &arguments).await.unwrap();
    assert_eq!(json_lines(&output), [json!({"open": false, "status": 403})]);
}

#[tokio::test]
async fn http_2_of_node_works_under_mutual_tls() {
    let files = Files::new();
    let Some(server) = Peer::node(files.path(), "http2_server.cjs", &["server", "clients"]).await else {
        return;
    };
    let address = server.address().to_string();
    let requests = [
        json!({"path": "/hints"}),
        json!({"path": "/echo", "method": "POST", "body": "hello"}),
        json!({"path": "/reset"}),
    ]
    .map(|request| request.to_string());
    let mut arguments = vec![address.as_str(), "app.test", "servers", "client"];
    arguments.extend(requests.iter().map(String::as_str));
    let lines = json_lines(&run_node(files.path(), "http2_client.cjs", &arguments).await.unwrap());
    assert_eq!(lines[0]["status"], 200);
    assert!(lines[0]["body"].as_str().unwrap().contains("\"client\":\"peer.test\""), "{lines:?}");
    assert_eq!(lines[0]["interim"].as_array().map(Vec::len), Some(2), "{lines:?}");
    assert_eq!(lines[1]["body"], "hello");
    assert_eq!(lines[1]["trailers"]["x-trailer"], "the end");
    assert_eq!(lines[2]["reset"], 2, "INTERNAL_ERROR: {lines:?}");
}

#[tokio::test]
async fn nginx_haproxy_and_envoy_serve() {
    let files = Files::new();
    let upstream = Upstream::plain("behind").await;
    let to = upstream.address();
    let folder = files.path();
    let nginx = Peer::nginx(folder, 1, |at| {
        format!("server {{ listen {}; location / {{ proxy_pass http://{to}; }} }}", at[0])
    });
    let haproxy = Peer::haproxy(folder, 1, |at| {
        format!(
            "defaults\n  mode http\n  timeout connect 5s\n  timeout client 5s\n  timeout server 5s\n\
             frontend f\n  bind {}\n  default_backend b\nbackend b\n  server s {to}",
            at[0]
        )
    });
    let socket = |address: std::net::SocketAddr| {
        let (ip, port) = (address.ip().to_string(), address.port());
        json!({"socket_address": {"address": ip, "port_value": port}})
    };
    let envoy = Peer::envoy(folder, 1, |at| {
        let forward = json!({
            "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
            "stat_prefix": "f",
            "cluster": "b",
        });
        let filters = json!([{"name": "envoy.filters.network.tcp_proxy", "typed_config": forward}]);
        let endpoints = json!([{"lb_endpoints": [{"endpoint": {"address": socket(to)}}]}]);
        json!({
            "listeners": [{"name": "f", "address": socket(at[0]), "filter_chains": [{"filters": filters}]}],
            "clusters": [{
                "name": "b",
                "type": "STATIC",
                "load_assignment": {"cluster_name": "b", "endpoints": endpoints},
            }],
        })
    });
    for peer in [nginx.await, haproxy.await, envoy.await].into_iter().flatten() {
        let mut session = e2e::client::HttpConnection::plain(peer.address(), "app.test").await.unwrap();
        let reply = session.get("/").await.unwrap();
        assert_eq!((reply.status, &reply.json()["upstream"]), (StatusCode::OK, &json!("behind")));
        peer.stop().await;
    }
}

#[tokio::test]
async fn nginx_demands_certificates_over_http_2() {
    let files = Files::new();
    let folder = files.path();
    let path = folder.display();
    let Some(nginx) = Peer::nginx(folder, 1, |at| {
        format!(
            "server {{ listen {} ssl http2; server_name app.test;\n\
             ssl_certificate {path}/server.crt; ssl_certificate_key {path}/server.key;\n\
             ssl_client_certificate {path}/clients.crt; ssl_verify_client on;\n\
             location / {{ return 200 \"$server_protocol $ssl_client_s_dn\"; }} }}",
            at[0]
        )
    })
    .await
    else {
        return;
    };
    let roots = certificates(files.servers.certificate_pem());
    let client = HttpClient::new(nginx.address(), "app.test", roots).http(Http::Two);
    let reply = client.clone().identity(&files.clients.client("peer.test")).get("/").await.unwrap();
    assert_eq!(reply.text(), "HTTP/2.0 CN=peer.test");
    assert_eq!(client.get("/").await.unwrap().status, StatusCode::BAD_REQUEST);
}

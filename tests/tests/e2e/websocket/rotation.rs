//! A WebSocket under the gateway's old certificate, and its handshake under the new one, or none.

use std::sync::Arc;

use e2e::client::{HttpClient, bounded};
use e2e::credentials::subject;
use e2e::documents::route;
use e2e::scripted::{self, read_until};
use e2e::tls::{client_verifier, server_config};
use e2e::world::World;
use http::StatusCode;
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::{HANDSHAKE, connect, switching};

/// An upstream within TLS that demands client certificates.
struct Node {
    listener: TcpListener,
    acceptor: TlsAcceptor,
}

impl Node {
    async fn start(world: &World) -> Self {
        let authority = &world.credentials.upstreams;
        let verifier = client_verifier(authority.certificate_pem());
        let config = server_config(rustls::DEFAULT_VERSIONS, &authority.server(&["up.test"]), Some(verifier));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self { listener, acceptor: TlsAcceptor::from(Arc::new(config)) }
    }

    /// Accepts the next handshake. Gives the connection and the subject of its client.
    async fn accept(&self) -> (TlsStream<TcpStream>, String) {
        bounded("a handshake at the upstream", async {
            let (socket, _) = self.listener.accept().await.unwrap();
            let mut stream = self.acceptor.accept(socket).await.unwrap();
            let client = subject(&stream.get_ref().1.peer_certificates().unwrap()[0]);
            let head = read_until(&mut stream, "\r\n\r\n").await;
            send(&mut stream, switching(&head).as_bytes()).await;
            (stream, client)
        })
        .await
    }
}

async fn send(stream: &mut TlsStream<TcpStream>, bytes: &[u8]) {
    stream.write_all(bytes).await.unwrap();
    stream.flush().await.unwrap();
}

async fn rotate(world: &World, name: &str) {
    let issued = world.credentials.upstreams.client(name);
    let identity = json!({"type": "client", "cert": issued.certificate_pem, "key": issued.key_pem});
    world.apply(&[("ssls/gateway", identity)]).await;
}

/// Sends the handshake over HTTP/1 and gives the status line of the response.
async fn handshake(world: &World) -> (TcpStream, String) {
    let mut client = TcpStream::connect(world.http()).await.unwrap();
    client.write_all(HANDSHAKE.as_bytes()).await.unwrap();
    let head = read_until(&mut client, "\r\n\r\n").await;
    let status = head.lines().next().unwrap_or_default().to_owned();
    (client, status)
}

/// Bytes pass both ways.
async fn assert_passes(client: &mut TcpStream, upstream: &mut TlsStream<TcpStream>) {
    client.write_all(b"ping").await.unwrap();
    read_until(upstream, "ping").await;
    send(upstream, b"pong").await;
    read_until(client, "pong").await;
}

#[tokio::test]
async fn a_web_socket_goes_on_under_the_old_identity() {
    let world = World::start().await;
    let node = Node::start(&world).await;
    rotate(&world, "old").await;
    let mut route = route("app.test", "/*", &[node.listener.local_addr().unwrap()]);
    route["enable_websocket"] = json!(true);
    route["upstream"]["scheme"] = json!("https");
    route["upstream"]["tls"] = json!({"client_cert_id": "gateway"});
    world.apply(&[("ssls/app", world.open_site()), ("routes/app", route)]).await;
    let ((mut first, status), (mut first_upstream, client)) = tokio::join!(handshake(&world), node.accept());
    assert_eq!((status.as_str(), client.as_str()), ("HTTP/1.1 101 Switching Protocols", "CN=old"));
    rotate(&world, "new").await;
    let ((mut second, _), (mut second_upstream, client)) = tokio::join!(handshake(&world), node.accept());
    assert_eq!(client, "CN=new");
    let over_http2 = async |http: &HttpClient| {
        let mut connection = scripted::http2(http).await;
        let (response, _send) = connection.send_request(connect("websocket"), false).unwrap();
        bounded("the response", response).await.unwrap().status()
    };
    let http2 = world.client("app.test");
    let (status, (_third, client)) = tokio::join!(over_http2(&http2), node.accept());
    assert_eq!((status, client.as_str()), (StatusCode::OK, "CN=new"));
    assert_passes(&mut first, &mut first_upstream).await;
    // Without the certificate there is no connection.
    let revision = world.admin().delete("ssls/gateway").await;
    world.wait_acknowledged(revision).await;
    assert_eq!(handshake(&world).await.1, "HTTP/1.1 502 Bad Gateway");
    assert_eq!(over_http2(&http2).await, StatusCode::BAD_GATEWAY);
    world.node_log().line_with(&["upstream_identity", "ssl id [gateway] not exits"]).await;
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(node.listener.poll_accept(&mut context).is_pending());
    assert_passes(&mut first, &mut first_upstream).await;
    assert_passes(&mut second, &mut second_upstream).await;
}

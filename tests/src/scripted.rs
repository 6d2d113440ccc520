//! A gateway whose upstream is the test itself: it serves the connections byte by byte.

use std::net::SocketAddr;

use bytes::Bytes;
use h2::client::SendRequest;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::{TcpListener, TcpStream};

use crate::client::{Http, HttpClient, bounded};
use crate::documents::route;
use crate::world::World;

pub struct ScriptedGateway {
    pub world: World,
    upstream: TcpListener,
}

impl ScriptedGateway {
    /// Serves `app.test` without client certificates, with one worker.
    pub async fn start() -> Self {
        let settings = json!({"countersign": {"workers": 1}});
        let scripted = Self::with(settings).await;
        scripted.world.apply(&[("ssls/app", scripted.world.open_site())]).await;
        scripted.route(json!({})).await;
        scripted
    }

    /// Without site and route.
    pub async fn with(settings: Value) -> Self {
        let upstream = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let world = World::builder().settings(settings).start().await;
        Self { world, upstream }
    }

    /// The address of the upstream.
    pub fn address(&self) -> SocketAddr {
        self.upstream.local_addr().expect("a listener has an address")
    }

    /// Serves `app.test` by the upstream, with these members more in the route.
    pub async fn route(&self, more: Value) {
        let mut route = route("app.test", "/*", &[self.address()]);
        for (name, value) in more.as_object().expect("an object") {
            match (name.as_str(), value.as_object()) {
                ("upstream", Some(members)) => {
                    members.iter().for_each(|(name, value)| route["upstream"][name] = value.clone());
                }
                _ => route[name] = value.clone(),
            }
        }
        self.world.apply(&[("routes/app", route)]).await;
    }

    /// The next connection of the gateway, and the head of its first request.
    pub async fn request(&self) -> (TcpStream, String) {
        bounded("a request at the upstream", async {
            let (mut stream, _) = self.upstream.accept().await.expect("the listener is open");
            stream.set_nodelay(true).expect("TCP_NODELAY can be set");
            let head = read_until(&mut stream, "\r\n\r\n").await;
            (stream, head)
        })
        .await
    }

    /// Whether the gateway has opened no further connection.
    pub fn is_quiet(&self) -> bool {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        self.upstream.poll_accept(&mut context).is_pending()
    }

    /// A client's HTTP/2 connection, once the gateway's SETTINGS are known.
    pub async fn http2(&self) -> SendRequest<Bytes> {
        http2(&self.world.client("app.test")).await
    }
}

/// An HTTP/2 connection of the crate `h2`, once the server's SETTINGS are known.
pub async fn http2(client: &HttpClient) -> SendRequest<Bytes> {
    let tls = client.clone().http(Http::Two).handshake().await.expect("the handshake succeeds");
    let (sender, mut connection) = h2::client::handshake(tls).await.expect("HTTP/2 begins");
    let mut ping = connection.ping_pong().expect("taken once");
    tokio::spawn(connection);
    // SETTINGS precede the answer.
    bounded("an answer to PING", ping.ping(h2::Ping::opaque())).await.expect("the connection is open");
    sender.ready().await.expect("the connection is open")
}

/// Reads up to these bytes.
pub async fn read_until(stream: &mut (impl AsyncRead + Unpin), end: &str) -> String {
    let mut read = Vec::new();
    bounded("bytes that end as expected", async {
        while !read.ends_with(end.as_bytes()) {
            let read_so_far = String::from_utf8_lossy(&read).into_owned();
            let byte = stream.read_u8().await;
            read.push(byte.unwrap_or_else(|error| panic!("{error} after {read_so_far:?}, before {end:?}")));
        }
    })
    .await;
    String::from_utf8(read).expect("tests send UTF-8")
}

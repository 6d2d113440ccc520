//! WebSockets over HTTP/1 and HTTP/2: the handshake, the bytes that follow, and how they end.

mod bound;
mod ends;
mod handshake;
mod peers;
mod rotation;

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use e2e::client::{Http, HttpClient, bounded};
use e2e::scripted::{self, ScriptedGateway, read_until};
use h2::client::SendRequest;
use h2::{RecvStream, SendStream};
use http::{Request, Response, StatusCode};
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

/// The example of RFC 6455 section 1.3, with the fields of another connection.
const HANDSHAKE: &str = "GET /chat?room=1 HTTP/1.1\r\nHost: app.test\r\nUpgrade: websocket\r\n\
                         Connection: keep-alive, Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
                         Sec-WebSocket-Protocol: chat\r\nSec-WebSocket-Version: 13\r\n\r\n";

/// A gateway with a WebSocket route.
pub(crate) async fn enabled() -> ScriptedGateway {
    let gateway = ScriptedGateway::start().await;
    gateway.route(json!({"enable_websocket": true})).await;
    gateway
}

/// The value of a header field of a head.
fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let fields = head.lines().filter_map(|line| line.split_once(": "));
    fields.into_iter().find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value)
}

/// What a server answers to a handshake, up to the empty line.
fn switching(head: &str) -> String {
    let input = format!("{}258EAFA5-E914-47DA-95CA-C5AB0DC85B11", field(head, "sec-websocket-key").unwrap());
    let accept = BASE64.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, input.as_bytes()));
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Accept: {accept}\r\nSec-WebSocket-Protocol: chat\r\n\r\n"
    )
}

/// Sends the handshake over HTTP/1, and accepts it at the upstream.
pub(crate) async fn open<S: AsyncRead + AsyncWrite + Unpin>(
    gateway: &ScriptedGateway,
    client: &mut S,
) -> TcpStream {
    open_with_head(gateway, client).await.0
}

/// The same, with the head that the upstream got.
pub(crate) async fn open_with_head<S: AsyncRead + AsyncWrite + Unpin>(
    gateway: &ScriptedGateway,
    client: &mut S,
) -> (TcpStream, String) {
    client.write_all(HANDSHAKE.as_bytes()).await.unwrap();
    client.flush().await.unwrap();
    let (mut upstream, head) = gateway.request().await;
    upstream.write_all(switching(&head).as_bytes()).await.unwrap();
    let answered = read_until(client, "\r\n\r\n").await;
    assert!(answered.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{answered}");
    (upstream, head)
}

/// An extended CONNECT (RFC 8441).
fn connect(protocol: &'static str) -> Request<()> {
    let request = Request::connect("https://app.test/chat?room=1");
    let request = request.extension(h2::ext::Protocol::from_static(protocol));
    request.header("sec-websocket-protocol", "chat").header("sec-websocket-version", "13").body(()).unwrap()
}

/// The client's end of a tunnel over HTTP/2.
struct Stream {
    receive: RecvStream,
    send: SendStream<Bytes>,
    _connection: SendRequest<Bytes>,
}

impl Stream {
    /// Reads this many bytes.
    async fn read(&mut self, length: usize) -> Vec<u8> {
        let mut read = Vec::new();
        bounded("bytes of the tunnel", async {
            while read.len() < length {
                let data = self.receive.data().await.expect("the stream goes on").expect("no reset");
                self.receive.flow_control().release_capacity(data.len()).unwrap();
                read.extend_from_slice(&data);
            }
        })
        .await;
        read
    }

    /// The end of the stream: `Ok` by END_STREAM, else the code of RST_STREAM.
    async fn ended(&mut self) -> Result<(), Option<h2::Reason>> {
        loop {
            match bounded("the end of the tunnel", self.receive.data()).await {
                None => return Ok(()),
                // END_STREAM has a frame of its own.
                Some(Ok(data)) => assert!(data.is_empty(), "more data: {data:?}"),
                Some(Err(error)) => return Err(error.reason()),
            }
        }
    }
}

/// The same over HTTP/2.
async fn open_http2(gateway: &ScriptedGateway, client: &HttpClient) -> (Stream, TcpStream) {
    let mut connection = scripted::http2(client).await;
    let (response, send) = connection.send_request(connect("websocket"), false).unwrap();
    let (mut upstream, head) = gateway.request().await;
    upstream.write_all(switching(&head).as_bytes()).await.unwrap();
    let response: Response<RecvStream> = bounded("the response", response).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    (Stream { receive: response.into_body(), send, _connection: connection }, upstream)
}

/// A client's connection in clear text.
pub(crate) async fn plain(gateway: &ScriptedGateway) -> TcpStream {
    TcpStream::connect(gateway.world.http()).await.unwrap()
}

/// A client's connection within TLS.
async fn tls(client: &HttpClient) -> tokio_rustls::client::TlsStream<TcpStream> {
    client.clone().http(Http::One).handshake().await.unwrap()
}

/// The end of a connection that is not cut.
async fn at_end(stream: &mut (impl AsyncRead + Unpin)) {
    let mut rest = Vec::new();
    bounded("the end of the connection", stream.read_to_end(&mut rest)).await.unwrap();
    assert!(rest.is_empty(), "{rest:?}");
}

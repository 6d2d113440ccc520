//! A connection that stays: from its first answer on the gateway reads and writes its records without the library that shook
//! hands. Clients must not notice, and whatever is no record of theirs ends the connection.

use e2e::caller::{alert_in, bounded};
use e2e::upstream::Upstream;
use e2e::world::World;
use rustls::AlertDescription::{self, BadRecordMac, DecodeError, RecordOverflow, UnexpectedMessage};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::TcpStream;
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout};
use tokio_rustls::client::TlsStream;

use super::at_rest::{Client, get, post, world_with};

type Established = Client<TlsStream<TcpStream>>;

/// A client whose connection has had its first answer.
async fn client(world: &World) -> Established {
    let mut client = Client::new(world.good_caller("app.test").handshake().await.unwrap());
    client.ask(&get("/app/first"), "/app/first").await;
    client
}

fn new_keys(client: &mut Established) {
    client.io.get_mut().1.refresh_traffic_keys().unwrap();
}

#[tokio::test]
async fn a_client_may_ask_for_new_keys_at_any_time() {
    let upstream = Upstream::plain("plain").await;
    let world = world_with(&upstream, 0.0).await;
    let mut client = client(&world).await;
    let large = "0123456789abcdef".repeat(16 * 1024);
    for _ in 0..20 {
        new_keys(&mut client);
        client.ask(&get("/app/after"), "/app/after").await;
        let request = get("/app/amid");
        let (before, after) = request.split_at(10);
        client.say(before).await;
        new_keys(&mut client);
        client.ask(after, "/app/amid").await;
        let request = post("/app/body", &large);
        let (before, after) = request.split_at(100_000);
        client.say(before).await;
        new_keys(&mut client);
        client.ask(after, "/app/body").await;
    }
}

#[tokio::test]
async fn what_is_no_record_of_the_client_ends_its_connection_with_an_alert() {
    let upstream = Upstream::plain("plain").await;
    let world = world_with(&upstream, 0.0).await;
    let mut other = client(&world).await;
    // Either may come: that of the library, as long as the connection is its own.
    let sealed = [23, 3, 3, 0, 17, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16];
    let cases: [(&str, &[u8], [AlertDescription; 2]); 4] = [
        ("a sealed record of somebody else", &sealed, [BadRecordMac, BadRecordMac]),
        ("a ClientHello", &[22, 3, 1, 0, 4, 1, 0, 0, 0], [UnexpectedMessage, BadRecordMac]),
        ("close_notify in the clear", &[21, 3, 3, 0, 2, 1, 0], [UnexpectedMessage, BadRecordMac]),
        ("more than a record holds", &[23, 3, 3, 255, 255], [RecordOverflow, DecodeError]),
    ];
    for (what, bytes, alerts) in cases {
        let mut client = client(&world).await;
        client.io.get_mut().0.write_all(bytes).await.unwrap();
        let problem = bounded(what, client.io.read(&mut [0; 16])).await.unwrap_err();
        assert!(alert_in(&problem).is_some_and(|alert| alerts.contains(&alert)), "{what}: {problem}");
    }
    other.ask(&get("/app/other"), "/app/other").await;
    assert_eq!(upstream.requests(), 6, "none of it was taken for a request");
}

/// `openssl s_client`, with which one can ask for new keys by hand.
struct Openssl {
    _child: Child,
    input: ChildStdin,
    /// What the gateway says.
    output: Lines<BufReader<ChildStdout>>,
    /// What openssl says of itself.
    errors: Lines<BufReader<ChildStderr>>,
}

impl Openssl {
    fn start(world: &World, folder: &std::path::Path) -> Self {
        let client = &world.credentials.client;
        std::fs::write(folder.join("client.crt"), &client.certificate_pem).unwrap();
        std::fs::write(folder.join("client.key"), &client.key_pem).unwrap();
        let arguments = ["-tls1_3", "-servername", "app.test", "-cert", "client.crt", "-key", "client.key"];
        let mut child = e2e::openssl::s_client(world.https(), folder, &arguments);
        let input = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap()).lines();
        let errors = BufReader::new(child.stderr.take().unwrap()).lines();
        Self { _child: child, input, output, errors }
    }

    async fn say(&mut self, text: &str) {
        self.input.write_all(text.as_bytes()).await.unwrap();
        self.input.flush().await.unwrap();
    }

    async fn hears(&mut self, path: &str) {
        read_to(&mut self.output, &format!("\"uri\":\"{path}\"")).await;
    }
}

/// Reads on until a line has it in it.
async fn read_to(lines: &mut Lines<impl AsyncBufRead + Unpin>, what: &str) {
    let reading =
        async { while !lines.next_line().await.unwrap().expect("openssl goes on").contains(what) {} };
    bounded(what, reading).await;
}

#[tokio::test]
async fn openssl_goes_on_over_new_keys_of_either_kind() {
    let upstream = Upstream::plain("plain").await;
    let world = world_with(&upstream, 0.0).await;
    let folder = tempfile::tempdir().unwrap();
    let mut openssl = Openssl::start(&world, folder.path());
    openssl.say(&get("/app/first")).await;
    openssl.hears("/app/first").await;
    for round in 0..6 {
        // `K` asks us for new keys, too; `k` is its own affair.
        openssl.say(if round % 2 == 0 { "K\n" } else { "k\n" }).await;
        read_to(&mut openssl.errors, "KEYUPDATE").await;
        let path = format!("/app/{round}");
        openssl.say(&get(&path)).await;
        openssl.hears(&path).await;
    }
}

//! Kept connections: after the first responses the gateway reads and writes TLS records without
//! rustls, unless `countersign.tls.own_records` is false. Neither clients nor upstreams may notice,
//! and an invalid record ends the connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use e2e::client::{alert_in, bounded};
use e2e::credentials::Credential;
use e2e::records::{ALERT, APPLICATION_DATA, HANDSHAKE, RawTls};
use e2e::upstream::Upstream;
use e2e::world::World;
use rustls::AlertDescription::{self, BadRecordMac, DecodeError, RecordOverflow, UnexpectedMessage};
use serde_json::json;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout};
use tokio_rustls::client::TlsStream;

use super::at_rest::{Client, get, post};

type Established = Client<TlsStream<TcpStream>>;

/// `/app/*` goes to the upstream. `own`: kept connections use the gateway's own record layer.
async fn world(upstream: &Upstream, own: bool) -> World {
    let limits = json!({"idle_release_timeout": 0.0});
    let settings = json!({"countersign": {"limits": limits, "tls": {"own_records": own}}});
    let builder = World::builder().settings(settings).protected(upstream.address());
    builder.path("/app/*").start().await
}

/// A client with so many responses that the gateway uses its own record layer.
async fn client(world: &World) -> Established {
    let mut client = Client::new(world.verified_client("app.test").handshake().await.unwrap());
    for path in ["/app/first", "/app/second"] {
        client.ask(&get(path), path).await;
    }
    client
}

fn new_keys(client: &mut Established) {
    client.io.get_mut().1.refresh_traffic_keys().unwrap();
}

#[tokio::test]
async fn a_client_may_send_key_updates_at_any_time() {
    let upstream = Upstream::plain("plain").await;
    for own in [true, false] {
        let world = world(&upstream, own).await;
        let mut client = Client::new(world.verified_client("app.test").handshake().await.unwrap());
        let large = "0123456789abcdef".repeat(16 * 1024);
        for _ in 0..20 {
            new_keys(&mut client);
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
}

#[tokio::test]
async fn an_invalid_record_gets_an_alert() {
    let sealed = [23, 3, 3, 0, 17, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16];
    // The gateway's own alert, and that of rustls.
    let cases: [(&str, &[u8], [AlertDescription; 2]); 4] = [
        ("a sealed record of another connection", &sealed, [BadRecordMac, BadRecordMac]),
        ("a ClientHello", &[22, 3, 1, 0, 4, 1, 0, 0, 0], [UnexpectedMessage, BadRecordMac]),
        ("close_notify in the clear", &[21, 3, 3, 0, 2, 1, 0], [UnexpectedMessage, BadRecordMac]),
        ("more than a record holds", &[23, 3, 3, 255, 255], [RecordOverflow, DecodeError]),
    ];
    for own in [true, false] {
        let upstream = Upstream::plain("plain").await;
        let world = world(&upstream, own).await;
        let mut other = client(&world).await;
        for (what, bytes, [ours, theirs]) in cases {
            let mut client = client(&world).await;
            client.io.get_mut().0.write_all(bytes).await.unwrap();
            let problem = bounded(what, client.io.read(&mut [0; 16])).await.unwrap_err();
            let expected = if own { ours } else { theirs };
            assert_eq!(alert_in(&problem), Some(expected), "{what}: {problem}");
        }
        other.ask(&get("/app/other"), "/app/other").await;
        assert_eq!(upstream.requests(), 11, "none of it was taken for a request");
    }
}

/// A client with hand-made records, after so many responses.
async fn hand_made(world: &World, answers: usize) -> RawTls {
    let options = world.verified_client("app.test");
    let mut client = RawTls::connect(world.https(), options.config(), options.server_name()).await;
    for _ in 0..answers {
        client.send(APPLICATION_DATA, get("/app/get").as_bytes()).await;
        let answer = client.receive_until("}\n").await;
        assert!(answer.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&answer));
    }
    client
}

#[tokio::test]
async fn sealed_invalid_records_get_their_alert() {
    let upstream = Upstream::plain("plain").await;
    let world = world(&upstream, true).await;
    let cases: [(&str, u8, Vec<u8>, AlertDescription); 7] = [
        ("padding over the bound", 0, vec![0; 1 << 14], UnexpectedMessage),
        ("content and padding over the bound", 0, [vec![23], vec![0; 1 << 14]].concat(), RecordOverflow),
        ("content over the bound", APPLICATION_DATA, vec![b'a'; (1 << 14) + 1], RecordOverflow),
        ("an empty alert", ALERT, vec![], UnexpectedMessage),
        ("an empty handshake record", HANDSHAKE, vec![], UnexpectedMessage),
        ("half an alert", ALERT, vec![1], DecodeError),
        ("a KeyUpdate that is not the last", HANDSHAKE, [[24, 0, 0, 1, 1]; 2].concat(), UnexpectedMessage),
    ];
    for (what, kind, content, alert) in cases {
        let mut client = hand_made(&world, 2).await;
        client.send(kind, &content).await;
        let (kind, content) = bounded(what, client.receive()).await;
        assert_eq!((kind, content), (ALERT, vec![2, u8::from(alert)]), "{what}");
    }
}

#[tokio::test]
async fn several_key_update_requests_get_one_response() {
    let upstream = Upstream::plain("plain").await;
    for own in [true, false] {
        let world = world(&upstream, own).await;
        for answers in [0, 1, 2, 5] {
            let mut client = hand_made(&world, answers).await;
            for requests in [3, 1, 20] {
                client.updates = 0;
                for _ in 0..requests {
                    client.key_update(&[], true).await;
                }
                client.send(APPLICATION_DATA, get("/app/get").as_bytes()).await;
                let answer = bounded("an answer", client.receive_until("}\n")).await;
                assert!(answer.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&answer));
                assert_eq!(client.updates, 1, "own {own}, after {answers}: {requests} requests");
            }
        }
    }
}

/// An upstream that sends NewSessionTickets and KeyUpdates in one record before, between and after
/// its responses.
async fn renewing_upstream(listener: TcpListener, credential: Credential, connections: Arc<AtomicUsize>) {
    let ticket: &[u8] = &[4, 0, 0, 17, 0, 0, 1, 0, 0, 0, 0, 7, 1, 5, 0, 3, 9, 9, 9, 0, 0];
    let (number, answer) = (ticket[3] as usize, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    assert_eq!(number, ticket.len() - 4);
    loop {
        let (tcp, _) = listener.accept().await.unwrap();
        connections.fetch_add(1, Ordering::SeqCst);
        let mut gateway = RawTls::accept(tcp, &credential).await;
        let mut requested = true;
        gateway.key_update(ticket, requested).await;
        for round in 0.. {
            gateway.updates = 0;
            assert!(gateway.receive_until("\r\n\r\n").await.starts_with(b"GET /"));
            assert!(gateway.updates == usize::from(requested) || round == 0);
            let (before, after) = answer.split_at(round % answer.len());
            gateway.send(APPLICATION_DATA, before.as_bytes()).await;
            requested = round % 3 == 0;
            gateway.key_update(&ticket.repeat(round % 4), requested).await;
            gateway.send(HANDSHAKE, ticket).await;
            gateway.send(APPLICATION_DATA, after.as_bytes()).await;
        }
    }
}

#[tokio::test]
async fn an_upstream_may_send_tickets_and_key_updates_in_one_record() {
    for own in [true, false] {
        let settings = json!({"countersign": {"workers": 1, "tls": {"own_records": own}}});
        let world = World::builder().settings(settings).start().await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let nodes = json!({listener.local_addr().unwrap().to_string(): 1});
        let connections = Arc::new(AtomicUsize::new(0));
        let credential = world.credentials.upstreams.server(&["up.test"]);
        let upstream = tokio::spawn(renewing_upstream(listener, credential, Arc::clone(&connections)));
        let route = json!({"uri": "/*", "upstream": {"scheme": "https", "nodes": nodes}});
        world.apply(&[("routes/up", route)]).await;
        let mut session = world.plain("app.test").await;
        for round in 0..30 {
            let reply = session.get("/").await.unwrap();
            assert_eq!((reply.status.as_u16(), reply.text().as_str()), (200, "ok"), "own {own}, {round}");
        }
        assert_eq!(connections.load(Ordering::SeqCst), 1, "one connection is kept over all of it");
        upstream.abort();
    }
}

/// `openssl s_client`, which updates keys on command.
struct Openssl {
    _child: Child,
    input: ChildStdin,
    /// The gateway's output.
    output: Lines<BufReader<ChildStdout>>,
    /// openssl's own messages.
    errors: Lines<BufReader<ChildStderr>>,
}

impl Openssl {
    fn start(world: &World, folder: &std::path::Path) -> Self {
        let client = &world.credentials.client;
        std::fs::write(folder.join("client.crt"), &client.certificate_pem).unwrap();
        std::fs::write(folder.join("client.key"), &client.key_pem).unwrap();
        let arguments = ["-tls1_3", "-servername", "app.test", "-cert", "client.crt", "-key", "client.key"];
        let mut child = e2e::tools::s_client(world.https(), folder, &arguments);
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

/// Reads until a line contains it.
async fn read_to(lines: &mut Lines<impl AsyncBufRead + Unpin>, what: &str) {
    let reading =
        async { while !lines.next_line().await.unwrap().expect("openssl goes on").contains(what) {} };
    bounded(what, reading).await;
}

#[tokio::test]
async fn openssl_continues_after_either_key_update() {
    let upstream = Upstream::plain("plain").await;
    for own in [true, false] {
        let world = world(&upstream, own).await;
        let folder = tempfile::tempdir().unwrap();
        let mut openssl = Openssl::start(&world, folder.path());
        openssl.say(&get("/app/first")).await;
        openssl.hears("/app/first").await;
        for round in 0..6 {
            // `K` requests a key update of the gateway, too; `k` updates openssl's keys only.
            openssl.say(if round % 2 == 0 { "K\n" } else { "k\n" }).await;
            read_to(&mut openssl.errors, "KEYUPDATE").await;
            let path = format!("/app/{round}");
            openssl.say(&get(&path)).await;
            openssl.hears(&path).await;
        }
    }
}

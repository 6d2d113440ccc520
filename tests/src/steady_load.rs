//! Clients that use a data plane in every way without a pause, while a test changes or replaces
//! it: new connections, kept connections, concurrent HTTP/2 streams, uploads, downloads and TCP
//! streams.
//!
//! Invariant: whatever a client does not get as it should is a failure, with the time and its
//! reason. A client opens a new connection only where the protocol has it do so: after
//! `Connection: close`, a GOAWAY, or when no byte of its request was sent.

use std::fmt::Display;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use futures_util::future::join_all;
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt as _;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::client::{Http, HttpClient, HttpConnection, bounded, full};
use crate::upstream::{pattern, sha256};

/// Streams at a time of an HTTP/2 client.
const STREAMS: usize = 8;
const UPLOAD_BYTES: usize = 300_000;
const DOWNLOAD_BYTES: usize = 500_000;
/// Round trips of one TCP stream.
const ROUND_TRIPS: usize = 200;
const MESSAGE_BYTES: usize = 1000;

/// The gateway's side: a site of an [`Upstream`](crate::upstream::Upstream), and a stream listener
/// before a [`TcpUpstream`](crate::upstream::tcp::TcpUpstream) that echoes.
#[derive(Clone)]
pub struct LoadTargets {
    /// HTTPS.
    pub https: HttpClient,
    /// TCP within TLS. `None`: no TCP streams.
    pub stream: Option<HttpClient>,
}

/// Running clients; dropping them ends them.
pub struct SteadyLoad {
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
    clients: JoinSet<()>,
}

/// What the clients did.
#[derive(Debug)]
pub struct LoadReport {
    pub operations: u64,
    /// Of each kind of client.
    pub by_kind: Vec<(&'static str, u64)>,
    /// HTTP/2 requests that a GOAWAY without an error has announced as not processed.
    pub unprocessed: u64,
    /// The first hundred, each with its kind and time.
    pub failures: Vec<String>,
}

struct Shared {
    started: Instant,
    operations: watch::Sender<u64>,
    by_kind: Mutex<Vec<(&'static str, u64)>>,
    unprocessed: AtomicU64,
    failures: Mutex<Vec<String>>,
}

/// The kinds of clients, each of which ends its operation when the load stops.
const KINDS: [(&str, usize); 6] =
    [("connect", 2), ("kept", 2), ("http2", 1), ("upload", 1), ("download", 1), ("stream", 2)];

impl SteadyLoad {
    /// Starts the clients.
    pub fn start(targets: &LoadTargets) -> Self {
        let shared = Arc::new(Shared {
            started: Instant::now(),
            operations: watch::Sender::new(0),
            unprocessed: AtomicU64::default(),
            by_kind: Mutex::new(KINDS.map(|(kind, _)| (kind, 0)).to_vec()),
            failures: Mutex::default(),
        });
        let (stop, stopping) = watch::channel(false);
        let mut clients = JoinSet::new();
        for (kind, count) in KINDS {
            for _ in 0..count {
                let client = LoadClient {
                    kind,
                    targets: targets.clone(),
                    shared: Arc::clone(&shared),
                    stopping: stopping.clone(),
                };
                clients.spawn(client.run());
            }
        }
        Self { shared, stop, clients }
    }

    /// The operations so far.
    pub fn operations(&self) -> u64 {
        *self.shared.operations.borrow()
    }

    /// Waits for `count` more operations.
    pub async fn more(&self, count: u64) {
        let (mut operations, until) = (self.shared.operations.subscribe(), self.operations() + count);
        let enough = operations.wait_for(|operations| *operations >= until);
        assert!(bounded("operations of the steady load", enough).await.is_ok());
    }

    /// The failures so far.
    pub fn failures(&self) -> Vec<String> {
        self.shared.failures.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Lets every client finish its operation.
    pub async fn stop(mut self) -> LoadReport {
        self.stop.send_replace(true);
        while let Some(ended) = bounded("a client ends", self.clients.join_next()).await {
            ended.expect("a client of the steady load");
        }
        let by_kind = self.shared.by_kind.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let unprocessed = self.shared.unprocessed.load(Ordering::Relaxed);
        LoadReport { operations: self.operations(), by_kind, unprocessed, failures: self.failures() }
    }
}

impl LoadReport {
    /// Panics unless nothing failed and every kind of client did something.
    pub fn assert_flawless(&self) {
        assert!(
            self.failures.is_empty(),
            "of {} operations failed:\n{}",
            self.operations,
            self.failures.join("\n")
        );
        assert!(self.by_kind.iter().all(|(_, count)| *count > 0), "{:?}", self.by_kind);
    }
}

/// One client.
struct LoadClient {
    kind: &'static str,
    targets: LoadTargets,
    shared: Arc<Shared>,
    stopping: watch::Receiver<bool>,
}

impl LoadClient {
    async fn run(self) {
        match self.kind {
            "connect" => self.connects().await,
            "kept" => self.keeps().await,
            "http2" => self.streams_over_http2().await,
            "upload" => self.uploads().await,
            "download" => self.downloads().await,
            _ => self.streams().await,
        }
    }

    fn goes_on(&self) -> bool {
        !*self.stopping.borrow()
    }

    fn done(&self) {
        let mut by_kind = self.shared.by_kind.lock().unwrap_or_else(PoisonError::into_inner);
        by_kind.iter_mut().filter(|(kind, _)| *kind == self.kind).for_each(|(_, count)| *count += 1);
        drop(by_kind);
        self.shared.operations.send_modify(|operations| *operations += 1);
    }

    fn fail(&self, what: &str, why: &dyn Display) {
        const FAILURES_MAX: usize = 100;
        let elapsed = self.shared.started.elapsed().as_secs_f64();
        let mut failures = self.shared.failures.lock().unwrap_or_else(PoisonError::into_inner);
        if failures.len() < FAILURES_MAX {
            failures.push(format!("{elapsed:.3} s: {}: {what}: {why}", self.kind));
        }
    }

    /// Counts an operation, unless something about it is wrong.
    fn check(&self, what: &str, wrong: Option<String>) {
        match wrong {
            None => self.done(),
            Some(wrong) => self.fail(what, &wrong),
        }
    }

    async fn connection(&self) -> Option<HttpConnection> {
        match self.targets.https.connect().await {
            Ok(connection) => Some(connection),
            Err(error) => {
                self.fail("connect", &error);
                None
            }
        }
    }

    async fn connects(self) {
        while self.goes_on() {
            match self.targets.https.get("/").await {
                Ok(reply) => self.check("GET", unexpected_status(reply.status)),
                Err(error) => self.fail("connect and GET", &error),
            }
        }
    }

    async fn keeps(self) {
        while self.goes_on() {
            let Some(mut connection) = self.connection().await else { continue };
            while self.goes_on() {
                match connection.get("/").await {
                    Ok(reply) => {
                        let closes = reply.headers.get("connection").is_some_and(|value| value == "close");
                        self.check("GET", unexpected_status(reply.status));
                        if closes {
                            break;
                        }
                    }
                    Err(error) => {
                        self.fail("GET on a kept connection", &error);
                        break;
                    }
                }
            }
        }
    }

    async fn uploads(self) {
        let (body, digest) = (pattern(UPLOAD_BYTES), sha256(&pattern(UPLOAD_BYTES)));
        while self.goes_on() {
            let Some(mut connection) = self.connection().await else { continue };
            let request = connection.request(Method::POST, "/sink", full(body.clone()));
            match connection.fetch(request).await {
                Ok(reply) => {
                    let wrong = (!reply.text().contains(&digest)).then(|| reply.text());
                    self.check("upload", unexpected_status(reply.status).or(wrong));
                }
                Err(error) => self.fail("upload", &error),
            }
        }
    }

    /// Takes a response slowly: between two pieces it makes a request on another connection.
    async fn downloads(self) {
        let (path, expected) = (format!("/sized?bytes={DOWNLOAD_BYTES}"), pattern(DOWNLOAD_BYTES));
        while self.goes_on() {
            let Some(mut connection) = self.connection().await else { continue };
            let request = connection.request(Method::GET, &path, full(""));
            let mut body = match connection.send(request).await {
                Ok(response) => response.into_body(),
                Err(error) => {
                    self.fail("download", &error);
                    continue;
                }
            };
            let mut received = Vec::new();
            let ended = loop {
                match bounded("a piece of a download", body.frame()).await {
                    None => break None,
                    Some(Ok(frame)) => received.extend(frame.into_data().unwrap_or_default()),
                    Some(Err(error)) => break Some(error.to_string()),
                }
                if let Err(error) = self.targets.https.get("/").await {
                    self.fail("GET beside a download", &error);
                }
            };
            let wrong =
                (received != expected).then(|| format!("{} of {DOWNLOAD_BYTES} bytes", received.len()));
            self.check("download", ended.or(wrong));
        }
    }

    async fn streams_over_http2(self) {
        let client = self.targets.https.clone().http(Http::Two);
        let uri = format!("https://{}/", client.host());
        while self.goes_on() {
            let stream = match client.handshake().await {
                Ok(stream) => stream,
                Err(error) => {
                    self.fail("connect", &error);
                    continue;
                }
            };
            let made = http2::Builder::new(TokioExecutor::new()).handshake(TokioIo::new(stream)).await;
            let (sender, connection) = match made {
                Ok(made) => made,
                Err(error) => {
                    self.fail("HTTP/2 set-up", &error);
                    continue;
                }
            };
            let driver = tokio::spawn(connection);
            join_all((0..STREAMS).map(|_| self.streams_of(&uri, sender.clone()))).await;
            drop(sender);
            let _gone_away = bounded("an HTTP/2 connection ends", driver).await;
        }
    }

    /// One stream after the other, until the server goes away.
    async fn streams_of(&self, uri: &str, mut sender: http2::SendRequest<crate::client::Body>) {
        while self.goes_on() {
            let request = Request::builder().uri(uri).body(full("")).expect("a valid request");
            let answered = async {
                let response = sender.send_request(request).await?;
                let status = response.status();
                response.into_body().collect().await?;
                Ok::<_, hyper::Error>(status)
            };
            match bounded("an HTTP/2 response", answered).await {
                Ok(status) => self.check("stream", unexpected_status(status)),
                // The connection had a GOAWAY, and the request was not sent.
                Err(error) if error.is_canceled() => return,
                Err(error) if is_go_away(&error) => {
                    self.shared.unprocessed.fetch_add(1, Ordering::Relaxed);
                    return;
                }
                Err(error) => {
                    let cause =
                        std::error::Error::source(&error).map_or_else(String::new, ToString::to_string);
                    return self.fail("stream", &format!("{error}: {cause}"));
                }
            }
        }
    }

    async fn streams(self) {
        let Some(client) = self.targets.stream.clone() else {
            self.done();
            return;
        };
        let message: Vec<u8> = pattern(MESSAGE_BYTES);
        while self.goes_on() {
            let mut stream = match client.handshake().await {
                Ok(stream) => stream,
                Err(error) => {
                    self.fail("connect", &error);
                    continue;
                }
            };
            let mut echo = vec![0; MESSAGE_BYTES];
            for _ in 0..ROUND_TRIPS {
                let exchanged = async {
                    stream.write_all(&message).await?;
                    stream.read_exact(&mut echo).await
                };
                if let Err(error) = bounded("an echo", exchanged).await {
                    self.fail("round trip", &error);
                    break;
                }
                self.check("round trip", (echo != message).then(|| "another echo".to_owned()));
                if !self.goes_on() {
                    break;
                }
            }
            let _closed = stream.shutdown().await;
        }
    }
}

fn unexpected_status(status: StatusCode) -> Option<String> {
    (status != StatusCode::OK).then(|| format!("status {status}"))
}

/// Whether the server has announced in a GOAWAY without an error that it does not process the
/// stream (RFC 9113 section 6.8).
fn is_go_away(error: &hyper::Error) -> bool {
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<h2::Error>());
    source.is_some_and(|error| {
        error.is_go_away() && error.is_remote() && error.reason() == Some(h2::Reason::NO_ERROR)
    })
}

//! The listeners for operators of a program, and the pages `/status`, `/status/ready` and
//! `/metrics` (contract 10.1).
//!
//! [`server`] is a thread and runtime of its own, so that pages are there while every other thread
//! hangs; [`access`] decides which clients it serves. A program first binds its listeners
//! ([`bind`]: a port in use fails before anything else starts), adds its fields and metrics
//! ([`StatusPage`]) and then serves. Invariant: these three pages are made from atomics and
//! channels only; they wait for no other thread.

mod access;
mod server;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

pub use access::{StatusAccess, StatusAccessHandle, StatusRejection, TlsFuture, TlsSource};
use bytes::Bytes;
use http::{HeaderValue, Method, Response, StatusCode, header, request};
use http_body_util::Full;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use serde_json::{Map, Value};
pub use server::{StatusEndpoint, StatusListener, StatusServer, bind, serve};

use crate::process_metrics::ProcessMetrics;
use crate::{Heartbeats, log};

/// A response of a page.
pub type PageReply = Response<Full<Bytes>>;

/// The response of a page, once it is made.
pub type PageFuture = Pin<Box<dyn Future<Output = PageReply> + Send>>;

/// A request to a page. No page reads a body.
#[derive(Debug)]
pub struct PageRequest {
    /// Method, URI and headers.
    pub head: request::Parts,
    /// Whether it came through mutual TLS.
    pub is_tls: bool,
}

/// What a listener serves. A call must not block, and its future ends within seconds.
pub trait Pages: Send + Sync {
    /// The response to a request.
    fn reply(&self, request: PageRequest) -> PageFuture;
}

type FieldFn = Box<dyn Fn() -> Value + Send + Sync>;
type ReadinessCheck = Box<dyn Fn() -> Result<(), String> + Send + Sync>;

/// The content of the responses, set up before the listener serves. Every closure runs on the
/// listener's thread at each request and must not block: it reads an atomic, an `ArcSwap` or a
/// `watch` channel.
pub struct StatusPage {
    heartbeats: Arc<Heartbeats>,
    fields: Vec<(&'static str, FieldFn)>,
    readiness_checks: Vec<ReadinessCheck>,
    registry: Registry,
    /// Metrics without our prefix.
    process: Registry,
}

impl fmt::Debug for StatusPage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Status").field("heartbeats", &self.heartbeats).finish_non_exhaustive()
    }
}

impl StatusPage {
    /// A page with these heartbeats; `/metrics` has their ages and the dropped lines of the log.
    pub fn new(heartbeats: Arc<Heartbeats>) -> Self {
        let mut registry = Registry::with_prefix("countersign");
        registry.register_collector(Box::new(ProcessCollector(Arc::clone(&heartbeats))));
        let mut process = Registry::default();
        process.register_collector(Box::new(ProcessMetrics::of_this_process()));
        Self { heartbeats, fields: Vec::new(), readiness_checks: Vec::new(), registry, process }
    }

    /// Adds the keys `version` and `pid` to `/status`, and `countersign_build_info`.
    pub fn add_build_info(&mut self, version: &'static str, commit: &'static str) {
        self.add_field("version", move || format!("{version} ({commit})").into());
        self.add_field("pid", || std::process::id().into());
        let labels = vec![("version", version), ("commit", commit)];
        self.registry.register("build", "The program that runs", Info::new(labels));
    }

    /// Adds a key to `/status`.
    pub fn add_field(&mut self, key: &'static str, value: impl Fn() -> Value + Send + Sync + 'static) {
        self.fields.push((key, Box::new(value)));
    }

    /// Makes `/status/ready` respond 503 with the closure's error.
    pub fn add_readiness_check(&mut self, check: impl Fn() -> Result<(), String> + Send + Sync + 'static) {
        self.readiness_checks.push(Box::new(check));
    }

    /// The metrics and collectors of `/metrics`. Adds the prefix `countersign_`, and `_total` for
    /// counters.
    pub fn registry(&mut self) -> &mut Registry {
        &mut self.registry
    }

    fn respond(&self, method: &Method, path: &str) -> PageReply {
        if !matches!(*method, Method::GET | Method::HEAD) {
            return reply(StatusCode::METHOD_NOT_ALLOWED, "text/plain", String::new());
        }
        match path {
            "/status" => json(StatusCode::OK, self.status()),
            "/status/ready" => match self.ready() {
                Ok(()) => json(StatusCode::OK, Map::from_iter([("status".into(), "ok".into())])),
                Err(why) => {
                    let body = [("status".into(), "error".into()), ("error".into(), why.into())];
                    json(StatusCode::SERVICE_UNAVAILABLE, Map::from_iter(body))
                }
            },
            "/metrics" => match self.metrics() {
                Ok(text) => {
                    reply(StatusCode::OK, "application/openmetrics-text; version=1.0.0; charset=utf-8", text)
                }
                Err(_) => reply(StatusCode::INTERNAL_SERVER_ERROR, "text/plain", String::new()),
            },
            _ => reply(
                StatusCode::NOT_FOUND,
                "text/plain",
                "try /status, /status/ready or /metrics\n".to_owned(),
            ),
        }
    }

    /// The body of `/status`.
    fn status(&self) -> Map<String, Value> {
        let ages = self.heartbeats.ages().into_iter();
        let ages: Map<_, _> = ages.map(|(name, age)| (name, seconds(age).into())).collect();
        let mut body =
            Map::from_iter([("status".into(), "ok".into()), ("heartbeat_age_seconds".into(), ages.into())]);
        body.extend(self.fields.iter().map(|(key, value)| ((*key).to_owned(), value())));
        body
    }

    /// Whether the program serves, and the reasons why not.
    fn ready(&self) -> Result<(), String> {
        let hang = |(name, age): (String, Duration)| format!("{name} has not run for {} s", age.as_secs());
        let mut why: Vec<String> = self.heartbeats.stale().into_iter().map(hang).collect();
        why.extend(self.readiness_checks.iter().filter_map(|check| check().err()));
        if why.is_empty() { Ok(()) } else { Err(why.join("; ")) }
    }

    /// The text of `/metrics`.
    fn metrics(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode_registry(&mut text, &self.registry)?;
        encode_registry(&mut text, &self.process)?;
        encode_eof(&mut text)?;
        Ok(text)
    }
}

impl Pages for StatusPage {
    fn reply(&self, request: PageRequest) -> PageFuture {
        Box::pin(std::future::ready(self.respond(&request.head.method, request.head.uri.path())))
    }
}

/// A heartbeat's age, to the millisecond.
fn seconds(age: Duration) -> f64 {
    age.as_millis() as f64 / 1000.0
}

fn json(status: StatusCode, body: Map<String, Value>) -> PageReply {
    reply(status, "application/json", Value::Object(body).to_string())
}

/// A response with this body.
pub fn reply(status: StatusCode, kind: &'static str, body: String) -> PageReply {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// The metrics of every program.
#[derive(Debug)]
struct ProcessCollector(Arc<Heartbeats>);

impl Collector for ProcessCollector {
    fn encode(&self, mut out: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let help = "Seconds since a thread or loop last ran";
        let mut ages = out.encode_descriptor("heartbeat_age_seconds", help, None, MetricType::Gauge)?;
        for (name, age) in self.0.ages() {
            ConstGauge::new(seconds(age)).encode(ages.encode_family(&[("task", name)])?)?;
        }
        let help =
            "Log lines dropped, because a queue was full or the target of the log could not be written";
        let mut dropped = out.encode_descriptor("log_lines_dropped", help, None, MetricType::Counter)?;
        for (log, lines) in log::dropped() {
            ConstCounter::new(lines).encode(dropped.encode_family(&[("log", log)])?)?;
        }
        let help = "Connections and requests that listeners for operators did not serve, by reason";
        let rejections = "status_rejections";
        let mut family = out.encode_descriptor(rejections, help, None, MetricType::Counter)?;
        for reason in StatusRejection::ALL {
            let count = ConstCounter::new(reason.count());
            count.encode(family.encode_family(&[("reason", reason.label())])?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::sync::atomic::{AtomicBool, Ordering};

    use std::io;
    use std::net::SocketAddr;

    use tokio::sync::Semaphore;

    use super::server::{CONNECTION_END, CONNECTIONS_MAX, serve_connection};
    use super::*;
    use crate::Readiness;

    /// Serves a page on a loopback address.
    fn serve_page(listener: StatusListener, page: StatusPage) -> StatusServer {
        let access = StatusAccessHandle::new(StatusAccess::default());
        serve(vec![StatusEndpoint { listener, pages: Arc::new(page) }], &access).unwrap()
    }

    /// The status code and the body.
    fn get(address: SocketAddr, path: &str) -> (u16, String) {
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    #[tokio::test(start_paused = true)]
    async fn a_stalled_client_loses_its_connection() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let pages: Arc<dyn Pages> = Arc::new(StatusPage::new(Arc::default()));
        let places = Arc::new(Semaphore::new(3));
        let place = || Arc::clone(&places).try_acquire_owned().unwrap();
        let serve = |socket| drop(tokio::spawn(serve_connection(Arc::clone(&pages), socket, false, place())));
        let request = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n";

        let (mut unread, socket) = tokio::io::duplex(64);
        serve(socket);
        unread.write_all(request).await.unwrap();
        // An announced body that never arrives.
        let (mut body, socket) = tokio::io::duplex(4096);
        serve(socket);
        body.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n").await.unwrap();
        // A client that sends requests without end.
        let (mut again, socket) = tokio::io::duplex(4096);
        serve(socket);
        let asking = async {
            while again.write_all(request).await.is_ok() {
                let mut response = [0; 4096];
                if matches!(again.read(&mut response).await, Ok(0) | Err(_)) {
                    break;
                }
                tokio::time::advance(Duration::from_millis(500)).await;
            }
        };
        let begun = tokio::time::Instant::now();
        let all_back = async { drop(places.acquire_many(3).await.unwrap()) };
        let ended = tokio::time::timeout(Duration::from_secs(60), async { tokio::join!(asking, all_back) });
        ended.await.expect("every place comes back");
        assert!(begun.elapsed() <= CONNECTION_END.0 + CONNECTION_END.1 + Duration::from_secs(1));
    }

    #[test]
    fn silent_connections_are_bounded() {
        let listener = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.address();
        let _serving = serve_page(listener, StatusPage::new(Arc::default()));
        let connect = || std::net::TcpStream::connect(address).unwrap();
        // After the first response each connection is accepted and holds a permit.
        let mut silent: Vec<_> = (0..CONNECTIONS_MAX).map(|_| connect()).collect();
        for stream in &mut silent {
            stream.write_all(b"HEAD /status/ready HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
            assert!(stream.read(&mut [0; 512]).unwrap() > 0);
        }
        let mut waits = connect();
        waits.write_all(b"GET /status/ready HTTP/1.0\r\n\r\n").unwrap();
        waits.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        assert_eq!(waits.read(&mut [0; 1]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(silent.pop());
        waits.set_read_timeout(None).unwrap();
        let mut text = String::new();
        waits.read_to_string(&mut text).unwrap();
        assert!(text.starts_with("HTTP/1.0 200"), "{text}");
    }

    #[test]
    fn status_ready_and_metrics_are_served() {
        let heartbeats = Arc::<Heartbeats>::default();
        let _worker = heartbeats.add("worker-0", Readiness::Required);
        let mut status = StatusPage::new(heartbeats);
        let broken = Arc::new(AtomicBool::new(false));
        status.add_field("revision", || 7.into());
        status.add_build_info("1.2.3", "0123456789ab");
        let seen = Arc::clone(&broken);
        status.add_readiness_check(move || {
            if seen.load(Ordering::Relaxed) { Err("no store".into()) } else { Ok(()) }
        });
        let gauge = prometheus_client::metrics::gauge::Gauge::<i64>::default();
        gauge.set(5);
        status.registry().register("size", "Something", gauge);
        let listener = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.address();
        let serving = serve_page(listener, status);

        let (code, body) = get(address, "/status");
        let body: Value = serde_json::from_str(&body).unwrap();
        assert_eq!((code, &body["status"], &body["revision"]), (200, &"ok".into(), &7.into()));
        assert_eq!(body["version"], "1.2.3 (0123456789ab)");
        assert_eq!(body["pid"], std::process::id());
        assert!(body["heartbeat_age_seconds"]["worker-0"].is_f64(), "{body}");
        assert_eq!(get(address, "/status/ready"), (200, r#"{"status":"ok"}"#.to_owned()));
        broken.store(true, Ordering::Relaxed);
        assert_eq!(
            get(address, "/status/ready"),
            (503, r#"{"status":"error","error":"no store"}"#.to_owned())
        );
        let (code, text) = get(address, "/metrics");
        assert_eq!(code, 200);
        let build = "countersign_build_info{version=\"1.2.3\",commit=\"0123456789ab\"} 1";
        for line in [build, "countersign_size 5", "# TYPE countersign_log_lines_dropped counter"] {
            assert!(text.lines().any(|found| found == line), "{text}");
        }
        assert!(text.contains("countersign_heartbeat_age_seconds{task=\"worker-0\"} 0."), "{text}");
        assert_eq!(get(address, "/").0, 404);

        // A successor can bind the address at once, and existing connections are served.
        let mut open = std::net::TcpStream::connect(address).unwrap();
        serving.close();
        assert!(bind(address).is_ok(), "the address is free again");
        open.write_all(b"GET /status/ready HTTP/1.0\r\n\r\n").unwrap();
        let mut text = String::new();
        open.read_to_string(&mut text).unwrap();
        assert!(text.contains(" 503 "), "{text}");
    }
}

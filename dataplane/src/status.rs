//! The status listener: `/status`, `/status/ready` and `/metrics`, on a thread of its own so that a busy or stuck
//! worker cannot hide behind it. Contract section 10.1.
//!
//! Its port is bound before all others and given up when they are, so that a successor can start while this process drains;
//! `/status/ready` answers 503 from the signal on. It serves few connections at a time, out of a reserve of descriptors.

use std::{
    net::{SocketAddr, TcpListener},
    sync::Arc,
    thread,
    time::Duration,
};

use bytes::Bytes;
use futures_util::FutureExt as _;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use process::throttle::Throttle;
use tokio::sync::Semaphore;

use crate::{
    agent::AgentStatus,
    net::listener::{self, BindError},
    observe::metrics::Metrics,
    stage::{Stage, Stages},
};

const KEY: &str = "apisix.status";
/// Connections at a time; more wait to be accepted. `descriptors` has a reserve for so many.
const CONNECTIONS_MAX: usize = 16;
/// For the head of a request, and between two requests.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

static LINES: Throttle = Throttle::new(1, Duration::from_secs(10));

/// What the listener can tell.
#[derive(Clone)]
pub struct Status {
    /// Whether there is a snapshot.
    pub agent: Arc<AgentStatus>,
    /// The numbers.
    pub metrics: Arc<Metrics>,
    /// Whether the process stops.
    pub stages: Stages,
}

/// Takes the address; connections wait until [`start`]. `predecessor`: how long a process that stops may keep it.
///
/// # Errors
/// When the address cannot be listened on.
pub fn bind(addr: SocketAddr, predecessor: Duration) -> Result<TcpListener, BindError> {
    listener::bind_alone(KEY, addr, predecessor)
}

/// Serves from now on, until the listeners of the process close; returns where it listens.
///
/// # Errors
/// When the system refuses a runtime or a thread.
pub fn start(listener: TcpListener, status: Status) -> std::io::Result<SocketAddr> {
    listener.set_nonblocking(true)?;
    let at = listener.local_addr()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    thread::Builder::new()
        .name("status".to_owned())
        .spawn(move || runtime.block_on(serve(listener, status)))?;
    Ok(at)
}

async fn serve(listener: TcpListener, status: Status) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, "the status listener cannot run");
            return;
        }
    };
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut stages = status.stages.clone();
    loop {
        // An error: the semaphore was closed, which nothing does.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stages.reached(Stage::Draining) => break,
        };
        match accepted {
            Ok((socket, _)) => serve_connection(&status, socket, place),
            Err(error) => {
                if let Some(earlier) = LINES.admits() {
                    tracing::warn!(%error, earlier, "the status listener cannot accept; trying again");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    // What is in the queue is served, and then the port is a successor's.
    while let (Ok(place), Some(Ok((socket, _)))) =
        (Arc::clone(&places).try_acquire_owned(), listener.accept().now_or_never())
    {
        serve_connection(&status, socket, place);
    }
    drop(listener);
    // Connections that are open stay until the process ends.
    std::future::pending().await
}

fn serve_connection(
    status: &Status,
    socket: tokio::net::TcpStream,
    place: tokio::sync::OwnedSemaphorePermit,
) {
    let status = status.clone();
    tokio::spawn(async move {
        let _place = place;
        let service = service_fn(move |request: Request<Incoming>| {
            let response = status.answer(request.method(), request.uri().path());
            async move { Ok::<_, std::convert::Infallible>(response) }
        });
        let _client_gone = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .serve_connection(TokioIo::new(socket), service)
            .await;
    });
}

impl Status {
    fn answer(&self, method: &Method, path: &str) -> Response<Full<Bytes>> {
        if !matches!(*method, Method::GET | Method::HEAD) {
            return reply(StatusCode::METHOD_NOT_ALLOWED, "text/plain", String::new());
        }
        match path {
            "/status" => reply(StatusCode::OK, "application/json", r#"{"status":"ok"}"#.to_owned()),
            "/status/ready" if self.stages.now() > Stage::Serving => reply(
                StatusCode::SERVICE_UNAVAILABLE,
                "application/json",
                r#"{"status":"error","error":"this data plane is draining"}"#.to_owned(),
            ),
            "/status/ready" if self.agent.ready() => {
                reply(StatusCode::OK, "application/json", r#"{"status":"ok"}"#.to_owned())
            }
            "/status/ready" => reply(
                StatusCode::SERVICE_UNAVAILABLE,
                "application/json",
                r#"{"status":"error","error":"this data plane has not received configuration"}"#.to_owned(),
            ),
            "/metrics" => match self.metrics.text() {
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
}

fn reply(status: StatusCode, kind: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

//! The status listener: `/status`, `/status/ready` and `/metrics`, on a thread of its own so that a busy or stuck
//! worker cannot hide behind it. Contract section 10.1.

use std::{net::SocketAddr, sync::Arc, thread};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};

use crate::{agent::AgentStatus, net::listener::BindError, observe::metrics::Metrics};

/// What the listener can tell.
pub struct Status {
    /// Whether there is a snapshot.
    pub agent: Arc<AgentStatus>,
    /// The numbers.
    pub metrics: Arc<Metrics>,
}

/// Starts the listener; returns where it listens.
///
/// # Errors
/// When the address cannot be listened on.
pub fn start(addr: SocketAddr, status: Status) -> Result<SocketAddr, BindError> {
    let wrong = |error| BindError { key: "apisix.status", addr, error };
    let listener = std::net::TcpListener::bind(addr).map_err(wrong)?;
    listener.set_nonblocking(true).map_err(wrong)?;
    let at = listener.local_addr().map_err(wrong)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(wrong)?;
    thread::Builder::new()
        .name("status".to_owned())
        .spawn(move || runtime.block_on(serve(listener, Arc::new(status))))
        .map_err(wrong)?;
    Ok(at)
}

async fn serve(listener: std::net::TcpListener, status: Arc<Status>) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, "the status listener cannot run");
            return;
        }
    };
    loop {
        let Ok((socket, _)) = listener.accept().await else {
            // Out of descriptors: the workers need them more.
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            continue;
        };
        let status = Arc::clone(&status);
        tokio::spawn(async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let response = status.answer(request.method(), request.uri().path());
                async move { Ok::<_, std::convert::Infallible>(response) }
            });
            let _client_gone = http1::Builder::new()
                .timer(TokioTimer::new())
                .serve_connection(TokioIo::new(socket), service)
                .await;
        });
    }
}

impl Status {
    fn shown(&self) -> serde_json::Value {
        serde_json::json!({
            "status": "ok",
            "snapshot_age_seconds": self.agent.age().map(|age| age.as_secs()),
            "held": self.agent.held_store().map(|held| held.shown()),
        })
    }

    fn answer(&self, method: &Method, path: &str) -> Response<Full<Bytes>> {
        if !matches!(*method, Method::GET | Method::HEAD) {
            return reply(StatusCode::METHOD_NOT_ALLOWED, "text/plain", String::new());
        }
        match path {
            "/status" => reply(StatusCode::OK, "application/json", self.shown().to_string()),
            "/status/ready" => match self.agent.readiness() {
                Ok(()) => reply(StatusCode::OK, "application/json", r#"{"status":"ok"}"#.to_owned()),
                Err(why) => {
                    let told = serde_json::json!({"status": "error", "error": why}).to_string();
                    reply(StatusCode::SERVICE_UNAVAILABLE, "application/json", told)
                }
            },
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

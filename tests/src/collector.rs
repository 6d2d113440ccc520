//! A collector of traces: a server of OTLP over gRPC, made from the public protocol files, with
//! and without mutual TLS.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use data_encoding::HEXLOWER;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tonic::{Code, Request, Response, Status};

use crate::client::bounded;
use crate::credentials::{Authority, Credential};
use crate::tls::{client_verifier, server_config};

/// What a collector does with spans.
#[derive(Debug, Clone, Copy)]
pub enum Behaviour {
    Accept,
    /// Rejects so many spans of each export.
    RejectSome(i64),
    /// Fails each export with this code.
    Fail(Code),
    /// Does not answer.
    Hang,
}

/// A running collector; dropping it ends it.
pub struct Collector {
    address: SocketAddr,
    state: Arc<CollectorState>,
    task: JoinHandle<()>,
}

struct CollectorState {
    behaviour: Mutex<Behaviour>,
    spans: Mutex<Vec<ReceivedSpan>>,
    /// Exports that have arrived.
    exports: watch::Sender<u64>,
}

/// A span that was exported.
#[derive(Debug, Clone)]
pub struct ReceivedSpan {
    pub span: Span,
    resource: Vec<KeyValue>,
}

impl ReceivedSpan {
    pub fn trace_id(&self) -> String {
        HEXLOWER.encode(&self.span.trace_id)
    }

    pub fn id(&self) -> String {
        HEXLOWER.encode(&self.span.span_id)
    }

    /// Empty: it is the root of its trace.
    pub fn parent(&self) -> String {
        HEXLOWER.encode(&self.span.parent_span_id)
    }

    /// An attribute as text; empty: it is missing.
    pub fn attribute(&self, key: &str) -> String {
        text(&self.span.attributes, key)
    }

    /// An attribute of its resource.
    pub fn resource(&self, key: &str) -> String {
        text(&self.resource, key)
    }

    /// Whether its status is an error.
    pub fn is_error(&self) -> bool {
        self.span.status.as_ref().is_some_and(|status| status.code == 2)
    }
}

fn text(attributes: &[KeyValue], key: &str) -> String {
    let value = attributes.iter().find(|attribute| attribute.key == key);
    match value.and_then(|attribute| attribute.value.as_ref()?.value.clone()) {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        Some(Value::BoolValue(flag)) => flag.to_string(),
        Some(Value::DoubleValue(number)) => number.to_string(),
        Some(other) => panic!("{key} is {other:?}"),
        None => String::new(),
    }
}

#[tonic::async_trait]
impl TraceService for CollectorState {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.exports.send_modify(|count| *count += 1);
        let behaviour = *lock(&self.behaviour);
        let mut response = ExportTraceServiceResponse::default();
        match behaviour {
            Behaviour::Accept => {}
            Behaviour::RejectSome(rejected_spans) => {
                let error_message = "too\nold".to_owned();
                response.partial_success = Some(ExportTracePartialSuccess { rejected_spans, error_message });
            }
            Behaviour::Fail(code) => return Err(Status::new(code, "the collector fails on purpose")),
            Behaviour::Hang => std::future::pending().await,
        }
        let mut spans = lock(&self.spans);
        for resource_spans in request.into_inner().resource_spans {
            let resource = resource_spans.resource.unwrap_or_default().attributes;
            let received = resource_spans.scope_spans.into_iter().flat_map(|scope| scope.spans);
            spans.extend(received.map(|span| ReceivedSpan { span, resource: resource.clone() }));
        }
        drop(spans);
        self.exports.send_modify(|_| {});
        Ok(Response::new(response))
    }
}

/// Values are written in one step.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Collector {
    /// Without TLS.
    pub async fn plain() -> Self {
        Self::start(None).await
    }

    /// With TLS, and a client's certificate of this authority.
    pub async fn demanding(credential: &Credential, clients: &Authority) -> Self {
        let verifier = client_verifier(clients.certificate_pem());
        let mut config = server_config(&[&rustls::version::TLS13], credential, Some(verifier));
        config.alpn_protocols = vec![b"h2".to_vec()];
        Self::start(Some(TlsAcceptor::from(Arc::new(config)))).await
    }

    async fn start(tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let state = Arc::new(CollectorState {
            behaviour: Mutex::new(Behaviour::Accept),
            spans: Mutex::default(),
            exports: watch::Sender::new(0),
        });
        let serving = Arc::clone(&state);
        let task = tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let (tls, state) = (tls.clone(), Arc::clone(&serving));
                tokio::spawn(async move {
                    match tls {
                        None => serve(tcp, state).await,
                        Some(tls) => serve(tls.accept(tcp).await?, state).await,
                    }
                });
            }
        });
        Self { address, state, task }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The endpoint for the settings.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn behave(&self, behaviour: Behaviour) {
        *lock(&self.state.behaviour) = behaviour;
    }

    /// Waits until so many exports have arrived.
    pub async fn exports(&self, count: u64) {
        let mut exports = self.state.exports.subscribe();
        let arrived = exports.wait_for(|arrived| *arrived >= count);
        bounded(&format!("{count} exports"), arrived).await.expect("the collector runs");
    }

    /// All spans so far.
    pub fn received(&self) -> Vec<ReceivedSpan> {
        lock(&self.state.spans).clone()
    }

    /// Waits until there are at least so many spans, and gives all.
    pub async fn spans(&self, count: usize) -> Vec<ReceivedSpan> {
        let mut exports = self.state.exports.subscribe();
        let enough = exports.wait_for(|_| self.received().len() >= count);
        drop(bounded(&format!("{count} spans"), enough).await.expect("the collector runs"));
        self.received()
    }

    /// Waits for the span of kind SERVER of the request for this path, and for those below it.
    pub async fn request(&self, path: &str, attempts: usize) -> (ReceivedSpan, Vec<ReceivedSpan>) {
        let find = || {
            let spans = self.received();
            let server = spans.iter().find(|span| span.attribute("url.path") == path)?.clone();
            let below: Vec<_> = spans.into_iter().filter(|span| span.parent() == server.id()).collect();
            (below.len() >= attempts).then_some((server, below))
        };
        let mut exports = self.state.exports.subscribe();
        drop(
            bounded(&format!("the spans of {path}"), exports.wait_for(|_| find().is_some()))
                .await
                .expect("the collector runs"),
        );
        find().expect("spans are not removed")
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve<S>(stream: S, state: Arc<CollectorState>) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = TowerToHyperService::new(TraceServiceServer::from_arc(state));
    let server = auto::Builder::new(TokioExecutor::new()).http2_only();
    // Its error is that the peer went away.
    let _ended = server.serve_connection(TokioIo::new(stream), service).await;
    Ok(())
}

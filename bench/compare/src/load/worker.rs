//! One lane of load: repeats its operation until the phase ends.
//!
//! A lane that loses its kept connection counts one failure and dials again as part of the next
//! operation, so a server that closes often pays for it in its figures.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, header};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::client::TlsStream;

use super::dial::{Dialler, closing, negotiated, resumed};
use super::pace::Pace;
use super::phase::{Phase, Sample};
use super::websocket::Socket;
use super::{Mode, Plan, http1};
use crate::failure::{Failure, FailureKind};
use crate::identity::IdentityError;
use crate::report::Negotiated;
use crate::target::Target;

type H2 = SendRequest<Full<Bytes>>;

/// Bytes of a gRPC message; its prefix says that it is not compressed, and its length.
const MESSAGE: u8 = 100;

fn message() -> Bytes {
    let mut message = vec![0, 0, 0, 0, MESSAGE];
    message.extend(0..MESSAGE);
    message.into()
}

/// Why a lane could not start.
#[derive(Debug)]
pub(super) enum PrepareError {
    /// The client's configuration.
    Identity(IdentityError),
    /// The first connection or request.
    Failed(Failure),
}

impl From<Failure> for PrepareError {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

pub(super) struct Worker {
    dialler: Dialler,
    target: Rc<Target>,
    request: Rc<[u8]>,
    uri: http::Uri,
    expect_status: u16,
    buffer: Vec<u8>,
    negotiated: Option<Negotiated>,
    lane: Lane,
}

enum Lane {
    /// A connection for each operation; `resume` requires a resumed session.
    New {
        resume: bool,
    },
    /// A kept connection; `None` when it must be dialled again.
    Kept(Option<Box<TlsStream<TcpStream>>>),
    /// A share in an HTTP/2 connection.
    KeptH2(Option<H2>),
    /// The same for gRPC calls.
    Calls(Option<H2>),
    Socket(Option<Socket>),
}

impl Worker {
    /// Dials a connection (or obtains the first ticket), and returns the lanes that use it.
    pub(super) async fn prepare(plan: &Plan) -> Result<Vec<Self>, PrepareError> {
        let alpn: &[&[u8]] = match plan.mode {
            Mode::KeepAliveH2 { .. } | Mode::Grpc { .. } => &[b"h2"],
            _ => &[b"http/1.1"],
        };
        let resume = plan.mode == Mode::Resumed;
        // A configuration for each connection: lanes do not share tickets, and each verifies its
        // server once.
        let config = plan
            .identity
            .load_config(plan.version, plan.group, alpn, resume)
            .map_err(PrepareError::Identity)?;
        let dialler = Dialler::new(plan.target.clone(), config);
        let uri = http::Uri::builder()
            .scheme("https")
            .authority(plan.target.host.as_str())
            .path_and_query(plan.target.path.as_str())
            .build()
            .map_err(|error| Failure::new(FailureKind::Send, error))?;
        let mut worker = Self {
            dialler,
            target: Rc::new(plan.target.clone()),
            request: http1::get(&plan.target.host, &plan.target.path).into(),
            uri,
            expect_status: plan.expect_status,
            buffer: Vec::new(),
            negotiated: None,
            lane: Lane::New { resume },
        };
        // The first operation of every connection is not measured: it verifies the server's chain
        // in full, and gives lanes that resume their first ticket.
        match plan.mode {
            Mode::New | Mode::Resumed => {
                worker.new_connection(false).await?;
            }
            Mode::KeepAlive => {
                worker.lane = Lane::Kept(None);
                worker.operate().await?;
            }
            Mode::KeepAliveH2 { streams } => return worker.shared(streams, Lane::KeptH2).await,
            Mode::Grpc { streams } => return worker.shared(streams, Lane::Calls).await,
            Mode::WebSocket => {
                worker.lane = Lane::Socket(None);
                worker.operate().await?;
            }
        }
        Ok(vec![worker])
    }

    /// Dials an HTTP/2 connection, and returns the lanes that share it.
    async fn shared(
        mut self,
        streams: usize,
        lane: fn(Option<H2>) -> Lane,
    ) -> Result<Vec<Self>, PrepareError> {
        let sender = self.dial_h2().await?;
        self.lane = lane(Some(sender.clone()));
        self.operate().await?;
        let more = (1..streams.max(1)).map(|_| self.share(lane(Some(sender.clone())))).collect::<Vec<_>>();
        Ok(std::iter::once(self).chain(more).collect())
    }

    /// The parameters of the lane's first connection.
    pub(super) fn negotiated(&self) -> Option<Negotiated> {
        self.negotiated.clone()
    }

    /// Repeats the operation until the phase ends, at a pace or back to back.
    pub(super) async fn run(mut self, phase: Rc<Phase>, mut pace: Option<Pace>) -> Self {
        while phase.take() {
            let waited = match &mut pace {
                Some(pace) => {
                    let waited = pace.next().await;
                    self.notice();
                    waited
                }
                None => Duration::ZERO,
            };
            let limit = phase.timeout();
            let outcome = tokio::time::timeout(limit, self.operate()).await;
            let outcome = outcome.unwrap_or_else(|_| Err(timed_out(limit)));
            if outcome.is_err() {
                self.forget();
            }
            phase.count(outcome.map(|sample| sample.after(waited)));
        }
        self
    }

    fn share(&self, lane: Lane) -> Self {
        Self {
            dialler: self.dialler.clone(),
            target: self.target.clone(),
            request: self.request.clone(),
            uri: self.uri.clone(),
            expect_status: self.expect_status,
            buffer: Vec::new(),
            negotiated: None,
            lane,
        }
    }

    /// A server may close an idle connection: the lane then dials again, as any client does.
    fn notice(&mut self) {
        if let Lane::Kept(Some(stream)) = &self.lane
            && closing(stream.get_ref().0)
        {
            self.lane = Lane::Kept(None);
        }
    }

    /// After a failure the connection is not used again.
    fn forget(&mut self) {
        match &mut self.lane {
            Lane::New { .. } => {}
            Lane::Kept(kept) => *kept = None,
            Lane::KeptH2(kept) | Lane::Calls(kept) => *kept = None,
            Lane::Socket(kept) => *kept = None,
        }
    }

    async fn operate(&mut self) -> Result<Sample, Failure> {
        match &mut self.lane {
            Lane::New { resume } => {
                let resume = *resume;
                self.new_connection(resume).await
            }
            Lane::Kept(kept) => {
                let kept = kept.take();
                self.kept_request(kept).await
            }
            Lane::KeptH2(kept) => {
                let kept = kept.take();
                self.h2_request(kept).await
            }
            Lane::Calls(kept) => {
                let kept = kept.take();
                self.call(kept).await
            }
            Lane::Socket(kept) => {
                let kept = kept.take();
                self.echo(kept).await
            }
        }
    }

    async fn new_connection(&mut self, demand_resumed: bool) -> Result<Sample, Failure> {
        let started = Instant::now();
        let mut stream = self.dialler.dial().await?;
        let handshake = started.elapsed();
        let answer = http1::exchange(&mut stream, &self.request, &mut self.buffer).await?;
        let total = started.elapsed();
        self.check(answer.status)?;
        if self.negotiated.is_none() {
            self.negotiated = negotiated(&stream);
        }
        let was_resumed = resumed(&stream);
        // close_notify and FIN, as a well-behaved client; the response is complete, so a reset is
        // no failure.
        let _ = stream.shutdown().await;
        if demand_resumed && !was_resumed {
            return Err(Failure::new(FailureKind::NotResumed, "the server made a full handshake"));
        }
        Ok(Sample { total, handshake: Some(handshake) })
    }

    async fn kept_request(&mut self, kept: Option<Box<TlsStream<TcpStream>>>) -> Result<Sample, Failure> {
        let started = Instant::now();
        let mut stream = match kept {
            Some(stream) => stream,
            None => {
                let stream = self.dialler.dial().await?;
                self.negotiated = negotiated(&stream);
                Box::new(stream)
            }
        };
        let answer = http1::exchange(&mut *stream, &self.request, &mut self.buffer).await?;
        let total = started.elapsed();
        self.check(answer.status)?;
        self.lane = Lane::Kept(answer.reusable.then_some(stream));
        Ok(Sample { total, handshake: None })
    }

    async fn dial_h2(&mut self) -> Result<H2, Failure> {
        let stream = self.dialler.dial().await?;
        self.negotiated = negotiated(&stream);
        let (sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                .await
                .map_err(|error| Failure::new(FailureKind::Send, error))?;
        // It ends with the last sender; its error reaches every request in flight.
        tokio::task::spawn_local(connection);
        Ok(sender)
    }

    async fn h2_request(&mut self, kept: Option<H2>) -> Result<Sample, Failure> {
        let started = Instant::now();
        let (sender, answer) = self.send(kept, Request::new(Full::default())).await?;
        let status = answer.status().as_u16();
        let mut body = answer.into_body();
        while let Some(frame) = body.frame().await {
            frame.map_err(received)?;
        }
        let total = started.elapsed();
        self.check(status)?;
        self.lane = Lane::KeptH2(Some(sender));
        Ok(Sample { total, handshake: None })
    }

    async fn send(
        &mut self,
        kept: Option<H2>,
        mut request: Request<Full<Bytes>>,
    ) -> Result<(H2, http::Response<hyper::body::Incoming>), Failure> {
        let mut sender = match kept {
            Some(sender) => sender,
            None => self.dial_h2().await?,
        };
        sender.ready().await.map_err(|error| Failure::new(FailureKind::Send, error))?;
        *request.uri_mut() = self.uri.clone();
        let answer = sender.send_request(request).await.map_err(received)?;
        Ok((sender, answer))
    }

    /// A unary call, whose answer is its message.
    async fn call(&mut self, kept: Option<H2>) -> Result<Sample, Failure> {
        let started = Instant::now();
        let message = message();
        let mut request = Request::new(Full::new(message.clone()));
        *request.method_mut() = Method::POST;
        let fields = [(header::CONTENT_TYPE, "application/grpc"), (header::TE, "trailers")];
        request.headers_mut().extend(fields.map(|(name, value)| (name, HeaderValue::from_static(value))));
        let (sender, answer) = self.send(kept, request).await?;
        let status = answer.status().as_u16();
        let (mut body, mut data, mut trailers) = (answer.into_body(), Vec::new(), HeaderMap::new());
        while let Some(frame) = body.frame().await {
            match frame.map_err(received)?.into_data() {
                Ok(piece) => data.extend_from_slice(&piece),
                Err(frame) => trailers = frame.into_trailers().unwrap_or_default(),
            }
        }
        let total = started.elapsed();
        self.check(status)?;
        if trailers.get("grpc-status").is_none_or(|status| status != "0") {
            return Err(Failure::new(FailureKind::Status, "no grpc-status 0 in the trailers"));
        }
        if data != message {
            return Err(Failure::new(FailureKind::Malformed, "another message came back"));
        }
        self.lane = Lane::Calls(Some(sender));
        Ok(Sample { total, handshake: None })
    }

    async fn echo(&mut self, kept: Option<Socket>) -> Result<Sample, Failure> {
        let started = Instant::now();
        let mut socket = match kept {
            Some(socket) => socket,
            None => {
                let socket = Socket::open(&self.dialler, &self.target).await?;
                self.negotiated = negotiated(&socket.stream);
                socket
            }
        };
        socket.echo().await?;
        let total = started.elapsed();
        self.lane = Lane::Socket(Some(socket));
        Ok(Sample { total, handshake: None })
    }

    fn check(&self, status: u16) -> Result<(), Failure> {
        if status == self.expect_status {
            return Ok(());
        }
        Err(Failure::new(FailureKind::Status, format!("{status} instead of {}", self.expect_status)))
    }
}

fn received(error: hyper::Error) -> Failure {
    Failure::new(FailureKind::Receive, error)
}

/// The failure of an operation over its time limit.
pub(super) fn timed_out(limit: Duration) -> Failure {
    Failure::new(FailureKind::Timeout, format!("not done after {limit:?}"))
}

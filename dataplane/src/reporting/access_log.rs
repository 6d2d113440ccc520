//! The access logs of a worker: a line for each request and refused handshake of HTTP listeners,
//! and for each TCP connection and refused handshake of TCP listeners.
//!
//! Lines are written into a batch of the worker's own, which goes to the log thread when it is
//! large, or 100 ms after its first line. Invariant: no line waits for its target, and a log that
//! is off costs nothing but the question whether it is.

mod clock;
mod escape;
mod format;
pub(crate) mod head;
mod json;
mod line;
mod template;

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use conf::LogFormat;
use http::request::Parts;
use model::RequestTarget;
use rand::rngs::SmallRng;
use rand::{Rng as _, SeedableRng as _};
use telemetry::log::{AccessSink, LineBatcher};

use self::clock::Clock;
use self::format::LineFormat;
use self::head::{CapturedHead, HeadContext};
use self::line::{Ended, LineFacts, ProcessFacts};
use super::record::{ConnectionFacts, HandshakeRecord, RequestRecord, TcpRecord};
use crate::filters::variables::ConnectionContext;
use crate::io::connection_info::ConnectionInfo;
use crate::io::flag::Flag;
use crate::runtime;

/// How long the first line of a batch waits for others.
const BATCH_TIME: Duration = Duration::from_millis(100);
/// Buffers of ended requests that are kept for others.
const SPARE_HEADS: usize = 64;
/// Larger buffers are not kept.
const SPARE_BYTES_MAX: usize = 8 << 10;

/// An access log: where its lines go, and how they are written.
#[derive(Debug, Clone, Default)]
pub struct AccessLogConfig {
    /// `None`: there is no log.
    pub sink: Option<AccessSink>,
    /// `None`: lines of JSON.
    pub format: Option<Arc<LogFormat>>,
}

/// The access logs.
#[derive(Debug, Clone, Default)]
pub struct AccessLogConfigs {
    /// `nginx_config.http`
    pub http: AccessLogConfig,
    /// `nginx_config.stream`
    pub stream: AccessLogConfig,
}

/// The access logs of a worker.
pub(crate) struct AccessLogs {
    http: WorkerLog,
    stream: WorkerLog,
    clock: Clock,
    process: ProcessFacts,
    /// Ids are to be unique, and need not be hard to guess.
    random: RefCell<SmallRng>,
    /// Buffers for heads.
    spare: RefCell<Vec<CapturedHead>>,
    /// Raised while a batch has lines.
    has_lines: Flag,
    /// Nothing flushes batches any more but their end.
    is_closing: Cell<bool>,
}

/// One access log of a worker.
#[derive(Default)]
struct WorkerLog {
    /// `None`: no line is written.
    format: RefCell<Option<Rc<LineFormat>>>,
    batcher: RefCell<Option<LineBatcher>>,
}

impl WorkerLog {
    fn configure(&self, config: &AccessLogConfig) {
        let sink = config.sink.as_ref();
        let mut batcher = self.batcher.borrow_mut();
        if batcher.is_none() {
            *batcher = sink.map(AccessSink::producer);
        }
        let is_on = sink.is_some_and(AccessSink::is_on);
        *self.format.borrow_mut() = is_on.then(|| Rc::new(LineFormat::new(config.format.as_deref())));
    }

    fn format(&self) -> Option<Rc<LineFormat>> {
        self.format.borrow().clone()
    }

    fn flush(&self) {
        if let Some(batcher) = &mut *self.batcher.borrow_mut() {
            batcher.flush();
        }
    }
}

impl AccessLogs {
    pub(crate) fn new(config: &AccessLogConfigs) -> Self {
        let logs = Self {
            http: WorkerLog::default(),
            stream: WorkerLog::default(),
            clock: Clock::default(),
            process: ProcessFacts::new(),
            random: RefCell::new(SmallRng::from_rng(&mut rand::rng())),
            spare: RefCell::default(),
            has_lines: Flag::default(),
            is_closing: Cell::new(false),
        };
        logs.configure(config);
        logs
    }

    /// Requests that have begun keep their format.
    pub(crate) fn configure(&self, config: &AccessLogConfigs) {
        self.http.configure(&config.http);
        self.stream.configure(&config.stream);
    }

    /// Keeps what the line of a request needs of its head.
    pub(crate) fn request_begun(
        &self,
        record: &mut RequestRecord,
        connection: &ConnectionFacts,
        parts: &Parts,
        target: Option<&RequestTarget>,
    ) {
        let Some(format) = self.http.format() else { return };
        let mut captured = self.spare.borrow_mut().pop().unwrap_or_default();
        match &*format {
            LineFormat::Json => json::capture_head(&mut captured, parts),
            LineFormat::Template(template) => {
                let info = ConnectionInfo { peer: record.client_addr, ..connection.info };
                let tls = connection.tls.get();
                let connection = ConnectionContext {
                    info: &info,
                    sni: tls.map(|tls| &tls.sni),
                    params: tls.map(|tls| &tls.params),
                    client: &record.client,
                };
                captured.capture_request(template, &HeadContext { connection, parts: Some(parts), target });
            }
        }
        captured.format = Some(format);
        record.head = captured;
        record.attempts.keeps_host = true;
    }

    /// Writes the line of a request.
    pub(crate) fn request_ended(&self, record: &mut RequestRecord, connection: &ConnectionFacts) {
        let mut head = std::mem::take(&mut record.head);
        // A head that never became a request has the format of now, and no values.
        let (format, captured) = match head.format.take() {
            Some(format) => (format, Some(&head)),
            None if record.method.is_none() => match self.http.format() {
                Some(format) => (format, None),
                None => return,
            },
            None => return,
        };
        let id = if format.has_request_id() { self.random_id() } else { 0 };
        self.write(&self.http, &format, captured, connection, Ended::Request(record, id));
        self.recycle(head);
    }

    /// Writes the line of a TCP connection.
    pub(crate) fn tcp_ended(&self, record: &TcpRecord, connection: &ConnectionFacts) {
        if let Some(format) = self.stream.format() {
            self.write(&self.stream, &format, None, connection, Ended::Tcp(record));
        }
    }

    /// Writes the line of a refused handshake.
    pub(crate) fn handshake_refused(&self, record: &HandshakeRecord<'_>, connection: &ConnectionFacts) {
        let is_http = connection.info.listener.protocol.is_http();
        let log = if is_http { &self.http } else { &self.stream };
        if let Some(format) = log.format() {
            self.write(log, &format, None, connection, Ended::Handshake(record));
        }
    }

    fn write(
        &self,
        log: &WorkerLog,
        format: &LineFormat,
        captured: Option<&CapturedHead>,
        connection: &ConnectionFacts,
        ended: Ended<'_>,
    ) {
        let mut batcher = log.batcher.borrow_mut();
        let Some(batcher) = &mut *batcher else { return };
        let facts = LineFacts { ended, connection, time: self.clock.now(), process: &self.process };
        let is_first = batcher.append(|line| match format {
            LineFormat::Json => json::write_line(line, captured, &facts),
            LineFormat::Template(template) => template.write_line(line, captured, &facts),
        });
        if self.is_closing.get() {
            batcher.flush();
        } else if is_first {
            self.has_lines.raise();
        }
    }

    fn random_id(&self) -> u128 {
        let mut random = self.random.borrow_mut();
        u128::from(random.next_u64()) << 64 | u128::from(random.next_u64())
    }

    fn recycle(&self, mut head: CapturedHead) {
        let mut spare = self.spare.borrow_mut();
        if spare.len() < SPARE_HEADS && head.bytes.capacity() <= SPARE_BYTES_MAX {
            head.bytes.clear();
            head.ends.clear();
            spare.push(head);
        }
    }

    /// Flushes batches, each 100 ms after its first line, as long as the worker runs.
    pub(crate) async fn run_flushes(&self) {
        loop {
            poll_fn(|cx| self.has_lines.poll(cx)).await;
            runtime::sleep(BATCH_TIME).await;
            self.has_lines.lower();
            self.http.flush();
            self.stream.flush();
        }
    }

    /// Flushes what is there, and each line that comes after it at once.
    pub(crate) fn close(&self) {
        self.is_closing.set(true);
        self.http.flush();
        self.stream.flush();
    }
}

#[cfg(test)]
mod tests;

//! The results of a run, as JSON and as text.
//!
//! Latencies are in microseconds, memory in bytes, CPU time in nanoseconds an operation. A field
//! that was not measured is absent.

use std::fmt::{self, Write as _};
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::failure::Failures;
use e2e::resources::CpuUsed;

/// Why a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stopped {
    /// The count was reached.
    Count,
    /// The time was over.
    Time,
    /// The hard limit ended it: the figures cover the operations until then.
    Limit,
}

/// Parameters of the TLS handshake.
#[derive(Clone, Debug, Serialize)]
pub struct Negotiated {
    pub version: String,
    pub suite: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// The application protocol, if the server chose one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alpn: Option<String>,
    /// Certificates that the server sent.
    pub server_chain: usize,
}

/// Percentiles in microseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Latency {
    pub min: f64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
    pub mean: f64,
}

impl Latency {
    /// Percentiles of a histogram of nanoseconds; `None` when it is empty.
    pub fn of(histogram: &Histogram<u64>) -> Option<Self> {
        let at = |quantile| micros(histogram.value_at_quantile(quantile));
        (!histogram.is_empty()).then(|| Self {
            min: micros(histogram.min()),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: micros(histogram.max()),
            mean: (histogram.mean() / 10.0).round() / 100.0,
        })
    }
}

/// CPU time of the server.
#[derive(Clone, Debug, Serialize)]
pub struct ServerCpu {
    pub pids: Vec<u32>,
    /// User and system time of all threads, divided by the successful operations.
    pub cpu_ns_per_operation: u64,
    /// CPU time over elapsed time: 1.0 is one busy core. Well below that the server waited for the
    /// load, and the figure includes falling asleep and waking, which a server at capacity does not
    /// pay.
    pub busy: f64,
    /// How often a thread was scheduled, an operation: mostly, how often it slept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeslices_per_operation: Option<f64>,
    /// The undivided reading.
    #[serde(flatten)]
    pub used: CpuUsed,
}

impl ServerCpu {
    /// Divides the CPU time by the operations.
    pub fn new(pids: &[u32], used: CpuUsed, operations: u64, elapsed: Duration) -> Self {
        let busy = used.total_ns as f64 / elapsed.as_nanos().max(1) as f64;
        let cpu_ns_per_operation = used.total_ns.checked_div(operations).unwrap_or(0);
        let timeslices_per_operation =
            used.timeslices.map(|timeslices| timeslices as f64 / operations.max(1) as f64);
        Self { pids: pids.to_vec(), cpu_ns_per_operation, busy, timeslices_per_operation, used }
    }
}

/// CPU time of the load generator.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct ClientCpu {
    /// CPU time of its thread, divided by the successful operations.
    pub cpu_ns_per_operation: u64,
    /// CPU time over elapsed time: near 1.0 the load sets the pace, not the server.
    pub busy: f64,
}

impl ClientCpu {
    /// Divides the CPU time by the operations.
    pub fn new(used_ns: u64, operations: u64, elapsed: Duration) -> Self {
        let busy = used_ns as f64 / elapsed.as_nanos().max(1) as f64;
        Self { cpu_ns_per_operation: used_ns.checked_div(operations).unwrap_or(0), busy }
    }
}

/// Figures of one run of operations.
#[derive(Clone, Debug, Serialize)]
pub struct LoadReport {
    pub mode: &'static str,
    pub address: String,
    /// SNI and `Host`.
    pub host: String,
    /// Path and query.
    pub path: String,
    /// Connections at a time.
    pub connections: usize,
    /// Of the first connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub negotiated: Option<Negotiated>,
    /// Successful operations.
    pub operations: u64,
    pub failures: Failures,
    /// Length of the measured part, in seconds.
    pub elapsed_s: f64,
    /// Successful operations a second.
    pub per_second: f64,
    pub stopped: Stopped,
    /// From the first packet to the last byte of the response, in microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency_us: Option<Latency>,
    /// TCP and TLS handshake, in microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub handshake_us: Option<Latency>,
    pub client: ClientCpu,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server: Option<ServerCpu>,
}

impl fmt::Display for LoadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} https://{}{} at {}", self.mode, self.host, self.path, self.address)?;
        if let Some(negotiated) = &self.negotiated {
            writeln!(f, "  negotiated   {negotiated}")?;
        }
        let Self { operations, connections, elapsed_s, per_second, .. } = self;
        writeln!(
            f,
            "  operations   {operations} in {elapsed_s:.2} s = {per_second:.0}/s, {connections} connections at a time"
        )?;
        if self.stopped == Stopped::Limit {
            writeln!(f, "  CUT OFF by the hard limit: less was done than asked for")?;
        }
        write_failures(f, &self.failures)?;
        if let Some(latency) = &self.latency_us {
            writeln!(f, "  latency us   {latency}")?;
        }
        if let Some(latency) = &self.handshake_us {
            writeln!(f, "  handshake us {latency}")?;
        }
        let us = |nanos: u64| nanos as f64 / 1000.0;
        let ClientCpu { cpu_ns_per_operation, busy } = self.client;
        writeln!(
            f,
            "  load's CPU   {:.1} us an operation ({:.0} % of a core)",
            us(cpu_ns_per_operation),
            busy * 100.0
        )?;
        if let Some(server) = &self.server {
            let source =
                if server.used.exact { "schedstat" } else { "clock ticks: a thread ended meanwhile" };
            let (user, busy) = (server.used.user_share * 100.0, server.busy * 100.0);
            let timeslices = server.timeslices_per_operation;
            let timeslices =
                timeslices.map(|timeslices| format!("; {timeslices:.2} time slices")).unwrap_or_default();
            writeln!(
                f,
                "  server CPU   {:.1} us an operation ({user:.0} % user; {busy:.0} % of a core{timeslices}; {source})",
                us(server.cpu_ns_per_operation)
            )?;
        }
        Ok(())
    }
}

/// Figures of one run of idle connections.
#[derive(Clone, Debug, Serialize)]
pub struct IdleReport {
    /// Connections that were open to the end.
    pub connections: u64,
    /// Connections that were opened.
    pub opened: u64,
    /// Failures while opening, and connections that the server closed.
    pub failures: Failures,
    /// Of the first connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub negotiated: Option<Negotiated>,
    /// Resident memory of the server before, in bytes.
    pub resident_before: u64,
    /// The same with the connections open.
    pub resident_after: u64,
    /// The difference, divided by the connections that were open to the end.
    pub bytes_per_connection: u64,
}

impl fmt::Display for IdleReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "idle: {} connections open, {} opened", self.connections, self.opened)?;
        if let Some(negotiated) = &self.negotiated {
            writeln!(f, "  negotiated   {negotiated}")?;
        }
        write_failures(f, &self.failures)?;
        let kib = |bytes: u64| bytes as f64 / 1024.0;
        writeln!(
            f,
            "  server RSS   {:.0} -> {:.0} KiB = {:.2} KiB a connection",
            kib(self.resident_before),
            kib(self.resident_after),
            kib(self.bytes_per_connection)
        )
    }
}

impl fmt::Display for Negotiated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.version, self.suite)?;
        if let Some(group) = &self.group {
            write!(f, " {group}")?;
        }
        write!(
            f,
            ", ALPN {}, {} server certificates",
            self.alpn.as_deref().unwrap_or("none"),
            self.server_chain
        )
    }
}

impl fmt::Display for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { min, p50, p90, p99, p999, max, mean } = self;
        write!(
            f,
            "min {min:.0}  p50 {p50:.0}  p90 {p90:.0}  p99 {p99:.0}  p99.9 {p999:.0}  max {max:.0}  mean {mean:.0}"
        )
    }
}

fn write_failures(f: &mut fmt::Formatter<'_>, failures: &Failures) -> fmt::Result {
    let mut line = String::new();
    for (kind, counted) in failures.iter() {
        write!(line, "\n    {} x {kind:?}: {}", counted.count, counted.first)?;
    }
    writeln!(f, "  failures     {}{line}", failures.total())
}

fn micros(nanos: u64) -> f64 {
    (nanos as f64 / 10.0).round() / 100.0
}

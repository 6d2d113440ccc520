//! `countersign`: the keys that APISIX does not have, typed.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::status::StatusSettings;
use super::traces::TracingSettings;

/// `countersign`: keys of our own. Paths are absolute (relative ones start at the file's folder).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CountersignSettings {
    /// `push`: the control plane's end of the push.
    pub push: PushSettings,
    /// `control_plane`
    pub control_plane: ControlPlaneSettings,
    /// `status`: the clients of listeners for operators.
    pub status: StatusSettings,
    /// `admin`
    pub admin: CountersignAdminSettings,
    /// `store`
    pub store: StoreSettings,
    /// `node`: the data plane's end of the push.
    pub node: NodeSettings,
    /// `keyring_file`: keys that precede those of `apisix.data_encryption.keyring`, one per line.
    pub keyring_file: Option<PathBuf>,
    /// `workers`, or else `nginx_config.worker_processes`: worker threads. 0: one per core.
    pub workers: usize,
    /// `preserve_header_case`: whether header names keep their case from HTTP/1 to HTTP/1.
    pub preserve_header_case: bool,
    /// `ticket_lifetime`: how long a session can be resumed after a full handshake.
    pub ticket_lifetime: Duration,
    /// `drain_delay`: from a stop signal until the listeners close.
    pub drain_delay: Duration,
    /// `drain_idle_timeout`: how long a TCP connection may be idle during shutdown.
    pub drain_idle_timeout: Duration,
    /// `tls`
    pub tls: TlsSettings,
    /// `metrics`
    pub metrics: MetricsSettings,
    /// `tracing`
    pub tracing: TracingSettings,
    /// `limits`
    pub limits: LimitSettings,
}

/// `countersign.push`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PushSettings {
    /// Where data planes dial; port 0 lets the kernel pick.
    pub listen: SocketAddr,
    /// The server's certificate chain, PEM.
    pub cert: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
    /// The CAs of the data planes' certificates, PEM.
    pub ca: PathBuf,
    /// When not empty, a data plane's certificate must carry one of these names, in addition to the
    /// node's own name.
    pub allowed_names: Vec<String>,
}

impl Default for PushSettings {
    fn default() -> Self {
        let path = PathBuf::new;
        Self { listen: super::UNSPECIFIED, cert: path(), key: path(), ca: path(), allowed_names: Vec::new() }
    }
}

/// `countersign.control_plane`
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ControlPlaneSettings {
    /// The address of `/status`, `/status/ready` and `/metrics`; port 0 lets the kernel pick.
    /// `None`: disabled.
    pub status: Option<SocketAddr>,
}

/// `countersign.admin`
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CountersignAdminSettings {
    /// Wrong admin keys of one address (over IPv6 a /64) in a minute; further ones are answered
    /// with 429. 0: no limit.
    pub wrong_keys_per_minute: u32,
}

/// `countersign.store`
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StoreSettings {
    /// The file of the embedded store.
    pub path: PathBuf,
}

/// `countersign.node`
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeSettings {
    /// Stable over restarts; the node's certificate must carry it. Defaults to the host name.
    pub name: String,
    /// `host:port` of the control planes, tried in order; at least one.
    pub control_planes: Vec<String>,
    /// The name a control plane's certificate must carry.
    pub server_name: String,
    /// The node's certificate chain, PEM.
    pub cert: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
    /// The CAs of the control planes' certificates, PEM.
    pub ca: PathBuf,
    /// The file of the last good snapshot.
    pub last_good: PathBuf,
    /// How long ago a control plane may have confirmed the served snapshot. 0: any time.
    pub last_good_max_age: Duration,
    /// How long the startup waits for a control plane before it accepts connections. 0: not at all.
    pub wait_for_control_plane: Duration,
}

/// `countersign.tls`
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TlsSettings {
    /// Whether long-lived TLS 1.3 connections move from rustls to our own record layer.
    pub own_records: bool,
}

/// `countersign.metrics`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MetricsSettings {
    /// Whether requests are counted by route.
    pub by_route: bool,
    /// Whether handshakes and requests are counted by site.
    pub by_site: bool,
    /// The most routes, and the most sites, with series of their own. 0: none has.
    pub series_max: usize,
}

/// `countersign.limits`
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LimitSettings {
    /// From accept to the end of the TLS handshake.
    pub handshake_timeout: Duration,
    /// Open client connections per worker: this key, or else
    /// `nginx_config.event.worker_connections`.
    pub connections_per_worker: usize,
    /// Concurrent requests of one client address (over IPv6 a /64) on a worker. 0: no limit.
    pub requests_per_client: usize,
    /// Open connections of a worker to one node of an upstream, for requests. 0: no limit.
    pub upstream_connections_per_node: u32,
    /// Bytes of a request line or of one header field (nginx: the size in
    /// `large_client_header_buffers`).
    pub header_line_bytes: usize,
    /// Bytes of the head of a request or response (nginx: all `large_client_header_buffers`
    /// together).
    pub header_bytes: usize,
    /// `idle_release_timeout`: idle time after which a kept-alive HTTP/1 connection releases its
    /// buffers. 0: at once.
    pub idle_release_timeout: Duration,
}

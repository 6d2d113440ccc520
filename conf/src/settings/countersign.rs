//! `countersign`: the keys that APISIX does not have, typed.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// `countersign`: keys of our own. Paths are absolute (relative ones start at the file's folder).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CountersignSettings {
    /// `push`: the control plane's end of the push.
    pub push: PushSettings,
    /// `control_plane`
    pub control_plane: ControlPlaneSettings,
    /// `store`
    pub store: StoreSettings,
    /// `node`: the data plane's end of the push.
    pub node: NodeSettings,
    /// `keyring_file`: keys that stand before those of `apisix.data_encryption.keyring`, one a
    /// line.
    pub keyring_file: Option<PathBuf>,
    /// `workers`, or else `nginx_config.worker_processes`: threads that serve. 0: one a core.
    pub workers: usize,
    /// `preserve_header_case`: whether header names keep their case between HTTP/1 and HTTP/1.
    pub preserve_header_case: bool,
    /// `ticket_lifetime`: how long a session can be resumed after a full handshake.
    pub ticket_lifetime: Duration,
    /// `drain_delay`: from a stop signal until the listeners close.
    pub drain_delay: Duration,
    /// `drain_idle_timeout`: how long a stream may be silent during a stop.
    pub drain_idle_timeout: Duration,
    /// `tls`
    pub tls: TlsSettings,
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
    /// The CAs that data planes' certificates must come from, PEM.
    pub ca: PathBuf,
    /// When not empty, a data plane's certificate must carry one of these names. Its own name it
    /// must carry anyway.
    pub allowed_names: Vec<String>,
}

impl Default for PushSettings {
    fn default() -> Self {
        let path = PathBuf::new;
        Self {
            listen: crate::reader::UNSPECIFIED,
            cert: path(),
            key: path(),
            ca: path(),
            allowed_names: Vec::new(),
        }
    }
}

/// `countersign.control_plane`
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ControlPlaneSettings {
    /// Where the control plane serves `/status`, `/status/ready` and `/metrics`; port 0 lets the
    /// kernel pick. `None`: nowhere.
    pub status: Option<SocketAddr>,
}

/// `countersign.store`
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StoreSettings {
    /// The embedded store's one file.
    pub path: PathBuf,
}

/// `countersign.node`
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeSettings {
    /// Stable over restarts; its certificate must carry it. The host's name when the file says
    /// nothing.
    pub name: String,
    /// `host:port` of the control planes, tried in turn; at least one.
    pub control_planes: Vec<String>,
    /// The name a control plane's certificate must carry.
    pub server_name: String,
    /// The node's certificate chain, PEM.
    pub cert: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
    /// The CAs that control planes' certificates must come from, PEM.
    pub ca: PathBuf,
    /// Where the last good snapshot is kept.
    pub last_good: PathBuf,
    /// How long ago a control plane may have confirmed what is served. 0: any time.
    pub last_good_max_age: Duration,
    /// How long a start waits for a control plane before connections are accepted. 0: not at all.
    pub wait_for_control_plane: Duration,
}

/// `countersign.tls`
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TlsSettings {
    /// Whether a TLS 1.3 connection that stays leaves rustls: the data plane then reads and writes
    /// its records itself.
    pub own_records: bool,
}

/// `countersign.limits`
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LimitSettings {
    /// From accept to the end of the TLS handshake.
    pub handshake_timeout: Duration,
    /// Open client connections per worker: this key, or else
    /// `nginx_config.event.worker_connections`.
    pub connections_per_worker: usize,
    /// Requests that one client address (over IPv6 a /64) may have under way on a worker. 0: no
    /// limit.
    pub requests_per_client: usize,
    /// Bytes of a request line or of one header field (nginx: the size in
    /// `large_client_header_buffers`).
    pub header_line_bytes: usize,
    /// Bytes of the head of a request or an answer (nginx: all `large_client_header_buffers`
    /// together).
    pub header_bytes: usize,
    /// Without a request, until a kept HTTP/1 connection gives its buffers back. 0: at once.
    pub idle_release_timeout: Duration,
}

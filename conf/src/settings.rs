//! The settings: typed, complete, with units in types. `reader` makes them; both planes use them.
//!
//! Names follow the file. `Debug` shows no secret.

mod admin;
mod countersign;
mod status;
mod traces;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

pub use admin::{
    AdminKey, AdminKeyValue, AdminListener, AdminRole, AdminSettings, AdminTlsSettings, ClientRole,
};
pub(crate) use countersign::{ControlPlaneSettings, CountersignAdminSettings};
pub use countersign::{
    CountersignSettings, LimitSettings, MetricsSettings, NodeSettings, PushSettings, StoreSettings,
    TlsSettings,
};
use ipnet::IpNet;
use model::TlsVersion;
pub use status::{DefaultListener, PrometheusSettings, StatusSettings, StatusTlsSettings};
use telemetry::log::AccessTarget;
pub use traces::{CollectorSettings, CollectorTlsSettings, SamplingRatio, TraceParents, TracingSettings};

use crate::changes::KeyValues;
use crate::ciphers::Ciphers;
use crate::log_format::LogFormat;
use crate::secret::Secret;

/// Placeholder for an invalid address.
pub(crate) const UNSPECIFIED: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// The settings of both planes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Settings {
    /// The file, as given.
    pub path: PathBuf,
    /// Whether the file itself has secrets, outside environment variables.
    pub has_secrets: bool,
    /// Warnings about accepted values, `file:line: key: text`; to be logged once at startup.
    pub warnings: Vec<String>,
    /// The values of all keys, to see which of them another file changes.
    pub values: KeyValues,
    /// `nginx_config.error_log` and `error_log_level`
    pub log: LogSettings,
    /// `nginx_config.http.enable_access_log`, `access_log` and its format.
    pub access_log: AccessLogSettings,
    /// The same of `nginx_config.stream`.
    pub stream_access_log: AccessLogSettings,
    /// `nginx_config.user`: whom a program that is started by root goes on as.
    pub user: Option<ProcessUser>,
    /// `deployment`
    pub deployment: DeploymentSettings,
    /// `apisix`
    pub apisix: ApisixSettings,
    /// `nginx_config.http` and other limits of `nginx_config`.
    pub http: HttpLimits,
    /// `nginx_config.http.real_ip_*`
    pub real_ip: RealIpSettings,
    /// `nginx_config.stream.real_ip_from`: the proxies whose PROXY protocol header names the client
    /// on a stream listener. Empty: none.
    pub stream_real_ip_from: Vec<IpNet>,
    /// `plugin_attr.prometheus`: the listener with APISIX's metrics. `None`: disabled.
    pub prometheus: Option<PrometheusSettings>,
    /// `countersign`: the keys that APISIX does not have.
    pub countersign: CountersignSettings,
}

/// Where the log goes, and which lines.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LogSettings {
    /// `error_log`. `None`: standard error.
    pub file: Option<PathBuf>,
    /// `error_log_level`. RUST_LOG goes before it.
    pub level: Option<tracing::Level>,
}

/// An access log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessLogSettings {
    /// `access_log`: where its lines go. Off without `enable_access_log`.
    pub target: AccessTarget,
    /// `access_log_format`. `None`: each line is a JSON object with every field.
    pub format: Option<LogFormat>,
}

impl Default for AccessLogSettings {
    fn default() -> Self {
        Self { target: AccessTarget::Off, format: None }
    }
}

/// `nginx_config.user`: a user and, after a blank, a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessUser {
    /// Its name.
    pub name: String,
    /// `None`: the group with the user's name, or else the user's own.
    pub group: Option<String>,
}

impl ProcessUser {
    /// The names, for `process::user`.
    pub fn names(&self) -> (&str, Option<&str>) {
        (&self.name, self.group.as_deref())
    }
}

/// `deployment`: the store of the resources and access to the Admin API.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DeploymentSettings {
    /// `role`
    pub role: DeploymentRole,
    /// `role_<role>.config_provider`
    pub provider: ConfigProvider,
    /// `admin`
    pub admin: AdminSettings,
    /// `etcd`; used when `provider` is `Etcd`.
    pub etcd: EtcdSettings,
}

/// `deployment.role`. Both programs accept every role; it only selects the `role_*` block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeploymentRole {
    /// `traditional`
    #[default]
    Traditional,
    /// `control_plane`
    ControlPlane,
    /// `data_plane`
    DataPlane,
}

/// The store of the control plane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ConfigProvider {
    /// `embedded`: one file, `countersign.store.path`.
    #[default]
    Embedded,
    /// `etcd`: the cluster of `deployment.etcd`.
    Etcd,
}

/// `deployment.etcd`
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EtcdSettings {
    /// `host`: URLs, at least one.
    pub hosts: Vec<String>,
    /// `prefix` of the keys, `/apisix`.
    pub prefix: String,
    /// `timeout`: connect, read and write.
    pub timeout: Duration,
    /// `watch_timeout`: one watch read.
    pub watch_timeout: Duration,
    /// `startup_retry`: tries per host at start.
    pub startup_retry: u32,
    /// `resync_delay`: pause after a failed sync.
    pub resync_delay: Duration,
    /// `health_check_timeout`: how long a failed host is not retried.
    pub health_check_timeout: Duration,
    /// `user`
    pub user: Option<String>,
    /// `password`
    pub password: Option<Secret>,
    /// `tls`
    pub tls: EtcdTlsSettings,
}

/// `deployment.etcd.tls`; paths absolute (relative ones start at the working directory).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EtcdTlsSettings {
    /// Client certificate.
    pub cert: Option<PathBuf>,
    /// Its private key; `Some` exactly when `cert` is.
    pub key: Option<PathBuf>,
    /// False accepts any server certificate.
    pub verify: bool,
    /// The name sent and checked instead of the URL's host.
    pub sni: Option<String>,
}

/// `apisix`: the listeners of the data plane and what both planes share.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ApisixSettings {
    /// `node_listen`: plain HTTP. With `enable_ipv6` each entry without `ip` gives `0.0.0.0` and
    /// `[::]` (which must then be bound IPv6-only); port 0 gives only `0.0.0.0`.
    pub node_listen: Vec<SocketAddr>,
    /// `enable_ipv6`: adds the `[::]` addresses above, so a machine without IPv6 may skip them with
    /// a warning.
    pub enable_ipv6: bool,
    /// `proxy_mode`: whether HTTP, TCP or both are proxied.
    pub proxy_mode: ProxyMode,
    /// `stream_proxy.tcp`, ranges expanded; opened only when `proxy_mode` includes streams.
    pub streams: Vec<StreamListener>,
    /// `proxy_protocol.listen_http_port` and `listen_https_port`.
    pub proxy_protocol: ProxyProtocolListen,
    /// `enable_http2`: by ALPN on TLS, by prior knowledge on plain listeners.
    pub enable_http2: bool,
    /// `ssl`
    pub ssl: SslSettings,
    /// `data_encryption.keyring`: each 16 or 32 bytes. [`Settings::keyring`] has all keys.
    pub keyring: Vec<Secret>,
    /// `status`: the address of `/status`, `/status/ready` and `/metrics`. `None`: disabled.
    pub status: Option<SocketAddr>,
    /// `enable_control`, `control`: the control API. `None`: disabled.
    pub control: Option<DefaultListener>,
    /// `enable_server_tokens`: whether `Server` names the version.
    pub server_tokens: bool,
    /// `trusted_addresses`: peers whose `X-Forwarded-*` are trusted. `None`: the file does not have
    /// the key.
    pub trusted_addresses: Option<Vec<IpNet>>,
    /// `show_upstream_status_in_response_header`: `X-APISIX-Upstream-Status` is on every proxied
    /// response, not only on failures.
    pub show_upstream_status: bool,
    /// How request paths are normalised.
    pub paths: PathSettings,
}

/// How request paths are normalised, for matching and forwarding.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PathSettings {
    /// `match_uri_encoded_slash`: `%2F` stays encoded, in the path that rules match and in the
    /// forwarded path.
    pub match_uri_encoded_slash: bool,
    /// `normalize_uri_like_servlet`: rules match paths without the `;parameters` of their segments.
    pub normalize_uri_like_servlet: bool,
    /// `delete_uri_tail_slash`: a `/` at the end of a path is removed.
    pub delete_uri_tail_slash: bool,
}

/// `apisix.proxy_mode`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ProxyMode {
    /// `http`
    #[default]
    Http,
    /// `stream`: TCP connections only; no HTTP listener is opened.
    Stream,
    /// `http&stream`
    Both,
}

impl ProxyMode {
    /// Whether HTTP is proxied.
    pub fn http(self) -> bool {
        matches!(self, Self::Http | Self::Both)
    }

    /// Whether TCP connections are proxied.
    pub fn streams(self) -> bool {
        matches!(self, Self::Stream | Self::Both)
    }
}

/// `apisix.proxy_protocol`: the HTTP listeners whose connections begin with a header of the PROXY
/// protocol. See `ApisixSettings::node_listen` about `[::]`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ProxyProtocolListen {
    /// `listen_http_port`: plain HTTP.
    pub http: Vec<SocketAddr>,
    /// `listen_https_port`; empty without `ssl.enable`.
    pub https: Vec<SocketAddr>,
}

/// A version of the PROXY protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyProtocolVersion {
    /// One line of text.
    V1,
    /// Binary.
    V2,
}

/// One address of `apisix.stream_proxy.tcp`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamListener {
    /// The address; port 0 lets the kernel pick.
    pub addr: SocketAddr,
    /// `tls`: TLS is terminated there, for the same sites as on `ssl.listen`.
    pub tls: bool,
    /// `tls_passthrough`: TLS is passed on as it is. With `tls`, the stream route decides.
    pub tls_passthrough: bool,
    /// `proxy_protocol`, else `apisix.proxy_protocol.enable_tcp_pp`: each connection begins with a
    /// header of the PROXY protocol.
    pub proxy_protocol: bool,
    /// `proxy_protocol_to_upstream`, else `apisix.proxy_protocol.enable_tcp_pp_to_upstream`: the
    /// header that the upstream gets.
    pub proxy_protocol_to_upstream: Option<ProxyProtocolVersion>,
}

/// `apisix.ssl`: the TLS listeners.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SslSettings {
    /// `enable`: false opens no TLS listener.
    pub enable: bool,
    /// `listen`; see `ApisixSettings::node_listen` about `[::]`.
    pub listen: Vec<SocketAddr>,
    /// `ssl_protocols`, ascending, at least one.
    pub protocols: Vec<TlsVersion>,
    /// `ssl_ciphers`: the suites of TLS 1.2 (and 1.1 with the BoringSSL engine) of every TLS
    /// listener, Admin API included. `None`: all supported ones.
    pub ciphers: Option<Ciphers>,
    /// `ssl_session_tickets`: whether sessions are resumed, from tickets.
    pub session_tickets: bool,
    /// `fallback_sni`: used when the ClientHello has no SNI.
    pub fallback_sni: Option<String>,
    /// `ssl_trusted_certificate`, `system` resolved. Absolute. `None`: the system has no bundle.
    pub trusted_certificate: Option<PathBuf>,
    /// `upstream_verify_default` (ours): whether the servers of upstreams without `tls.verify` are
    /// verified.
    pub upstream_verify_default: bool,
}

/// `nginx_config.http`, `nginx_config.worker_shutdown_timeout` and the snippets'
/// `proxy_ssl_verify`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HttpLimits {
    /// Reading a request's head; idle time does not count.
    pub client_header_timeout: Duration,
    /// Between two requests of a connection.
    pub keepalive_timeout: Duration,
    /// Between two reads of a request's body.
    pub client_body_timeout: Duration,
    /// Between two writes of a response.
    pub send_timeout: Duration,
    /// Bytes; 0: no limit.
    pub client_max_body_size: u64,
    /// `upstream.keepalive`: idle upstream connections kept per worker.
    pub upstream_keepalive: u32,
    /// `upstream.keepalive_requests`: requests after which an upstream connection is closed.
    pub upstream_keepalive_requests: u32,
    /// `upstream.keepalive_timeout`: how long an idle upstream connection is kept.
    pub upstream_keepalive_timeout: Duration,
    /// Time limit of a graceful shutdown.
    pub worker_shutdown_timeout: Duration,
    /// `proxy_ssl_verify on;` in a snippet of `http`, a server or a location: the servers of
    /// upstreams without `tls.verify` are verified.
    pub proxy_ssl_verify: bool,
    /// `proxy_ssl_verify_depth N;` in such a snippet.
    pub proxy_ssl_verify_depth: Option<u32>,
}

/// `nginx_config.http.real_ip_*`: the proxies in front, and their header for the client's address.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RealIpSettings {
    /// `real_ip_header`: a header's name, or `proxy_protocol`.
    pub header: String,
    /// `real_ip_from`: the proxies. Empty: no proxy is trusted, and a client's address is that of
    /// its connection.
    pub from: Vec<IpNet>,
    /// `real_ip_recursive`: takes the last address that is not a trusted proxy's, instead of the
    /// last address.
    pub recursive: bool,
}

//! The listeners for operators: status, Prometheus exporter and control API, and the clients that
//! may reach them from other machines.

use std::net::SocketAddr;
use std::path::PathBuf;

use ipnet::IpNet;

/// A listener that is open without being named in the file, as in APISIX.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DefaultListener {
    /// The address.
    pub address: SocketAddr,
    /// Whether the file has an address or port. Only then is a port in use an error.
    pub is_named: bool,
}

/// `plugin_attr.prometheus`: APISIX's metrics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrometheusSettings {
    /// `export_addr`
    pub listener: DefaultListener,
    /// `export_uri`: the path of the metrics.
    pub uri: String,
    /// `metric_prefix`: what the names of the metrics begin with.
    pub prefix: String,
}

/// `countersign.status`: the clients of a listener for operators whose address is not a loopback
/// one. Without either, no such address is accepted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StatusSettings {
    /// `allow`: their networks. `None`: all.
    pub allow: Option<Vec<IpNet>>,
    /// `tls`: mutual TLS. `None`: plain HTTP.
    pub tls: Option<StatusTlsSettings>,
}

/// `countersign.status.tls`: PEM files, paths absolute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatusTlsSettings {
    /// The server's certificate chain.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The CAs of the clients' certificates.
    pub ca: PathBuf,
}

//! Checks the data plane's half of the configuration: its certificate, its control planes, its
//! saved snapshot, its listeners, and the kernel's features.
//!
//! Connects to a control plane like a data plane: TLS with the node's certificate, up to the first
//! HTTP/2 frame. It subscribes to nothing, so a running data plane is not disturbed.

use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use std::{fs, io};

use conf::{DeploymentRole, Settings};
use mtls::{CertKeyPair, ConfiguredFileRef};
use nix::sys::resource::{Resource, getrlimit};
use pki::{ClientAuth, ClientAuthInput};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use rustls_pki_types::UnixTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::certificates::{self, CertUsage};
use crate::cli::check_report::CheckReport;
use crate::cli::{listeners, preflight};
use crate::listener_errors::ListenError;

const CERT: &str = "countersign.node.cert";
const KEY: &str = "countersign.node.key";
const CA: &str = "countersign.node.ca";
const CONTROL_PLANES: &str = "countersign.node.control_planes";
const LAST_GOOD: &str = "countersign.node.last_good";
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(3);
/// The HTTP/2 connection preface (RFC 9113 section 3.4) with empty SETTINGS.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// The smallest ring.
const RING_ENTRIES: u32 = 8;
/// Descriptors of a data plane beside those of clients and upstreams.
const FD_HEADROOM: u64 = 64;

pub(super) async fn check(settings: &Settings, now: UnixTime, report: &mut CheckReport) {
    let node = &settings.countersign.node;
    let has_files = [&node.cert, &node.key, &node.ca].into_iter().any(|path| path.exists());
    if settings.deployment.role == DeploymentRole::ControlPlane || !has_files {
        let reason = if has_files {
            "deployment.role is control_plane"
        } else {
            "none of its files is on this machine"
        };
        return report
            .unknown("countersign.node", format!("{reason}: the data plane's half is not looked at"));
    }
    let pair = check_certificate(settings, now, report);
    let ca = ConfiguredFileRef { setting: CA, path: &node.ca };
    preflight::check_ca_bundle(ca, report);
    certificates::check_authorities(ca, now, report);
    if let Some(config) = pair.and_then(|pair| client_config(settings, &pair)) {
        let config = Arc::new(config);
        let exchange = node
            .control_planes
            .iter()
            .map(|address| check_control_plane(settings, address, Arc::clone(&config)));
        for results in futures_util::future::join_all(exchange).await {
            report.append(results);
        }
    }
    check_last_good(settings, report);
    check_listeners(settings, report).await;
    check_io_uring(report);
    check_fd_limit(settings, report);
}

/// Checks pair, dates, usage and names, and verifies the certificate like the control planes of
/// this machine.
fn check_certificate(settings: &Settings, now: UnixTime, report: &mut CheckReport) -> Option<CertKeyPair> {
    let node = &settings.countersign.node;
    let (cert, key) = (
        ConfiguredFileRef { setting: CERT, path: &node.cert },
        ConfiguredFileRef { setting: KEY, path: &node.key },
    );
    let pair = match CertKeyPair::read(cert, key) {
        Ok(pair) => pair,
        Err(error) => {
            report.fail(error.setting, preflight::file_problem(&error), "");
            return None;
        }
    };
    preflight::check_expiry(cert, &pair.leaf, now, report);
    certificates::check_pair(cert, key, CertUsage::Client, now, report);
    let names = pair.leaf.dns_names();
    if names.iter().any(|name| name.eq_ignore_ascii_case(&node.name)) {
        report.ok("countersign.node.name", format!("{:?} is among the names of its certificate", node.name));
    } else {
        let text =
            format!("{:?} is not among the names of its certificate ({})", node.name, names.join(", "));
        report.fail(
            "countersign.node.name",
            text,
            "set the name, or issue a certificate with it: control planes reject this node",
        );
    }
    let ca = ConfiguredFileRef { setting: "countersign.push.ca", path: &settings.countersign.push.ca }
        .read_certificates();
    // Another machine may have the control plane's file.
    let policy = ca.ok().and_then(|anchors| {
        ClientAuth::new(ClientAuthInput { anchors, depth: 6, ..Default::default() }).ok()
    });
    if let Some(policy) = policy {
        let intermediates: Vec<_> = pair.chain.iter().skip(1).map(|one| one.der().clone()).collect();
        match pki::verify_client(&policy, pair.leaf.der(), &intermediates, now) {
            Ok(_) => report.ok(CERT, "control planes accept it by countersign.push.ca"),
            Err(error) => report.warn(
                CERT,
                format!(
                    "control planes reject it by {} (countersign.push.ca): {error}",
                    settings.countersign.push.ca.display()
                ),
                "issue it by that CA, or give control planes the CA that issued it",
            ),
        }
    }
    Some(pair)
}

/// The TLS configuration of the push client.
fn client_config(settings: &Settings, pair: &CertKeyPair) -> Option<ClientConfig> {
    let anchors =
        ConfiguredFileRef { setting: CA, path: &settings.countersign.node.ca }.read_certificates().ok()?;
    let mut roots = rustls::RootCertStore::empty();
    for anchor in anchors {
        roots.add(anchor.der().clone()).ok()?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let certified = pair.to_certified_key(&provider).ok()?;
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .ok()?
        .with_root_certificates(roots)
        .with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(certified)));
    config.alpn_protocols = vec![b"h2".to_vec()];
    Some(config)
}

async fn check_control_plane(settings: &Settings, address: &str, config: Arc<ClientConfig>) -> CheckReport {
    let mut report = CheckReport::default();
    match tokio::time::timeout(RESPONSE_TIMEOUT, http2_handshake(&settings.countersign.node.server_name, address, config)).await {
        Ok(Ok(())) => report.ok(CONTROL_PLANES, format!("{address}: it is {:?}, and accepts this node", settings.countersign.node.server_name)),
        Ok(Err(HandshakeError::Unreachable(error))) => report.unknown(
            CONTROL_PLANES,
            format!(
                "{address}: cannot be reached: {error}; start it, or correct the address. Until one responds, data planes serve the last \
                 good snapshot"
            ),
        ),
        Ok(Err(HandshakeError::Rejected(error))) => report.fail(
            CONTROL_PLANES,
            format!("{address}: TLS: {error}"),
            "countersign.node.cert must come from the control plane's push.ca, its push.cert from countersign.node.ca, for countersign.node.server_name",
        ),
        Err(_) => report.warn(CONTROL_PLANES, format!("{address}: no response within {} s", RESPONSE_TIMEOUT.as_secs()), ""),
    }
    report
}

enum HandshakeError {
    Unreachable(io::Error),
    Rejected(io::Error),
}

/// TLS and the first frame: TLS 1.3 reports a rejected client certificate only on the first read.
async fn http2_handshake(name: &str, address: &str, config: Arc<ClientConfig>) -> Result<(), HandshakeError> {
    let name = ServerName::try_from(name.to_owned())
        .map_err(|error| HandshakeError::Rejected(io::Error::other(error)))?;
    let stream = TcpStream::connect(address).await.map_err(HandshakeError::Unreachable)?;
    let mut stream =
        TlsConnector::from(config).connect(name, stream).await.map_err(HandshakeError::Rejected)?;
    stream.write_all(PREFACE).await.map_err(HandshakeError::Rejected)?;
    match stream.read(&mut [0; 64]).await {
        Ok(0) => Err(HandshakeError::Rejected(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "it ended the connection",
        ))),
        Ok(_) => Ok(()),
        Err(error) => Err(HandshakeError::Rejected(error)),
    }
}

/// Checks that the last good snapshot exists, and reports its age. Only a data plane reads it.
fn check_last_good(settings: &Settings, report: &mut CheckReport) {
    let path = &settings.countersign.node.last_good;
    let display = path.display();
    let meta = match fs::metadata(path) {
        Ok(meta) => meta,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let text =
                format!("{display} is not there yet: until a control plane has responded, nothing is served");
            return report.ok(LAST_GOOD, text);
        }
        Err(error) => {
            return report.fail(
                LAST_GOOD,
                format!("{display}: {error}"),
                "let the data plane's user read and write it",
            );
        }
    };
    if !meta.is_file() || meta.len() == 0 {
        return report.fail(
            LAST_GOOD,
            format!("{display} is no snapshot"),
            "remove it, or name another file",
        );
    }
    let written =
        meta.modified().ok().and_then(|at| SystemTime::now().duration_since(at).ok()).unwrap_or_default();
    let text = format!("{display}: {} bytes, written {} ago", meta.len(), age(written));
    if meta.permissions().mode() & 0o077 == 0 {
        report.ok(LAST_GOOD, text);
    } else {
        report.warn(LAST_GOOD, format!("{text}; other users can read it"), "chmod go= the file");
    }
}

/// In the largest fitting unit.
fn age(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} minutes", seconds / 60),
        7_200..172_800 => format!("{} hours", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// Checks each listener: free, or used by a data plane that responds on its status listener.
async fn check_listeners(settings: &Settings, report: &mut CheckReport) {
    let data_plane_runs = data_plane_responds(settings).await;
    for (key, address) in configured_listeners(settings) {
        // The kernel picks a port.
        if address.port() == 0 {
            continue;
        }
        match TcpListener::bind(address) {
            Ok(_) => report.ok(key, format!("{address} is free")),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => match data_plane_runs {
                Some(true) => {
                    report.ok(key, format!("{address}: in use, and a data plane responds at apisix.status"))
                }
                None => report.unknown(
                    key,
                    format!("{address}: in use; without apisix.status it is unknown whether by a data plane"),
                ),
                Some(false) => report.fail(key, ListenError::new(key, address, error), ""),
            },
            // `enable_ipv6` adds this address; a machine without IPv6 runs without it.
            Err(error) if address.is_ipv6() && error.kind() == io::ErrorKind::AddrNotAvailable => {
                report.ok(key, format!("{address} is left out: {error}"));
            }
            Err(error) => report.fail(key, ListenError::new(key, address, error), ""),
        }
    }
}

/// The data plane's listeners by their settings.
fn configured_listeners(settings: &Settings) -> Vec<(&'static str, SocketAddr)> {
    let apisix = &settings.apisix;
    let mut all: Vec<_> = apisix.status.map(|address| (conf::STATUS, address)).into_iter().collect();
    let prometheus = settings.prometheus.as_ref().map(|prometheus| (conf::PROMETHEUS, prometheus.listener));
    let defaults = [apisix.control.map(|listener| (conf::CONTROL, listener)), prometheus];
    // The others are left out where their ports are in use.
    let named = defaults.into_iter().flatten().filter(|(_, listener)| listener.is_named);
    all.extend(named.map(|(key, listener)| (key, listener.address)));
    if apisix.proxy_mode.http() {
        all.extend(apisix.node_listen.iter().map(|address| ("apisix.node_listen", *address)));
        let https = apisix.ssl.listen.iter().filter(|_| apisix.ssl.enable);
        all.extend(https.map(|address| ("apisix.ssl.listen", *address)));
    }
    if apisix.proxy_mode.streams() {
        all.extend(apisix.streams.iter().map(|listener| ("apisix.stream_proxy.tcp", listener.addr)));
    }
    all
}

/// Whether a data plane responds at `apisix.status`; `None` if that is not configured.
async fn data_plane_responds(settings: &Settings) -> Option<bool> {
    let address = settings.apisix.status.filter(|address| address.port() != 0)?;
    let exchange = async {
        let mut stream = TcpStream::connect(listeners::dialable(address)).await?;
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").await?;
        let mut response = Vec::new();
        stream.take(1 << 20).read_to_end(&mut response).await?;
        io::Result::Ok(String::from_utf8_lossy(&response).contains("countersign_"))
    };
    Some(matches!(tokio::time::timeout(RESPONSE_TIMEOUT, exchange).await, Ok(Ok(true))))
}

fn check_io_uring(report: &mut CheckReport) {
    match io_uring::IoUring::new(RING_ENTRIES) {
        Ok(_) => report.ok("io_uring", "available"),
        Err(error) => report.warn(
            "io_uring",
            format!("not available here: {error}; a data plane runs on epoll instead, which costs more CPU"),
            "allow it: sysctl kernel.io_uring_disabled, the seccomp profile of the container",
        ),
    }
}

/// Checks that the allowed clients, each with an upstream connection, fit into the hard limit.
fn check_fd_limit(settings: &Settings, report: &mut CheckReport) {
    const WHAT: &str = "limit of open files";
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return report.unknown(WHAT, "the kernel does not tell it");
    };
    let workers = match settings.countersign.workers {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        some => some,
    };
    let clients = (workers as u64).saturating_mul(settings.countersign.limits.connections_per_worker as u64);
    let text = format!("{soft}, at most {hard}");
    if hard >= clients.saturating_mul(2).saturating_add(FD_HEADROOM) {
        report.ok(WHAT, text);
    } else {
        report.warn(
            WHAT,
            format!("{text}: {clients} clients, which the settings allow, need about {}", clients.saturating_mul(2)),
            "raise it for the data plane (LimitNOFILE=, ulimit -Hn), or lower countersign.limits.connections_per_worker",
        );
    }
}

//! Checks the listeners: free, or used by a control plane with the configured certificate, or by
//! another process.
//!
//! A handshake up to the server's certificate identifies the owner of a port. The server has proved
//! possession of the key by then, so an equal certificate means a control plane of this
//! configuration.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use conf::Settings;
use mtls::ConfiguredFileRef;
use pki::Certificate;
use process::control_socket::ControlRequest;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::cli::check_report::CheckReport;
use crate::listener_errors::ListenError;
use crate::server;
use crate::server::status;
use crate::store::etcd::dial;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// How long a running control plane may take to answer.
const PID_MAX: Duration = Duration::from_secs(10);

/// A listener of the settings.
struct ConfiguredListener<'a> {
    setting: &'static str,
    address: SocketAddr,
    /// Its certificate's file; `None`: plain HTTP.
    certificate: Option<&'a Path>,
}

/// The listeners of a control plane.
fn configured_listeners(settings: &Settings) -> Vec<ConfiguredListener<'_>> {
    let (admin, push) = (&settings.deployment.admin, &settings.countersign.push);
    let of_admin = admin.listeners.iter().filter(|_| admin.enabled).map(|listener| ConfiguredListener {
        setting: conf::ADMIN_LISTEN,
        address: listener.address,
        certificate: listener.tls.as_ref().map(|tls| tls.cert.as_path()),
    });
    let push = ConfiguredListener {
        setting: "countersign.push.listen",
        address: push.listen,
        certificate: Some(&push.cert),
    };
    let status = settings.countersign.control_plane.status;
    let status =
        status.map(|address| ConfiguredListener { setting: status::STATUS_KEY, address, certificate: None });
    of_admin.chain([push]).chain(status).collect()
}

/// Whether a control plane answers at the control socket of this configuration.
pub(crate) async fn is_running(settings: &Settings) -> bool {
    let config = settings.path.clone();
    let ask = move || server::TARGET.ask(&config, None, ControlRequest::Pid, PID_MAX);
    tokio::task::spawn_blocking(ask).await.is_ok_and(|answer| answer.is_ok())
}

/// Checks that no program listens where the control plane will.
pub(crate) fn check_free(settings: &Settings, report: &mut CheckReport) {
    for ConfiguredListener { setting, address, .. } in configured_listeners(settings) {
        if let Err(error) = TcpListener::bind(address) {
            report.fail(setting, ListenError::new(setting, address, error), "");
        }
    }
}

/// Checks the listeners beside a control plane that may run; `running`: one answers at the control
/// socket. Returns whether one of this configuration runs.
pub(crate) async fn check(settings: &Settings, mut running: bool, report: &mut CheckReport) -> bool {
    let (tls, plain): (Vec<_>, Vec<_>) =
        configured_listeners(settings).into_iter().partition(|listener| listener.certificate.is_some());
    for ConfiguredListener { setting, address, certificate } in tls.into_iter().chain(plain) {
        // Plain HTTP, bound by the same process as the others.
        if certificate.is_none() && running && is_in_use(address) {
            report.ok(setting, format!("{address} is in use by the control plane that runs"));
            continue;
        }
        let configured = certificate.and_then(|path| {
            ConfiguredFileRef { setting, path }.read_certificates().ok()?.into_iter().next()
        });
        running |= check_listener(setting, address, configured.as_ref(), report).await;
    }
    running
}

fn is_in_use(address: SocketAddr) -> bool {
    TcpListener::bind(address).is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse)
}

async fn check_listener(
    key: &'static str,
    address: SocketAddr,
    configured: Option<&Certificate>,
    report: &mut CheckReport,
) -> bool {
    let error = match TcpListener::bind(address) {
        Ok(_) => {
            report.ok(key, format!("{address} is free"));
            return false;
        }
        Err(error) => ListenError::new(key, address, error),
    };
    if !error.is_in_use() {
        report.fail(key, error, "");
        return false;
    }
    let presented =
        tokio::time::timeout(CONNECT_TIMEOUT, presented_certificate(address)).await.ok().flatten();
    match (presented, configured) {
        (Some(presented), Some(configured)) if presented == *configured => {
            report
                .ok(key, format!("{address}: a control plane with this configuration's certificate listens"));
            true
        }
        (Some(presented), Some(_)) => {
            let message = format!(
                "{address}: a program listens with another certificate than the file holds now: `{}`, issued by `{}`",
                presented.subject(),
                presented.issuer()
            );
            report.warn(
                key,
                message,
                "if it is the control plane, its log says why it does not use the file; else stop it",
            );
            false
        }
        (None, None) => {
            report.unknown(
                key,
                format!("{address}: a program listens without TLS; it may be the control plane"),
            );
            false
        }
        _ => {
            report.fail(key, error, "");
            false
        }
    }
}

/// The address to connect to; a wildcard becomes the loopback.
pub(crate) fn dialable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// The certificate of the process that listens at the address, with proof of its key; `None`
/// without TLS or a response.
async fn presented_certificate(address: SocketAddr) -> Option<Certificate> {
    let address = dialable(address);
    let mut config = dial::unverified_config().ok()?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let stream = TcpStream::connect(address).await.ok()?;
    // A server that requires a client certificate closes the connection after this side of the
    // handshake is complete.
    let handshake =
        TlsConnector::from(Arc::new(config)).connect(ServerName::IpAddress(address.ip().into()), stream);
    let stream = handshake.await.ok()?;
    let presented = stream.get_ref().1.peer_certificates()?.first()?;
    Certificate::from_der(presented).ok()
}

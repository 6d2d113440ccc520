//! Turns the settings file into the configuration of the workers. Every error of the file's content
//! that concerns a data plane is found here, before anything listens.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use conf::Settings;
use model::{HostName, KeepalivePool, PathOptions, RealIp, TlsVersion, VerifyPolicy};
use pki::TrustAnchors;
use process::bounded_read;

use crate::http::head::HeadLimits;
use crate::io::timeouts::ClientTimeouts;
use crate::proxy::worker::WorkerConfig;
use crate::reporting::access_log::{AccessLogConfig, AccessLogConfigs};
use crate::reporting::trace::TraceSettings;
use crate::runtime::descriptors::ConnectionLimits;
use crate::tls::record::RecordLayerKind;
use crate::upstream::client_tls::TrustDefaults;

const ACCESS_LOG: &str = "nginx_config.http.access_log";
const STREAM_ACCESS_LOG: &str = "nginx_config.stream.access_log";

/// A setting is invalid for this data plane.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    #[error("apisix.ssl.ssl_trusted_certificate: {path}: {problem}")]
    TrustedCertificate { path: PathBuf, problem: String },
    #[error("apisix.ssl.fallback_sni: {0:?} is not a host name")]
    FallbackSni(String),
    /// An access log cannot be opened.
    #[error("{key}: {error}")]
    AccessLog {
        /// Its key.
        key: &'static str,
        /// Why not.
        error: telemetry::log::LogFileError,
    },
    /// Only TLSv1.1 is left, which rustls does not implement.
    #[error(
        "apisix.ssl.ssl_protocols: TLSv1.1 alone cannot be served by this build: add TLSv1.2 or TLSv1.3, or build \
         with the feature engine-boring"
    )]
    SslProtocols,
}

/// The configuration of the workers, before the limit on descriptors is known.
///
/// # Errors
/// [`SettingsError`].
pub fn worker_config(settings: &Settings) -> Result<WorkerConfig, SettingsError> {
    let (http, limits) = (&settings.http, &settings.countersign.limits);
    let tracing = &settings.countersign.tracing;
    let fallback_sni = match &settings.apisix.ssl.fallback_sni {
        Some(text) => Some(HostName::from_sni(text).ok_or_else(|| SettingsError::FallbackSni(text.clone()))?),
        None => None,
    };
    let conf::RealIpSettings { header, from, recursive } = &settings.real_ip;
    Ok(WorkerConfig {
        client_timeouts: ClientTimeouts {
            handshake: limits.handshake_timeout,
            head: http.client_header_timeout,
            idle: http.keepalive_timeout,
            send: http.send_timeout,
        },
        body_timeout: http.client_body_timeout,
        body_max: http.client_max_body_size,
        head_limits: HeadLimits { line: limits.header_line_bytes, head: limits.header_bytes },
        preserve_header_case: settings.countersign.preserve_header_case,
        idle_release_timeout: limits.idle_release_timeout,
        connection_limits: ConnectionLimits { clients: limits.connections_per_worker, upstreams: usize::MAX },
        requests_per_client: limits.requests_per_client,
        http2: settings.apisix.enable_http2,
        fallback_sni,
        server_tokens: settings.apisix.server_tokens,
        path_options: PathOptions {
            match_uri_encoded_slash: settings.apisix.paths.match_uri_encoded_slash,
            normalize_uri_like_servlet: settings.apisix.paths.normalize_uri_like_servlet,
            delete_uri_tail_slash: settings.apisix.paths.delete_uri_tail_slash,
        },
        trusted_addresses: settings.apisix.trusted_addresses.clone(),
        real_ip: RealIp::new(header, from, *recursive),
        stream_real_ip_from: settings.stream_real_ip_from.clone(),
        show_upstream_status: settings.apisix.show_upstream_status,
        upstream_keepalive: KeepalivePool {
            size: http.upstream_keepalive,
            idle_timeout: http.upstream_keepalive_timeout,
            requests: http.upstream_keepalive_requests,
            max_connections: None,
        },
        upstream_connections_per_node: match limits.upstream_connections_per_node {
            0 => u32::MAX,
            limit => limit,
        },
        shutdown_timeout: if http.worker_shutdown_timeout.is_zero() {
            Duration::MAX
        } else {
            http.worker_shutdown_timeout
        },
        drain_idle_timeout: settings.countersign.drain_idle_timeout,
        tracing: tracing
            .collector
            .as_ref()
            .map(|_| TraceSettings { ratio: tracing.sampling_ratio, parents: tracing.parents }),
        access_logs: access_logs(settings),
    })
}

/// The formats of the access logs, whose sinks are opened by [`open_access_logs`].
fn access_logs(settings: &Settings) -> AccessLogConfigs {
    let log = |settings: &conf::AccessLogSettings| AccessLogConfig {
        sink: None,
        format: settings.format.clone().map(Arc::new),
    };
    AccessLogConfigs { http: log(&settings.access_log), stream: log(&settings.stream_access_log) }
}

/// Opens the access logs at their targets, or switches them to other targets.
///
/// # Errors
/// [`SettingsError::AccessLog`].
pub(crate) fn open_access_logs(
    settings: &Settings,
    logs: &mut AccessLogConfigs,
) -> Result<(), SettingsError> {
    for (log, name, key, settings) in [
        (&mut logs.http, "access", ACCESS_LOG, &settings.access_log),
        (&mut logs.stream, "stream", STREAM_ACCESS_LOG, &settings.stream_access_log),
    ] {
        let opened = telemetry::log::open_access(name, &settings.target);
        log.sink = Some(opened.map_err(|error| SettingsError::AccessLog { key, error })?);
    }
    Ok(())
}

/// Checks that the access logs could be opened, without making a file.
///
/// # Errors
/// [`SettingsError::AccessLog`].
pub(crate) fn check_access_logs(settings: &Settings) -> Result<(), SettingsError> {
    for (key, settings) in
        [(ACCESS_LOG, &settings.access_log), (STREAM_ACCESS_LOG, &settings.stream_access_log)]
    {
        telemetry::log::check_access(&settings.target)
            .map_err(|error| SettingsError::AccessLog { key, error })?;
    }
    Ok(())
}

/// `countersign.tls.own_records`.
pub fn record_layer(settings: &Settings) -> RecordLayerKind {
    if settings.countersign.tls.own_records { RecordLayerKind::Own } else { RecordLayerKind::Rustls }
}

/// The TLS versions of sites without `ssl_protocols`.
///
/// # Errors
/// [`SettingsError::SslProtocols`].
pub(crate) fn tls_versions(settings: &Settings) -> Result<Vec<TlsVersion>, SettingsError> {
    let protocols = settings.apisix.ssl.protocols.iter().copied();
    let versions: Vec<TlsVersion> = protocols.filter(|version| version.is_served()).collect();
    if versions.is_empty() { Err(SettingsError::SslProtocols) } else { Ok(versions) }
}

/// Mozilla's whole bundle has 220 KB.
const BUNDLE_BYTES_MAX: u64 = 4 << 20;

/// How the servers of upstreams are verified that do not say so themselves.
///
/// # Errors
/// [`SettingsError::TrustedCertificate`].
pub(crate) fn upstream_trust(settings: &Settings) -> Result<TrustDefaults, SettingsError> {
    Ok(TrustDefaults {
        anchors: upstream_anchors(settings)?,
        verify: VerifyPolicy::of_settings(
            settings.http.proxy_ssl_verify,
            settings.apisix.ssl.upstream_verify_default,
        ),
        depth: settings.http.proxy_ssl_verify_depth,
    })
}

/// A machine may have no bundle: then every verified upstream without `tls.ca_certs` is rejected.
fn upstream_anchors(settings: &Settings) -> Result<Option<Arc<TrustAnchors>>, SettingsError> {
    let Some(path) = &settings.apisix.ssl.trusted_certificate else { return Ok(None) };
    let invalid = |problem: String| SettingsError::TrustedCertificate { path: path.clone(), problem };
    let text =
        bounded_read::read_regular(path, BUNDLE_BYTES_MAX).map_err(|error| invalid(error.to_string()))?;
    let certificates = pki::certificates_from_pem(&text).map_err(|error| invalid(error.to_string()))?;
    let anchors = TrustAnchors::new(certificates).map_err(|error| invalid(error.to_string()))?;
    Ok(Some(Arc::new(anchors)))
}

//! From the settings file to what the workers run by. All that can be wrong with the file's meaning
//! for a data plane is found here, before anything listens.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use conf::Settings;
use model::{HostName, KeepalivePool, PathOptions, RealIp, TlsVersion};
use pki::TrustAnchors;
use process::bounded_read;

use crate::http::head;
use crate::io::timeouts::ClientTimeouts;
use crate::proxy::worker::WorkerConfig;
use crate::runtime::descriptors::ConnectionLimits;
use crate::tls::record::traffic_secrets::RecordLayerKind;

/// A setting this data plane cannot run by.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// Upstreams are to be verified, and there is nothing to verify them with.
    #[error("apisix.ssl.ssl_trusted_certificate: {path}: {problem}")]
    TrustedCertificate {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The fallback name is no name.
    #[error("apisix.ssl.fallback_sni: {0:?} is not a host name")]
    FallbackSni(String),
    /// Only TLSv1.1 is left, which this engine does not speak.
    #[error(
        "apisix.ssl.ssl_protocols: TLSv1.1 alone cannot be served by this build: add TLSv1.2 or TLSv1.3, or build \
         with the feature engine-boring"
    )]
    SslProtocols,
}

/// What connections are served by, before the limit on descriptors is known.
///
/// # Errors
/// [`SettingsError`].
pub fn worker_config(settings: &Settings) -> Result<WorkerConfig, SettingsError> {
    let (http, limits) = (&settings.http, &settings.countersign.limits);
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
        head_limits: head::HeadLimits { line: limits.header_line_bytes, head: limits.header_bytes },
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
        show_upstream_status: settings.apisix.show_upstream_status,
        upstream_keepalive: KeepalivePool {
            size: http.upstream_keepalive,
            idle_timeout: http.upstream_keepalive_timeout,
            requests: http.upstream_keepalive_requests,
        },
        shutdown_timeout: if http.worker_shutdown_timeout.is_zero() {
            Duration::MAX
        } else {
            http.worker_shutdown_timeout
        },
        drain_idle_timeout: settings.countersign.drain_idle_timeout,
    })
}

/// `countersign.tls.own_records`.
pub fn record_layer(settings: &Settings) -> RecordLayerKind {
    if settings.countersign.tls.own_records { RecordLayerKind::Own } else { RecordLayerKind::Rustls }
}

/// The versions of sites that name none themselves.
///
/// # Errors
/// [`SettingsError::Protocols`].
pub fn tls_versions(settings: &Settings) -> Result<Vec<TlsVersion>, SettingsError> {
    let protocols = settings.apisix.ssl.protocols.iter().copied();
    let versions: Vec<TlsVersion> = protocols.filter(|version| version.is_served()).collect();
    if versions.is_empty() { Err(SettingsError::SslProtocols) } else { Ok(versions) }
}

/// Mozilla's whole bundle has 220 KB.
const TRUST_BYTES_MAX: u64 = 4 << 20;

/// Whom upstreams must be signed by where they are verified. A machine's own bundle may be absent:
/// then verified upstreams are refused, which is the safe side.
///
/// # Errors
/// [`SettingsError::Trust`].
pub fn upstream_anchors(settings: &Settings) -> Result<Option<Arc<TrustAnchors>>, SettingsError> {
    let Some(path) = &settings.apisix.ssl.trusted_certificate else { return Ok(None) };
    let wrong = |problem: String| SettingsError::TrustedCertificate { path: path.clone(), problem };
    let text = bounded_read::read_regular(path, TRUST_BYTES_MAX).map_err(|error| wrong(error.to_string()))?;
    let certificates = pki::certificates_from_pem(&text).map_err(|error| wrong(error.to_string()))?;
    let anchors = TrustAnchors::new(certificates).map_err(|error| wrong(error.to_string()))?;
    Ok(Some(Arc::new(anchors)))
}

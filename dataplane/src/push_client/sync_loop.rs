//! Connects to the control planes in the order of `endpoint_rotation` and runs one session after
//! the other; each resumes by difference.
//!
//! Invariant: the log has every failure once per control plane and kind, not per try, with advice.

use std::time::{Duration, Instant};

use mtls::CertificateMonitor;
use tokio::sync::watch;
use tonic::transport::Endpoint;

use super::PushClientError;
use super::applier::Applier;
use super::connector::Connector;
use super::diagnostics::Diagnostics;
use super::endpoint_rotation::{EndpointRotation, SessionOutcome};
use super::files::TlsFiles;
use super::session::{NodeInfo, SessionEnd, run_session};

/// TCP and TLS. The same time as for a control plane that stops answering.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// After this time without a frame the control plane is sent a PING, and the connection ends when
/// no answer arrives within [`KEEPALIVE_TIMEOUT`]: a half-open connection ends within three
/// seconds. The thread must not be busy for as long as the timeout without reading the connection,
/// or it would take its own pause for the control plane's: `session` reads between two chunks of a
/// delta, each of which is compiled in a fraction of that.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(1);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(2);
/// HTTP/2 windows: ten thousand certificates must not wait for a window update every 64 KiB.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;

/// One entry of `countersign.node.control_planes`.
pub(super) struct ControlPlane {
    /// `host:port`
    address: String,
    endpoint: Endpoint,
    connector: Connector,
    last_logged_error: Option<String>,
}

pub(super) struct SyncLoop {
    pub endpoints: Vec<ControlPlane>,
    pub diagnostics: Diagnostics,
    pub applier: Applier,
    pub node_info: NodeInfo,
    /// The certificate files of the node, which are checked for changes as long as the loop runs.
    pub certificates: CertificateMonitor,
    /// Counts SIGHUPs.
    pub reload: watch::Receiver<u64>,
}

/// Prepares mutual TLS towards each control plane.
pub(super) fn prepare_endpoints(
    settings: &conf::NodeSettings,
    tls_files: &TlsFiles,
) -> Result<Vec<ControlPlane>, PushClientError> {
    let prepare = |address: &String| {
        let invalid = |problem: String| PushClientError::Setting {
            field: "countersign.node.control_planes",
            problem: format!("{address:?}: {problem}"),
        };
        let origin = format!("https://{address}").parse().map_err(|error| invalid(format!("{error}")))?;
        // `http`: for `https` tonic would start TLS itself, which is the connector's task.
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|error| invalid(source(&error)))?
            .origin(origin)
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW);
        let connector = Connector::new(address, settings, &tls_files.files)?;
        Ok(ControlPlane { address: address.clone(), endpoint, connector, last_logged_error: None })
    };
    settings.control_planes.iter().map(prepare).collect()
}

/// tonic's own text says only that a transport failed.
fn source(error: &tonic::transport::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}

impl SyncLoop {
    /// Never ends by itself.
    pub(crate) async fn run(self) {
        let reloads = self.certificates.clone().run(self.reload.clone());
        tokio::select! {
            () = self.run_sessions() => {}
            () = reloads => {}
        }
    }

    async fn run_sessions(mut self) {
        let mut rotation = EndpointRotation::new(self.endpoints.len());
        loop {
            let outcome = self.run_session_with(rotation.next()).await;
            let pause = rotation.record(outcome);
            if !pause.is_zero() {
                // Jittered, so that a thousand nodes do not reconnect in the same moment.
                tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
            }
        }
    }

    async fn run_session_with(&mut self, index: usize) -> SessionOutcome {
        let Self { endpoints, diagnostics, applier, node_info, .. } = self;
        let alone = endpoints.len() == 1;
        // The settings name at least one control plane.
        let Some(plane) = endpoints.get_mut(index) else { return SessionOutcome::Failed };
        let mut welcomed_at = None;
        let connector = plane.connector.clone();
        let file_changes = connector.file_changes();
        let end = match plane.endpoint.connect_with_connector(connector.clone()).await {
            Err(error) => SessionEnd::Unreachable(error),
            Ok(channel) => {
                let (address, last_logged_error) = (plane.address.as_str(), &mut plane.last_logged_error);
                let on_welcome = |applier: &Applier| {
                    tracing::info!(control_plane = address, "connected");
                    applier.status().set_connected(address);
                    if let Some(warning) = connector.previous_certificate_warning() {
                        tracing::warn!("{warning}");
                        applier.status().set_last_error(warning);
                    }
                    *last_logged_error = None;
                    welcomed_at = Some(Instant::now());
                };
                tokio::select! {
                    end = run_session(channel, node_info, applier, alone, on_welcome) => end,
                    error = connector.wait_until_peer_invalid() => SessionEnd::PeerCertificate(error),
                    () = connector.wait_for_renewal(file_changes) => SessionEnd::Renewed,
                }
            }
        };
        connector.record_session(welcomed_at.is_some());
        applier.status().set_disconnected();
        if matches!(end, SessionEnd::Renewed) {
            tracing::info!(control_plane = plane.address, "reconnecting with the renewed certificate");
            return SessionOutcome::Renewed;
        }
        let error = diagnostics.describe(&plane.address, &end);
        applier.status().set_last_error(error.clone());
        if plane.last_logged_error.as_ref() == Some(&error) {
            tracing::debug!("{error}");
        } else {
            let served = match applier.status().revision() {
                0 => "there is no snapshot yet, so nothing is served".to_owned(),
                revision => format!("serving the snapshot this node has, revision {revision}"),
            };
            tracing::warn!("{error}; {served}; trying again");
            plane.last_logged_error = Some(error);
        }
        if matches!(end, SessionEnd::Held) {
            // Its length would make it a success, and a round of such sessions must not have the
            // node reconnect without pauses.
            SessionOutcome::Failed
        } else if end.is_stale() {
            SessionOutcome::Stale
        } else if end.is_connection_refused() {
            SessionOutcome::ConnectionRefused
        } else {
            EndpointRotation::classify(welcomed_at.map(|at| at.elapsed()))
        }
    }
}

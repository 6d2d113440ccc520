//! Dials the control planes as `turns` says, and goes through one session after the other; each
//! resumes by difference.
//!
//! Invariant: every failure is told once per control plane and kind, not per try, and with what to
//! do about it.

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

/// TCP and TLS. A control plane that accepts and does not answer is left as soon as one that stops
/// to answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// After this time without a frame the control plane is sent a PING, and the connection ends when
/// no answer comes in
/// [`KEEPALIVE_TIMEOUT`]: a half-open connection ends within three seconds. The agent's thread must not be busy for as long
/// as the timeout without reading the connection, or it would take its own pause for the control
/// plane's: it reads between two chunks of a delta (`stream`), each of which is compiled in a
/// fraction of that.
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
    /// The failure that the log knows of.
    last_logged_error: Option<String>,
}

pub(super) struct SyncLoop {
    pub endpoints: Vec<ControlPlane>,
    pub diagnostics: Diagnostics,
    pub applier: Applier,
    pub node_info: NodeInfo,
    /// The node's certificate files, which are looked at as long as the link runs.
    pub certificates: CertificateMonitor,
    /// Counts SIGHUPs.
    pub reload: watch::Receiver<u64>,
}

/// Prepares mutual TLS towards each control plane.
pub(super) fn prepare_endpoints(
    settings: &conf::NodeSettings,
    material: &TlsFiles,
) -> Result<Vec<ControlPlane>, PushClientError> {
    let prepare = |address: &String| {
        let wrong = |problem: String| PushClientError::Setting {
            field: "countersign.node.control_planes",
            problem: format!("{address:?}: {problem}"),
        };
        let origin = format!("https://{address}").parse().map_err(|error| wrong(format!("{error}")))?;
        // `http`: to tonic, `https` would mean that TLS is its business, and not the connector's.
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|error| wrong(source(&error)))?
            .origin(origin)
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW);
        let connector = Connector::new(address, settings, &material.files)?;
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
    pub(super) async fn run(self) {
        let files = self.certificates.clone().run(self.reload.clone());
        tokio::select! {
            () = self.run_sessions() => {}
            () = files => {}
        }
    }

    async fn run_sessions(mut self) {
        let mut turns = EndpointRotation::new(self.endpoints.len());
        loop {
            let went = self.run_session_with(turns.next()).await;
            let pause = turns.record(went);
            if !pause.is_zero() {
                // Jittered, so that a thousand nodes do not come back in the same moment.
                tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
            }
        }
    }

    async fn run_session_with(&mut self, nth: usize) -> SessionOutcome {
        let Self { endpoints, diagnostics: explain, applier: intake, node_info: hello, .. } = self;
        let alone = endpoints.len() == 1;
        // Without a control plane (the settings name at least one) there is nobody to be served by.
        let Some(plane) = endpoints.get_mut(nth) else { return SessionOutcome::Failed };
        let mut since = None;
        let connector = plane.connector.clone();
        let changes = connector.file_changes();
        let ended = match plane.endpoint.connect_with_connector(connector.clone()).await {
            Err(error) => SessionEnd::Unreachable(error),
            Ok(channel) => {
                let (address, told) = (plane.address.as_str(), &mut plane.last_logged_error);
                let welcomed = |intake: &Applier| {
                    tracing::info!(control_plane = address, "connected");
                    intake.status().set_connected(address);
                    if let Some(problem) = connector.previous_certificate_warning() {
                        tracing::warn!("{problem}");
                        intake.status().set_problem(Some(problem));
                    }
                    *told = None;
                    since = Some(Instant::now());
                };
                tokio::select! {
                    ended = run_session(channel, hello, intake, alone, welcomed) => ended,
                    error = connector.wait_until_peer_invalid() => SessionEnd::PeerCertificate(error),
                    () = connector.wait_for_renewal(changes) => SessionEnd::Renewed,
                }
            }
        };
        connector.record_session(since.is_some());
        intake.status().set_disconnected();
        if matches!(ended, SessionEnd::Renewed) {
            tracing::info!(control_plane = plane.address, "connecting anew, with the renewed certificate");
            return SessionOutcome::Renewed;
        }
        let problem = explain.describe(&plane.address, &ended);
        intake.status().set_problem(Some(problem.clone()));
        if plane.last_logged_error.as_ref() == Some(&problem) {
            tracing::debug!("{problem}");
        } else {
            tracing::warn!("{problem}; serving goes on with what is held, trying again");
            plane.last_logged_error = Some(problem);
        }
        if matches!(ended, SessionEnd::Held) {
            // It would be a good session by its length; a round of such must not have the node dial
            // without pauses.
            SessionOutcome::Failed
        } else if ended.is_stale() {
            SessionOutcome::Stale
        } else if ended.is_connection_refused() {
            SessionOutcome::ConnectionRefused
        } else {
            EndpointRotation::classify(since.map(|since| since.elapsed()))
        }
    }
}

//! The status listener (`apisix.status`): what the data plane shows beside heartbeats and the log, and when it is ready.
//! Contract section 10.1.

use std::sync::Arc;

use conf::Settings;
use telemetry::{
    Heartbeats, Status,
    status::{Listener, Serving},
};

use crate::{agent::AgentStatus, net::listener::BindError, observe::metrics::Metrics};

/// Listens where the settings say, if they do.
///
/// # Errors
/// When the address cannot be listened on.
pub fn bind(settings: &Settings) -> Result<Option<Listener>, BindError> {
    let Some(addr) = settings.apisix.status else { return Ok(None) };
    let bound = telemetry::status::bind(addr);
    bound.map(Some).map_err(|error| BindError { key: "apisix.status", addr, error })
}

/// Answers from now on.
///
/// # Errors
/// When the system gives no thread.
pub fn serve(
    listener: Listener,
    heartbeats: Arc<Heartbeats>,
    agent: Arc<AgentStatus>,
    metrics: Arc<Metrics>,
) -> std::io::Result<Serving> {
    let mut status = Status::new(heartbeats);
    metrics.register(status.registry());
    let shown = Arc::clone(&agent);
    status.show("revision", move || shown.revision().into());
    let shown = Arc::clone(&agent);
    status.show("source", move || shown.source().as_str().into());
    let shown = Arc::clone(&agent);
    status.show("control_plane_connected", move || shown.connected().into());
    status.require(move || {
        let ready = agent.ready();
        if ready { Ok(()) } else { Err("this data plane has not received configuration".to_owned()) }
    });
    listener.serve(status)
}

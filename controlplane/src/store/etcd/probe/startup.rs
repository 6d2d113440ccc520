//! Checks at start that enough endpoints answer, and that they are members of one cluster (contract
//! 9.2).
//!
//! Probes all endpoints at once, each up to `startup_retry` times. Invariant: a permanent error
//! ends the start at once.

use std::collections::BTreeSet;
use std::pin::pin;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::join_all;

use super::{EndpointStatus, ProbeError, ProbeSettings, probe};
use crate::store::etcd::dial::{ClientTls, DialError, Endpoint, format_duration};

/// Enough for an etcd that is just starting.
const RETRY_DELAY: Duration = Duration::from_secs(1);
/// The interval of log lines while the start waits.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(3);

/// Why the control plane does not start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    /// The configuration does not match the cluster.
    #[error("{0}")]
    Unusable(#[from] ProbeError),
    /// An entry of `deployment.etcd.host`, or a file of the configuration.
    #[error("{0}")]
    Settings(#[from] DialError),
    /// No endpoint responds.
    #[error("all etcd nodes are unavailable{}", listed(.0))]
    Unavailable(Vec<(Endpoint, ProbeError)>),
    /// Half of the endpoints or fewer respond.
    #[error("the etcd cluster needs at least 50% and above healthy nodes: {healthy} of {all} respond{}", listed(.failures))]
    Minority { healthy: usize, all: usize, failures: Vec<(Endpoint, ProbeError)> },
    /// The endpoints are members of different clusters.
    #[error("{0}")]
    MultipleClusters(String),
}

fn listed(failures: &[(Endpoint, ProbeError)]) -> String {
    failures.iter().map(|(endpoint, error)| format!("\n  {endpoint}: {}", error.without_url())).collect()
}

/// Probes all endpoints of the configuration and logs their warnings.
///
/// # Errors
/// When too few endpoints pass.
pub(crate) async fn probe_all(
    etcd: &conf::EtcdSettings,
    client_tls: &ClientTls,
) -> Result<Vec<EndpointStatus>, StartError> {
    let (endpoints, settings) = (Endpoint::from_config(etcd)?, ProbeSettings::of(etcd, client_tls));
    let waiting = Mutex::new(endpoints.iter().map(Endpoint::url).collect::<Vec<_>>());
    let probes = endpoints.iter().map(|endpoint| async {
        let result = probe_with_retries(endpoint, settings, etcd.startup_retry).await;
        let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.retain(|url| *url != endpoint.url());
        result
    });
    let mut probes = pin!(join_all(probes));
    let started = Instant::now();
    let results = loop {
        tokio::select! {
            results = &mut probes => break results,
            () = tokio::time::sleep(PROGRESS_INTERVAL) => {
                let urls = waiting.lock().unwrap_or_else(PoisonError::into_inner).join(", ");
                let (seconds, timeout) = (started.elapsed().as_secs(), settings.timeout);
                tracing::info!(
                    "waiting for etcd since {seconds} s: {urls} (up to {} a try, {} tries)",
                    format_duration(timeout),
                    etcd.startup_retry.max(1)
                );
            }
        }
    };
    evaluate(&endpoints, results)
}

/// Retries with APISIX's log messages.
async fn probe_with_retries(
    endpoint: &Endpoint,
    settings: ProbeSettings<'_>,
    attempts_max: u32,
) -> Result<EndpointStatus, ProbeError> {
    let mut attempt = 1;
    loop {
        let error = match probe(endpoint, settings).await {
            Ok(status) => return Ok(status),
            Err(error) => error,
        };
        if error.is_permanent() {
            return Err(error);
        }
        let message = error.without_url();
        tracing::warn!("Warning! Request etcd endpoint '{endpoint}' error, {message}, retry time={attempt}");
        if attempt >= attempts_max {
            tracing::error!("request etcd endpoint '{endpoint}' error, {message}");
            return Err(error);
        }
        attempt += 1;
        tokio::time::sleep(RETRY_DELAY).await;
    }
}

fn evaluate(
    endpoints: &[Endpoint],
    results: Vec<Result<EndpointStatus, ProbeError>>,
) -> Result<Vec<EndpointStatus>, StartError> {
    let (mut statuses, mut failures) = (Vec::new(), Vec::new());
    for (endpoint, result) in endpoints.iter().zip(results) {
        match result {
            Ok(status) => statuses.push(status),
            Err(error) if error.is_permanent() => return Err(startup_error(error)),
            Err(error) => failures.push((endpoint.clone(), error)),
        }
    }
    if statuses.is_empty() {
        return Err(StartError::Unavailable(failures));
    }
    if statuses.len() * 2 <= endpoints.len() {
        return Err(StartError::Minority { healthy: statuses.len(), all: endpoints.len(), failures });
    }
    for status in &statuses {
        for warning in status.warnings() {
            tracing::warn!("{}: {warning}", status.endpoint);
        }
    }
    if let Some(clusters) = multiple_clusters(&statuses) {
        return Err(StartError::MultipleClusters(clusters));
    }
    Ok(statuses)
}

fn startup_error(error: ProbeError) -> StartError {
    match error {
        ProbeError::Dial(error) => StartError::Settings(error),
        other => StartError::Unusable(other),
    }
}

/// A message when the endpoints are members of different clusters.
pub(crate) fn multiple_clusters(statuses: &[EndpointStatus]) -> Option<String> {
    let clusters: BTreeSet<u64> = statuses.iter().map(|status| status.cluster).collect();
    let describe =
        |status: &EndpointStatus| format!("{} is of cluster {:x}", status.endpoint, status.cluster);
    (clusters.len() > 1).then(|| {
        let descriptions: Vec<_> = statuses.iter().map(describe).collect();
        format!(
            "deployment.etcd.host names members of {} different clusters ({}): what is written to one is not in the other. Name \
             the members of one cluster only",
            clusters.len(),
            descriptions.join(", ")
        )
    })
}

//! The task that keeps one endpoint connected: it checks its health, and fails over to another one.
//!
//! Invariant: each connection gets an id of its own, and each failover a new epoch.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use etcd_client::{Channel, Client, ConnectOptions, GetOptions};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::watch;

use super::{ConnectionState, EtcdConnection, ManagerState, error_text};
use crate::store::etcd::dial::{self, Endpoint};

const HEALTH_CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// A healthy member answers in milliseconds; during an election it takes a second or two.
const HEALTH_CHECK_TIMEOUT: Duration = Duration::from_secs(3);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Time beyond the connection time-out for the first responses.
const FIRST_RESPONSE_GRACE: Duration = Duration::from_secs(1);
/// The backoff between attempts while no endpoint answers.
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(2);
struct ReachedEndpoint {
    endpoint: usize,
    client: Arc<Client>,
    /// The id of its cluster.
    cluster: u64,
}

type CertificateChanges = watch::Receiver<Option<Arc<mtls::LoadedCredentials<dial::LoadedTls>>>>;

/// The task that keeps one endpoint connected.
pub(super) struct FailoverTask {
    manager: Arc<ManagerState>,
    /// The time of each endpoint's last failure; `None` once it has answered.
    failed: Vec<Option<Instant>>,
    /// The id of the newest connection.
    newest_id: u64,
    /// The id of the cluster that was used last.
    cluster: Option<u64>,
    last_logged_error: Option<String>,
    /// Changes of the certificate files since the last dial.
    files: CertificateChanges,
}

impl FailoverTask {
    pub(super) fn new(manager: Arc<ManagerState>) -> Self {
        let failed = vec![None; manager.settings.endpoints.len()];
        let files = manager.settings.tls.files().subscribe();
        Self { manager, failed, newest_id: 0, cluster: None, last_logged_error: None, files }
    }

    /// Reloads changed certificate files, if an endpoint needs them.
    async fn refresh_files(&self) {
        let settings = &self.manager.settings;
        if settings.endpoints.iter().any(Endpoint::https) {
            // An error appears in the log, or in the error of the next dial.
            let _ = settings.tls.files().refresh().await;
        }
    }

    pub(super) async fn run(mut self, mut connection: EtcdConnection) {
        loop {
            let error = self.monitor(&mut connection).await;
            self.manager.state.send_replace(ConnectionState::FailingOver);
            tracing::warn!(problem = error, "an etcd endpoint does not respond any more; trying the others");
            self.set_failed(connection.endpoint, Some(Instant::now()));
            connection = self.fail_over().await;
            self.manager.state.send_replace(ConnectionState::Connected(connection.clone()));
            tracing::info!(endpoint = self.url(connection.endpoint), "reconnected to etcd");
        }
    }

    /// Runs health checks until one fails, and returns the cause.
    async fn monitor(&mut self, connection: &mut EtcdConnection) -> String {
        loop {
            tokio::select! {
                () = tokio::time::sleep(HEALTH_CHECK_INTERVAL) => {}
                () = self.manager.health_check.notified() => {}
            }
            if let Err(error) = self.ping(&connection.client, connection.endpoint).await {
                return error;
            }
            self.manager.last_seen.send_replace(Instant::now());
            self.refresh_files().await;
            if !self.files.has_changed().unwrap_or(false) {
                continue;
            }
            self.files.mark_unchanged();
            // Calls in progress keep the old connection alive.
            match self.connect(connection.endpoint).await {
                Ok(ReachedEndpoint { client, .. }) => {
                    self.newest_id += 1;
                    *connection = EtcdConnection { id: self.newest_id, client, ..*connection };
                    self.manager.state.send_replace(ConnectionState::Connected(connection.clone()));
                    tracing::info!("connected to etcd again, with the changed certificate files");
                }
                Err(error) => tracing::warn!(
                    problem = error,
                    "etcd cannot be reached with the changed certificate files; the connection made before stays in use"
                ),
            }
        }
    }

    /// Retries with backoff until an endpoint answers.
    async fn fail_over(&mut self) -> EtcdConnection {
        let mut backoff = BACKOFF_MIN;
        loop {
            match self.try_all().await {
                Ok(connection) => {
                    self.last_logged_error = None;
                    return connection;
                }
                Err(error) => {
                    self.manager.state.send_replace(ConnectionState::Unreachable(error.as_str().into()));
                    if self.last_logged_error.as_ref() != Some(&error) {
                        tracing::error!(
                            "no healthy etcd endpoint available, next retry after {}s: {error}",
                            backoff.as_secs_f32()
                        );
                        self.last_logged_error = Some(error);
                    }
                }
            }
            tokio::time::sleep(backoff.mul_f64(rand::random_range(0.75..1.25))).await;
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }

    /// Tries all endpoints at once; those in cooldown only if no other answers. The first to answer
    /// is used. An endpoint of another cluster than before is used only if no member of the old
    /// cluster answers: the cluster may have been recreated.
    pub(super) async fn try_all(&mut self) -> Result<EtcdConnection, String> {
        self.refresh_files().await;
        self.files.mark_unchanged();
        let (cooling_down, available): (Vec<usize>, Vec<usize>) =
            (0..self.failed.len()).partition(|endpoint| self.in_cooldown(*endpoint));
        let (mut problems, mut other_clusters) = (Vec::new(), Vec::new());
        for group in [available, cooling_down] {
            let (answered, failures) = self.first_to_answer(group, &mut other_clusters).await;
            for (endpoint, error) in failures {
                self.set_failed(endpoint, Some(Instant::now()));
                problems.push(error);
            }
            if let Some(reached) = answered {
                return Ok(self.adopt(reached));
            }
        }
        if let Some(reached) = other_clusters.pop() {
            tracing::warn!(
                endpoint = self.url(reached.endpoint),
                "the etcd cluster is another one than before: it was recreated, or deployment.etcd.host names members of two. It is \
                 used, because no member of the one before responds"
            );
            return Ok(self.adopt(reached));
        }
        problems.sort();
        Err(problems.join("; "))
    }

    fn adopt(&mut self, reached: ReachedEndpoint) -> EtcdConnection {
        let ReachedEndpoint { endpoint, client, cluster } = reached;
        self.set_failed(endpoint, None);
        self.manager.last_seen.send_replace(Instant::now());
        self.cluster = Some(cluster);
        self.newest_id += 1;
        EtcdConnection { id: self.newest_id, epoch: self.newest_id, client, endpoint }
    }

    /// The first endpoint of this cluster to answer, and the failures before it.
    async fn first_to_answer(
        &self,
        endpoints: Vec<usize>,
        other_clusters: &mut Vec<ReachedEndpoint>,
    ) -> (Option<ReachedEndpoint>, Vec<(usize, String)>) {
        let dials = endpoints.into_iter().map(|index| async move { (index, self.connect(index).await) });
        let mut dials: FuturesUnordered<_> = dials.collect();
        let mut failures = Vec::new();
        while let Some((index, reached)) = dials.next().await {
            match reached {
                Ok(reached) if self.cluster.is_none_or(|cluster| cluster == reached.cluster) => {
                    return (Some(reached), failures);
                }
                Ok(reached) => other_clusters.push(reached),
                Err(error) => failures.push((index, error)),
            }
        }
        (None, failures)
    }

    fn in_cooldown(&self, endpoint: usize) -> bool {
        let failed = self.failed.get(endpoint).copied().flatten();
        failed.is_some_and(|since| since.elapsed() < self.manager.settings.cooldown)
    }

    fn set_failed(&mut self, endpoint: usize, failed: Option<Instant>) {
        if let Some(is_failed) = self.manager.failed.get(endpoint) {
            is_failed.store(failed.is_some(), Ordering::Relaxed);
        }
        if let Some(last_failure) = self.failed.get_mut(endpoint) {
            *last_failure = failed;
        }
    }

    /// Connects to one endpoint and makes a health check.
    async fn connect(&self, index: usize) -> Result<ReachedEndpoint, String> {
        let settings = &self.manager.settings;
        let endpoint = settings.endpoints.get(index).ok_or("deployment.etcd.host: no endpoint")?;
        let timeout = CONNECT_TIMEOUT.min(settings.timeout);
        let connecting = async {
            let channel = dial::connect(endpoint, &settings.tls, timeout).await;
            let channel = channel.map_err(|error| error.to_string())?;
            let mut options = ConnectOptions::new().with_require_leader(true);
            if let Some((user, password)) = &settings.user {
                options = options.with_user(user.as_str(), password.expose()).with_auto_token_refresh(true);
            }
            let client = Client::from_channel(Channel::Tonic(channel), Some(options)).await;
            let client = client.map_err(|error| error_text(&error, Some(endpoint)))?;
            let cluster = self.ping(&client, index).await?;
            Ok(ReachedEndpoint { endpoint: index, client: Arc::new(client), cluster })
        };
        let reached = tokio::time::timeout(timeout + FIRST_RESPONSE_GRACE, connecting).await;
        reached.unwrap_or_else(|_| {
            Err(format!("{}: no response within {} s", endpoint.url(), timeout.as_secs()))
        })
    }

    /// Reads an absent key with linearizable consistency, which needs a leader and a majority.
    /// Returns the cluster's id.
    async fn ping(&self, client: &Client, index: usize) -> Result<u64, String> {
        let endpoint = self.manager.settings.endpoints.get(index);
        let timeout = HEALTH_CHECK_TIMEOUT.min(self.manager.settings.timeout);
        let mut kv = client.kv_client();
        let response = kv.get(self.manager.layout.fence_key(), Some(GetOptions::new().with_count_only()));
        match tokio::time::timeout(timeout, response).await {
            Ok(Ok(response)) => {
                let revision = response.header().map_or(0, etcd_client::ResponseHeader::revision);
                self.manager.revision.store(revision, Ordering::Release);
                Ok(response.header().map_or(0, etcd_client::ResponseHeader::cluster_id))
            }
            Ok(Err(error)) => Err(format!("{}: {}", self.url(index), error_text(&error, endpoint))),
            Err(_) => Err(format!(
                "{}: no response within {} s: the member does not run, or has no leader",
                self.url(index),
                timeout.as_secs()
            )),
        }
    }

    fn url(&self, index: usize) -> &str {
        self.manager.settings.endpoints.get(index).map_or("", Endpoint::url)
    }
}

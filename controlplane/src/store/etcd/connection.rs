//! The connection to the cluster: health checks and failover.
//!
//! One task keeps one endpoint connected. Every second it makes a call that only a member with a
//! leader and a majority can answer. When that fails, it tries the other endpoints at once.
//! [`ConnectionManager::current`] waits during a failover, and fails at once while no endpoint
//! answers.
//!
//! Invariants: each connection has an id, and a caller reports trouble with the id of its
//! connection. The state changes before the log line about it, because a reader of the log may act
//! on it.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use etcd_client::{Channel, Client, ConnectOptions, GetOptions};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use telemetry::{Heartbeat, Readiness};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use super::dial::{self, ClientTls, Endpoint};
use super::layout::Layout;
use crate::store::StoreError;

const HEALTH_CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// A healthy member answers in milliseconds; during an election it takes a second or two.
const HEALTH_CHECK_TIMEOUT: Duration = Duration::from_secs(3);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Time beyond the connection time-out for the first responses.
const FIRST_RESPONSE_GRACE: Duration = Duration::from_secs(1);
/// The backoff between attempts while no endpoint answers.
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(2);
/// A response holds a page of documents, or many changes at once.
const MESSAGE_BYTES_MAX: usize = 1 << 30;

pub(super) struct ConnectionSettings {
    pub(super) endpoints: Vec<Endpoint>,
    pub(super) security: ClientTls,
    /// User and password.
    pub(super) user: Option<(String, conf::Secret)>,
    /// `deployment.etcd.timeout`: the time-out of one call.
    pub(super) timeout: Duration,
    /// `deployment.etcd.health_check_timeout`: a failed endpoint is tried last for this long.
    pub(super) cooldown: Duration,
}

/// A connection that has answered a health check.
#[derive(Clone)]
pub(super) struct EtcdConnection {
    /// Grows with each connection. A working connection is replaced, too, when the certificate
    /// files change.
    pub(super) id: u64,
    /// The id of the connection that the last failover made.
    epoch: u64,
    pub(super) client: Arc<Client>,
    /// An index into `ConnectionSettings::endpoints`.
    endpoint: usize,
}

impl EtcdConnection {
    pub(super) fn kv(&self) -> etcd_client::KvClient {
        self.client.kv_client().max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// Whether both connections are of one epoch: the older one was replaced while it worked.
    pub(super) fn same_epoch(&self, before: &EtcdConnection) -> bool {
        self.epoch == before.epoch
    }

    pub(super) fn watch(&self) -> etcd_client::WatchClient {
        self.client.watch_client().max_decoding_message_size(MESSAGE_BYTES_MAX)
    }
}

#[derive(Clone)]
enum ConnectionState {
    Connected(EtcdConnection),
    /// The last endpoint failed, and the others are being tried.
    FailingOver,
    /// No endpoint answers.
    Unreachable(Arc<str>),
}

/// Owns the connection and its task; dropping it aborts the task.
pub(super) struct ConnectionManager {
    shared: Arc<ManagerState>,
    task: JoinHandle<()>,
    heartbeat: Arc<Heartbeat>,
}

struct ManagerState {
    settings: ConnectionSettings,
    layout: Layout,
    state: watch::Sender<ConnectionState>,
    /// The time of the last response to a health check.
    last_seen: watch::Sender<Instant>,
    /// The store's revision in that response.
    revision: AtomicI64,
    /// Requests a health check at once.
    health_check: Notify,
}

impl ConnectionManager {
    /// Connects to the first endpoint that answers.
    ///
    /// # Errors
    /// When no endpoint answers; the message has the cause per endpoint.
    pub(super) async fn open(settings: ConnectionSettings, layout: Layout) -> Result<Self, StoreError> {
        let shared = Arc::new(ManagerState {
            settings,
            layout,
            state: watch::Sender::new(ConnectionState::FailingOver),
            last_seen: watch::Sender::new(Instant::now()),
            revision: AtomicI64::new(0),
            health_check: Notify::new(),
        });
        let mut keeper = FailoverTask::new(Arc::clone(&shared));
        let first = keeper.try_all().await.map_err(|what| StoreError::Unavailable { what })?;
        shared.state.send_replace(ConnectionState::Connected(first.clone()));
        let heartbeat = Heartbeat::new("store", Readiness::Required);
        let beats = Arc::clone(&heartbeat);
        let task = tokio::spawn(async move {
            tokio::select! {
                () = keeper.run(first) => {}
                never = beats.beat_forever() => match never {},
            }
        });
        Ok(Self { shared, task, heartbeat })
    }

    pub(super) fn heartbeat(&self) -> &Arc<Heartbeat> {
        &self.heartbeat
    }

    pub(super) fn files(&self) -> &mtls::Reloader<dial::LoadedTls> {
        self.shared.settings.security.files()
    }

    /// The current connection. Waits during a failover, for at most the time-out of a call.
    ///
    /// # Errors
    /// At once while no endpoint answers.
    pub(super) async fn current(&self) -> Result<EtcdConnection, StoreError> {
        let mut state = self.shared.state.subscribe();
        let settled = state.wait_for(|state| !matches!(state, ConnectionState::FailingOver));
        let what = match tokio::time::timeout(self.timeout(), settled).await {
            Ok(Ok(state)) => match &*state {
                ConnectionState::Connected(connected) => return Ok(connected.clone()),
                ConnectionState::Unreachable(why) => why.to_string(),
                ConnectionState::FailingOver => "no etcd endpoint answers yet".to_owned(),
            },
            Ok(Err(_)) => "the store is being closed".to_owned(),
            Err(_) => "no etcd endpoint answers yet".to_owned(),
        };
        Err(StoreError::Unavailable { what })
    }

    /// Resolves when the connection is lost; a replacement after a change of the certificate files
    /// is no loss.
    pub(super) async fn wait_lost(&self, connected: &EtcdConnection) {
        let session = connected.epoch;
        let mut state = self.shared.state.subscribe();
        let other = |state: &ConnectionState| !matches!(state, ConnectionState::Connected(now) if now.epoch == session);
        drop(state.wait_for(other).await);
    }

    /// Resolves when the connection is lost or replaced.
    pub(super) async fn wait_replaced(&self, connected: &EtcdConnection) {
        let number = connected.id;
        let mut state = self.shared.state.subscribe();
        let other =
            |state: &ConnectionState| !matches!(state, ConnectionState::Connected(now) if now.id == number);
        drop(state.wait_for(other).await);
    }

    /// Waits for a connection without a time-out; `None` when the store is being closed.
    pub(super) async fn wait_connected(&self) -> Option<EtcdConnection> {
        let mut state = self.shared.state.subscribe();
        let state = state.wait_for(|state| matches!(state, ConnectionState::Connected(_))).await.ok()?;
        if let ConnectionState::Connected(connected) = &*state { Some(connected.clone()) } else { None }
    }

    /// Requests a health check after a failed call, and waits until it succeeds or the connection
    /// is lost.
    pub(super) async fn check_health(&self, connected: &EtcdConnection) {
        let mut heard = self.shared.last_seen.subscribe();
        self.shared.health_check.notify_one();
        tokio::select! {
            _ = heard.changed() => {}
            () = self.wait_lost(connected) => {}
        }
    }

    /// The store's revision at the last health check.
    pub(super) fn revision(&self) -> i64 {
        self.shared.revision.load(Ordering::Acquire)
    }

    /// The time since the last response, while no endpoint answers.
    pub(super) fn unreachable_for(&self) -> Option<Duration> {
        let up = matches!(&*self.shared.state.borrow(), ConnectionState::Connected(_));
        (!up).then(|| self.shared.last_seen.borrow().elapsed())
    }

    /// The time-out of one call.
    pub(super) fn timeout(&self) -> Duration {
        self.shared.settings.timeout
    }

    /// The message of a failed call, with the failing step of its connection.
    pub(super) fn describe_error(&self, connected: &EtcdConnection, error: &etcd_client::Error) -> String {
        error_text(error, self.shared.settings.endpoints.get(connected.endpoint))
    }
}

impl Drop for ConnectionManager {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn error_text(error: &etcd_client::Error, endpoint: Option<&Endpoint>) -> String {
    if let Some(cause) = endpoint.and_then(|endpoint| dial::find_dial_error(error, endpoint)) {
        return cause.to_string();
    }
    match error {
        etcd_client::Error::GRpcStatus(status) => match status.code() {
            tonic::Code::Unauthenticated => {
                format!("insufficient credentials code: 401 ({})", status.message())
            }
            tonic::Code::PermissionDenied => format!(
                "etcd forbidden code: 403 ({}): grant the user of deployment.etcd.user read and write on the prefix",
                status.message()
            ),
            _ => status.message().to_owned(),
        },
        other => other.to_string(),
    }
}

struct ReachedEndpoint {
    endpoint: usize,
    client: Arc<Client>,
    /// The id of its cluster.
    cluster: u64,
}

type CertificateChanges = watch::Receiver<Option<Arc<mtls::LoadedCredentials<dial::LoadedTls>>>>;

/// The task that keeps one endpoint connected.
struct FailoverTask {
    shared: Arc<ManagerState>,
    /// The time of each endpoint's last failure; `None` once it has answered.
    failed: Vec<Option<Instant>>,
    number: u64,
    /// The id of the cluster that was used last.
    cluster: Option<u64>,
    last_logged_error: Option<String>,
    /// Changes of the certificate files since the last dial.
    files: CertificateChanges,
}

impl FailoverTask {
    fn new(shared: Arc<ManagerState>) -> Self {
        let failed = vec![None; shared.settings.endpoints.len()];
        let files = shared.settings.security.files().subscribe();
        Self { shared, failed, number: 0, cluster: None, last_logged_error: None, files }
    }

    /// Reloads changed certificate files, if an endpoint needs them.
    async fn refresh_files(&self) {
        let settings = &self.shared.settings;
        if settings.endpoints.iter().any(Endpoint::https) {
            // An error appears in the log, or in the error of the next dial.
            let _ = settings.security.files().refresh().await;
        }
    }

    async fn run(mut self, mut connected: EtcdConnection) {
        loop {
            let why = self.monitor(&mut connected).await;
            self.shared.state.send_replace(ConnectionState::FailingOver);
            tracing::warn!(problem = why, "an etcd endpoint does not answer any more; trying the others");
            self.set_failed(connected.endpoint, Some(Instant::now()));
            connected = self.fail_over().await;
            self.shared.state.send_replace(ConnectionState::Connected(connected.clone()));
            tracing::info!(endpoint = self.url(connected.endpoint), "reconnected to etcd");
        }
    }

    /// Runs health checks until one fails, and returns the cause.
    async fn monitor(&mut self, connected: &mut EtcdConnection) -> String {
        loop {
            tokio::select! {
                () = tokio::time::sleep(HEALTH_CHECK_INTERVAL) => {}
                () = self.shared.health_check.notified() => {}
            }
            if let Err(why) = self.ping(&connected.client, connected.endpoint).await {
                return why;
            }
            self.shared.last_seen.send_replace(Instant::now());
            self.refresh_files().await;
            if !self.files.has_changed().unwrap_or(false) {
                continue;
            }
            self.files.mark_unchanged();
            // Calls in progress keep the old connection alive.
            match self.connect(connected.endpoint).await {
                Ok(ReachedEndpoint { client, .. }) => {
                    self.number += 1;
                    *connected = EtcdConnection { id: self.number, client, ..*connected };
                    self.shared.state.send_replace(ConnectionState::Connected(connected.clone()));
                    tracing::info!("connected to etcd anew, with the certificate files as they are now");
                }
                Err(why) => tracing::warn!(
                    problem = why,
                    "etcd cannot be reached with the changed certificate files; the connection made before stays in use"
                ),
            }
        }
    }

    /// Retries with backoff until an endpoint answers.
    async fn fail_over(&mut self) -> EtcdConnection {
        let mut pause = BACKOFF_MIN;
        loop {
            match self.try_all().await {
                Ok(connected) => {
                    self.last_logged_error = None;
                    return connected;
                }
                Err(why) => {
                    self.shared.state.send_replace(ConnectionState::Unreachable(why.as_str().into()));
                    if self.last_logged_error.as_ref() != Some(&why) {
                        tracing::error!(
                            "no healthy etcd endpoint available, next retry after {}s: {why}",
                            pause.as_secs_f32()
                        );
                        self.last_logged_error = Some(why);
                    }
                }
            }
            tokio::time::sleep(pause.mul_f64(rand::random_range(0.75..1.25))).await;
            pause = (pause * 2).min(BACKOFF_MAX);
        }
    }

    /// Tries all endpoints at once; those in cooldown only if no other answers. The first to answer
    /// is used. An endpoint of another cluster than before is used only if no member of the old
    /// cluster answers: the cluster may have been recreated.
    async fn try_all(&mut self) -> Result<EtcdConnection, String> {
        self.refresh_files().await;
        self.files.mark_unchanged();
        let (shunned, fresh): (Vec<usize>, Vec<usize>) =
            (0..self.failed.len()).partition(|endpoint| self.in_cooldown(*endpoint));
        let (mut problems, mut strangers) = (Vec::new(), Vec::new());
        for wave in [fresh, shunned] {
            let (answered, failures) = self.first_to_answer(wave, &mut strangers).await;
            for (endpoint, why) in failures {
                self.set_failed(endpoint, Some(Instant::now()));
                problems.push(why);
            }
            if let Some(dialled) = answered {
                return Ok(self.adopt(dialled));
            }
        }
        if let Some(dialled) = strangers.pop() {
            tracing::warn!(
                endpoint = self.url(dialled.endpoint),
                "the etcd cluster is another one than before: it was set up anew, or deployment.etcd.host names members of two. It is \
                 followed, because no member of the one before answers"
            );
            return Ok(self.adopt(dialled));
        }
        problems.sort();
        Err(problems.join("; "))
    }

    fn adopt(&mut self, dialled: ReachedEndpoint) -> EtcdConnection {
        let ReachedEndpoint { endpoint, client, cluster } = dialled;
        self.set_failed(endpoint, None);
        self.shared.last_seen.send_replace(Instant::now());
        self.cluster = Some(cluster);
        self.number += 1;
        EtcdConnection { id: self.number, epoch: self.number, client, endpoint }
    }

    /// The first endpoint of this cluster to answer, and the failures before it.
    async fn first_to_answer(
        &self,
        endpoints: Vec<usize>,
        strangers: &mut Vec<ReachedEndpoint>,
    ) -> (Option<ReachedEndpoint>, Vec<(usize, String)>) {
        let dials = endpoints.into_iter().map(|nth| async move { (nth, self.connect(nth).await) });
        let mut dials: FuturesUnordered<_> = dials.collect();
        let mut failures = Vec::new();
        while let Some((nth, dialled)) = dials.next().await {
            match dialled {
                Ok(dialled) if self.cluster.is_none_or(|ours| ours == dialled.cluster) => {
                    return (Some(dialled), failures);
                }
                Ok(stranger) => strangers.push(stranger),
                Err(why) => failures.push((nth, why)),
            }
        }
        (None, failures)
    }

    fn in_cooldown(&self, endpoint: usize) -> bool {
        let failed = self.failed.get(endpoint).copied().flatten();
        failed.is_some_and(|since| since.elapsed() < self.shared.settings.cooldown)
    }

    fn set_failed(&mut self, endpoint: usize, failed: Option<Instant>) {
        if let Some(standing) = self.failed.get_mut(endpoint) {
            *standing = failed;
        }
    }

    /// Connects to one endpoint and makes a health check.
    async fn connect(&self, nth: usize) -> Result<ReachedEndpoint, String> {
        let settings = &self.shared.settings;
        let endpoint = settings.endpoints.get(nth).ok_or("deployment.etcd.host: no endpoint")?;
        let patience = CONNECT_TIMEOUT.min(settings.timeout);
        let dialling = async {
            let channel = dial::connect(endpoint, &settings.security, patience).await;
            let channel = channel.map_err(|error| error.to_string())?;
            let mut options = ConnectOptions::new().with_require_leader(true);
            if let Some((user, password)) = &settings.user {
                options = options.with_user(user.as_str(), password.expose()).with_auto_token_refresh(true);
            }
            let client = Client::from_channel(Channel::Tonic(channel), Some(options)).await;
            let client = client.map_err(|error| error_text(&error, Some(endpoint)))?;
            let cluster = self.ping(&client, nth).await?;
            Ok(ReachedEndpoint { endpoint: nth, client: Arc::new(client), cluster })
        };
        let dialled = tokio::time::timeout(patience + FIRST_RESPONSE_GRACE, dialling).await;
        dialled
            .unwrap_or_else(|_| Err(format!("{}: no answer within {} s", endpoint.url(), patience.as_secs())))
    }

    /// Reads an absent key with linearizable consistency, which needs a leader and a majority.
    /// Returns the cluster's id.
    async fn ping(&self, client: &Client, nth: usize) -> Result<u64, String> {
        let endpoint = self.shared.settings.endpoints.get(nth);
        let patience = HEALTH_CHECK_TIMEOUT.min(self.shared.settings.timeout);
        let mut kv = client.kv_client();
        let asking = kv.get(self.shared.layout.fence_key(), Some(GetOptions::new().with_count_only()));
        match tokio::time::timeout(patience, asking).await {
            Ok(Ok(answer)) => {
                let revision = answer.header().map_or(0, etcd_client::ResponseHeader::revision);
                self.shared.revision.store(revision, Ordering::Release);
                Ok(answer.header().map_or(0, etcd_client::ResponseHeader::cluster_id))
            }
            Ok(Err(error)) => Err(format!("{}: {}", self.url(nth), error_text(&error, endpoint))),
            Err(_) => Err(format!(
                "{}: no answer within {} s: the member does not run, or has no leader",
                self.url(nth),
                patience.as_secs()
            )),
        }
    }

    fn url(&self, nth: usize) -> &str {
        self.shared.settings.endpoints.get(nth).map_or("", Endpoint::url)
    }
}

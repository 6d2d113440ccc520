//! The connection to the cluster: which endpoint is used now, whether it answers, and what is done
//! when it does not.
//!
//! One task keeps one endpoint connected. It asks a question every second that only a member with a
//! leader and a majority can answer; an endpoint that fails to is left, and the others are tried at
//! once. Everything else asks [`Link::connected`], which waits while another endpoint is being
//! tried, and says no at once when none answers. Invariants: a connection has a number; whoever
//! meets trouble on one says so with its number, and moves on with the next. What the log says is
//! so already: a state is set before its line is written, because whoever reads the line acts on
//! it.

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

/// Between two questions whether the endpoint still answers.
const HEALTH_CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// For an answer to it; a healthy member takes milliseconds, one in the middle of an election a
/// second or two.
const HEALTH_CHECK_TIMEOUT: Duration = Duration::from_secs(3);
/// For a connection to one endpoint.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Beyond it, for the first answers on the connection.
const FIRST_RESPONSE_GRACE: Duration = Duration::from_secs(1);
/// Between two rounds over all endpoints while none answers.
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(2);
/// Bytes of one answer: a page of documents, or the changes that came together.
const MESSAGE_BYTES_MAX: usize = 1 << 30;

/// How the cluster is reached.
pub(super) struct ConnectionSettings {
    pub(super) endpoints: Vec<Endpoint>,
    pub(super) security: ClientTls,
    /// User and password.
    pub(super) user: Option<(String, conf::Secret)>,
    /// `deployment.etcd.timeout`: the longest that one call may take.
    pub(super) timeout: Duration,
    /// `deployment.etcd.health_check_timeout`: how long an endpoint that failed is tried last.
    pub(super) cooldown: Duration,
}

/// A connection that answered when it was last asked.
#[derive(Clone)]
pub(super) struct EtcdConnection {
    /// Which connection; grows. A new one may come while the one before still works: the
    /// certificate files changed.
    pub(super) id: u64,
    /// Which connection the endpoint was found with; grows when one was lost.
    epoch: u64,
    /// The client that uses it.
    pub(super) client: Arc<Client>,
    /// The entry of `Settings::endpoints`.
    endpoint: usize,
}

impl EtcdConnection {
    /// For reading and writing.
    pub(super) fn kv(&self) -> etcd_client::KvClient {
        self.client.kv_client().max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// Whether this one came in the place of another that still worked.
    pub(super) fn same_epoch(&self, before: &EtcdConnection) -> bool {
        self.epoch == before.epoch
    }

    /// For watching.
    pub(super) fn watch(&self) -> etcd_client::WatchClient {
        self.client.watch_client().max_decoding_message_size(MESSAGE_BYTES_MAX)
    }
}

#[derive(Clone)]
enum ConnectionState {
    /// An endpoint answers.
    Connected(EtcdConnection),
    /// The one that was used does not answer, others are being tried.
    FailingOver,
    /// None answers.
    Unreachable(Arc<str>),
}

/// The connection. Dropping it ends its task.
pub(super) struct ConnectionManager {
    shared: Arc<ManagerState>,
    task: JoinHandle<()>,
    heartbeat: Arc<Heartbeat>,
}

struct ManagerState {
    settings: ConnectionSettings,
    layout: Layout,
    state: watch::Sender<ConnectionState>,
    /// When an endpoint last answered.
    last_seen: watch::Sender<Instant>,
    /// The store's revision when it last answered.
    revision: AtomicI64,
    /// Somebody met trouble on the connection in use.
    health_check: Notify,
}

impl ConnectionManager {
    /// Connects; when no endpoint answers, says why for each.
    ///
    /// # Errors
    /// When no endpoint answers.
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

    /// The heartbeat of the task that keeps the connection.
    pub(super) fn heartbeat(&self) -> &Arc<Heartbeat> {
        &self.heartbeat
    }

    /// The certificate files.
    pub(super) fn files(&self) -> &mtls::Reloader<dial::LoadedTls> {
        self.shared.settings.security.files()
    }

    /// The connection in use. While another endpoint is being tried it waits, at most as long as a
    /// call may take.
    ///
    /// # Errors
    /// At once when no endpoint answers.
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

    /// Ends when this connection is lost. One that was replaced because the certificate files
    /// changed is not.
    pub(super) async fn wait_lost(&self, connected: &EtcdConnection) {
        let session = connected.epoch;
        let mut state = self.shared.state.subscribe();
        let other = |state: &ConnectionState| !matches!(state, ConnectionState::Connected(now) if now.epoch == session);
        drop(state.wait_for(other).await);
    }

    /// Ends when this connection is lost or replaced.
    pub(super) async fn wait_replaced(&self, connected: &EtcdConnection) {
        let number = connected.id;
        let mut state = self.shared.state.subscribe();
        let other =
            |state: &ConnectionState| !matches!(state, ConnectionState::Connected(now) if now.id == number);
        drop(state.wait_for(other).await);
    }

    /// Waits until an endpoint answers, however long that takes; `None` when the store is being
    /// closed.
    pub(super) async fn wait_connected(&self) -> Option<EtcdConnection> {
        let mut state = self.shared.state.subscribe();
        let state = state.wait_for(|state| matches!(state, ConnectionState::Connected(_))).await.ok()?;
        if let ConnectionState::Connected(connected) = &*state { Some(connected.clone()) } else { None }
    }

    /// A call failed on this connection: has the endpoint asked, and ends when it has answered or
    /// is lost.
    pub(super) async fn check_health(&self, connected: &EtcdConnection) {
        let mut heard = self.shared.last_seen.subscribe();
        self.shared.health_check.notify_one();
        tokio::select! {
            _ = heard.changed() => {}
            () = self.wait_lost(connected) => {}
        }
    }

    /// A revision that the store had a heartbeat ago.
    pub(super) fn revision(&self) -> i64 {
        self.shared.revision.load(Ordering::Acquire)
    }

    /// How long ago the cluster was last heard of, while it cannot be reached.
    pub(super) fn unreachable_for(&self) -> Option<Duration> {
        let up = matches!(&*self.shared.state.borrow(), ConnectionState::Connected(_));
        (!up).then(|| self.shared.last_seen.borrow().elapsed())
    }

    /// The longest that one call may take.
    pub(super) fn timeout(&self) -> Duration {
        self.shared.settings.timeout
    }

    /// What happened to a call, with the step of the connection where it was that.
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

/// An endpoint that has answered.
struct ReachedEndpoint {
    endpoint: usize,
    client: Arc<Client>,
    /// The id of its cluster.
    cluster: u64,
}

type CertificateChanges = watch::Receiver<Option<Arc<mtls::LoadedCredentials<dial::LoadedTls>>>>;

/// The task.
struct FailoverTask {
    shared: Arc<ManagerState>,
    /// When each endpoint last failed; nothing for one that answered since.
    failed: Vec<Option<Instant>>,
    number: u64,
    /// Which cluster was used last.
    cluster: Option<u64>,
    /// What the log knows of.
    last_logged_error: Option<String>,
    /// Tells when the certificate files are others than at the last round of dials.
    files: CertificateChanges,
}

impl FailoverTask {
    fn new(shared: Arc<ManagerState>) -> Self {
        let failed = vec![None; shared.settings.endpoints.len()];
        let files = shared.settings.security.files().subscribe();
        Self { shared, failed, number: 0, cluster: None, last_logged_error: None, files }
    }

    /// Has the certificate files read if they changed, and if any endpoint needs them.
    async fn refresh_files(&self) {
        let settings = &self.shared.settings;
        if settings.endpoints.iter().any(Endpoint::https) {
            // A dial says what is wrong with files that were never good; of others the log has it.
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

    /// Ends when the endpoint does not answer, with the reason.
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
            // The old connection stays until its last user is done with it.
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

    /// Tries until an endpoint answers.
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

    /// Tries all endpoints at once, those that failed lately only when no other answers; the first
    /// to answer is taken, and one of another cluster than before only when none of this one
    /// does: it may have been set up anew under another name.
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

    /// The first endpoint of our cluster to answer, and those that failed before it did.
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

    /// A client of one endpoint that has answered.
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

    /// Reads a name that does not exist, as a member does that has a leader and a majority; gives
    /// the cluster's id.
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

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

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, Instant};

use etcd_client::Client;
use failover::FailoverTask;
use telemetry::{Heartbeat, Readiness};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use super::dial::{self, ClientTls, Endpoint};
use super::layout::Layout;
use crate::store::StoreError;

mod failover;

/// A response holds a page of documents, or many changes at once.
const MESSAGE_BYTES_MAX: usize = 1 << 30;

pub(super) struct ConnectionSettings {
    pub(super) endpoints: Vec<Endpoint>,
    pub(super) tls: ClientTls,
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
    /// Of each endpoint: whether it failed when it was tried last.
    failed: Vec<AtomicBool>,
}

/// The state of a configured endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EndpointState {
    /// It is the one that is used.
    Connected,
    /// It failed when it was tried last.
    Failed,
    /// It has not been needed, or has answered since it failed.
    Unused,
}

impl ConnectionManager {
    /// Connects to the first endpoint that answers.
    ///
    /// # Errors
    /// When no endpoint answers; the message has the cause per endpoint.
    pub(super) async fn open(settings: ConnectionSettings, layout: Layout) -> Result<Self, StoreError> {
        let failed = settings.endpoints.iter().map(|_| AtomicBool::default()).collect();
        let shared = Arc::new(ManagerState {
            failed,
            settings,
            layout,
            state: watch::Sender::new(ConnectionState::FailingOver),
            last_seen: watch::Sender::new(Instant::now()),
            revision: AtomicI64::new(0),
            health_check: Notify::new(),
        });
        let mut failover = FailoverTask::new(Arc::clone(&shared));
        let first = failover.try_all().await.map_err(|what| StoreError::Unavailable { what })?;
        shared.state.send_replace(ConnectionState::Connected(first.clone()));
        let heartbeat = Heartbeat::new("store", Readiness::Required);
        let beating = Arc::clone(&heartbeat);
        let task = tokio::spawn(async move {
            tokio::select! {
                () = failover.run(first) => {}
                never = beating.beat_forever() => match never {},
            }
        });
        Ok(Self { shared, task, heartbeat })
    }

    pub(super) fn heartbeat(&self) -> &Arc<Heartbeat> {
        &self.heartbeat
    }

    pub(super) fn files(&self) -> &mtls::Reloader<dial::LoadedTls> {
        self.shared.settings.tls.files()
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
                ConnectionState::Connected(connection) => return Ok(connection.clone()),
                ConnectionState::Unreachable(error) => error.to_string(),
                ConnectionState::FailingOver => "no etcd endpoint responds yet".to_owned(),
            },
            Ok(Err(_)) => "the store is being closed".to_owned(),
            Err(_) => "no etcd endpoint responds yet".to_owned(),
        };
        Err(StoreError::Unavailable { what })
    }

    /// Resolves when the connection is lost; a replacement after a change of the certificate files
    /// is no loss.
    pub(super) async fn wait_lost(&self, connection: &EtcdConnection) {
        let epoch = connection.epoch;
        let mut state = self.shared.state.subscribe();
        let other =
            |state: &ConnectionState| !matches!(state, ConnectionState::Connected(now) if now.epoch == epoch);
        drop(state.wait_for(other).await);
    }

    /// Resolves when the connection is lost or replaced.
    pub(super) async fn wait_replaced(&self, connection: &EtcdConnection) {
        let id = connection.id;
        let mut state = self.shared.state.subscribe();
        let other =
            |state: &ConnectionState| !matches!(state, ConnectionState::Connected(now) if now.id == id);
        drop(state.wait_for(other).await);
    }

    /// Waits for a connection without a time-out; `None` when the store is being closed.
    pub(super) async fn wait_connected(&self) -> Option<EtcdConnection> {
        let mut state = self.shared.state.subscribe();
        let state = state.wait_for(|state| matches!(state, ConnectionState::Connected(_))).await.ok()?;
        if let ConnectionState::Connected(connection) = &*state { Some(connection.clone()) } else { None }
    }

    /// Requests a health check after a failed call, and waits until it succeeds or the connection
    /// is lost.
    pub(super) async fn check_health(&self, connection: &EtcdConnection) {
        let mut last_seen = self.shared.last_seen.subscribe();
        self.shared.health_check.notify_one();
        tokio::select! {
            _ = last_seen.changed() => {}
            () = self.wait_lost(connection) => {}
        }
    }

    /// The store's revision at the last health check.
    pub(super) fn revision(&self) -> i64 {
        self.shared.revision.load(Ordering::Acquire)
    }

    /// The epoch of the present connection; `None` without one. Within an epoch the cluster is the
    /// same: it neither lost its data nor was it restored.
    pub(super) fn epoch(&self) -> Option<u64> {
        match &*self.shared.state.borrow() {
            ConnectionState::Connected(connection) => Some(connection.epoch),
            ConnectionState::FailingOver | ConnectionState::Unreachable(_) => None,
        }
    }

    /// The time since the last response, while no endpoint answers.
    pub(super) fn unreachable_for(&self) -> Option<Duration> {
        let is_connected = matches!(&*self.shared.state.borrow(), ConnectionState::Connected(_));
        (!is_connected).then(|| self.shared.last_seen.borrow().elapsed())
    }

    /// The configured endpoints, each URL once, with their states.
    pub(super) fn endpoints(&self) -> BTreeMap<String, EndpointState> {
        let connected = match &*self.shared.state.borrow() {
            ConnectionState::Connected(connection) => Some(connection.endpoint),
            ConnectionState::FailingOver | ConnectionState::Unreachable(_) => None,
        };
        let endpoints = self.shared.settings.endpoints.iter().zip(&self.shared.failed).enumerate();
        let mut states = BTreeMap::new();
        for (index, (endpoint, failed)) in endpoints {
            let state = match (connected == Some(index), failed.load(Ordering::Relaxed)) {
                (true, _) => EndpointState::Connected,
                (false, true) => EndpointState::Failed,
                (false, false) => EndpointState::Unused,
            };
            let of_url = states.entry(endpoint.url().to_owned()).or_insert(state);
            if state == EndpointState::Connected {
                *of_url = state;
            }
        }
        states
    }

    /// The time-out of one call.
    pub(super) fn timeout(&self) -> Duration {
        self.shared.settings.timeout
    }

    /// The message of a failed call, with the failing step of its connection.
    pub(super) fn describe_error(&self, connection: &EtcdConnection, error: &etcd_client::Error) -> String {
        error_text(error, self.shared.settings.endpoints.get(connection.endpoint))
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

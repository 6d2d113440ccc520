//! An upgrade: this process starts its successor, which takes over the listeners and the store.
//!
//! The embedded store has one owner: open requests finish, the file is closed, and the successor
//! opens it; requests wait in the queues of the listeners meanwhile. On etcd both serve until this
//! one has released its listeners. Invariant: until the successor serves, every failure leaves this
//! process as it was, with the store open.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use conf::ADMIN_LISTEN;
use process::handover::{self, Generations, HandoverError, OfferedSocket, Program, ServingSuccessor, Wait};
use process::signals::Signals;
use telemetry::ServiceManager;

use super::in_use_retry::InUseRetry;
use super::succession::{STEP_MAX, blocking};
use super::{RunningServer, STOP_MAX, StartupError, admin, sockets, status};
use crate::publish::PUSH_KEY;
use crate::store::backup_socket::{self, BackupServer};
use crate::store::{EmbeddedStore, StoreError};

/// How long it may take to open the store, to compile its documents and to accept.
const SERVING_MAX: Duration = Duration::from_secs(60);
/// From the announcement that connections end to their end: a client that sends requests one after
/// the other has its next response within it.
const RETIRE_MAX: Duration = Duration::from_secs(1);
/// For a backup that is being read.
const BACKUP_MAX: Duration = Duration::from_secs(10);

/// Why an upgrade failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum UpgradeError {
    #[error("the sockets cannot be passed on: {0}")]
    Sockets(io::Error),
    #[error(transparent)]
    Handover(#[from] HandoverError),
    #[error("a backup of the store is being read: upgrade again when it has ended")]
    Backup,
    #[error("the store cannot be closed: {0}")]
    Store(#[from] StoreError),
    #[error("the upgrade cannot be made: {0}")]
    System(#[from] io::Error),
}

/// What belongs to this process alone while it uses an embedded store.
pub(super) struct EmbeddedOwner {
    pub(super) store: Arc<EmbeddedStore>,
    pub(super) path: std::path::PathBuf,
    /// `None` during an upgrade.
    pub(super) backups: Option<BackupServer>,
}

/// How this process was started, and its place in the chain of upgrades.
pub(super) struct Lineage {
    pub(super) program: Program,
    pub(super) generations: Generations,
}

impl RunningServer {
    /// Starts the successor and lets it serve. After an error this process serves as before.
    pub(super) async fn upgrade(
        &mut self,
        lineage: &Lineage,
        signals: &Signals,
    ) -> Result<ServingSuccessor, UpgradeError> {
        let sockets = self.offer().map_err(UpgradeError::Sockets)?;
        let (program, generations) = (lineage.program.clone(), lineage.generations.clone());
        let stop = signals.clone();
        let ready = blocking(move || {
            let stopping = || stop.is_stopping();
            let wait = Wait::new(STEP_MAX, &stopping);
            let starting = handover::start(&program, &sockets, &generations)?;
            tracing::info!(pid = starting.pid(), program = %program.path().display(), "upgrade: the new process starts");
            starting.wait_started(wait)?.wait_ready(wait)
        });
        let (ready, _) = ready.await??;
        let stop = signals.clone();
        let go = async {
            self.release_store().await?;
            let serving = blocking(move || {
                let stopping = || stop.is_stopping();
                ready.go(Wait::new(SERVING_MAX, &stopping))
            });
            Ok::<_, UpgradeError>(serving.await??)
        };
        let result = go.await;
        if result.is_err() {
            self.take_store_back().await;
        }
        result
    }

    fn offer(&self) -> io::Result<Vec<OfferedSocket>> {
        let mut offered = Vec::new();
        for (listener, socket) in admin::configured(&self.settings).iter().zip(self.admin.sockets()?) {
            offered.push(sockets::offer(ADMIN_LISTEN, listener.address, &socket)?);
        }
        offered.push(sockets::offer(PUSH_KEY, self.settings.countersign.push.listen, &self.push_socket)?);
        let address = self.settings.countersign.control_plane.status;
        if let (Some(socket), Some(address)) = (&self.status_socket, address) {
            offered.push(sockets::offer(status::STATUS_KEY, address, socket)?);
        }
        Ok(offered)
    }

    /// Finishes what uses the embedded store, and closes it.
    async fn release_store(&mut self) -> Result<(), UpgradeError> {
        let Some(embedded) = &mut self.embedded else { return Ok(()) };
        let store = Arc::clone(&embedded.store);
        if let Some(backups) = embedded.backups.take()
            && !backups.stop(BACKUP_MAX).await
        {
            return Err(UpgradeError::Backup);
        }
        self.release_listeners().await;
        Ok(store.close().await?)
    }

    /// Leaves the queues of the Admin API and of the push to the successor. Sessions of data planes
    /// go on.
    async fn release_listeners(&mut self) {
        self.admin.retire(RETIRE_MAX).await;
        self.publish.accepting.send_replace(false);
        self.publish.reports.end_waits(true);
        self.admin.pause().await;
    }

    /// Opens the embedded store again and serves as before.
    async fn take_store_back(&mut self) {
        let Some(embedded) = &mut self.embedded else { return };
        let store = Arc::clone(&embedded.store);
        // The successor has ended, but a backup may have opened the file.
        let mut retry = InUseRetry::new(STOP_MAX);
        let reopened = retry.run(StartupError::is_in_use, || async { Ok(store.reopen().await?) });
        if let Err::<(), StartupError>(error) = reopened.await {
            tracing::error!(%error, "the store cannot be opened again; the next request tries once more");
        }
        if embedded.backups.is_none() {
            embedded.backups = Some(backup_socket::serve(&store, &embedded.path));
        }
        self.publish.reports.end_waits(false);
        self.publish.accepting.send_replace(true);
        if let Err(error) = self.admin.resume() {
            tracing::error!(%error, "a listener of the Admin API cannot accept again");
        }
    }

    /// Leaves everything to the successor, and ends when open requests and streams have.
    pub(super) async fn drain_after_handover(
        mut self,
        successor: ServingSuccessor,
        service: ServiceManager,
    ) -> Result<(), StartupError> {
        tracing::info!(pid = successor.pid(), "upgrade: the new process serves; this one ends");
        let pid = successor.pid();
        // Before the successor goes on: the service manager takes no message from it yet.
        let announce = move || {
            service.main_pid(pid);
            service.flush();
        };
        blocking(announce).await?;
        drop((self.push_socket, self.status_socket.take()));
        if let Some(status) = self.status.take() {
            blocking(move || status.close()).await?;
        }
        if self.embedded.is_none() {
            self.admin.retire(RETIRE_MAX).await;
            self.publish.accepting.send_replace(false);
            self.publish.reports.end_waits(true);
        }
        // Data planes reconnect at once.
        self.stop.send_replace(true);
        self.admin.pause().await;
        drop(self.admin);
        let successor = blocking(move || {
            if let Err(error) = successor.released() {
                tracing::error!(%error, "upgrade: the new process has ended");
            }
            successor
        });
        let successor = successor.await?;
        if tokio::time::timeout(STOP_MAX, self.publish.done).await.is_err() {
            tracing::warn!("ended before every data plane's stream");
        }
        // Its end of the pair tells later generations that this process runs.
        drop(successor);
        Ok(())
    }
}

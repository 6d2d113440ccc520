//! One task for each data plane: authenticates it, reads what it holds, sends what it lacks, then
//! each change as it commits.
//!
//! Invariants: nothing is sent before the node's certificate proves its name; one delta is in
//! flight at a time and the next one starts from what the node acknowledged, so a slow node gets
//! the newest state in one step and not a queue; a rejected delta is not sent again until the state
//! changes; a node moves to an older state only when the store, read at that moment, was set back.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::Stream;
use model::wire::{without_plugins, without_upstreams};
use model::{Delta, Key, Snapshot, TicketRing};
use mtls::Reloader;
use proto::push::push_server::{Push, PushServer};
use proto::push::{
    AcceptStore, FromNode, Hello, Hold, InitialVersions, Nack, ToNode, Welcome, from_node, to_node,
};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::deny_list::DenyList;
use super::fleet::{Fleet, NodeInfo, NodeRegistration};
use super::peer::{NodePeer, authenticate, carried_names, check_allowed, denied_status};
use super::refresh::RefreshHandle;
use super::rejection::{record_hold, record_nack};
use super::store_acceptance::{AcceptanceWatcher, StoreAcceptance};
use super::store_state::StoreStateWatcher;
use super::{CurrentSettings, PushTls, tickets};
use crate::listener_errors::ErrorReason;

/// Bytes of one chunk; a larger resource is a chunk of its own.
const CHUNK_BYTES: usize = 1 << 20;
/// Bytes of one message from a node. Nodes split `InitialVersions` to stay below.
const MESSAGE_BYTES: usize = 2 << 20;
/// Resources in a node's `InitialVersions`.
const INITIAL_VERSIONS_MAX: usize = 2_000_000;
const NAME_BYTES: usize = 253;
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
const INITIAL_VERSIONS_TIMEOUT: Duration = Duration::from_secs(30);
/// For one message to be sent; a node that does not read for so long is dead.
const SEND_TIMEOUT: Duration = Duration::from_secs(30);
/// For a reload of the store because the node knows a newer revision. Shorter than a node's wait
/// for its Welcome.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(10);
/// From the last chunk to the node's response.
const ACK_TIMEOUT: Duration = Duration::from_secs(120);
/// Before the newest state is sent to a node that held the one before: each time it is a full
/// state.
const HELD_PAUSE: Duration = Duration::from_secs(1);

/// The state that all sessions share.
pub(super) struct PushState {
    pub store: String,
    pub version: &'static str,
    /// Verifies a node's certificate.
    pub files: Reloader<PushTls>,
    /// `countersign.push.allowed_names`
    pub settings: CurrentSettings,
    pub denied: watch::Receiver<Arc<DenyList>>,
    pub acceptance: Arc<StoreAcceptance>,
    pub latest: watch::Receiver<Arc<Snapshot>>,
    pub refresh_handle: RefreshHandle,
    pub store_state: StoreStateWatcher,
    pub tickets: watch::Receiver<tickets::SharedRing>,
    pub fleet: Arc<Fleet>,
    pub shutdown: watch::Receiver<bool>,
}

pub(super) fn service(state: PushState) -> PushServer<PushService> {
    PushServer::new(PushService { state: Arc::new(state) }).max_decoding_message_size(MESSAGE_BYTES)
}

pub(super) struct PushService {
    state: Arc<PushState>,
}

#[tonic::async_trait]
impl Push for PushService {
    type SyncStream = Pin<Box<dyn Stream<Item = Result<ToNode, Status>> + Send>>;

    async fn sync(
        &self,
        request: Request<Streaming<FromNode>>,
    ) -> Result<Response<Self::SyncStream>, Status> {
        // Subscribed before the verification, so that a change of the CAs right after it is not
        // missed.
        let ca_changes = self.state.files.subscribe();
        let peer = authenticate(&request, &self.state.files)?;
        let address = peer.address;
        if let Some(entry) = peer.denied_by(&self.state.denied.borrow()) {
            let status = denied_status(entry);
            if let Some(suppressed) = ErrorReason::PushNode.record() {
                let error = status.message();
                tracing::warn!(peer = %address, names = ?peer.names, suppressed, "rejected a data plane: {error}");
            }
            return Err(status);
        }
        // Two messages: one in transmission, one ready.
        let (sender, receiver) = mpsc::channel(2);
        let session = NodeSession {
            state: Arc::clone(&self.state),
            peer: peer.clone(),
            inbound: request.into_inner(),
            outbound: sender.clone(),
        };
        let mut shutdown = self.state.shutdown.clone();
        let (list, files) = (self.state.denied.clone(), self.state.files.clone());
        let settings = self.state.settings.clone();
        tokio::spawn(async move {
            let result = tokio::select! {
                result = session.run() => result,
                status = peer.wait_until_rejected(list, files, ca_changes, settings) => {
                    tracing::warn!(peer = %address, names = ?peer.names, "ended a push stream: {}", status.message());
                    Err(status)
                }
                _ = shutdown.wait_for(|stop| *stop) => Err(Status::unavailable("the control plane stops")),
            };
            if let Err(status) = result {
                tracing::info!(peer = %address, error = status.message(), "a push stream ended");
                let _ = tokio::time::timeout(SEND_TIMEOUT, sender.send(Err(status))).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

struct NodeSession {
    state: Arc<PushState>,
    peer: NodePeer,
    inbound: Streaming<FromNode>,
    outbound: mpsc::Sender<Result<ToNode, Status>>,
}

/// The base of the next delta: what the node reported, then what it acknowledged.
enum DeltaBase {
    Reported { versions: HashMap<Key, u64>, revision: u64 },
    Acknowledged(Arc<Snapshot>),
}

impl NodeSession {
    /// Runs until the stream ends; `Ok` when the node closed it.
    async fn run(mut self) -> Result<(), Status> {
        let hello = self.read_hello().await?;
        let address = self.peer.address;
        let allowed = Arc::clone(&self.state.settings.borrow().allowed_names);
        if let Err(status) = authorize(&hello, &self.peer.names, &allowed) {
            if let Some(suppressed) = ErrorReason::PushNode.record() {
                let error = status.message();
                tracing::warn!(peer = %address, node = hello.node, suppressed, "rejected a data plane: {error}");
            }
            return Err(status);
        }
        let versions = self.read_initial_versions().await?;
        self.catch_up(&hello).await?;
        let mut store_state = self.state.store_state.for_session(hello.store_state);
        let mut latest = self.state.latest.clone();
        let snapshot = Arc::clone(&latest.borrow_and_update());
        let registration = self.state.fleet.register(NodeInfo {
            name: hello.node.clone(),
            instance: hello.instance.clone(),
            version: hello.version.clone(),
            address,
            certificate: self.peer.certificate(),
        });
        log_connected(&hello, address, versions.len());
        let mut tickets = self.send_welcome(&hello, snapshot.revision(), &mut store_state).await?;
        let revision = model::wire::first_delta_base(
            (&hello.store, hello.revision),
            (&self.state.store, snapshot.revision()),
        );
        let mut base = DeltaBase::Reported { versions, revision };
        let mut target = snapshot;
        let mut accepted = self.state.acceptance.subscribe();
        loop {
            registration.record_sent();
            let delta = base.delta_to(&target);
            let delta = if hello.plugins { delta } else { without_plugins(delta) };
            let delta = if hello.upstreams { delta } else { without_upstreams(delta, &target) };
            self.send_delta(delta).await?;
            match tokio::time::timeout(ACK_TIMEOUT, self.read_response(target.revision(), &registration))
                .await
            {
                Err(_) => {
                    return Err(Status::deadline_exceeded("the node did not reply to a change in time"));
                }
                Ok(Ok(None)) => return Ok(()),
                Ok(Ok(Some(NodeResponse::Ack))) => {
                    registration.record_ack(&target);
                    base = DeltaBase::Acknowledged(target);
                }
                Ok(Ok(Some(NodeResponse::Nack(nack)))) => record_nack(&registration, &hello.node, nack),
                Ok(Ok(Some(NodeResponse::Hold(hold)))) => {
                    record_hold(&registration, &hello.node, &self.state.store, &hold);
                    match self
                        .wait_while_held(&registration, &mut latest, &mut accepted, &mut store_state)
                        .await?
                    {
                        Some(next) => target = next,
                        None => return Ok(()),
                    }
                    continue;
                }
                Ok(Err(status)) => return Err(status),
            }
            match self.next_change(&registration, &mut latest, tickets.as_mut(), &mut store_state).await? {
                Some(next) => target = next,
                None => return Ok(()),
            }
        }
    }

    /// Sends Welcome, and the ticket secrets to a node that wants them. Returns a receiver of later
    /// rings for such a node.
    async fn send_welcome(
        &self,
        hello: &Hello,
        revision: u64,
        store_state: &mut StoreStateWatcher,
    ) -> Result<Option<watch::Receiver<tickets::SharedRing>>, Status> {
        let welcome = Welcome {
            store: self.state.store.clone(),
            version: self.state.version.to_owned(),
            revision,
            hold: true,
            store_state: Some(store_state.state()),
        };
        self.send(to_node::Message::Welcome(welcome)).await?;
        let mut tickets = hello.tickets.then(|| self.state.tickets.clone());
        if let Some(tickets) = &mut tickets {
            let ring = tickets.borrow_and_update().clone();
            if let Some(ring) = ring {
                self.send_tickets(&ring).await?;
            }
        }
        Ok(tickets)
    }

    async fn read_hello(&mut self) -> Result<Hello, Status> {
        let first = tokio::time::timeout(HELLO_TIMEOUT, self.inbound.message()).await;
        let first = first.map_err(|_| Status::deadline_exceeded("no Hello came in time"))??;
        match first.and_then(|message| message.message) {
            Some(from_node::Message::Hello(hello)) => Ok(hello),
            _ => Err(Status::invalid_argument("the first message must be Hello")),
        }
    }

    async fn read_initial_versions(&mut self) -> Result<HashMap<Key, u64>, Status> {
        let mut versions = HashMap::new();
        let reading = async {
            loop {
                let message = self.inbound.message().await?.and_then(|message| message.message);
                let Some(from_node::Message::InitialVersions(InitialVersions { resources, last })) = message
                else {
                    return Err(Status::invalid_argument("InitialVersions must follow Hello"));
                };
                for resource in resources {
                    let key = resource.key.as_ref().and_then(|key| model::wire::key_from_wire(key).ok());
                    let key = key.ok_or_else(|| {
                        Status::invalid_argument("InitialVersions names a resource without a valid key")
                    })?;
                    versions.insert(key, resource.version);
                }
                if versions.len() > INITIAL_VERSIONS_MAX {
                    return Err(Status::resource_exhausted(format!(
                        "more than {INITIAL_VERSIONS_MAX} resources held"
                    )));
                }
                if last {
                    return Ok(());
                }
            }
        };
        let read = tokio::time::timeout(INITIAL_VERSIONS_TIMEOUT, reading).await;
        read.map_err(|_| Status::deadline_exceeded("InitialVersions did not end in time"))??;
        Ok(versions)
    }

    /// A node that comes from another control plane over the same store may know a newer revision:
    /// either this control plane lags, or the store was set back. Only the store can tell which.
    /// When it is unreadable the node must try another control plane, and serves what it has: what
    /// was revoked must stay revoked.
    async fn catch_up(&self, hello: &Hello) -> Result<(), Status> {
        let ours = self.state.latest.borrow().revision();
        if hello.store != self.state.store || hello.revision <= ours {
            return Ok(());
        }
        let error = match tokio::time::timeout(CATCH_UP_TIMEOUT, self.state.refresh_handle.refresh()).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => error,
            Err(_) => format!("it was not read within {} seconds", CATCH_UP_TIMEOUT.as_secs()),
        };
        let (node, theirs) = (&hello.node, hello.revision);
        tracing::warn!(
            node,
            "sent a data plane to another control plane: it serves revision {theirs}, and ours is {ours}: {error}"
        );
        Err(Status::aborted(format!(
            "it knows the store up to revision {ours} only, the node holds {theirs}, and the store cannot be read now: {error}"
        )))
    }

    /// Sends chunks as the node reads: a first delta may have gigabytes, of which two chunks are in
    /// memory.
    async fn send_delta(&self, delta: Delta) -> Result<(), Status> {
        for chunk in model::wire::chunks(&delta, CHUNK_BYTES) {
            self.send(to_node::Message::Chunk(chunk)).await?;
        }
        Ok(())
    }

    async fn send(&self, message: to_node::Message) -> Result<(), Status> {
        let sending = self.outbound.send(Ok(ToNode { message: Some(message) }));
        match tokio::time::timeout(SEND_TIMEOUT, sending).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Status::cancelled("the node closed the stream")),
            Err(_) => Err(Status::deadline_exceeded("the node does not read")),
        }
    }

    /// The node's response to the delta that leads to `revision`; `None` when it closed the stream.
    async fn read_response(
        &mut self,
        revision: u64,
        registration: &NodeRegistration,
    ) -> Result<Option<NodeResponse>, Status> {
        loop {
            let Some(message) = self.inbound.message().await.map_err(connection_error)? else {
                return Ok(None);
            };
            return match message.message {
                Some(from_node::Message::Draining(_)) => {
                    registration.record_draining();
                    continue;
                }
                Some(from_node::Message::Ack(ack)) if ack.revision == revision => Ok(Some(NodeResponse::Ack)),
                Some(from_node::Message::Nack(nack)) if nack.revision == revision => {
                    Ok(Some(NodeResponse::Nack(nack)))
                }
                Some(from_node::Message::Hold(hold)) if hold.revision == revision => {
                    Ok(Some(NodeResponse::Hold(hold)))
                }
                _ => Err(Status::invalid_argument(format!("expected Ack or Nack of revision {revision}"))),
            };
        }
    }

    /// The next state; `None` when the node closed the stream or the process stops. Sends new
    /// ticket secrets meanwhile: no response is outstanding here.
    async fn next_change(
        &mut self,
        registration: &NodeRegistration,
        latest: &mut watch::Receiver<Arc<Snapshot>>,
        mut tickets: Option<&mut watch::Receiver<tickets::SharedRing>>,
        store_state: &mut StoreStateWatcher,
    ) -> Result<Option<Arc<Snapshot>>, Status> {
        loop {
            let ring = tokio::select! {
                changed = latest.changed() => return match changed {
                    Ok(()) => Ok(Some(Arc::clone(&latest.borrow_and_update()))),
                    Err(_) => Ok(None),
                },
                message = self.inbound.message() => match message.map_err(connection_error)?.map(|message| message.message) {
                    None => return Ok(None),
                    Some(Some(from_node::Message::Draining(_))) => {
                        registration.record_draining();
                        continue;
                    }
                    Some(_) => return Err(Status::invalid_argument("nothing was sent that needs a reply")),
                },
                ring = tickets::next(tickets.as_deref_mut()) => ring,
                changed = store_state.changed() => {
                    changed?;
                    // The state that was read is sent first.
                    if latest.has_changed().is_ok_and(|changed| changed) {
                        store_state.mark_changed();
                        return Ok(Some(Arc::clone(&latest.borrow_and_update())));
                    }
                    self.send(to_node::Message::StoreState(store_state.state())).await?;
                    continue;
                }
            };
            self.send_tickets(&ring).await?;
        }
    }

    /// The state to send to a node that held the last one: when an operator accepts the store, of
    /// which the node is notified, or when the state changes. `None` when the node closed the
    /// stream.
    async fn wait_while_held(
        &mut self,
        registration: &NodeRegistration,
        latest: &mut watch::Receiver<Arc<Snapshot>>,
        accepted: &mut AcceptanceWatcher,
        store_state: &mut StoreStateWatcher,
    ) -> Result<Option<Arc<Snapshot>>, Status> {
        let pause = tokio::time::sleep(HELD_PAUSE);
        tokio::pin!(pause);
        loop {
            tokio::select! {
                () = accepted.accepted() => {
                    self.send(to_node::Message::AcceptStore(AcceptStore {})).await?;
                    break;
                }
                changed = latest.changed(), if pause.is_elapsed() => match changed {
                    Ok(()) => break,
                    Err(_) => return Ok(None),
                },
                () = &mut pause, if !pause.is_elapsed() => {}
                message = self.inbound.message() => match message.map_err(connection_error)? {
                    None => return Ok(None),
                    Some(FromNode { message: Some(from_node::Message::Draining(_)) }) => registration.record_draining(),
                    Some(_) => return Err(Status::invalid_argument("nothing was sent that needs a reply")),
                },
                changed = store_state.changed() => {
                    changed?;
                    self.send(to_node::Message::StoreState(store_state.state())).await?;
                }
            }
        }
        Ok(Some(Arc::clone(&latest.borrow_and_update())))
    }

    async fn send_tickets(&self, ring: &TicketRing) -> Result<(), Status> {
        self.send(to_node::Message::Tickets(model::wire::tickets_to_wire(ring))).await
    }
}

fn log_connected(hello: &Hello, peer: SocketAddr, held: usize) {
    let Hello { node, revision, .. } = hello;
    tracing::info!(node, %peer, held, revision, "a data plane connected");
    if !hello.plugins {
        let what = "routes that name one, and global rules that rewrite, are blocked there";
        tracing::warn!(node, "the data plane knows no plugin configs: {what}");
    }
    if !hello.upstreams {
        let what = "resources with gRPC, tls.ca_certs, tls.verify_identity, snis or tls_passthrough are blocked there, and stream routes to which a name of several snis would go";
        tracing::warn!(node, "the data plane knows fewer kinds of upstreams: {what}");
    }
}

/// Adds context to the transport's error, which only names a frame.
fn connection_error(status: Status) -> Status {
    Status::new(status.code(), format!("the connection to the node broke ({})", status.message()))
}

enum NodeResponse {
    Ack,
    Nack(Nack),
    Hold(Hold),
}

/// A node's certificate must carry its name, so that no node speaks for another; `allowed`
/// restricts further.
fn authorize(hello: &Hello, names: &[String], allowed: &[String]) -> Result<(), Status> {
    let printable = |text: &str| {
        !text.is_empty() && text.len() <= NAME_BYTES && text.chars().all(|c| c.is_ascii_graphic())
    };
    if !printable(&hello.node) || !printable(&hello.instance) || hello.version.len() > NAME_BYTES {
        return Err(Status::invalid_argument(
            "Hello must carry a name and an instance of at most 253 printable bytes",
        ));
    }
    if !names.contains(&hello.node.to_ascii_lowercase()) {
        return Err(Status::permission_denied(format!(
            "the node calls itself {:?} (countersign.node.name), but its certificate carries {}",
            hello.node,
            carried_names(names)
        )));
    }
    check_allowed(names, allowed)
}

impl DeltaBase {
    fn delta_to(&self, target: &Snapshot) -> Delta {
        match self {
            Self::Reported { versions, revision } => target.diff_from_versions(versions, *revision),
            Self::Acknowledged(snapshot) => snapshot.diff(target),
        }
    }
}

//! One task a data plane: who is it, what does it hold, what does it lack; then each change as it
//! commits.
//!
//! Invariants: nothing is sent before the node's name is proved by its certificate; one delta is on
//! its way at a time and the next one starts from what the node acknowledged, so a slow node gets
//! the newest state in one step and not a queue; a refused delta is not sent again until something
//! changed; nobody is led back to an older state unless the store itself, asked at that moment,
//! says that it was set back.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::Stream;
use model::{Delta, Key, Snapshot, TicketRing};
use mtls::Reloader;
use proto::push::push_server::{Push, PushServer};
use proto::push::{AcceptStore, FromNode, Held, Hello, Hold, Nack, ToNode, Welcome, from_node, to_node};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::deny_list::DenyList;
use super::fleet::{Fleet, NodeInfo, NodeRegistration};
use super::hold::{record_hold, record_nack};
use super::peer::{NodePeer, authenticate, denied_status};
use super::refresh::RefreshHandle;
use super::store_acceptance::{AcceptanceWatcher, StoreAcceptance};
use super::store_state::StoreStateWatcher;
use super::{PushTls, tickets};
use crate::error_counters::ErrorReason;

/// Bytes of one chunk; a single larger resource still travels, alone.
const CHUNK_BYTES: usize = 1 << 20;
/// Bytes of one message from a node. `Held` is cut by the node to stay below.
const MESSAGE_BYTES: usize = 2 << 20;
/// Resources a node may say it holds.
const HELD_MAX: usize = 2_000_000;
const NAME_BYTES: usize = 253;
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
const HELD_TIMEOUT: Duration = Duration::from_secs(30);
/// For one message to leave; a node that reads nothing for so long is gone.
const SEND_TIMEOUT: Duration = Duration::from_secs(30);
/// For the store to be read anew because a node knows more than we do. Shorter than the time a node
/// waits for its Welcome.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(10);
/// From the last chunk to the answer.
const ACK_TIMEOUT: Duration = Duration::from_secs(120);
/// Before the newest state is sent to a node that held the one before: it is everything, each time.
const HELD_PAUSE: Duration = Duration::from_secs(1);

/// What every stream needs; one per process.
pub(super) struct PushState {
    pub store: String,
    pub version: &'static str,
    /// What a node's certificate is verified by.
    pub files: Reloader<PushTls>,
    pub allowed_names: Vec<String>,
    pub denied: watch::Receiver<Arc<DenyList>>,
    pub accepted: Arc<StoreAcceptance>,
    pub latest: watch::Receiver<Arc<Snapshot>>,
    pub refresh_handle: RefreshHandle,
    pub reading: StoreStateWatcher,
    pub tickets: watch::Receiver<tickets::SharedRing>,
    pub fleet: Arc<Fleet>,
    pub shutdown: watch::Receiver<bool>,
}

/// The gRPC service.
pub(super) fn service(desk: PushState) -> PushServer<PushService> {
    PushServer::new(PushService { desk: Arc::new(desk) }).max_decoding_message_size(MESSAGE_BYTES)
}

pub(super) struct PushService {
    desk: Arc<PushState>,
}

#[tonic::async_trait]
impl Push for PushService {
    type SyncStream = Pin<Box<dyn Stream<Item = Result<ToNode, Status>> + Send>>;

    async fn sync(
        &self,
        request: Request<Streaming<FromNode>>,
    ) -> Result<Response<Self::SyncStream>, Status> {
        // From before the verdict: a change of the CAs right after it is not missed.
        let ca_changes = self.desk.files.subscribe();
        let peer = authenticate(&request, &self.desk.files)?;
        let address = peer.address;
        if let Some(entry) = peer.denied_by(&self.desk.denied.borrow()) {
            let status = denied_status(entry);
            if let Some(earlier) = ErrorReason::PushNode.record() {
                let why = status.message();
                tracing::warn!(%address, names = ?peer.names, earlier, "refused a data plane: {why}");
            }
            return Err(status);
        }
        // Two: one that is being sent, one that is ready.
        let (sender, receiver) = mpsc::channel(2);
        let session = NodeSession {
            desk: Arc::clone(&self.desk),
            peer: peer.clone(),
            inbound: request.into_inner(),
            outbound: sender.clone(),
        };
        let mut shutdown = self.desk.shutdown.clone();
        let (list, files) = (self.desk.denied.clone(), self.desk.files.clone());
        tokio::spawn(async move {
            let ended = tokio::select! {
                ended = session.run() => ended,
                status = peer.wait_until_rejected(list, files, ca_changes) => {
                    tracing::warn!(%address, names = ?peer.names, "ended a push stream: {}", status.message());
                    Err(status)
                }
                _ = shutdown.wait_for(|stop| *stop) => Err(Status::unavailable("the control plane stops")),
            };
            if let Err(status) = ended {
                tracing::info!(peer = %address, reason = status.message(), "a push stream ended");
                let _ = tokio::time::timeout(SEND_TIMEOUT, sender.send(Err(status))).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

struct NodeSession {
    desk: Arc<PushState>,
    peer: NodePeer,
    inbound: Streaming<FromNode>,
    outbound: mpsc::Sender<Result<ToNode, Status>>,
}

/// What the next delta starts from: what the node said it holds, then what it acknowledged.
enum DeltaBase {
    Reported { held: HashMap<Key, u64>, revision: u64 },
    Acknowledged(Arc<Snapshot>),
}

impl NodeSession {
    /// Ends with the stream: `Ok` when the node closed it.
    async fn run(mut self) -> Result<(), Status> {
        let hello = self.read_hello().await?;
        let address = self.peer.address;
        if let Err(status) = authorize(&hello, &self.peer.names, &self.desk.allowed_names) {
            if let Some(earlier) = ErrorReason::PushNode.record() {
                let why = status.message();
                tracing::warn!(peer = %address, node = hello.node, earlier, "refused a data plane: {why}");
            }
            return Err(status);
        }
        let held = self.read_held().await?;
        self.catch_up(&hello).await?;
        let mut reading = self.desk.reading.for_session(hello.store_state);
        let mut latest = self.desk.latest.clone();
        let now = Arc::clone(&latest.borrow_and_update());
        let member = self.desk.fleet.register(NodeInfo {
            name: hello.node.clone(),
            instance: hello.instance.clone(),
            version: hello.version.clone(),
            address,
            certificate: self.peer.certificate(),
        });
        tracing::info!(
            node = hello.node,
            peer = %address,
            held = held.len(),
            revision = hello.revision,
            "a data plane connected"
        );
        let mut tickets = self.send_welcome(&hello, now.revision(), &mut reading).await?;
        let revision =
            model::wire::first_delta_base((&hello.store, hello.revision), (&self.desk.store, now.revision()));
        let mut base = DeltaBase::Reported { held, revision };
        let mut target = now;
        let mut accepted = self.desk.accepted.subscribe();
        loop {
            self.send_delta(base.delta_to(&target)).await?;
            match tokio::time::timeout(ACK_TIMEOUT, self.read_response(target.revision(), &member)).await {
                Err(_) => return Err(Status::deadline_exceeded("the node did not answer a change in time")),
                Ok(Ok(None)) => return Ok(()),
                Ok(Ok(Some(NodeResponse::Ack))) => {
                    member.record_ack(&target);
                    base = DeltaBase::Acknowledged(target);
                }
                Ok(Ok(Some(NodeResponse::Nack(nack)))) => record_nack(&member, &hello.node, nack),
                Ok(Ok(Some(NodeResponse::Hold(hold)))) => {
                    record_hold(&member, &hello.node, &self.desk.store, &hold);
                    match self.wait_while_held(&member, &mut latest, &mut accepted, &mut reading).await? {
                        Some(again) => target = again,
                        None => return Ok(()),
                    }
                    continue;
                }
                Ok(Err(status)) => return Err(status),
            }
            match self.next_change(&member, &mut latest, tickets.as_mut(), &mut reading).await? {
                Some(newer) => target = newer,
                None => return Ok(()),
            }
        }
    }

    /// Says who we are, and sends the ticket secrets to a node that wants them, which gets each
    /// later ring by what this gives.
    async fn send_welcome(
        &self,
        hello: &Hello,
        revision: u64,
        reading: &mut StoreStateWatcher,
    ) -> Result<Option<watch::Receiver<tickets::SharedRing>>, Status> {
        let welcome = Welcome {
            store: self.desk.store.clone(),
            version: self.desk.version.to_owned(),
            revision,
            hold: true,
            store_state: Some(reading.state()),
        };
        self.send(to_node::Message::Welcome(welcome)).await?;
        let mut tickets = hello.tickets.then(|| self.desk.tickets.clone());
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

    async fn read_held(&mut self) -> Result<HashMap<Key, u64>, Status> {
        let mut held = HashMap::new();
        let reading = async {
            loop {
                let message = self.inbound.message().await?.and_then(|message| message.message);
                let Some(from_node::Message::Held(Held { resources, last })) = message else {
                    return Err(Status::invalid_argument("Held must follow Hello"));
                };
                for resource in resources {
                    let key = resource.key.as_ref().and_then(|key| model::wire::key_from_wire(key).ok());
                    let key = key.ok_or_else(|| {
                        Status::invalid_argument("Held names a resource without a valid key")
                    })?;
                    held.insert(key, resource.version);
                }
                if held.len() > HELD_MAX {
                    return Err(Status::resource_exhausted(format!("more than {HELD_MAX} resources held")));
                }
                if last {
                    return Ok(());
                }
            }
        };
        let read = tokio::time::timeout(HELD_TIMEOUT, reading).await;
        read.map_err(|_| Status::deadline_exceeded("Held did not end in time"))??;
        Ok(held)
    }

    /// A node that comes from another control plane over the same store may know more than we do:
    /// then we have not heard of the newest changes yet, or the store was set back. Only the
    /// store can tell which. Where it cannot be asked the node is sent on, and serves what it
    /// has: what was revoked must stay revoked.
    async fn catch_up(&self, hello: &Hello) -> Result<(), Status> {
        let ours = self.desk.latest.borrow().revision();
        if hello.store != self.desk.store || hello.revision <= ours {
            return Ok(());
        }
        let why = match tokio::time::timeout(CATCH_UP_TIMEOUT, self.desk.refresh_handle.refresh()).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(why)) => why,
            Err(_) => format!("it was not read within {} seconds", CATCH_UP_TIMEOUT.as_secs()),
        };
        let (node, theirs) = (&hello.node, hello.revision);
        tracing::warn!(node, "sent a data plane on: it serves revision {theirs}, and ours is {ours}: {why}");
        Err(Status::aborted(format!(
            "it knows the store up to revision {ours} only, the node holds {theirs}, and the store cannot be read now: {why}"
        )))
    }

    /// Chunk by chunk as the node reads: a first delta may be gigabytes, of which two chunks are in
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

    /// The node's answer to the delta that leads to `revision`; `None` when it closed the stream.
    async fn read_response(
        &mut self,
        revision: u64,
        member: &NodeRegistration,
    ) -> Result<Option<NodeResponse>, Status> {
        loop {
            let Some(message) = self.inbound.message().await.map_err(connection_error)? else {
                return Ok(None);
            };
            return match message.message {
                Some(from_node::Message::Draining(_)) => {
                    member.record_draining();
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

    /// The next state; `None` when the node closed the stream or the process stops. New ticket
    /// secrets go out meanwhile: nothing is waiting for an answer here.
    async fn next_change(
        &mut self,
        member: &NodeRegistration,
        latest: &mut watch::Receiver<Arc<Snapshot>>,
        mut tickets: Option<&mut watch::Receiver<tickets::SharedRing>>,
        reading: &mut StoreStateWatcher,
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
                        member.record_draining();
                        continue;
                    }
                    Some(_) => return Err(Status::invalid_argument("nothing was sent that could be answered")),
                },
                ring = tickets::next(tickets.as_deref_mut()) => ring,
                changed = reading.changed() => {
                    changed?;
                    // What was read goes first.
                    if latest.has_changed().is_ok_and(|changed| changed) {
                        reading.mark_changed();
                        return Ok(Some(Arc::clone(&latest.borrow_and_update())));
                    }
                    self.send(to_node::Message::StoreState(reading.state())).await?;
                    continue;
                }
            };
            self.send_tickets(&ring).await?;
        }
    }

    /// The state to send to a node that held the last one: when an operator accepted the store,
    /// which the node is told, or when the state is another one. `None` when the node closed the
    /// stream.
    async fn wait_while_held(
        &mut self,
        member: &NodeRegistration,
        latest: &mut watch::Receiver<Arc<Snapshot>>,
        accepted: &mut AcceptanceWatcher,
        reading: &mut StoreStateWatcher,
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
                    Some(FromNode { message: Some(from_node::Message::Draining(_)) }) => member.record_draining(),
                    Some(_) => return Err(Status::invalid_argument("nothing was sent that could be answered")),
                },
                changed = reading.changed() => {
                    changed?;
                    self.send(to_node::Message::StoreState(reading.state())).await?;
                }
            }
        }
        Ok(Some(Arc::clone(&latest.borrow_and_update())))
    }

    async fn send_tickets(&self, ring: &TicketRing) -> Result<(), Status> {
        self.send(to_node::Message::Tickets(model::wire::tickets_to_wire(ring))).await
    }
}

/// The transport's words say which frame could not be read; ours say what it means.
fn connection_error(status: Status) -> Status {
    Status::new(status.code(), format!("the connection to the node broke ({})", status.message()))
}

enum NodeResponse {
    Ack,
    Nack(Nack),
    Hold(Hold),
}

/// A node's own name must be in its certificate, so none speaks for another; `allowed` narrows
/// further.
fn authorize(hello: &Hello, names: &[String], allowed: &[String]) -> Result<(), Status> {
    let printable = |text: &str| {
        !text.is_empty() && text.len() <= NAME_BYTES && text.chars().all(|c| c.is_ascii_graphic())
    };
    if !printable(&hello.node) || !printable(&hello.instance) || hello.version.len() > NAME_BYTES {
        return Err(Status::invalid_argument(
            "Hello must carry a name and an instance of at most 253 printable bytes",
        ));
    }
    let carried = if names.is_empty() { "no DNS name".to_owned() } else { names.join(", ") };
    if !names.contains(&hello.node.to_ascii_lowercase()) {
        return Err(Status::permission_denied(format!(
            "the node calls itself {:?} (countersign.node.name), but its certificate carries {carried}",
            hello.node
        )));
    }
    if !allowed.is_empty() && !allowed.iter().any(|name| names.contains(&name.to_ascii_lowercase())) {
        return Err(Status::permission_denied(format!(
            "the node's certificate carries {carried}, none of which is in countersign.push.allowed_names"
        )));
    }
    Ok(())
}

impl DeltaBase {
    fn delta_to(&self, target: &Snapshot) -> Delta {
        match self {
            Self::Reported { held, revision } => target.diff_from_versions(held, *revision),
            Self::Acknowledged(snapshot) => snapshot.diff(target),
        }
    }
}

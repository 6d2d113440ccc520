//! One session with a control plane: sends Hello and the versions of the node's resources, passes
//! each message to the applier, answers each change.
//!
//! Bounded: the size of a message both ways and the time until Welcome; HTTP/2 keepalives (set by
//! `sync_loop`) end a session with a silent peer.

use std::error::Error;
use std::io;
use std::time::Duration;

use proto::push::push_client::PushClient;
use proto::push::{
    AcceptStore, Draining, FromNode, Hello, InitialVersions, ResourceVersion, ToNode, Welcome, from_node,
    to_node,
};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use super::applier::{Applier, ChunkOutcome};
use crate::lifecycle::{ShutdownStage, ShutdownWatch};

/// The control plane sends chunks of 1 MiB, or a single resource beyond that.
const MESSAGE_BYTES: usize = 16 << 20;
/// Resources in one `InitialVersions`: about 64 bytes each, well below the limit of the control
/// plane.
const VERSIONS_PER_MESSAGE: usize = 10_000;
/// A node that holds another store's state leaves after this time when there are other control
/// planes: long enough for an operator to accept the store, and not long without the changes of a
/// control plane that has the right one.
const HELD_SESSION_MAX: Duration = Duration::from_secs(15);
const WELCOME_TIMEOUT: Duration = Duration::from_secs(15);

/// How this node introduces itself in Hello.
pub(super) struct NodeInfo {
    node: String,
    instance: String,
    version: &'static str,
    tickets: bool,
    shutdown: ShutdownWatch,
}

#[derive(Debug)]
pub(super) enum SessionEnd {
    /// No connection.
    Unreachable(tonic::transport::Error),
    /// The control plane or the connection ended it.
    Status(Status),
    /// The control plane closed the stream in order.
    Closed,
    /// A message is missing or out of order.
    Protocol(String),
    /// The control plane's certificate is no longer valid.
    PeerCertificate(pki::VerifyError),
    /// The files of this node hold another certificate than the connection uses.
    Renewed,
    /// The control plane has another store, whose state is not applied; another control plane may
    /// have the right one.
    Held,
}

impl SessionEnd {
    /// The control plane has an older state than this node, and its store cannot be read: another
    /// one may have a newer state.
    pub(crate) fn is_stale(&self) -> bool {
        matches!(self, Self::Status(status) if status.code() == Code::Aborted)
    }

    /// No process listens at the control plane's address.
    pub(crate) fn is_connection_refused(&self) -> bool {
        let Self::Unreachable(error) = self else { return false };
        let mut next: Option<&dyn Error> = Some(error);
        while let Some(error) = next {
            if let Some(error) = error.downcast_ref::<io::Error>() {
                return error.kind() == io::ErrorKind::ConnectionRefused;
            }
            next = error.source();
        }
        false
    }
}

impl From<Status> for SessionEnd {
    fn from(status: Status) -> Self {
        Self::Status(status)
    }
}

impl NodeInfo {
    /// `tickets`: whether this node resumes sessions, and so needs ticket secrets.
    pub(crate) fn new(
        settings: &conf::NodeSettings,
        version: &'static str,
        tickets: bool,
        shutdown: ShutdownWatch,
    ) -> Self {
        let instance = format!("{:016x}", rand::random::<u64>());
        Self { node: settings.name.clone(), instance, version, tickets, shutdown }
    }

    fn hello_messages(&self, applier: &Applier) -> Vec<FromNode> {
        let (store, revision, versions) = applier.resource_versions();
        let hello = Hello {
            node: self.node.clone(),
            instance: self.instance.clone(),
            version: self.version.to_owned(),
            store,
            revision,
            tickets: self.tickets,
            store_state: true,
            plugins: true,
            upstreams: true,
        };
        let mut messages = vec![from_node::Message::Hello(hello)];
        let parts: Vec<Vec<ResourceVersion>> =
            versions.chunks(VERSIONS_PER_MESSAGE).map(<[_]>::to_vec).collect();
        let last = parts.len().saturating_sub(1);
        if parts.is_empty() {
            messages.push(from_node::Message::InitialVersions(InitialVersions {
                resources: Vec::new(),
                last: true,
            }));
        }
        messages.extend(parts.into_iter().enumerate().map(|(index, resources)| {
            from_node::Message::InitialVersions(InitialVersions { resources, last: index == last })
        }));
        messages.into_iter().map(|message| FromNode { message: Some(message) }).collect()
    }
}

/// Runs until the session ends. `on_welcome` is called once, after Welcome. `alone`: there is no
/// other control plane.
pub(super) async fn run_session(
    channel: Channel,
    node_info: &NodeInfo,
    applier: &mut Applier,
    alone: bool,
    on_welcome: impl FnOnce(&Applier),
) -> SessionEnd {
    match sync(channel, node_info, applier, alone, on_welcome).await {
        Ok(()) => SessionEnd::Closed,
        Err(end) => end,
    }
}

async fn sync(
    channel: Channel,
    node_info: &NodeInfo,
    applier: &mut Applier,
    alone: bool,
    on_welcome: impl FnOnce(&Applier),
) -> Result<(), SessionEnd> {
    let (answers, mut inbound, welcome) = open_stream(channel, node_info.hello_messages(applier)).await?;
    applier.on_welcome(welcome);
    on_welcome(applier);

    let mut shutdown = node_info.shutdown.clone();
    let mut draining = false;
    // Since when this session's state is held instead of applied.
    let mut held_since: Option<Instant> = None;
    loop {
        let leave_at = held_since.filter(|_| !alone).map(|since| since + HELD_SESSION_MAX);
        let message = tokio::select! {
            message = inbound.message() => message?,
            () = shutdown.wait_for(ShutdownStage::HandedOver), if !draining => {
                draining = true;
                send(&answers, from_node::Message::Draining(Draining {})).await?;
                continue;
            }
            () = sleep_until(leave_at) => return Err(SessionEnd::Held),
        };
        let Some(message) = message else { return Ok(()) };
        let chunk = match message.message {
            Some(to_node::Message::Chunk(chunk)) => chunk,
            Some(to_node::Message::Tickets(ring)) => {
                applier.on_tickets(&ring);
                continue;
            }
            Some(to_node::Message::AcceptStore(AcceptStore {})) => {
                tracing::warn!("an operator accepted the control plane's store: its state is applied");
                applier.on_accept_store();
                continue;
            }
            Some(to_node::Message::StoreState(state)) => {
                applier.on_store_state(state);
                continue;
            }
            _ => return Err(SessionEnd::Protocol("it sent something other than a chunk".into())),
        };
        match applier.on_chunk(chunk) {
            // Lets the connection be read between two chunks, so that PINGs are answered in time.
            ChunkOutcome::Incomplete => tokio::task::yield_now().await,
            ChunkOutcome::Complete(answer) => {
                held_since = None;
                send(&answers, answer).await?;
            }
            ChunkOutcome::Held(answer) => {
                held_since.get_or_insert_with(Instant::now);
                send(&answers, answer).await?;
            }
            ChunkOutcome::RevisionMismatch { from, current } => {
                return Err(SessionEnd::Protocol(format!(
                    "a change starts from revision {from}, but revision {current} is held"
                )));
            }
        }
    }
}

/// Sends the first messages and waits for Welcome.
async fn open_stream(
    channel: Channel,
    messages: Vec<FromNode>,
) -> Result<(mpsc::Sender<FromNode>, Streaming<ToNode>, Welcome), SessionEnd> {
    let mut client = PushClient::new(channel).max_decoding_message_size(MESSAGE_BYTES);
    // Room for all of them, since the call below is the first to read from the channel.
    let (answers, outbound) = mpsc::channel(messages.len() + 1);
    for message in messages {
        answers.send(message).await.map_err(closed)?;
    }
    let opening = async {
        let mut inbound = client.sync(ReceiverStream::new(outbound)).await?.into_inner();
        match inbound.message().await?.and_then(|first| first.message) {
            Some(to_node::Message::Welcome(welcome)) => Ok((inbound, welcome)),
            _ => Err(SessionEnd::Protocol("its first message is not Welcome".into())),
        }
    };
    let opened = tokio::time::timeout(WELCOME_TIMEOUT, opening).await;
    let (inbound, welcome) =
        opened.map_err(|_| SessionEnd::Protocol("it did not reply to Hello in time".into()))??;
    Ok((answers, inbound, welcome))
}

/// Never ends for `None`.
async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

async fn send(answers: &mpsc::Sender<FromNode>, message: from_node::Message) -> Result<(), SessionEnd> {
    answers.send(FromNode { message: Some(message) }).await.map_err(closed)
}

fn closed<T>(_: mpsc::error::SendError<T>) -> SessionEnd {
    SessionEnd::Protocol("it closed the stream before this node's reply".into())
}

#[cfg(test)]
mod tests {
    use tonic::transport::Endpoint;

    use super::*;

    async fn unreachable(address: &str) -> SessionEnd {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
        SessionEnd::Unreachable(endpoint.connect().await.unwrap_err())
    }

    #[tokio::test]
    async fn recognises_a_refused_connection() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        drop(listener);
        assert!(unreachable(&address).await.is_connection_refused());
        assert!(!unreachable("name.invalid:1").await.is_connection_refused());
        assert!(!SessionEnd::Closed.is_connection_refused());
    }
}

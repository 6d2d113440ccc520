//! One session with a control plane: introduce ourselves, say what we hold, take what comes, answer
//! each change.
//!
//! Bounded: the size of a message both ways, the time until the control plane speaks; HTTP/2
//! keepalives (set by `link`) end a session with a silent peer.

use std::error::Error;
use std::io;
use std::time::Duration;

use proto::push::push_client::PushClient;
use proto::push::{
    AcceptStore, Draining, FromNode, Held, HeldResource, Hello, ToNode, Welcome, from_node, to_node,
};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use super::applier::{Applier, ChunkOutcome};
use crate::lifecycle::shutdown::{ShutdownStage, ShutdownWatch};

/// One message of the control plane: a chunk of 1 MiB, or a single resource beyond that.
const MESSAGE_BYTES: usize = 16 << 20;
/// In one `Held`: about 64 bytes each, well below what the control plane accepts.
const HELD_PER_MESSAGE: usize = 10_000;
/// How long a node whose state is held stays with a control plane when there are others: time for
/// an operator to accept the store, and not long without the changes of one that has the right
/// store.
const HELD_SESSION_MAX: Duration = Duration::from_secs(15);
const WELCOME_TIMEOUT: Duration = Duration::from_secs(15);

/// Who we are.
pub(super) struct NodeInfo {
    node: String,
    instance: String,
    version: &'static str,
    tickets: bool,
    stages: ShutdownWatch,
}

/// How a session ended.
#[derive(Debug)]
pub(super) enum SessionEnd {
    /// No session came to be.
    Unreachable(tonic::transport::Error),
    /// The control plane or the connection ended it.
    Status(Status),
    /// The control plane closed the stream in order.
    Closed,
    /// It said something that makes no sense here.
    Protocol(String),
    /// Its certificate is no longer good.
    PeerCertificate(pki::VerifyError),
    /// The files of this node hold another certificate.
    Renewed,
    /// It has another store, whose state is not taken over; another control plane may have the
    /// right one.
    Held,
}

impl SessionEnd {
    /// It knows an older state than we hold, and its store cannot be asked: another control plane
    /// may know more.
    pub(super) fn is_stale(&self) -> bool {
        matches!(self, Self::Status(status) if status.code() == Code::Aborted)
    }

    /// No process listens at the control plane's address.
    pub(super) fn is_connection_refused(&self) -> bool {
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
    /// `tickets`: whether sessions are resumed here.
    pub(super) fn new(
        settings: &conf::NodeSettings,
        version: &'static str,
        tickets: bool,
        stages: ShutdownWatch,
    ) -> Self {
        let instance = format!("{:016x}", rand::random::<u64>());
        Self { node: settings.name.clone(), instance, version, tickets, stages }
    }

    fn hello_messages(&self, intake: &Applier) -> Vec<FromNode> {
        let (store, revision, held) = intake.held_resources();
        let hello = Hello {
            node: self.node.clone(),
            instance: self.instance.clone(),
            version: self.version.to_owned(),
            store,
            revision,
            tickets: self.tickets,
            store_state: true,
        };
        let mut messages = vec![from_node::Message::Hello(hello)];
        let pieces: Vec<Vec<HeldResource>> = held.chunks(HELD_PER_MESSAGE).map(<[_]>::to_vec).collect();
        let last = pieces.len().saturating_sub(1);
        if pieces.is_empty() {
            messages.push(from_node::Message::Held(Held { resources: Vec::new(), last: true }));
        }
        messages.extend(
            pieces
                .into_iter()
                .enumerate()
                .map(|(nth, resources)| from_node::Message::Held(Held { resources, last: nth == last })),
        );
        messages.into_iter().map(|message| FromNode { message: Some(message) }).collect()
    }
}

/// Runs until the session ends. `welcomed` is called once, when the control plane has accepted us.
pub(super) async fn run_session(
    channel: Channel,
    introduction: &NodeInfo,
    intake: &mut Applier,
    alone: bool,
    welcomed: impl FnOnce(&Applier),
) -> SessionEnd {
    match sync(channel, introduction, intake, alone, welcomed).await {
        Ok(()) => SessionEnd::Closed,
        Err(ended) => ended,
    }
}

async fn sync(
    channel: Channel,
    introduction: &NodeInfo,
    intake: &mut Applier,
    alone: bool,
    welcomed: impl FnOnce(&Applier),
) -> Result<(), SessionEnd> {
    let (answers, mut inbound, welcome) = open_stream(channel, introduction.hello_messages(intake)).await?;
    intake.on_welcome(welcome);
    welcomed(intake);

    let mut stages = introduction.stages.clone();
    let mut leaving = false;
    // Since when the state that it has is held; it is left after a while when there are others.
    let mut held: Option<Instant> = None;
    loop {
        let leave = held.filter(|_| !alone).map(|since| since + HELD_SESSION_MAX);
        let message = tokio::select! {
            message = inbound.message() => message?,
            () = stages.wait_for(ShutdownStage::LameDuck), if !leaving => {
                leaving = true;
                let draining = from_node::Message::Draining(Draining {});
                send(&answers, FromNode { message: Some(draining) }).await?;
                continue;
            }
            () = sleep_until(leave) => return Err(SessionEnd::Held),
        };
        let Some(message) = message else { return Ok(()) };
        let chunk = match message.message {
            Some(to_node::Message::Chunk(chunk)) => chunk,
            Some(to_node::Message::Tickets(ring)) => {
                intake.on_tickets(&ring);
                continue;
            }
            Some(to_node::Message::AcceptStore(AcceptStore {})) => {
                tracing::warn!("an operator accepted the control plane's store: its state is taken over");
                intake.on_accept_store();
                continue;
            }
            Some(to_node::Message::StoreState(state)) => {
                intake.on_store_state(state);
                continue;
            }
            _ => {
                return Err(SessionEnd::Protocol(
                    "the control plane sent something other than a chunk".into(),
                ));
            }
        };
        match intake.on_chunk(chunk) {
            // The connection is read between two chunks, also when more have come: PINGs are
            // answered.
            ChunkOutcome::Incomplete => tokio::task::yield_now().await,
            ChunkOutcome::Complete(answer) => {
                held = None;
                send(&answers, FromNode { message: Some(answer) }).await?;
            }
            ChunkOutcome::Held(answer) => {
                held.get_or_insert_with(Instant::now);
                send(&answers, FromNode { message: Some(answer) }).await?;
            }
            ChunkOutcome::RevisionMismatch { from, held } => {
                return Err(SessionEnd::Protocol(format!(
                    "a change starts from revision {from}, but revision {held} is held"
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
    // Room for all of them: nothing is read from the channel before the call is made.
    let (answers, outbound) = mpsc::channel(messages.len() + 1);
    for message in messages {
        send(&answers, message).await?;
    }
    let opening = async {
        let mut inbound = client.sync(ReceiverStream::new(outbound)).await?.into_inner();
        match inbound.message().await?.and_then(|first| first.message) {
            Some(to_node::Message::Welcome(welcome)) => Ok((inbound, welcome)),
            _ => Err(SessionEnd::Protocol("the control plane's first message is not Welcome".into())),
        }
    };
    let opened = tokio::time::timeout(WELCOME_TIMEOUT, opening).await;
    let (inbound, welcome) = opened
        .map_err(|_| SessionEnd::Protocol("the control plane did not answer Hello in time".into()))??;
    Ok((answers, inbound, welcome))
}

/// Never ends without a moment.
async fn sleep_until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

async fn send(answers: &mpsc::Sender<FromNode>, message: FromNode) -> Result<(), SessionEnd> {
    answers
        .send(message)
        .await
        .map_err(|_| SessionEnd::Protocol("the stream was closed while answering".into()))
}

#[cfg(test)]
mod tests {
    use tonic::transport::Endpoint;

    use super::*;

    async fn not_reached(address: &str) -> SessionEnd {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
        SessionEnd::Unreachable(endpoint.connect().await.unwrap_err())
    }

    #[tokio::test]
    async fn recognises_a_refused_connection() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        drop(listener);
        assert!(not_reached(&address).await.is_connection_refused());
        assert!(!not_reached("name.invalid:1").await.is_connection_refused());
        assert!(!SessionEnd::Closed.is_connection_refused());
    }
}

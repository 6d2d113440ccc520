//! One end real, the other scripted: messages that a correct peer never sends.
//!
//! A scripted node against the real publisher, a scripted control plane against the real push
//! client.

use std::pin::Pin;
use std::sync::Mutex;

use futures_util::Stream;
use model::{Id, Kind};
use proto::push::push_client::PushClient;
use proto::push::push_server::{Push, PushServer};
use proto::push::{
    Ack, Chunk, FromNode, Hello, InitialVersions, Nack, ResourceError, ResourceVersion, ToNode, Upsert,
    Welcome, from_node, to_node,
};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status, Streaming};

use super::world::{ControlPlane, PATIENCE, World, eventually, key, upstream};

/// A node that sends what the test wants.
pub(crate) struct ScriptedNode {
    sender: mpsc::Sender<FromNode>,
    inbound: Streaming<ToNode>,
}

impl ScriptedNode {
    pub(crate) async fn connect(world: &World, control: &ControlPlane) -> Self {
        let read = |name: &str| std::fs::read_to_string(world.path(name)).unwrap();
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(read("ca.crt")))
            .identity(Identity::from_pem(read("node-1.crt"), read("node-1.key")))
            .domain_name("controlplane");
        let endpoint = Channel::from_shared(format!("https://{}", control.address())).unwrap();
        let channel = endpoint.tls_config(tls).unwrap().connect().await.unwrap();
        let (sender, sent) = mpsc::channel(8);
        let inbound = PushClient::new(channel).sync(ReceiverStream::new(sent)).await.unwrap().into_inner();
        Self { sender, inbound }
    }

    pub(crate) async fn send(&self, message: from_node::Message) {
        self.sender.send(FromNode { message: Some(message) }).await.unwrap();
    }

    pub(crate) async fn send_hello(&mut self) {
        self.send_hello_with("", 0, Vec::new()).await;
        self.welcome().await;
    }

    /// Sends what it holds, and from which store.
    pub(crate) async fn send_hello_with(
        &mut self,
        store: &str,
        revision: u64,
        resources: Vec<ResourceVersion>,
    ) {
        let (node, instance, store) = ("node-1".into(), "scripted".into(), store.into());
        let hello = Hello { node, instance, store, revision, ..Hello::default() };
        self.send(from_node::Message::Hello(hello)).await;
        self.send(from_node::Message::InitialVersions(InitialVersions { resources, last: true })).await;
    }

    pub(crate) async fn welcome(&mut self) -> Welcome {
        match self.receive().await {
            Some(to_node::Message::Welcome(welcome)) => welcome,
            other => panic!("no Welcome: {other:?}"),
        }
    }

    /// The status with which the control plane ended the stream.
    pub(crate) async fn ended(&mut self) -> Status {
        self.inbound.message().await.unwrap_err()
    }

    pub(crate) async fn acknowledge(&self, revision: u64) {
        self.send(from_node::Message::Ack(Ack { revision })).await;
    }

    pub(crate) async fn receive(&mut self) -> Option<to_node::Message> {
        self.inbound.message().await.unwrap().unwrap().message
    }

    pub(crate) async fn chunk(&mut self) -> Chunk {
        match self.receive().await {
            Some(to_node::Message::Chunk(chunk)) => chunk,
            other => panic!("not a chunk: {other:?}"),
        }
    }
}

fn resource_error() -> ResourceError {
    let key = model::wire::key_to_wire(&key(Kind::Upstream, "0"));
    ResourceError { key: Some(key), field: "nodes".into(), problem: "not liked".into() }
}

#[tokio::test]
async fn a_rejected_change_is_not_resent_until_the_next_change() {
    let world = World::new();
    let first = world.put_upstreams(2).await;
    let control = world.control().await;
    let mut node = ScriptedNode::connect(&world, &control).await;
    node.send_hello().await;
    let chunk = node.chunk().await;
    assert_eq!((chunk.from, chunk.to, chunk.upserts.len(), chunk.last), (0, first, 2, true));
    node.send(from_node::Message::Nack(Nack { revision: first, errors: vec![resource_error()] })).await;
    let fleet = &control.publish.fleet;
    let nack =
        eventually("the error", fleet.changes(), || control.publish.fleet.view().list[0].last_nack.clone())
            .await;
    assert_eq!(nack.revision, first);
    let error = &nack.errors[0];
    assert_eq!(
        (error.resource.as_str(), error.field.as_str(), error.problem.as_str()),
        ("upstreams/0", "nodes", "not liked")
    );
    assert_eq!(control.publish.fleet.view().list[0].acknowledged, 0);

    // The next message is the next change, with everything the node still lacks.
    let second = world.put(Kind::Upstream, "9", upstream(9)).await;
    let chunk = node.chunk().await;
    assert_eq!((chunk.from, chunk.to, chunk.upserts.len()), (0, second, 3));
    node.send(from_node::Message::Ack(Ack { revision: second })).await;
    control.wait_acknowledged(second).await;
    assert!(control.publish.fleet.view().list[0].last_nack.is_none());
    let third = world.delete(Kind::Upstream, "9").await;
    let chunk = node.chunk().await;
    assert_eq!((chunk.from, chunk.to, chunk.upserts.len(), chunk.removals.len()), (second, third, 0, 1));
    control.stop().await;
}

#[tokio::test]
async fn a_slow_node_gets_the_newest_state_in_one_step() {
    let world = World::new();
    let control = world.control().await;
    let mut node = ScriptedNode::connect(&world, &control).await;
    node.send_hello().await;
    let empty = node.chunk().await;
    let newest = world.put_upstreams(20).await;
    let mut latest = control.publish.latest.clone();
    latest.wait_for(|snapshot| snapshot.revision() == newest).await.unwrap();
    node.send(from_node::Message::Ack(Ack { revision: empty.to })).await;
    let chunk = node.chunk().await;
    assert_eq!((chunk.from, chunk.to, chunk.upserts.len()), (empty.to, newest, 20));
    control.stop().await;
}

#[tokio::test]
async fn a_protocol_violation_ends_the_stream() {
    let world = World::new();
    let control = world.control().await;

    let mut node = ScriptedNode::connect(&world, &control).await;
    node.send(from_node::Message::Ack(Ack { revision: 1 })).await;
    let status = node.inbound.message().await.unwrap_err();
    assert_eq!(status.message(), "the first message must be Hello");

    let mut node = ScriptedNode::connect(&world, &control).await;
    node.send_hello().await;
    node.chunk().await;
    node.send(from_node::Message::Ack(Ack { revision: 77 })).await;
    let status = node.inbound.message().await.unwrap_err();
    assert!(status.message().contains("expected Ack or Nack of revision 0"), "{status}");
    control.stop().await;
}

/// A control plane that sends prepared chunks to the first node and records the responses.
struct ScriptedControl {
    chunks: Mutex<Vec<Chunk>>,
    /// `hold` of its Welcome.
    hold: bool,
    heard: mpsc::Sender<from_node::Message>,
}

/// Its address and the received messages. Stops on drop.
pub(crate) struct Scripted {
    pub address: std::net::SocketAddr,
    hearing: mpsc::Receiver<from_node::Message>,
    serving: tokio::task::JoinHandle<Result<(), tonic::transport::Error>>,
}

impl Scripted {
    pub(crate) async fn next_message(&mut self) -> from_node::Message {
        tokio::time::timeout(PATIENCE, self.hearing.recv()).await.unwrap().unwrap()
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// Starts one with the certificates of this world.
pub(crate) async fn scripted_control(world: &World, chunks: Vec<Chunk>, hold: bool) -> Scripted {
    let (heard, hearing) = mpsc::channel(16);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let read = |name: &str| std::fs::read_to_string(world.path(name)).unwrap();
    let tls = ServerTlsConfig::new()
        .identity(Identity::from_pem(read("control.crt"), read("control.key")))
        .client_ca_root(Certificate::from_pem(read("ca.crt")));
    let control = PushServer::new(ScriptedControl { chunks: Mutex::new(chunks), hold, heard });
    let router = Server::builder().tls_config(tls).unwrap().add_service(control);
    let serving = tokio::spawn(router.serve_with_incoming(TcpListenerStream::new(listener)));
    Scripted { address, hearing, serving }
}

#[tonic::async_trait]
impl Push for ScriptedControl {
    type SyncStream = Pin<Box<dyn Stream<Item = Result<ToNode, Status>> + Send>>;

    async fn sync(
        &self,
        request: Request<Streaming<FromNode>>,
    ) -> Result<Response<Self::SyncStream>, Status> {
        let (sender, receiver) = mpsc::channel(8);
        let (store, version) = ("scripted".into(), "0".into());
        let welcome = Welcome { store, version, revision: 9, hold: self.hold, ..Welcome::default() };
        let say = |message| Ok(ToNode { message: Some(message) });
        sender.send(say(to_node::Message::Welcome(welcome))).await.unwrap();
        for chunk in self.chunks.lock().unwrap().drain(..) {
            sender.try_send(say(to_node::Message::Chunk(chunk))).unwrap();
        }
        let (heard, mut inbound) = (self.heard.clone(), request.into_inner());
        tokio::spawn(async move {
            // Kept, so that the stream stays open.
            let _sender = sender;
            while let Ok(Some(FromNode { message: Some(message) })) = inbound.message().await {
                let _ = heard.send(message).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

fn good_upsert(nth: usize) -> Upsert {
    let id = Id::parse(&nth.to_string()).unwrap();
    let resource = model::compile(Kind::Upstream, &id, &upstream(nth), &pki::Keyring::empty()).unwrap();
    Upsert { version: 5, resource: Some((&resource).into()) }
}

#[tokio::test]
async fn an_invalid_resource_rejects_the_whole_delta() {
    let world = World::new();
    let mut bad = good_upsert(2);
    if let Some(proto::push::resource::Kind::Upstream(upstream)) =
        bad.resource.as_mut().and_then(|resource| resource.kind.as_mut())
    {
        upstream.nodes[0].host = String::new();
    }
    let chunk = |from, to, index, upserts, last| Chunk { from, to, index, upserts, last, ..Chunk::default() };
    let chunks = vec![
        chunk(0, 5, 0, vec![good_upsert(1)], true),
        chunk(5, 6, 0, vec![bad], false),
        chunk(5, 6, 1, vec![good_upsert(3)], true),
        chunk(5, 7, 0, vec![good_upsert(4)], true),
    ];
    let mut scripted = scripted_control(&world, chunks, true).await;

    let node = world.node(scripted.address);
    let mut answers = Vec::new();
    while answers.len() < 3 {
        match scripted.next_message().await {
            from_node::Message::Hello(hello) => assert_eq!(hello.node, "node-1"),
            from_node::Message::InitialVersions(versions) => {
                assert!(versions.last && versions.resources.is_empty());
            }
            answer => answers.push(answer),
        }
    }
    let [from_node::Message::Ack(first), from_node::Message::Nack(nack), from_node::Message::Ack(last)] =
        &answers[..]
    else {
        panic!("{answers:?}")
    };
    assert_eq!((first.revision, nack.revision, last.revision), (5, 6, 7));
    let error = &nack.errors[0];
    assert_eq!(error.key, Some(model::wire::key_to_wire(&key(Kind::Upstream, "2"))));
    assert!(error.field.contains("nodes"), "{error:?}");
    let snapshot = node.snapshot();
    let held: Vec<String> = snapshot.versions().map(|(key, _)| key.to_string()).collect();
    assert_eq!(held, ["upstreams/1", "upstreams/4"], "nothing of the refused delta");
    assert_eq!((node.status.rejected_changes(), snapshot.revision()), (1, 7));
    node.stop().await;
}

//! Plans on recent documents, which another writer has made outdated.

use std::sync::Arc;

use e2e::etcd::Etcd;
use model::Kind;
use pki::Keyring;
use pki::ca::{Authority, AuthoritySpec, LeafSpec};
use rustls_pki_types::UnixTime;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::*;
use crate::store::Store;
use crate::store::etcd::tests::open;

fn request(kind: Kind, id: &str, action: Action) -> ChangeRequest {
    let precondition = RequestPrecondition::Unconditional;
    ChangeRequest { kind, id: Some(id.to_owned()), action, precondition, ttl: None }
}

fn put(kind: Kind, id: &str, body: Value) -> ChangeRequest {
    request(kind, id, Action::Put { body: Some(body) })
}

fn patch(kind: Kind, id: &str, body: Value) -> ChangeRequest {
    request(kind, id, Action::Patch { sub_path: None, body: Some(body) })
}

fn delete(kind: Kind, id: &str) -> ChangeRequest {
    request(kind, id, Action::Delete { force: false })
}

fn upstream(node: &str) -> Value {
    json!({"nodes": {node: 1}})
}

fn route(upstream: &str) -> Value {
    json!({"uri": "/", "upstream_id": upstream})
}

/// Two writers of one etcd. The documents of `outdated` are those of its start: nothing follows
/// the store for it.
struct Writers {
    _server: Etcd,
    outdated: ChangePipeline,
    store: Arc<dyn Store>,
    other: ChangePipeline,
}

impl Writers {
    /// After these documents were written, and loaded by `outdated`.
    async fn after(written: &[ChangeRequest]) -> Self {
        let server = Etcd::plain().await;
        let pipeline =
            |store: &Arc<dyn Store>| ChangePipeline::new(Arc::clone(store), Arc::new(Keyring::empty()));
        let store: Arc<dyn Store> = Arc::new(open(&[server.url()]).await);
        let other = pipeline(&(Arc::new(open(&[server.url()]).await) as Arc<dyn Store>));
        for request in written {
            write(&other, request.clone()).await.unwrap();
        }
        store.load().await.unwrap();
        Self { _server: server, outdated: pipeline(&store), store, other }
    }
}

async fn write(pipeline: &ChangePipeline, request: ChangeRequest) -> Result<AcceptedChange, ChangeError> {
    let options = WriteOptions::at(UnixTime::now());
    let written = pipeline.apply(&[request], options, None).await;
    written.map(|mut accepted| accepted.changes.remove(0)).map_err(|rejected| rejected.error)
}

#[tokio::test(flavor = "multi_thread")]
async fn recent_documents_are_those_of_the_load() {
    let writers = Writers::after(&[put(Kind::Upstream, "1", upstream("a:1"))]).await;
    let key = Key::new(Kind::Upstream, model::Id::parse("1").unwrap());
    let recent = writers.store.recent().expect("all documents were loaded");
    assert_eq!(recent.get(&key), writers.store.get(&key).await.unwrap().as_ref());
    assert_eq!(recent.list(Some(Kind::Upstream)), writers.store.list(Kind::Upstream).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_on_outdated_documents_see_the_store() {
    let writers = Writers::after(&[put(Kind::Upstream, "1", upstream("a:1"))]).await;
    let (outdated, other) = (&writers.outdated, &writers.other);
    // A replacement, a removal, a patch and a reference of what was written or changed since.
    write(other, put(Kind::Upstream, "1", upstream("b:1"))).await.unwrap();
    let replaced = write(outdated, put(Kind::Upstream, "1", upstream("c:1"))).await.unwrap();
    assert_eq!(replaced.before.unwrap()["nodes"], json!({"b:1": 1}));
    write(other, put(Kind::Upstream, "2", upstream("d:1"))).await.unwrap();
    let patched = write(outdated, patch(Kind::Upstream, "2", json!({"desc": "patched"}))).await.unwrap();
    assert_eq!(patched.document["nodes"], json!({"d:1": 1}));
    write(outdated, put(Kind::Route, "1", route("2"))).await.unwrap();
    write(outdated, delete(Kind::Route, "1")).await.unwrap();
    write(outdated, delete(Kind::Upstream, "2")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn outdated_documents_permit_nothing() {
    let upstreams = [put(Kind::Upstream, "1", upstream("a:1")), put(Kind::Upstream, "2", upstream("b:1"))];
    let writers = Writers::after(&upstreams).await;
    let (outdated, other) = (&writers.outdated, &writers.other);
    write(other, put(Kind::Route, "1", route("1"))).await.unwrap();
    let error = write(outdated, delete(Kind::Upstream, "1")).await.unwrap_err().to_string();
    assert!(error.contains("is still using it now"), "{error}");
    write(other, delete(Kind::Upstream, "2")).await.unwrap();
    let error = write(outdated, put(Kind::Route, "2", route("2"))).await.unwrap_err().to_string();
    assert!(error.contains("response code: 404"), "{error}");
    assert_eq!(write(outdated, delete(Kind::Upstream, "2")).await, Err(ChangeError::NotFound));
    let mut first = put(Kind::Route, "1", route("1"));
    first.precondition = RequestPrecondition::Absent;
    let error = write(outdated, first).await.unwrap_err();
    assert!(matches!(error, ChangeError::PreconditionFailed(_)), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_site_that_came_meanwhile_permits_no_passthrough() {
    let writers = Writers::after(&[]).await;
    let authority = Authority::root(&AuthoritySpec::new("Sites")).unwrap();
    let issued = authority.issue(&LeafSpec::server("a.com")).unwrap();
    let client = json!({"ca": authority.certificate_pem()});
    let site =
        json!({"cert": issued.certificate_pem, "key": *issued.key_pem, "sni": "a.com", "client": client});
    write(&writers.other, put(Kind::Ssl, "1", site)).await.unwrap();
    let passing = |sni| json!({"sni": sni, "tls_passthrough": true, "upstream": upstream("a:1")});
    let error = write(&writers.outdated, put(Kind::StreamRoute, "1", passing("a.com"))).await.unwrap_err();
    assert!(error.to_string().contains("TLS cannot be passed on: \"a.com\" belongs to ssl 1"), "{error}");
    write(&writers.outdated, put(Kind::StreamRoute, "1", passing("b.com"))).await.unwrap();
}

/// What another writer makes newer is known by its revision.
#[tokio::test(flavor = "multi_thread")]
async fn a_precondition_on_outdated_documents_fails() {
    let writers = Writers::after(&[put(Kind::Upstream, "1", upstream("a:1"))]).await;
    let key = Key::new(Kind::Upstream, model::Id::parse("1").unwrap());
    let seen = writers.store.get(&key).await.unwrap().unwrap().mod_revision;
    write(&writers.other, put(Kind::Upstream, "1", upstream("b:1"))).await.unwrap();
    let mut change = patch(Kind::Upstream, "1", json!({"desc": "x"}));
    change.precondition = RequestPrecondition::ModRevisions(vec![seen]);
    let error = write(&writers.outdated, change).await.unwrap_err();
    assert!(matches!(error, ChangeError::PreconditionFailed(_)), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_writer_of_a_document_gets_its_turn() {
    let writers = Writers::after(&[put(Kind::Upstream, "1", upstream("a:1"))]).await;
    let mut tasks = JoinSet::new();
    for writer in 0..32 {
        let pipeline = writers.other.clone();
        tasks.spawn(async move {
            for port in 1..=8 {
                let body = upstream(&format!("w{writer}:{port}"));
                write(&pipeline, put(Kind::Upstream, "1", body)).await?;
            }
            Ok::<_, ChangeError>(())
        });
    }
    while let Some(written) = tasks.join_next().await {
        written.unwrap().unwrap();
    }
}

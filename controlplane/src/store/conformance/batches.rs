//! Conformance tests of commits that hold several mutations, or conditions.
//!
//! [`super::run_all`] runs them. A batch is all or nothing and has one revision, its conditions are
//! about the state before it, and a conflict names its document.

use std::num::NonZeroU32;
use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::future::join_all;
use model::{Key, Kind};
use serde_json::json;

use super::{conflict, delete, events, key, put};
use crate::store::{
    Batch, CommitResult, Condition, Mutation, MutationResult, Precondition, Store, StoreError,
};

const ANY: Precondition = Precondition::Unconditional;
const NEW: Precondition = Precondition::Absent;

pub(in crate::store) fn batch(parts: impl IntoIterator<Item = Batch>) -> Batch {
    let mutations = parts.into_iter().flat_map(|part| part.mutations).collect();
    Batch { mutations, conditions: Vec::new() }
}

fn provided(batch: Batch, conditions: impl IntoIterator<Item = Condition>) -> Batch {
    Batch { conditions: conditions.into_iter().collect(), ..batch }
}

fn created(revision: u64) -> MutationResult {
    MutationResult { create_revision: revision, existed: false }
}

pub(super) async fn a_batch_has_one_revision(store: Arc<dyn Store>) {
    let (route, ssl, old) = (key(Kind::Route, "r"), key(Kind::Ssl, "s"), key(Kind::Upstream, "old"));
    let first = store.commit(put(&old, json!({"v": 1}), NEW)).await.unwrap().revision;
    let mut watch = store.watch(first);
    let guarded = json!({"uri": "/a", "client_identity": {"allow": [{"dns": "a.b"}]}});
    let writes = [
        put(&route, guarded.clone(), NEW),
        delete(&old, Precondition::ModRevision(first)),
        put(&ssl, json!({"v": 2}), ANY),
        delete(&key(Kind::Service, "absent"), ANY),
    ];
    let committed = store.commit(batch(writes)).await.unwrap();
    assert!(committed.revision > first);
    let removed = MutationResult { create_revision: first, existed: true };
    let expected =
        [created(committed.revision), removed, created(committed.revision), MutationResult::default()];
    assert_eq!(committed.mutations, expected);
    let loaded = store.load().await.unwrap();
    assert_eq!(loaded.revision, committed.revision);
    let found: Vec<_> = loaded
        .items
        .iter()
        .map(|item| (&item.key, item.document.clone(), item.create_revision, item.mod_revision))
        .collect();
    let at = committed.revision;
    assert_eq!(found, [(&route, guarded, at, at), (&ssl, json!({"v": 2}), at, at)]);
    // A watch yields all changes at once.
    let item = tokio::time::timeout(super::TIMEOUT, watch.next()).await.expect("the watch stalled");
    let mut item: Vec<_> =
        item.unwrap().unwrap().into_iter().map(|event| (event.revision, event.key)).collect();
    item.sort();
    assert_eq!(item, [(at, ssl), (at, old), (at, route)]);
    let next = store.commit(put(&key(Kind::Ssl, "t"), json!({}), NEW)).await.unwrap();
    assert_eq!(events(&*store, at, 1).await[0].revision, next.revision);
}

pub(super) async fn a_batch_is_all_or_nothing(store: Arc<dyn Store>) {
    let (a, b, c) = (key(Kind::Upstream, "a"), key(Kind::Route, "b"), key(Kind::Ssl, "c"));
    let first = store.commit(put(&b, json!({"v": 1}), NEW)).await.unwrap().revision;
    for failing in [
        put(&b, json!({"v": 2}), NEW),
        put(&b, json!({"v": 2}), Precondition::ModRevision(first + 1)),
        delete(&b, NEW),
        delete(&b, Precondition::ModRevision(first - 1)),
    ] {
        let writes = batch([put(&a, json!({"v": 2}), NEW), failing, put(&c, json!({"v": 2}), ANY)]);
        assert_eq!(store.commit(writes).await, Err(conflict(&b)));
    }
    let loaded = store.load().await.unwrap();
    assert_eq!((loaded.revision, loaded.items.len()), (first, 1), "no part was made, and no revision taken");
    assert_eq!(loaded.items[0].document, json!({"v": 1}));
    let nothing = store.commit(Batch::default()).await.unwrap();
    assert_eq!(nothing, CommitResult { revision: first, mutations: Vec::new() });
}

pub(super) async fn a_batch_writes_each_document_once(store: Arc<dyn Store>) {
    let (a, b) = (key(Kind::Upstream, "a"), key(Kind::Upstream, "b"));
    for second in [put(&a, json!({"v": 2}), ANY), delete(&a, ANY)] {
        let writes = batch([put(&a, json!({"v": 1}), ANY), put(&b, json!({}), ANY), second]);
        let error = store.commit(writes).await.unwrap_err();
        assert!(matches!(&error, StoreError::Rejected { what } if what.contains("upstreams/a")), "{error}");
    }
    assert!(store.load().await.unwrap().items.is_empty());
    // The same id of another kind is another document.
    store
        .commit(batch([put(&a, json!({}), NEW), put(&key(Kind::Route, "a"), json!({}), NEW)]))
        .await
        .unwrap();
}

pub(super) async fn conditions_guard_a_batch(store: Arc<dyn Store>) {
    let (there, gone) = (key(Kind::Ssl, "there"), key(Kind::Ssl, "gone"));
    let write = |conditions: &[Condition]| {
        let write = put(&key(Kind::Upstream, "u"), json!({"n": conditions.len()}), ANY);
        store.commit(provided(write, conditions.to_vec()))
    };
    let unchanged = |key: &Key, since| Condition::Unchanged { key: key.clone(), since };
    store.commit(put(&gone, json!({}), NEW)).await.unwrap();
    let removed = store.commit(delete(&gone, ANY)).await.unwrap().revision;
    let revoking = json!({"sni": "a", "client": {"ca": "A", "crl": ["L"]}});
    let first = store.commit(put(&there, revoking, NEW)).await.unwrap().revision;
    let second = store.commit(put(&there, json!({"v": 2}), ANY)).await.unwrap().revision;
    let holding = [
        Condition::Exists(there.clone()),
        Condition::Absent(gone.clone()),
        unchanged(&there, second),
        unchanged(&there, second + 100),
    ];
    write(&holding).await.unwrap();
    let before = store.load().await.unwrap();
    for (failing, key) in [
        (Condition::Exists(gone.clone()), &gone),
        (Condition::Absent(there.clone()), &there),
        (unchanged(&there, first), &there),
        (unchanged(&gone, removed + 100), &gone),
    ] {
        let conditions: Vec<_> = holding.iter().cloned().chain([failing]).collect();
        assert_eq!(write(&conditions).await, Err(conflict(key)), "{conditions:?}");
    }
    assert_eq!(store.load().await.unwrap(), before);
    // A condition may be about a document that the batch writes: it is about the state before.
    let replaced = provided(delete(&there, ANY), [Condition::Exists(there.clone())]);
    store.commit(replaced.clone()).await.unwrap();
    assert_eq!(store.commit(replaced).await, Err(conflict(&there)));
    // The precondition of a document is reported before a condition.
    let both = provided(put(&there, json!({}), Precondition::ModRevision(second)), [Condition::Exists(gone)]);
    assert_eq!(store.commit(both).await, Err(conflict(&there)));
}

pub(super) async fn a_kind_is_unchanged_until_a_put(store: Arc<dyn Store>) {
    let (one, other) = (key(Kind::Route, "1"), key(Kind::Route, "2"));
    let attempt = |since| {
        let condition = Condition::KindUnchanged { kind: Kind::Route, since };
        store.commit(provided(put(&key(Kind::Upstream, "u"), json!({}), ANY), [condition]))
    };
    let changed = Err(StoreError::Conflict { key: None });
    attempt(0).await.unwrap();
    let first = store.commit(put(&one, json!({"v": 1}), NEW)).await.unwrap().revision;
    assert_eq!(attempt(first - 1).await, changed, "it was created");
    // The key is of a prefix of the other kind's name, and removals and other kinds do not count.
    store.commit(put(&key(Kind::Service, "s"), json!({"v": 1}), NEW)).await.unwrap();
    store.commit(put(&key(Kind::StreamRoute, "s"), json!({"v": 1}), NEW)).await.unwrap();
    attempt(first).await.unwrap();
    let second = store.commit(put(&other, json!({"v": 1}), NEW)).await.unwrap().revision;
    store.commit(delete(&one, ANY)).await.unwrap();
    attempt(second).await.unwrap();
    let guarded = json!({"v": 1, "client_identity": {"allow": [{"dns": "a"}]}});
    let third = store.commit(put(&other, guarded, ANY)).await.unwrap().revision;
    assert_eq!(attempt(second).await, changed, "it was changed");
    attempt(third).await.unwrap();
    // For a batch that writes the kind itself, the state before counts.
    let condition = Condition::KindUnchanged { kind: Kind::Route, since: third };
    let write = provided(put(&one, json!({}), NEW), [condition]);
    store.commit(write.clone()).await.unwrap();
    assert!(store.commit(write).await.is_err());
}

pub(super) async fn a_document_that_expires_fails_a_condition(store: Arc<dyn Store>) {
    let (document, other) = (key(Kind::Route, "1"), key(Kind::Route, "2"));
    let attempt = || {
        let condition = Condition::NeverExpires(document.clone());
        store.commit(provided(put(&other, json!({}), ANY), [condition]))
    };
    let write = |ttl| Mutation::Put { key: document.clone(), document: json!({}), precondition: ANY, ttl };
    assert_eq!(attempt().await, Err(conflict(&document)), "it is absent");
    for _ in 0..2 {
        store.commit(write(NonZeroU32::new(1000)).into()).await.unwrap();
        assert_eq!(attempt().await, Err(conflict(&document)));
        store.commit(write(None).into()).await.unwrap();
        attempt().await.unwrap();
    }
}

/// Each of 128 documents refers to three others, and has extension fields.
pub(super) async fn a_batch_depends_on_many_documents(store: Arc<dyn Store>) {
    let routes: Vec<_> = (0..128).map(|n| key(Kind::Route, &format!("r{n}"))).collect();
    let referenced: Vec<_> = (0..384).map(|n| key(Kind::Upstream, &format!("u{n}"))).collect();
    let mut since = 0;
    for part in referenced.chunks(128) {
        since = store.commit(batch(part.iter().map(|key| put(key, json!({}), NEW)))).await.unwrap().revision;
    }
    let guarded = json!({"client_identity": {"allow": [{"dns": "a"}]}});
    let conditions = || {
        referenced.iter().enumerate().map(|(n, key)| match n % 3 {
            0 => Condition::Exists(key.clone()),
            _ => Condition::Unchanged { key: key.clone(), since },
        })
    };
    let write = async |more: Option<Condition>, expect| {
        let writes = batch(routes.iter().map(|key| put(key, guarded.clone(), expect)));
        store.commit(provided(writes, conditions().chain(more))).await
    };
    let created = write(None, NEW).await.unwrap().revision;
    assert_eq!(store.list(Kind::Route).await.unwrap().items.len(), 128);
    // Each kind of condition is named when it fails, and nothing is written.
    let kind_changed = Condition::KindUnchanged { kind: Kind::Upstream, since: since - 1 };
    assert_eq!(write(Some(kind_changed), ANY).await, Err(StoreError::Conflict { key: None }));
    assert_eq!(write(None, NEW).await, Err(conflict(&routes[0])));
    store.commit(put(&referenced[301], json!({"v": 2}), ANY)).await.unwrap();
    assert_eq!(write(None, ANY).await, Err(conflict(&referenced[301])));
    store.commit(delete(&referenced[300], ANY)).await.unwrap();
    assert_eq!(write(None, ANY).await, Err(conflict(&referenced[300])));
    let routes = store.list(Kind::Route).await.unwrap().items;
    assert!(routes.iter().all(|route| route.mod_revision == created));
}

/// Writers read, add one and commit what they read: each increment counts.
pub(super) async fn concurrent_writers_lose_no_update(store: Arc<dyn Store>) {
    const WRITERS: u64 = 32;
    const INCREMENTS: u64 = 4;
    let (left, right) = (key(Kind::Ssl, "left"), key(Kind::Route, "right"));
    store.commit(batch([put(&left, json!({"n": 0}), NEW), put(&right, json!({"n": 0}), NEW)])).await.unwrap();
    let increment = async || {
        loop {
            let stored = store.get(&left).await.unwrap().unwrap();
            let document = json!({"n": stored.document["n"].as_u64().unwrap() + 1});
            let seen = Precondition::ModRevision(stored.mod_revision);
            let writes = batch([put(&left, document.clone(), seen), put(&right, document, seen)]);
            match store.commit(writes).await {
                Ok(committed) => return committed.revision,
                Err(error) => assert_eq!(error, conflict(&left)),
            }
        }
    };
    let writers = (0..WRITERS).map(|_| async {
        let mut revisions = Vec::new();
        for _ in 0..INCREMENTS {
            revisions.push(increment().await);
            // Both documents of a batch are visible at once.
            let items = store.load().await.unwrap().items;
            assert_eq!(items[0].document, items[1].document);
        }
        revisions
    });
    let mut revisions: Vec<u64> = join_all(writers).await.into_iter().flatten().collect();
    let committed = revisions.len();
    revisions.sort_unstable();
    revisions.dedup();
    assert_eq!(revisions.len(), committed, "each increment has its own revision");
    let items = store.load().await.unwrap().items;
    let total = json!({"n": WRITERS * INCREMENTS});
    assert!(items.iter().all(|item| item.document == total), "{items:?}");
}

/// An upstream is removed while a route that refers to it is written: one of them fails.
pub(super) async fn a_reference_and_its_removal_exclude_each_other(store: Arc<dyn Store>) {
    for round in 0..16 {
        let (route, upstream) =
            (key(Kind::Route, &format!("r{round}")), key(Kind::Upstream, &format!("u{round}")));
        store.commit(put(&upstream, json!({}), NEW)).await.unwrap();
        let referring =
            provided(put(&route, json!({"upstream_id": "u"}), NEW), [Condition::Exists(upstream.clone())]);
        let since = store.list(Kind::Route).await.unwrap().revision;
        let removing =
            provided(delete(&upstream, ANY), [Condition::KindUnchanged { kind: Kind::Route, since }]);
        let (referred, removed) = if round % 2 == 0 {
            tokio::join!(store.commit(referring), store.commit(removing))
        } else {
            let (removed, referred) = tokio::join!(store.commit(removing), store.commit(referring));
            (referred, removed)
        };
        assert_ne!(referred.is_ok(), removed.is_ok(), "{referred:?} {removed:?}");
        let remains = store.get(&upstream).await.unwrap().is_some();
        assert_eq!(
            (remains, store.get(&route).await.unwrap().is_some()),
            (referred.is_ok(), referred.is_ok())
        );
    }
}

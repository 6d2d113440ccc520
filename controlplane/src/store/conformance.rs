//! The conformance tests of a store. [`run_all`] runs them with a function that creates an empty
//! store.
//!
//! The tests know nothing of an implementation; what only one store guarantees is tested beside it.

pub(super) mod batches;
pub(super) mod random_commits;

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::stream::{self, BoxStream};
use futures_util::{FutureExt, StreamExt};
use model::{Id, Key, Kind};
use serde_json::json;

use super::{
    Batch, Event, EventStream, InternalKey, Mutation, MutationResult, Page, Precondition, Store, StoreError,
    WatchError,
};

/// For what a store does in milliseconds.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Runs each test with a fresh store.
pub(super) async fn run_all<F: AsyncFn() -> Arc<dyn Store>>(fresh: F) {
    a_new_store_is_empty(fresh().await).await;
    commits_are_read_back(fresh().await).await;
    preconditions_guard_writes(fresh().await).await;
    deleting_an_absent_document_changes_nothing(fresh().await).await;
    reserved_ids_are_unique_revisions(fresh().await).await;
    a_list_holds_one_kind_in_order(fresh().await).await;
    a_page_is_a_part_of_the_list(fresh().await).await;
    a_watch_yields_all_changes_in_order(fresh().await).await;
    a_watch_wakes_on_a_commit(fresh().await).await;
    a_watch_from_the_future_is_compacted(fresh().await).await;
    one_of_many_creates_wins(fresh().await).await;
    concurrent_writers_get_distinct_revisions(fresh().await).await;
    batches::a_batch_has_one_revision(fresh().await).await;
    batches::a_batch_is_all_or_nothing(fresh().await).await;
    batches::a_batch_writes_each_document_once(fresh().await).await;
    batches::conditions_guard_a_batch(fresh().await).await;
    batches::a_kind_is_unchanged_until_a_put(fresh().await).await;
    batches::a_document_that_expires_fails_a_condition(fresh().await).await;
    batches::a_batch_depends_on_many_documents(fresh().await).await;
    batches::concurrent_writers_lose_no_update(fresh().await).await;
    batches::a_reference_and_its_removal_exclude_each_other(fresh().await).await;
    a_document_is_removed_at_the_end_of_its_ttl(fresh().await).await;
    a_later_write_replaces_the_ttl(fresh().await).await;
    the_ends_of_documents_can_be_read(fresh().await).await;
    extension_fields_belong_to_the_document(fresh().await).await;
    internal_entries_are_compared_and_swapped(fresh().await).await;
    internal_entries_are_not_resources(fresh().await).await;
    one_of_many_swaps_wins(fresh().await).await;
    identities_differ(fresh().await, fresh().await);
}

pub(super) fn key(kind: Kind, id: &str) -> Key {
    Key::new(kind, Id::parse(id).unwrap())
}

pub(super) fn put(key: &Key, document: serde_json::Value, expect: Precondition) -> Batch {
    Mutation::Put { key: key.clone(), document, precondition: expect, ttl: None }.into()
}

pub(super) fn delete(key: &Key, expect: Precondition) -> Batch {
    Mutation::Delete { key: key.clone(), precondition: expect }.into()
}

/// The error of a write whose precondition on this key does not hold.
pub(super) fn conflict(key: &Key) -> StoreError {
    StoreError::Conflict { key: Some(key.clone()) }
}

/// Flattens batches to single events.
pub(super) fn flatten(events: EventStream) -> BoxStream<'static, Result<Event, WatchError>> {
    let each = |item: Result<Vec<Event>, WatchError>| match item {
        Ok(events) => stream::iter(events.into_iter().map(Ok).collect::<Vec<_>>()),
        Err(error) => stream::iter(vec![Err(error)]),
    };
    events.flat_map(each).boxed()
}

/// Reads `count` events; panics after [`TIMEOUT`].
async fn events(store: &dyn Store, after: u64, count: usize) -> Vec<Event> {
    let events = flatten(store.watch(after)).take(count).map(Result::unwrap).collect();
    tokio::time::timeout(TIMEOUT, events).await.expect("the watch stalled")
}

async fn a_new_store_is_empty(store: Arc<dyn Store>) {
    assert!(store.load().await.unwrap().items.is_empty());
    assert!(!store.identity().is_empty());
    assert_eq!(store.get(&key(Kind::Ssl, "1")).await.unwrap(), None);
}

async fn commits_are_read_back(store: Arc<dyn Store>) {
    let key = key(Kind::Upstream, "a");
    // The order of members and the spelling of numbers survive.
    let document =
        json!({"z": 1, "a": [1.5, -3, null, "\u{0}é"], "m": {"k": true}, "big": 18446744073709551615u64});
    let committed = store.commit(put(&key, document.clone(), Precondition::Unconditional)).await.unwrap();
    assert!(!committed.first().existed);
    assert_eq!(committed.first().create_revision, committed.revision);
    let stored = store.get(&key).await.unwrap().unwrap();
    assert_eq!(
        (&stored.key, stored.create_revision, stored.mod_revision),
        (&key, committed.revision, committed.revision)
    );
    assert_eq!(stored.document.to_string(), document.to_string());

    let changed = store.commit(put(&key, json!({"v": 2}), Precondition::Unconditional)).await.unwrap();
    assert!(changed.first().existed && changed.revision > committed.revision);
    assert_eq!(changed.first(), MutationResult { existed: true, create_revision: committed.revision });
    let stored = store.get(&key).await.unwrap().unwrap();
    assert_eq!(
        (stored.document, stored.create_revision, stored.mod_revision),
        (json!({"v": 2}), committed.revision, changed.revision)
    );
    let loaded = store.load().await.unwrap();
    assert_eq!((loaded.revision, loaded.items.len()), (changed.revision, 1));

    let deleted = store.commit(delete(&key, Precondition::Unconditional)).await.unwrap();
    assert!(deleted.first().existed && deleted.revision > changed.revision);
    assert_eq!(store.get(&key).await.unwrap(), None);
    // Recreated, it has a new create revision.
    let recreated = store.commit(put(&key, json!({}), Precondition::Absent)).await.unwrap();
    assert_eq!(recreated.first().create_revision, recreated.revision);
}

async fn preconditions_guard_writes(store: Arc<dyn Store>) {
    let key = key(Kind::Route, "r");
    let missing = store.commit(put(&key, json!({}), Precondition::ModRevision(1))).await;
    assert_eq!(missing, Err(conflict(&key)));
    let first = store.commit(put(&key, json!({"v": 1}), Precondition::Absent)).await.unwrap();
    assert_eq!(store.commit(put(&key, json!({}), Precondition::Absent)).await, Err(conflict(&key)));
    let second =
        store.commit(put(&key, json!({"v": 2}), Precondition::ModRevision(first.revision))).await.unwrap();
    for stale in [
        put(&key, json!({}), Precondition::ModRevision(first.revision)),
        delete(&key, Precondition::ModRevision(first.revision)),
    ] {
        assert_eq!(store.commit(stale).await, Err(conflict(&key)));
    }
    assert_eq!(store.load().await.unwrap().revision, second.revision, "a refused write takes no revision");
    store.commit(delete(&key, Precondition::ModRevision(second.revision))).await.unwrap();
    assert_eq!(store.get(&key).await.unwrap(), None);
}

async fn deleting_an_absent_document_changes_nothing(store: Arc<dyn Store>) {
    let before = store.load().await.unwrap().revision;
    let deleted = store.commit(delete(&key(Kind::Ssl, "x"), Precondition::Unconditional)).await.unwrap();
    assert_eq!((deleted.first(), deleted.revision), (MutationResult::default(), before));
}

async fn reserved_ids_are_unique_revisions(store: Arc<dyn Store>) {
    let first = store.reserve_id().await.unwrap();
    let second = store.reserve_id().await.unwrap();
    let committed =
        store.commit(put(&key(Kind::Ssl, "1"), json!({}), Precondition::Unconditional)).await.unwrap();
    assert!(0 < first && first < second && second < committed.revision);
    // Reserving an id is no change: the watch yields the document only, and a watch may start at a
    // reserved revision.
    let events_seen = events(&*store, second, 1).await;
    assert_eq!(events_seen.first().unwrap().revision, committed.revision);
}

async fn a_list_holds_one_kind_in_order(store: Arc<dyn Store>) {
    for (kind, id) in
        [(Kind::Route, "2"), (Kind::Ssl, "1"), (Kind::Route, "10"), (Kind::Route, "1"), (Kind::Service, "s")]
    {
        store.commit(put(&key(kind, id), json!({"id": id}), Precondition::Absent)).await.unwrap();
    }
    let ids = |loaded: super::DocumentList| {
        loaded.items.iter().map(|item| item.key.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(ids(store.list(Kind::Route).await.unwrap()), ["routes/1", "routes/10", "routes/2"]);
    assert_eq!(ids(store.list(Kind::Upstream).await.unwrap()), [""; 0]);
    let all = store.load().await.unwrap();
    assert_eq!(ids(all), ["routes/1", "routes/10", "routes/2", "services/s", "ssls/1"]);
}

async fn a_page_is_a_part_of_the_list(store: Arc<dyn Store>) {
    let pages = async |kind| {
        let list = store.list(kind).await.unwrap().items;
        for (first, size) in [(0, 3), (3, 3), (6, 3), (9, 3), (0, 100), (usize::MAX, 10), (0, 0)] {
            let page = store.page(kind, first, size).await.unwrap();
            assert_eq!(page, Page::of(list.clone(), first, size), "{kind:?} from {first}, {size} of them");
        }
    };
    pages(Kind::Route).await;
    // Not in the order of names, mixed with another kind, with and without extension fields.
    for id in ["z", "10", "2", "a", "1", "3", "y"] {
        let guarded = json!({"uri": "/a", "client_identity": {"allow": [{"dns": id}]}});
        let document = if id.len() == 1 { guarded } else { json!({"uri": id}) };
        store.commit(put(&key(Kind::Route, id), document, Precondition::Absent)).await.unwrap();
        store.commit(put(&key(Kind::Ssl, id), json!({"sni": id}), Precondition::Absent)).await.unwrap();
        store.reserve_id().await.unwrap();
    }
    pages(Kind::Route).await;
    // A change keeps the position of a document; a recreated one comes last.
    for id in ["2", "z"] {
        store.commit(put(&key(Kind::Route, id), json!({"v": 2}), Precondition::Unconditional)).await.unwrap();
    }
    store.commit(delete(&key(Kind::Route, "10"), Precondition::Unconditional)).await.unwrap();
    store.commit(delete(&key(Kind::Route, "nothing"), Precondition::Unconditional)).await.unwrap();
    store.commit(delete(&key(Kind::Route, "1"), Precondition::Unconditional)).await.unwrap();
    store.commit(put(&key(Kind::Route, "1"), json!({}), Precondition::Absent)).await.unwrap();
    pages(Kind::Route).await;
    // Documents of one commit are ordered by their ids.
    let ids = (0..20).map(|n| format!("b{}", n * 7 % 20));
    store
        .commit(batches::batch(ids.map(|id| put(&key(Kind::Ssl, &id), json!({}), Precondition::Absent))))
        .await
        .unwrap();
    pages(Kind::Ssl).await;
}

async fn a_watch_yields_all_changes_in_order(store: Arc<dyn Store>) {
    let (a, b) = (key(Kind::Ssl, "a"), key(Kind::Route, "b"));
    let start = store.load().await.unwrap().revision;
    let mut revisions = Vec::new();
    for write in [
        put(&a, json!({"v": 1}), Precondition::Unconditional),
        put(&b, json!({"v": 2}), Precondition::Unconditional),
        put(&a, json!({"v": 3}), Precondition::Unconditional),
        delete(&a, Precondition::Unconditional),
        put(&a, json!({"v": 5}), Precondition::Unconditional),
    ] {
        revisions.push(store.commit(write).await.unwrap().revision);
    }
    let events_seen = events(&*store, start, 5).await;
    assert_eq!(events_seen.iter().map(|event| event.revision).collect::<Vec<_>>(), revisions);
    let contents: Vec<_> = events_seen
        .iter()
        .map(|event| {
            (
                event.key.to_string(),
                event.document.as_ref().map(|now| (now.document.clone(), now.mod_revision)),
            )
        })
        .collect();
    let v = |at: usize, v: u64| Some((json!({"v": v}), revisions[at]));
    let expected = [
        ("ssls/a", v(0, 1)),
        ("routes/b", v(1, 2)),
        ("ssls/a", v(2, 3)),
        ("ssls/a", None),
        ("ssls/a", v(4, 5)),
    ];
    assert_eq!(contents, expected.map(|(key, now)| (key.to_owned(), now)));
    // From the middle: exactly the rest.
    assert_eq!(events(&*store, revisions[2], 2).await, events_seen[3..]);
}

async fn a_watch_wakes_on_a_commit(store: Arc<dyn Store>) {
    let start = store.load().await.unwrap().revision;
    let mut watch = flatten(store.watch(start));
    assert!(watch.next().now_or_never().is_none(), "nothing happened yet");
    let committed =
        store.commit(put(&key(Kind::Ssl, "1"), json!({}), Precondition::Unconditional)).await.unwrap();
    let next = tokio::time::timeout(TIMEOUT, watch.next()).await.expect("the watch slept on");
    assert_eq!(next.unwrap().unwrap().revision, committed.revision);
}

async fn a_watch_from_the_future_is_compacted(store: Arc<dyn Store>) {
    let now = store.load().await.unwrap().revision;
    let mut watch = store.watch(now + 1000);
    let events = tokio::time::timeout(TIMEOUT, watch.next()).await.expect("the watch stalled");
    assert!(matches!(events, Some(Err(WatchError::Compacted { .. }))));
    assert!(watch.next().await.is_none());
}

async fn one_of_many_creates_wins(store: Arc<dyn Store>) {
    let key = key(Kind::Service, "s");
    let tries = (0..16).map(|n| store.commit(put(&key, json!({"n": n}), Precondition::Absent)));
    let results = futures_util::future::join_all(tries).await;
    let (succeeded, rejected): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
    assert_eq!(succeeded.len(), 1);
    assert!(rejected.iter().all(|rejected| *rejected == Err(conflict(&key))));
}

async fn concurrent_writers_get_distinct_revisions(store: Arc<dyn Store>) {
    let start = store.load().await.unwrap().revision;
    let keys: Vec<_> = (0..64).map(|n| key(Kind::Ssl, &format!("k{n}"))).collect();
    let writes =
        keys.iter().map(|key| store.commit(put(key, json!({"k": key.to_string()}), Precondition::Absent)));
    let mut revisions: Vec<_> = futures_util::future::join_all(writes)
        .await
        .into_iter()
        .map(|committed| committed.unwrap().revision)
        .collect();
    revisions.sort_unstable();
    let events_seen = events(&*store, start, keys.len()).await;
    assert_eq!(events_seen.iter().map(|event| event.revision).collect::<Vec<_>>(), revisions);
    revisions.dedup();
    assert_eq!(revisions.len(), keys.len());
}

/// A write with a time to live of some seconds.
pub(super) fn put_for(key: &Key, seconds: u32) -> Batch {
    let (key, precondition) = (key.clone(), Precondition::Unconditional);
    let ttl = Some(NonZeroU32::new(seconds).unwrap());
    Mutation::Put { key, document: json!({"ttl": seconds}), precondition, ttl }.into()
}

async fn a_document_is_removed_at_the_end_of_its_ttl(store: Arc<dyn Store>) {
    let (short, long, stays) = (key(Kind::Route, "short"), key(Kind::Ssl, "long"), key(Kind::Ssl, "stays"));
    let writes = [put_for(&short, 1), put_for(&long, u32::MAX), put(&stays, json!({}), Precondition::Absent)];
    let started = Instant::now();
    let committed = store.commit(batches::batch(writes)).await.unwrap();
    let removal = events(&*store, committed.revision, 1).await.remove(0);
    assert!(started.elapsed() >= Duration::from_millis(900), "{:?}", started.elapsed());
    assert_eq!((removal.key, removal.document), (short.clone(), None));
    assert!(removal.revision > committed.revision);
    assert_eq!(store.get(&short).await.unwrap(), None);
    let loaded = store.load().await.unwrap();
    let names: Vec<_> = loaded.items.iter().map(|item| item.key.clone()).collect();
    assert_eq!((names, loaded.revision), (vec![long, stays], removal.revision));
    // The name is free again.
    store.commit(put(&short, json!({}), Precondition::Absent)).await.unwrap();
}

async fn a_later_write_replaces_the_ttl(store: Arc<dyn Store>) {
    let keys = ["kept", "renewed", "recreated", "short"].map(|id| key(Kind::Upstream, id));
    let [kept, renewed, recreated, short] = &keys;
    store.commit(batches::batch(keys.iter().map(|key| put_for(key, 1)))).await.unwrap();
    store.commit(put(kept, json!({}), Precondition::Unconditional)).await.unwrap();
    store.commit(put_for(renewed, 1000)).await.unwrap();
    store.commit(delete(recreated, Precondition::Unconditional)).await.unwrap();
    store.commit(put(recreated, json!({}), Precondition::Absent)).await.unwrap();
    // Renewed, so that it ends after the others would have.
    let last = store.commit(put_for(short, 1)).await.unwrap();
    let removal = events(&*store, last.revision, 1).await.remove(0);
    assert_eq!((&removal.key, removal.document), (short, None));
    let loaded = store.load().await.unwrap();
    let names: Vec<_> = loaded.items.iter().map(|item| item.key.clone()).collect();
    assert_eq!(
        (names, loaded.revision),
        (vec![kept.clone(), recreated.clone(), renewed.clone()], removal.revision)
    );
}

async fn the_ends_of_documents_can_be_read(store: Arc<dyn Store>) {
    assert!(store.expiries().await.unwrap().is_empty());
    let keys = ["a", "b", "cleared", "removed", "stays"].map(|id| key(Kind::Route, id));
    let [a, b, cleared, removed, stays] = &keys;
    let writes = [put_for(a, 1000), put_for(b, 1000), put_for(cleared, 1000), put_for(removed, 1000)];
    store.commit(batches::batch(writes)).await.unwrap();
    store.commit(put(cleared, json!({}), Precondition::Unconditional)).await.unwrap();
    store.commit(delete(removed, Precondition::Unconditional)).await.unwrap();
    store.commit(put(stays, json!({}), Precondition::Absent)).await.unwrap();
    store.commit(put_for(b, u32::MAX)).await.unwrap();
    let expiries = store.expiries().await.unwrap();
    assert_eq!(expiries.keys().collect::<Vec<_>>(), [a, b]);
    let left = |key: &Key| expiries[key].duration_since(Instant::now()).as_secs();
    assert!((900..=1000).contains(&left(a)), "{}", left(a));
    assert!(left(b) > u64::from(u32::MAX) - 100, "{}", left(b));
}

/// Documents with extension fields are read, listed, loaded and watched as they were written.
async fn extension_fields_belong_to_the_document(store: Arc<dyn Store>) {
    let (route, ssl) = (key(Kind::Route, "1"), key(Kind::Ssl, "1"));
    let start = store.load().await.unwrap().revision;
    let guarded = json!({"uri": "/a", "client_identity": {"allow": [{"dns": "a.b"}]}});
    let revoking = json!({"sni": "a", "client": {"ca": "A", "crl": ["L"], "crl_policy": "prefer"}});
    let committed = store.commit(put(&route, guarded.clone(), Precondition::Absent)).await.unwrap();
    let second = store.commit(put(&ssl, revoking.clone(), Precondition::Unconditional)).await.unwrap();
    let stored = store.get(&route).await.unwrap().unwrap();
    assert_eq!(
        (&stored.document, stored.create_revision, stored.mod_revision),
        (&guarded, committed.revision, committed.revision)
    );
    assert!(!stored.stale_extensions);
    assert_eq!(store.list(Kind::Ssl).await.unwrap().items[0].document, revoking);
    let loaded: Vec<_> = store.load().await.unwrap().items.into_iter().map(|item| item.document).collect();
    assert_eq!(loaded, [guarded.clone(), revoking.clone()]);
    // A write without extension fields removes them, and one precondition covers both parts.
    let open = json!({"uri": "/a"});
    let without =
        store.commit(put(&route, open.clone(), Precondition::ModRevision(committed.revision))).await.unwrap();
    let stale =
        store.commit(put(&route, guarded.clone(), Precondition::ModRevision(committed.revision))).await;
    assert_eq!(stale, Err(conflict(&route)));
    assert_eq!(store.get(&route).await.unwrap().unwrap().document, open);
    let guarded_again = store
        .commit(put(&route, guarded.clone(), Precondition::ModRevision(without.revision)))
        .await
        .unwrap();
    let deleted =
        store.commit(delete(&route, Precondition::ModRevision(guarded_again.revision))).await.unwrap();
    let recreated = store.commit(put(&route, open.clone(), Precondition::Absent)).await.unwrap();
    assert_eq!(store.get(&route).await.unwrap().unwrap().document, open);
    let events: Vec<_> = events(&*store, start, 6)
        .await
        .into_iter()
        .map(|event| (event.revision, event.key, event.document.map(|now| now.document)))
        .collect();
    let expected = [
        (committed.revision, &route, Some(guarded.clone())),
        (second.revision, &ssl, Some(revoking)),
        (without.revision, &route, Some(open.clone())),
        (guarded_again.revision, &route, Some(guarded)),
        (deleted.revision, &route, None),
        (recreated.revision, &route, Some(open)),
    ];
    assert_eq!(events, expected.map(|(revision, key, document)| (revision, key.clone(), document)));
}

const SECRETS: InternalKey = InternalKey::TicketSecrets;

/// The error of a swap from another version.
const TAKEN: StoreError = StoreError::Conflict { key: None };

async fn swap(store: &dyn Store, expect: u64, text: &str) -> Result<u64, StoreError> {
    store.swap_internal_entry(SECRETS, expect, text.to_owned().into()).await
}

async fn internal_entries_are_compared_and_swapped(store: Arc<dyn Store>) {
    assert!(store.internal_entry(SECRETS).await.unwrap().is_none());
    assert_eq!(swap(&*store, 7, "x").await, Err(TAKEN), "there is none yet");
    let first = swap(&*store, 0, "one").await.unwrap();
    assert_eq!(swap(&*store, 0, "x").await, Err(TAKEN), "there is one already");
    let second = swap(&*store, first, "two").await.unwrap();
    assert!(0 < first && first < second);
    assert_eq!(swap(&*store, first, "x").await, Err(TAKEN));
    let stored = store.internal_entry(SECRETS).await.unwrap().unwrap();
    assert_eq!((stored.version, stored.text.as_str()), (second, "two"));
}

async fn internal_entries_are_not_resources(store: Arc<dyn Store>) {
    let before = store.load().await.unwrap().revision;
    let mut watch = store.watch(before);
    swap(&*store, 0, "one").await.unwrap();
    let after = store.load().await.unwrap();
    assert!(after.items.is_empty(), "it is in no list");
    for kind in Kind::ALL {
        assert!(store.list(kind).await.unwrap().items.is_empty(), "{kind:?}");
    }
    assert!(watch.next().now_or_never().is_none(), "no watch yields it");
    // The watch skips the internal entry.
    let committed =
        store.commit(put(&key(Kind::Ssl, "1"), json!({}), Precondition::Unconditional)).await.unwrap();
    assert_eq!(events(&*store, before, 1).await[0].revision, committed.revision);
}

async fn one_of_many_swaps_wins(store: Arc<dyn Store>) {
    for expect in 0..3 {
        let now = store.internal_entry(SECRETS).await.unwrap().map_or(0, |stored| stored.version);
        let texts: Vec<String> = (0..16).map(|n| format!("{expect} {n}")).collect();
        let results = futures_util::future::join_all(texts.iter().map(|text| swap(&*store, now, text))).await;
        let succeeded: Vec<usize> = (0..16).filter(|n| results[*n].is_ok()).collect();
        assert_eq!(succeeded.len(), 1, "{results:?}");
        let stored = store.internal_entry(SECRETS).await.unwrap().unwrap();
        assert_eq!(*stored.text, texts[succeeded[0]]);
    }
}

fn identities_differ(one: Arc<dyn Store>, other: Arc<dyn Store>) {
    assert_ne!(one.identity(), other.identity());
}

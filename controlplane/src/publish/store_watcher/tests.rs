use model::{Id, Kind, Resource};
use serde_json::{Value, json};

use super::*;

fn key(id: &str) -> Key {
    Key::new(Kind::Upstream, Id::parse(id).unwrap())
}

fn stored(id: &str, modified: u64, document: Value) -> StoredDocument {
    StoredDocument {
        key: key(id),
        document,
        create_revision: 1,
        mod_revision: modified,
        stale_extensions: false,
        salvaged: None,
    }
}

fn upstream(port: u16) -> Value {
    json!({"nodes": {format!("10.0.0.1:{port}"): 1}})
}

async fn load(before: &Arc<Snapshot>, revision: u64, items: Vec<StoredDocument>) -> Arc<Snapshot> {
    let (loaded, keyring) = (DocumentList { revision, items }, Arc::new(pki::Keyring::empty()));
    apply_load(Arc::clone(before), Arc::new(loaded), &keyring, &Arc::default()).await
}

fn resource(snapshot: &Snapshot, id: &str) -> Resource {
    snapshot.get(&key(id)).unwrap().resource.clone()
}

#[tokio::test]
async fn a_load_compiles_only_changed_documents() {
    let empty = Arc::new(Snapshot::empty());
    let items = vec![stored("a", 1, upstream(1)), stored("b", 2, upstream(2)), stored("c", 3, upstream(3))];
    let first = load(&empty, 3, items.clone()).await;
    let again = load(&first, 9, items).await;
    assert_eq!(again.revision(), 9);
    assert!(first.diff(&again).is_empty());
    for id in ["a", "b", "c"] {
        assert!(resource(&first, id).ptr_eq(&resource(&again, id)), "{id} was compiled again");
    }
}

#[tokio::test]
async fn a_rollback_with_reused_revisions_is_followed() {
    let empty = Arc::new(Snapshot::empty());
    let before = load(
        &empty,
        7,
        vec![
            stored("same", 3, upstream(1)),
            stored("reused", 5, upstream(2)),
            stored("later", 7, upstream(3)),
        ],
    )
    .await;
    // Restored to revision 4, then revision 5 is used for another document.
    let after =
        load(&before, 5, vec![stored("same", 3, upstream(1)), stored("reused", 5, upstream(9))]).await;
    assert_eq!(after.revision(), 5);
    let delta = before.diff(&after);
    let upserts: Vec<_> = delta.upserts.iter().map(|upsert| upsert.resource.key()).collect();
    assert_eq!((upserts, delta.removals), (vec![key("reused")], vec![key("later")]));
    assert_ne!(resource(&before, "reused"), resource(&after, "reused"));
}

#[tokio::test]
async fn an_invalid_document_keeps_its_resource_over_loads() {
    let empty = Arc::new(Snapshot::empty());
    let good = load(&empty, 1, vec![stored("u", 1, upstream(1))]).await;
    for revision in 2..4 {
        let kept = load(&good, revision, vec![stored("u", 2, json!({"nodes": "invalid"}))]).await;
        assert!(resource(&good, "u").ptr_eq(&resource(&kept, "u")));
    }
}

#[tokio::test]
async fn a_rollback_removes_later_findings() {
    let (keyring, findings) = (Arc::new(pki::Keyring::empty()), Arc::new(StoredFindings::default()));
    let load = async |before: Snapshot, revision, item| {
        let loaded = DocumentList { revision, items: vec![item] };
        let after = apply_load(Arc::new(before), Arc::new(loaded), &keyring, &findings).await;
        (Snapshot::clone(&after), findings.all().len())
    };
    let with_checks = json!({"nodes": {"10.0.0.1:1": 1}, "checks": {"active": {}}});
    let (good, findings_count) = load(Snapshot::empty(), 5, stored("a", 5, upstream(1))).await;
    assert_eq!(findings_count, 0);
    let (kept, findings_count) = load(good.clone(), 7, stored("a", 7, json!({"nodes": "invalid"}))).await;
    assert!(resource(&kept, "a").ptr_eq(&resource(&good, "a")) && findings_count == 1);
    let (back, findings_count) = load(kept, 5, stored("a", 5, upstream(1))).await;
    assert_eq!(findings_count, 0, "it is as it was");
    // A partly served document has its finding as long as it is, however often it is loaded.
    let (part, findings_count) = load(back, 8, stored("a", 8, with_checks.clone())).await;
    assert_eq!(findings_count, 1);
    let (again, findings_count) = load(part.clone(), 9, stored("a", 8, with_checks)).await;
    assert!(resource(&again, "a").ptr_eq(&resource(&part, "a")) && findings_count == 1);
}

#[tokio::test]
async fn a_removal_by_another_program_is_logged() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let log = std::sync::Mutex::new(std::fs::File::create(&path).unwrap());
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(log).finish();
    // With a single dispatcher, tracing caches callsite interest and the lines of parallel tests
    // get lost.
    let _other = tracing::Dispatch::new(tracing_subscriber::registry());
    let _guard = tracing::subscriber::set_default(subscriber);
    let key = Key::new(Kind::Route, Id::parse("guarded").unwrap());
    let document =
        json!({"uri": "/a", "upstream": upstream(1), "client_identity": {"allow": [{"dns": "a.b"}]}});
    let items = vec![StoredDocument { key: key.clone(), ..stored("x", 1, document) }];
    let before = load(&Arc::new(Snapshot::empty()), 1, items).await;
    let mut changes = PendingChanges::since(&before);
    let event = Event { revision: 2, key: key.clone(), document: None };
    changes.add(event, &pki::Keyring::empty(), &StoredFindings::default());
    assert_eq!(changes.into_delta().removals, [key]);
    let log = std::fs::read_to_string(path).unwrap();
    assert!(log.contains("a change weakens the protection") && log.contains("routes/guarded"), "{log}");
}

/// However the changes are divided, the snapshot and the findings are those of each by itself.
#[test]
fn a_burst_of_changes_is_the_sum_of_them() {
    let keyring = pki::Keyring::empty();
    let changes: Vec<(usize, u16)> = (0..600usize).map(|n| (n * 7 % 11, (n * n % 13) as u16)).collect();
    let event = |(revision, (id, what)): (u64, &(usize, u16))| {
        let id = id.to_string();
        let document = match what {
            0..4 => None,
            4 => Some(json!({"nodes": "invalid"})),
            port => Some(upstream(*port)),
        };
        let document = document.map(|document| stored(&id, revision, document));
        Event { revision, key: key(&id), document }
    };
    let apply = |size: usize| {
        let findings = StoredFindings::default();
        let events: Vec<Event> = (1..).zip(&changes).map(event).collect();
        let snapshot = events.chunks(size).fold(Snapshot::empty(), |before, events| {
            let mut changes = PendingChanges::since(&before);
            events.iter().for_each(|event| changes.add(event.clone(), &keyring, &findings));
            before.apply(&changes.into_delta())
        });
        (snapshot, findings.all())
    };
    let (each, each_findings) = apply(1);
    assert!(!each.is_empty() && !each_findings.is_empty());
    for size in [2, 7, 100, 600] {
        let (together, findings) = apply(size);
        assert!(each.diff(&together).is_empty(), "{size}");
        assert_eq!((together.revision(), &findings), (each.revision(), &each_findings), "{size}");
    }
}

#[test]
fn all_cores_keep_the_order() {
    for count in [0, 1, ITEMS_PER_THREAD_MIN, 10 * ITEMS_PER_THREAD_MIN + 1] {
        let items: Vec<usize> = (0..count).collect();
        let odd = filter_map_on_all_cores(&items, |item| (item % 2 == 1).then_some(item * 2));
        assert_eq!(odd, (0..count).filter(|item| item % 2 == 1).map(|item| item * 2).collect::<Vec<_>>());
    }
}

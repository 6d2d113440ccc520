//! Ten thousand writes while the network between control plane and etcd is cut, held, and heard by one side only.
//!
//! Afterwards: every acknowledged write is in etcd's history at the revision it was acknowledged with; what was answered as not
//! written is nowhere in it; no write was made twice; each writer's own order is kept; and each data plane serves exactly what etcd holds.

use std::collections::HashMap;
use std::sync::Arc;

use e2e::admin::{Admin, AdminSession};
use e2e::caller::{Session, bounded};
use e2e::etcd::Etcd;
use e2e::proxy::{Network, Proxy};
use e2e::upstream::Upstream;
use e2e::world::World;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::stage::{name, numbered};

const WRITES: u64 = 10_000;
const WRITERS: u64 = 16;
/// Objects of each writer; every seventh write removes one.
const OBJECTS: u64 = 8;
/// The number of the last document: nobody else's.
const END: u64 = u64::MAX;

/// What the writers have done so far, all together.
#[derive(Clone, Copy, Default)]
struct Progress {
    made: u64,
    failed: u64,
}

/// One write and what was answered.
struct Written {
    id: String,
    /// In the document; nothing for a removal.
    number: Option<u64>,
    answer: Told,
}

enum Told {
    Made(u64),
    NotMade,
    Unknown,
}

struct Writer {
    admin: Admin,
    session: Option<AdminSession>,
    upstream: Arc<Upstream>,
    progress: watch::Sender<Progress>,
}

impl Writer {
    /// Until so many of its writes were made.
    async fn run(mut self, writer: u64) -> Vec<Written> {
        let mut written: Vec<Written> = Vec::new();
        let mut made = 0;
        for n in 0.. {
            if made == WRITES / WRITERS {
                break;
            }
            let id = format!("p{writer}-{}", n % OBJECTS);
            let number = (n % 7 != 6).then_some(writer * 1_000_000 + n);
            let answer = self.write(&id, number).await;
            let success = matches!(answer, Some(Told::Made(_)));
            made += u64::from(success);
            self.progress.send_modify(|all| {
                all.made += u64::from(success);
                all.failed += u64::from(!success);
            });
            written.extend(answer.map(|answer| Written { id, number, answer }));
        }
        written
    }

    /// `None`: there was nothing to remove.
    async fn write(&mut self, id: &str, number: Option<u64>) -> Option<Told> {
        let session = match &mut self.session {
            Some(session) => session,
            none => none.insert(self.admin.connect().await.expect("the Admin API answers")),
        };
        let document = number.map(|number| numbered(&self.upstream, &format!("/{id}"), number));
        let method = if document.is_some() { Method::PUT } else { Method::DELETE };
        let answer =
            session.call(method, &format!("routes/{id}"), document.as_ref()).await.expect("an answer");
        let said = answer.reply.text();
        match answer.status {
            status if status.is_success() => Some(Told::Made(answer.revision.expect("a revision"))),
            StatusCode::NOT_FOUND if number.is_none() => None,
            StatusCode::SERVICE_UNAVAILABLE if said.contains("not known") => Some(Told::Unknown),
            StatusCode::SERVICE_UNAVAILABLE => Some(Told::NotMade),
            status => panic!("{id}: {status} {said}"),
        }
    }
}

/// Breaks the network again and again, each time after some more writes were made, and mends it after some failed.
async fn trouble(proxy: Proxy, mut progress: watch::Receiver<Progress>) -> Proxy {
    let script = [
        (Network::Cut, 700, 40),
        (Network::HoldAnswers, 900, 20),
        (Network::Cut, 1_300, 100),
        (Network::Hold, 400, 20),
        (Network::HoldAnswers, 1_100, 20),
        (Network::Cut, 800, 20),
        (Network::Hold, 1_500, 20),
        (Network::Cut, 600, 60),
    ];
    for (network, after, failures) in script {
        let made = progress.borrow().made + after;
        let enough = bounded("writes are made", progress.wait_for(|all| all.made >= made));
        drop(enough.await.expect("the writers run"));
        let failed = progress.borrow().failed + failures;
        proxy.set(network).await;
        let enough = bounded("writes fail", progress.wait_for(|all| all.failed >= failed));
        drop(enough.await.expect("the writers run"));
        proxy.set(Network::Forward).await;
    }
    proxy
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_writes_through_a_network_that_breaks() {
    let etcd = Etcd::plain().await;
    let proxy = Proxy::to(etcd.address()).await;
    let access = etcd.access().through(&[proxy.address()]);
    let impatient = json!({"deployment": {"etcd": {"timeout": 1}}});
    let world = World::builder().etcd(access).settings(impatient).nodes(&["node-1", "node-2"]).start().await;
    let upstream = Arc::new(Upstream::plain("one").await);
    let start = etcd.keys().await.revision().await;

    let (progress, watched) = watch::channel(Progress::default());
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let (admin, upstream, progress) = (world.admin(), Arc::clone(&upstream), progress.clone());
        writers.spawn(Writer { admin, session: None, upstream, progress }.run(writer));
    }
    let trouble = tokio::spawn(trouble(proxy, watched));
    let written = writers.join_all().await;
    let _proxy = trouble.await.expect("the script ends before the writers do");

    // One write more: when it is seen everywhere, everything before it is.
    let end = world.admin().put("routes/end", &numbered(&upstream, "/end", END)).await;
    check_history(&etcd, start, end, &written).await;
    world.settled(end).await;
    let mut expected = HashMap::new();
    for entry in etcd.keys().await.below("/apisix/routes/").await {
        if let Ok(document) = serde_json::from_slice::<Value>(&entry.value) {
            expected.insert(document["uri"].as_str().unwrap().to_owned(), document);
        }
    }
    for node in 0..2 {
        let mut session = Session::plain(world.node_address(node, "http"), "app.test").await.unwrap();
        for writer in 0..WRITERS {
            for object in 0..OBJECTS {
                let uri = format!("/p{writer}-{object}");
                assert_serves(&mut session, &uri, expected.get(&uri)).await;
            }
        }
    }
}

async fn assert_serves(session: &mut Session, uri: &str, expected: Option<&Value>) {
    let reply = session.get(uri).await.unwrap_or_else(|refused| panic!("{refused}"));
    match expected {
        None => assert_eq!(reply.status, StatusCode::NOT_FOUND, "{uri}"),
        Some(document) => {
            assert_eq!(reply.status, StatusCode::OK, "{uri}");
            assert_eq!(reply.json()["headers"]["host"], document["upstream"]["upstream_host"], "{uri}");
        }
    }
}

/// Compares what was told with what etcd's own history says.
async fn check_history(etcd: &Etcd, start: u64, end: u64, written: &[Vec<Written>]) {
    let history = etcd.keys().await.history("/apisix/routes/", start + 1, end).await;
    let mut by_revision = HashMap::new();
    let mut times = HashMap::new();
    for change in &history {
        let number = change.value.as_ref().and_then(|value| number_in(value));
        assert!(
            by_revision.insert(change.revision, (change.key.clone(), number)).is_none(),
            "one change a revision"
        );
        if let Some(number) = number {
            *times.entry(number).or_insert(0) += 1;
        }
    }
    let (mut acknowledged, mut not_made, mut unknown) = (0_u64, 0_u64, 0_u64);
    for writer in written {
        let mut last = 0;
        for Written { id, number, answer } in writer {
            let found = number.map_or(0, |number| times.get(&number).copied().unwrap_or(0));
            match answer {
                Told::Made(revision) => {
                    acknowledged += 1;
                    let expected = (name(&format!("routes/{id}")), *number);
                    // A removal found out later than it was made has the revision at which that was seen.
                    if number.is_some() || by_revision.contains_key(revision) {
                        assert_eq!(by_revision.get(revision), Some(&expected), "{id} at {revision}");
                    }
                    assert!(number.is_none() || found == 1, "{id} {number:?} was made {found} times");
                    assert!(*revision > last, "{id}: {revision} after {last}");
                    last = *revision;
                }
                Told::NotMade => {
                    not_made += 1;
                    assert_eq!(found, 0, "{id} {number:?} was refused, and made");
                }
                Told::Unknown => {
                    unknown += 1;
                    assert!(found <= 1, "{id} {number:?} was made {found} times");
                }
            }
        }
    }
    assert_eq!(acknowledged, WRITES);
    assert!(not_made >= 100, "the network was broken: {not_made} refused, {unknown} unknown");
}

fn number_in(value: &[u8]) -> Option<u64> {
    let document: Value = serde_json::from_slice(value).ok()?;
    document["upstream"]["upstream_host"].as_str()?.strip_prefix('v')?.parse().ok()
}

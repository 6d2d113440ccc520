//! Many writers at the Admin API, their responses, and etcd's own history.
//!
//! Afterwards: every acknowledged write is in the history at its revision; none that was reported
//! as not made is in it; no write was made twice; each writer's order is kept; and each data plane
//! serves exactly the content of etcd.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use e2e::admin::{Admin, AdminConnection};
use e2e::client::{HttpConnection, bounded};
use e2e::etcd::Keys;
use e2e::upstream::Upstream;
use e2e::world::World;
use http::{Method, StatusCode};
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::stage::{name, numbered};

/// Objects of each pair of writers, which write them at about the same time; every seventh write
/// removes one.
const OBJECTS: u64 = 8;
/// The number of the final document, used by no writer.
const END: u64 = u64::MAX;

/// The totals of all writers.
#[derive(Clone, Copy, Default)]
pub(crate) struct Progress {
    made: u64,
    failed: u64,
}

/// One write and its response.
struct Written {
    id: String,
    /// The number in the document; `None` for a removal.
    number: Option<u64>,
    answer: Outcome,
}

/// The count of each outcome.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub made: u64,
    pub not_made: u64,
    pub unknown: u64,
}

enum Outcome {
    Made(u64),
    NotMade,
    Unknown,
}

impl Outcome {
    fn revision(&self) -> Option<u64> {
        if let Self::Made(revision) = self { Some(*revision) } else { None }
    }
}

struct Writer {
    admin: Admin,
    session: Option<AdminConnection>,
    upstream: Arc<Upstream>,
    progress: watch::Sender<Progress>,
}

impl Writer {
    /// Until so many of its writes were made.
    async fn run(mut self, writer: u64, count: u64) -> Vec<Written> {
        let mut written: Vec<Written> = Vec::new();
        let mut made = 0;
        for n in 0.. {
            if made == count {
                break;
            }
            let id = format!("p{}-{}", writer / 2, n % OBJECTS);
            let number = (n % 7 != 6).then_some(writer * 1_000_000 + n);
            let answer = self.write(&id, number).await;
            let success = matches!(answer, Some(Outcome::Made(_)));
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
    async fn write(&mut self, id: &str, number: Option<u64>) -> Option<Outcome> {
        let session = match &mut self.session {
            Some(session) => session,
            none => none.insert(self.admin.connect().await.expect("the Admin API answers")),
        };
        let document = number.map(|number| numbered(&self.upstream, &format!("/{id}"), number));
        let method = if document.is_some() { Method::PUT } else { Method::DELETE };
        let answer =
            session.call(method, &format!("routes/{id}"), document.as_ref()).await.expect("an answer");
        let text = answer.reply.text();
        match answer.status {
            status if status.is_success() => Some(Outcome::Made(answer.revision.expect("a revision"))),
            StatusCode::NOT_FOUND if number.is_none() => None,
            StatusCode::SERVICE_UNAVAILABLE if text.contains("not known") => Some(Outcome::Unknown),
            StatusCode::SERVICE_UNAVAILABLE => Some(Outcome::NotMade),
            status => panic!("{id}: {status} {text}"),
        }
    }
}

/// Running writers.
pub(crate) struct Ledger {
    writers: JoinSet<Vec<Written>>,
    pairs: u64,
    count: u64,
    upstream: Arc<Upstream>,
    progress: watch::Receiver<Progress>,
    /// etcd's revision before the first write.
    start: u64,
}

impl Ledger {
    /// Sixteen writers, spread over the control planes, of `count` writes each.
    pub(crate) async fn open(world: &World, control_planes: usize, keys: &mut Keys, count: u64) -> Self {
        const WRITERS: u64 = 16;
        let (progress, watched) = watch::channel(Progress::default());
        let upstream = Arc::new(Upstream::plain("one").await);
        let start = keys.revision().await;
        let mut writers = JoinSet::new();
        for (writer, control_plane) in (0..WRITERS).zip((0..control_planes).cycle()) {
            let (admin, upstream, progress) =
                (world.admin_of(control_plane), Arc::clone(&upstream), progress.clone());
            writers.spawn(Writer { admin, session: None, upstream, progress }.run(writer, count));
        }
        Self { writers, pairs: WRITERS / 2, count: WRITERS * count, upstream, progress: watched, start }
    }

    /// For the disturbance that runs beside them.
    pub(crate) fn watched(&self) -> Watched {
        Watched(self.progress.clone())
    }

    /// Waits for the writers, and compares.
    pub(crate) async fn close(self, world: &World, keys: &mut Keys, nodes: usize) -> Counts {
        let written = self.writers.join_all().await;
        // One final write: when it is visible everywhere, every write before it is.
        let last = numbered(&self.upstream, "/end", END);
        let end = bounded("a last write", async {
            loop {
                let answer =
                    world.admin().call(Method::PUT, "routes/end", Some(&last)).await.expect("an answer");
                if answer.status.is_success() {
                    return answer.revision.expect("a revision");
                }
            }
        });
        let end = end.await;
        let tally = check_history(keys, self.start, end, &written).await;
        assert_eq!(tally.made, self.count);
        world.wait_acknowledged(end).await;
        let mut expected = HashMap::new();
        for entry in keys.with_prefix("/apisix/routes/").await {
            if let Ok(document) = serde_json::from_slice::<Value>(&entry.value) {
                expected.insert(document["uri"].as_str().expect("a uri").to_owned(), document);
            }
        }
        for node in 0..nodes {
            let address = world.node_address(node, "http");
            let mut session = HttpConnection::plain(address, "app.test").await.expect("the node serves");
            for uri in (0..self.pairs).flat_map(|pair| (0..OBJECTS).map(move |n| format!("/p{pair}-{n}"))) {
                assert_serves(&mut session, &uri, expected.get(&uri)).await;
            }
        }
        tally
    }
}

/// Waits for progress of the writers.
pub(crate) struct Watched(watch::Receiver<Progress>);

impl Watched {
    /// So many more writes were made.
    pub(crate) async fn made(&mut self, more: u64) {
        let target = self.0.borrow().made + more;
        let enough = bounded("writes are made", self.0.wait_for(|all| all.made >= target)).await;
        drop(enough.expect("the writers run"));
    }

    /// So many more writes failed.
    pub(crate) async fn failed(&mut self, more: u64) {
        let target = self.0.borrow().failed + more;
        let enough = bounded("writes fail", self.0.wait_for(|all| all.failed >= target)).await;
        drop(enough.expect("the writers run"));
    }
}

async fn assert_serves(session: &mut HttpConnection, uri: &str, expected: Option<&Value>) {
    let reply = session.get(uri).await.unwrap_or_else(|error| panic!("{error}"));
    match expected {
        None => assert_eq!(reply.status, StatusCode::NOT_FOUND, "{uri}"),
        Some(document) => {
            assert_eq!(reply.status, StatusCode::OK, "{uri}");
            assert_eq!(reply.json()["headers"]["host"], document["upstream"]["upstream_host"], "{uri}");
        }
    }
}

/// Compares the responses with etcd's own history.
async fn check_history(keys: &mut Keys, start: u64, end: u64, written: &[Vec<Written>]) -> Counts {
    let history = keys.history("/apisix/routes/", start + 1, end).await;
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
    let mut all = Counts::default();
    for writer in written {
        let mut last = 0;
        for Written { id, number, answer } in writer {
            let found = number.map_or(0, |number| times.get(&number).copied().unwrap_or(0));
            match answer {
                Outcome::Made(revision) => {
                    all.made += 1;
                    let expected = (name(&format!("routes/{id}")), *number);
                    assert_eq!(by_revision.get(revision), Some(&expected), "{id} at {revision}");
                    assert!(number.is_none() || found == 1, "{id} {number:?} was made {found} times");
                    assert!(*revision > last, "{id}: {revision} after {last}");
                    last = *revision;
                }
                Outcome::NotMade => {
                    all.not_made += 1;
                    assert_eq!(found, 0, "{id} {number:?} was refused, and made");
                }
                Outcome::Unknown => {
                    all.unknown += 1;
                    assert!(found <= 1, "{id} {number:?} was made {found} times");
                }
            }
        }
    }
    // A removal has no number; but each one in the history was acknowledged, or its response was
    // lost. Two writers may get a success for the same one: after a lost response it counts that
    // the object is gone.
    let removals = || written.iter().flatten().filter(|written| written.number.is_none());
    let made: HashSet<u64> = removals().filter_map(|written| written.answer.revision()).collect();
    let found = history.iter().filter(|change| change.value.is_none()).count();
    let unknown = removals().filter(|written| matches!(written.answer, Outcome::Unknown)).count();
    let reported = made.len()..=made.len() + unknown;
    assert!(reported.contains(&found), "{found} removals, and {reported:?} were reported");
    all
}

fn number_in(value: &[u8]) -> Option<u64> {
    let document: Value = serde_json::from_slice(value).ok()?;
    document["upstream"]["upstream_host"].as_str()?.strip_prefix('v')?.parse().ok()
}

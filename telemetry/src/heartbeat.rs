//! Heartbeats: each thread or loop that a program depends on stores the time of its last run.
//!
//! A loop that waits for work beats by a timer ([`Heartbeat::beat_forever`]); a thread that blocks
//! on a queue stores when it begins and when it waits again ([`Heartbeat::beat`],
//! [`Heartbeat::set_idle`]). Both are one relaxed store. Invariant: only the loop itself can beat,
//! so a hanging loop (on a lock, in a system call or in a computation) grows old.

use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often a waiting loop beats.
pub const BEAT_INTERVAL: Duration = Duration::from_secs(1);
/// A loop without a beat for this long counts as hanging: it missed five beats. A handshake or a
/// request occupies a worker for milliseconds; a busy machine delays a thread by tenths of a
/// second.
pub const STALE_AFTER: Duration = Duration::from_secs(5);

/// The thread waits for work in a queue: its age is zero.
const IDLE: u64 = u64::MAX;

/// The origin of the clock: the first use in this process.
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Whether `/status/ready` fails when a loop hangs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readiness {
    /// It fails: clients, data planes or administrators are not served.
    Required,
    /// It does not fail: the program serves without this loop.
    Ignored,
}

/// The heartbeat of one thread or loop.
#[derive(Debug)]
pub struct Heartbeat {
    name: String,
    readiness: Readiness,
    /// By the clock of `now`, or `IDLE`.
    last: AtomicU64,
}

impl Heartbeat {
    /// A heartbeat that has just beaten. `name` is its label in `/status` and `/metrics`.
    pub fn new(name: impl Into<String>, readiness: Readiness) -> Arc<Self> {
        Arc::new(Self { name: name.into(), readiness, last: AtomicU64::new(now()) })
    }

    /// The loop runs now.
    pub fn beat(&self) {
        self.last.store(now(), Ordering::Relaxed);
    }

    /// The thread waits for work or has ended normally: it does not age until the next
    /// [`beat`](Self::beat).
    pub fn set_idle(&self) {
        self.last.store(IDLE, Ordering::Relaxed);
    }

    /// Beats now and every [`BEAT_INTERVAL`]; never returns. For a branch of the `select!` in which
    /// a tokio loop waits.
    pub async fn beat_forever(&self) -> Infallible {
        loop {
            self.beat();
            tokio::time::sleep(BEAT_INTERVAL).await;
        }
    }

    /// As if the loop had not run for long.
    #[cfg(test)]
    pub(crate) fn make_stale(&self) {
        self.last.store(0, Ordering::Relaxed);
    }

    /// The time since the last beat.
    fn age(&self, now: u64) -> Duration {
        match self.last.load(Ordering::Relaxed) {
            IDLE => Duration::ZERO,
            last => Duration::from_millis(now.saturating_sub(last)),
        }
    }
}

/// Milliseconds of the clock, which starts at a minute: 0 is stale from the start on.
fn now() -> u64 {
    const FIRST: Duration = Duration::from_secs(60);
    u64::try_from((FIRST + START.elapsed()).as_millis()).unwrap_or(IDLE - 1)
}

/// All heartbeats of a program.
#[derive(Debug, Default)]
pub struct Heartbeats(Mutex<Vec<Arc<Heartbeat>>>);

impl Heartbeats {
    /// Creates and registers a heartbeat.
    pub fn add(&self, name: impl Into<String>, readiness: Readiness) -> Arc<Heartbeat> {
        let heartbeat = Heartbeat::new(name, readiness);
        self.register(Arc::clone(&heartbeat));
        heartbeat
    }

    /// Registers an existing heartbeat.
    pub fn register(&self, heartbeat: Arc<Heartbeat>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(heartbeat);
    }

    /// Removes a heartbeat whose loop ends while the program goes on.
    pub fn remove(&self, heartbeat: &Arc<Heartbeat>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|other| !Arc::ptr_eq(other, heartbeat));
    }

    /// Each name with the time since its last beat, in the order of registration.
    pub fn ages(&self) -> Vec<(String, Duration)> {
        let now = now();
        self.map(|heartbeat| Some((heartbeat.name.clone(), heartbeat.age(now))))
    }

    /// The required ones that are older than [`STALE_AFTER`].
    pub fn stale(&self) -> Vec<(String, Duration)> {
        self.stale_at(now())
    }

    fn stale_at(&self, now: u64) -> Vec<(String, Duration)> {
        self.map(|heartbeat| {
            let age = heartbeat.age(now);
            let stale = heartbeat.readiness == Readiness::Required && age > STALE_AFTER;
            stale.then(|| (heartbeat.name.clone(), age))
        })
    }

    fn map<T>(&self, each: impl Fn(&Heartbeat) -> Option<T>) -> Vec<T> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().filter_map(|heartbeat| each(heartbeat)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_heartbeat_is_named() {
        let all = Heartbeats::default();
        let (hangs, runs) = (all.add("a", Readiness::Required), all.add("b", Readiness::Required));
        let (ignored, queue) = (all.add("c", Readiness::Ignored), all.add("d", Readiness::Required));
        let names =
            |found: Vec<(String, Duration)>| found.into_iter().map(|(name, _)| name).collect::<Vec<_>>();
        assert_eq!(names(all.ages()), ["a", "b", "c", "d"]);
        let limit = u64::try_from(STALE_AFTER.as_millis()).unwrap();
        let later = now() + limit + 2000;
        runs.last.store(later, Ordering::Relaxed);
        queue.set_idle();
        assert_eq!(all.stale(), []);
        assert_eq!(names(all.stale_at(later)), ["a"]);
        assert!(all.stale_at(later)[0].1 > STALE_AFTER && ignored.age(later) > STALE_AFTER);
        assert_eq!(queue.age(later), Duration::ZERO);
        hangs.last.store(later, Ordering::Relaxed);
        queue.beat();
        assert_eq!(names(all.stale_at(later)), ["d"], "a thread that took work and does not come back");
        all.remove(&hangs);
        assert_eq!(names(all.ages()), ["b", "c", "d"]);
    }

    #[test]
    fn a_runtime_that_is_blocked_does_not_beat() {
        let all = Arc::new(Heartbeats::default());
        let heartbeat = all.add("loop", Readiness::Required);
        let (block, blocked) = std::sync::mpsc::channel::<()>();
        let (beaten, was_beaten) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            let hang = async {
                beaten.send(()).unwrap();
                // Blocks the whole thread, as no task may.
                blocked.recv().unwrap();
            };
            runtime.block_on(async {
                tokio::select! {
                    biased;
                    never = heartbeat.beat_forever() => match never {},
                    () = hang => heartbeat.beat(),
                }
            });
            heartbeat
        });
        was_beaten.recv().unwrap();
        let later = now() + 2 * u64::try_from(STALE_AFTER.as_millis()).unwrap();
        assert_eq!(all.stale_at(later).len(), 1, "it has beaten once, and cannot again");
        block.send(()).unwrap();
        thread.join().unwrap().last.store(later, Ordering::Relaxed);
        assert_eq!(all.stale_at(later), []);
    }
}

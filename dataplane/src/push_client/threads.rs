//! The agent's two threads: tokio-uring where the kernel lets us, plain tokio where it does not.
//! The one match that knows.
//!
//! The link has one, and the saver has one that stands back behind everybody else: to seal and
//! write a large snapshot takes tenths of a second, for which the clients of a worker on the same
//! core would wait.

use std::sync::Arc;

use telemetry::Heartbeat;
use thread_priority::{
    NormalThreadSchedulePolicy, ThreadPriority, ThreadSchedulePolicy, set_thread_priority_and_policy,
    thread_native_id,
};
use tokio::sync::watch;

use super::expiry::Expiry;
use super::saver::{DiskIo, Saver};
use super::sync_loop::SyncLoop;

/// Runs the link and the expiry until `stop` turns true.
pub(super) fn run_sync(
    link: SyncLoop,
    expiry: Expiry,
    mut stop: watch::Receiver<bool>,
    heartbeat: Arc<Heartbeat>,
) {
    let linked = async move {
        tokio::select! {
            () = link.run() => {}
            () = expiry.run() => {}
            // A dropped `Agent` closes the channel: that is a stop, too.
            _ = stop.wait_for(|stop| *stop) => {}
        }
    };
    run_on_this_thread("agent", &heartbeat, |_| linked);
}

/// Runs the saver until the link has ended and what came last is on disk.
pub(super) fn run_saver(saver: Saver, heartbeat: Arc<Heartbeat>) {
    set_idle_priority();
    run_on_this_thread("saver", &heartbeat, |disk| saver.run(disk));
}

fn run_on_this_thread<F: Future<Output = ()>>(
    who: &str,
    heartbeat: &Heartbeat,
    work: impl FnOnce(DiskIo) -> F,
) {
    let beating = async |work: F| {
        tokio::select! {
            () = work => heartbeat.set_idle(),
            never = heartbeat.beat_forever() => match never {},
        }
    };
    match tokio_uring::Runtime::new(&tokio_uring::builder()) {
        Ok(runtime) => {
            tracing::info!("the {who} runs on io_uring");
            runtime.block_on(beating(work(DiskIo::Uring)));
        }
        Err(error) => {
            tracing::info!(%error, "io_uring is not available to the {who}; it runs on epoll");
            match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime.block_on(beating(work(DiskIo::Blocking))),
                Err(error) => {
                    tracing::error!(%error, "the {who} cannot run; the data plane serves what it has")
                }
            }
        }
    }
}

/// From here on this thread, and every thread that it or the kernel makes for it, runs while
/// nothing else on its core wants to (`SCHED_IDLE`, sched(7)). There is no way back without
/// privileges.
fn set_idle_priority() {
    let idle = ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Idle);
    // Where it may not be, a change is a little less quiet.
    let _unchanged = set_thread_priority_and_policy(thread_native_id(), ThreadPriority::Min, idle);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_saver_and_its_threads_stand_back_behind_the_workers() {
        let policies = std::thread::spawn(|| {
            set_idle_priority();
            let own = thread_priority::thread_schedule_policy().unwrap();
            [own, std::thread::spawn(|| thread_priority::thread_schedule_policy().unwrap()).join().unwrap()]
        });
        let idle = ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Idle);
        assert_eq!(policies.join().unwrap(), [idle; 2]);
        assert_ne!(thread_priority::thread_schedule_policy().unwrap(), idle);
    }
}

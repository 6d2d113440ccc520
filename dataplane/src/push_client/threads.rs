//! The two threads of the push client, on tokio-uring where the kernel allows io_uring, else on
//! tokio with epoll.
//!
//! The saver has a thread of its own at idle priority (`SCHED_IDLE`): sealing and writing a large
//! snapshot takes tenths of a second, and the worker on the same core must not wait for that.

use std::sync::Arc;

use futures_util::future::OptionFuture;
use telemetry::Heartbeat;
use thread_priority::{
    NormalThreadSchedulePolicy, ThreadPriority, ThreadSchedulePolicy, set_thread_priority_and_policy,
    thread_native_id,
};
use tokio::sync::watch;

use super::expiry::Expiry;
use super::saver::{DiskIo, Saver};
use super::sync_loop::SyncLoop;
use crate::trace_export::TraceExporter;

/// What runs on the thread `push-client`.
pub(super) struct SyncThread {
    pub(super) sync_loop: SyncLoop,
    pub(super) expiry: Expiry,
    pub(super) traces: Option<TraceExporter>,
    /// Turns true, or is closed.
    pub(super) stop: watch::Receiver<bool>,
}

impl SyncThread {
    /// Runs until it is stopped, and the last spans are sent.
    pub(super) fn run(self, heartbeat: Arc<Heartbeat>) {
        let Self { sync_loop, expiry, traces, mut stop } = self;
        let traces = traces.map(|traces| traces.run(stop.clone()));
        let sync = async move {
            tokio::select! {
                () = sync_loop.run() => {}
                () = expiry.run() => {}
                // A dropped `PushClientHandle` closes the channel, which stops the loop, too.
                _ = stop.wait_for(|stop| *stop) => {}
            }
        };
        let all = async move {
            tokio::join!(sync, OptionFuture::from(traces));
        };
        run_on_this_thread("push client", &heartbeat, |_| all);
    }
}

/// Runs the saver until the sync loop has ended and the newest snapshot is on disk.
pub(super) fn run_saver(saver: Saver, heartbeat: Arc<Heartbeat>) {
    set_idle_priority();
    run_on_this_thread("saver", &heartbeat, |disk| saver.run(disk));
}

fn run_on_this_thread<F: Future<Output = ()>>(
    name: &str,
    heartbeat: &Heartbeat,
    start: impl FnOnce(DiskIo) -> F,
) {
    let with_heartbeat = async |task: F| {
        tokio::select! {
            () = task => heartbeat.set_idle(),
            never = heartbeat.beat_forever() => match never {},
        }
    };
    match tokio_uring::Runtime::new(&tokio_uring::builder()) {
        Ok(runtime) => {
            tracing::info!("the {name} runs on io_uring");
            runtime.block_on(with_heartbeat(start(DiskIo::Uring)));
        }
        Err(error) => {
            tracing::info!(%error, "io_uring is not available to the {name}; it runs on epoll");
            match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime.block_on(with_heartbeat(start(DiskIo::Blocking))),
                Err(error) => {
                    tracing::error!(%error, "the {name} cannot run; the data plane serves the snapshot it has")
                }
            }
        }
    }
}

/// This thread, and every thread that it or the kernel makes for it, runs only while no other
/// thread is ready on its core (sched(7)). Undoing it needs privileges.
fn set_idle_priority() {
    let idle = ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Idle);
    // Without the permission, a change disturbs the workers a little more.
    let _unchanged = set_thread_priority_and_policy(thread_native_id(), ThreadPriority::Min, idle);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_saver_and_its_threads_run_at_idle_priority() {
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

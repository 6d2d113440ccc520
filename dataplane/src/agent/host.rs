//! The agent's thread: tokio-uring where the kernel lets us, plain tokio where it does not. The one match that knows.

use tokio::sync::watch;

use super::link::Link;
use super::saver::{Disk, Saver};

/// What the thread runs.
pub(super) struct Run {
    pub link: Link,
    pub saver: Saver,
    pub stop: watch::Receiver<bool>,
}

/// Ends when `stop` turns true and the newest snapshot is on disk.
pub(super) fn run(run: Run) {
    match tokio_uring::Runtime::new(&tokio_uring::builder()) {
        Ok(runtime) => {
            tracing::info!("the agent runs on io_uring");
            runtime.block_on(both(run, Disk::Uring));
        }
        Err(error) => {
            tracing::info!(%error, "io_uring is not available to the agent; it runs on epoll");
            match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime.block_on(both(run, Disk::Blocking)),
                Err(error) => {
                    tracing::error!(%error, "the agent cannot run; the data plane serves what it has")
                }
            }
        }
    }
}

/// The saver ends after the link, so that what came last is written.
async fn both(run: Run, disk: Disk) {
    let Run { link, saver, mut stop } = run;
    let linked = async move {
        tokio::select! {
            () = link.run() => {}
            // A dropped `Agent` closes the channel: that is a stop, too.
            _ = stop.wait_for(|stop| *stop) => {}
        }
    };
    tokio::join!(linked, saver.run(disk));
}

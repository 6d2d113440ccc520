//! A data plane's worker on a thread of its own, as boot starts it, and the CPU time of that thread alone.

use std::net::SocketAddr;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use dataplane::testing::io::connection_info::ListenerProtocol;
use dataplane::testing::lifecycle::shutdown::{ShutdownStage, ShutdownWatch};
use dataplane::testing::proxy::listener::BindRetry;
use dataplane::testing::proxy::worker::SharedState;
use dataplane::testing::proxy::worker_thread::WorkerInit;
use dataplane::testing::proxy::{listener, worker_thread};
use dataplane::testing::runtime::Driver;
use telemetry::{Heartbeat, Readiness};
use tokio::sync::watch;

/// A running worker; it lives as long as the process.
pub(crate) struct Running {
    /// Where it speaks HTTPS.
    pub address: SocketAddr,
    thread: nix::unistd::Pid,
    // A worker whose stages are abandoned stops.
    _stage: watch::Sender<ShutdownStage>,
}

impl Running {
    /// Starts it on this core.
    pub(crate) fn start(shared: Arc<SharedState>, cpu: usize) -> Self {
        let any = "127.0.0.1:0".parse().expect("an address");
        let patience = BindRetry { predecessor: Duration::ZERO, stop: watch::channel(false).1 };
        let listeners = listener::bind("bench", any, ListenerProtocol::Https, 1, &patience).expect("a port");
        let address = listeners.first().expect("a listener").addr;
        let (stage, shutdown) = ShutdownWatch::new();
        let (tell, told) = mpsc::channel();
        let driver = Driver::detect();
        let heartbeat = Heartbeat::new("worker-0", Readiness::Required);
        let start = WorkerInit {
            shared,
            counters: Arc::default(),
            heartbeat,
            listeners,
            driver,
            cpu: Some(cpu),
            shutdown,
        };
        let body = move || {
            tell.send(nix::unistd::gettid()).expect("somebody waits");
            worker_thread::run(start).expect("a worker");
        };
        std::thread::Builder::new().name("worker-0".to_owned()).spawn(body).expect("a thread");
        Self { address, thread: told.recv().expect("a worker"), _stage: stage }
    }

    /// What its thread has used so far, in user and kernel mode.
    pub(crate) fn cpu(&self) -> Duration {
        let path = format!("/proc/self/task/{}/schedstat", self.thread);
        let text = std::fs::read_to_string(path).expect("the worker's schedstat");
        let nanos = text.split_ascii_whitespace().next().and_then(|field| field.parse().ok());
        Duration::from_nanos(nanos.expect("a number"))
    }
}

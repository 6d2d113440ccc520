//! A data plane's worker on a thread of its own, as boot starts it, and that thread's CPU time.

use std::net::SocketAddr;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use dataplane::testing::io::connection_info::ListenerProtocol;
use dataplane::testing::lifecycle::{ShutdownStage, ShutdownWatch};
use dataplane::testing::proxy::listener::BindRetry;
use dataplane::testing::proxy::worker::SharedState;
use dataplane::testing::proxy::worker_thread::WorkerInit;
use dataplane::testing::proxy::{listener, worker_thread};
use dataplane::testing::runtime::Driver;
use telemetry::{Heartbeat, Readiness};
use tokio::sync::mpsc::unbounded_channel;
use tokio::sync::watch;

/// A running worker; it lives as long as the process.
pub(crate) struct Running {
    /// Where it serves HTTPS.
    pub address: SocketAddr,
    thread: nix::unistd::Pid,
    // A worker without its stages stops.
    _stage: watch::Sender<ShutdownStage>,
}

impl Running {
    pub(crate) fn start(shared: Arc<SharedState>, cpu: usize) -> Self {
        let any = "127.0.0.1:0".parse().expect("an address");
        let patience = BindRetry { predecessor: Duration::ZERO, stop: watch::channel(false).1 };
        let listeners = listener::bind("bench", any, ListenerProtocol::Https, 1, &patience).expect("a port");
        let address = listeners.first().expect("a listener").addr;
        let (stage, shutdown) = ShutdownWatch::new();
        let (sender, receiver) = mpsc::channel();
        let driver = Driver::detect();
        let heartbeat = Heartbeat::new("worker-0", Readiness::Required);
        let start = WorkerInit {
            shared,
            counters: Arc::default(),
            heartbeat,
            listeners,
            commands: unbounded_channel().1,
            listening: unbounded_channel().0,
            driver,
            cpu: Some(cpu),
            shutdown,
        };
        let body = move || {
            sender.send(nix::unistd::gettid()).expect("the receiver waits");
            worker_thread::run(start).expect("a worker");
        };
        std::thread::Builder::new().name("worker-0".to_owned()).spawn(body).expect("a thread");
        Self { address, thread: receiver.recv().expect("a worker"), _stage: stage }
    }

    /// CPU time of its thread so far, user and system.
    pub(crate) fn cpu(&self) -> Duration {
        let path = format!("/proc/self/task/{}/schedstat", self.thread);
        let text = std::fs::read_to_string(path).expect("the worker's schedstat");
        let nanos = text.split_ascii_whitespace().next().and_then(|field| field.parse().ok());
        Duration::from_nanos(nanos.expect("a number"))
    }
}

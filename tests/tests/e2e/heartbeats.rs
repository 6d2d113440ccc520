//! Hanging threads: ptrace stops one while the others run, like a lock or a system call that does
//! not return.

use std::io::Write;
use std::sync::mpsc;

use e2e::process::EVENT_TIMEOUT;
use e2e::world::World;
use http::StatusCode;
use nix::sys::ptrace::{self, Options};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use tokio::time::timeout;

/// Threads of a process, stopped until this is dropped.
pub(super) struct Stopped {
    _go_on: mpsc::Sender<()>,
}

impl Stopped {
    /// Stops threads whose name starts with `name`; `None` if the system denies it.
    pub(super) async fn threads(process: u32, name: &str) -> Option<Self> {
        let mut found = Vec::new();
        for task in std::fs::read_dir(format!("/proc/{process}/task")).unwrap() {
            let path = task.unwrap().path();
            if std::fs::read_to_string(path.join("comm")).unwrap().starts_with(name) {
                found.push(Pid::from_raw(path.file_name().unwrap().to_str().unwrap().parse().unwrap()));
            }
        }
        assert!(!found.is_empty(), "no thread {name}");
        let (go_on, waits) = mpsc::channel();
        let (stopped, are_stopped) = tokio::sync::oneshot::channel();
        // ptrace accepts requests only from the thread that attached.
        std::thread::spawn(move || {
            let stop = |thread: &Pid| {
                ptrace::seize(*thread, Options::empty())?;
                ptrace::interrupt(*thread)?;
                waitpid(*thread, Some(WaitPidFlag::__WALL)).map(drop)
            };
            let sent = stopped.send(found.iter().try_for_each(stop));
            let _dropped = waits.recv();
            for thread in found {
                // An error means that the program has ended.
                let _detached = ptrace::detach(thread, None);
            }
            sent
        });
        match are_stopped.await.unwrap() {
            Ok(()) => Some(Self { _go_on: go_on }),
            Err(error) => {
                // Written past the test runner's capture, so that a skipped test does not look like
                // a passed one.
                let skip = format!("skipped: threads that hang: ptrace is not possible here: {error}\n");
                std::io::stderr().write_all(skip.as_bytes()).unwrap();
                None
            }
        }
    }
}

/// Polls `/status/ready` until it has this status and all of these words, and returns the body.
async fn until(world: &World, control: bool, status: StatusCode, words: &[&str]) -> String {
    let asking = async {
        loop {
            let path = "/status/ready";
            let reply = if control { world.control_status(path).await } else { world.status(path).await };
            let text = reply.text();
            if reply.status == status && words.iter().all(|word| text.contains(word)) {
                return text;
            }
        }
    };
    timeout(EVENT_TIMEOUT, asking)
        .await
        .unwrap_or_else(|_| panic!("it never answers {status} with {words:?}"))
}

#[tokio::test]
async fn a_hanging_worker_is_named_and_not_ready() {
    let world = World::start().await;
    until(&world, false, StatusCode::OK, &[]).await;
    let Some(stopped) = Stopped::threads(world.node_id(), "worker-1").await else { return };
    let why = until(&world, false, StatusCode::SERVICE_UNAVAILABLE, &["worker-1 has not run for"]).await;
    assert!(!why.contains("worker-0"), "{why}");
    let status = world.status("/status").await;
    assert_eq!(status.status, StatusCode::OK, "the program itself answers");
    let ages = &status.json()["heartbeat_age_seconds"];
    assert!(ages["worker-1"].as_f64() > Some(5.0) && ages["worker-0"].as_f64() < Some(5.0), "{ages}");
    assert!(ages["push-client"].is_f64() && ages["saver"].is_f64(), "{ages}");
    let metrics = world.status("/metrics").await.text();
    let of = "countersign_heartbeat_age_seconds{task=\"worker-1\"} ";
    let age = metrics.lines().find_map(|line| line.strip_prefix(of)).unwrap();
    assert!(age.parse::<f64>().unwrap() > 5.0, "{age}");
    drop(stopped);
    until(&world, false, StatusCode::OK, &[]).await;
}

#[tokio::test]
async fn a_hanging_control_plane_still_reports_it() {
    let world = World::builder().nodes(&[]).start().await;
    until(&world, true, StatusCode::OK, &[]).await;
    let Some(stopped) = Stopped::threads(world.control_process(0).id(), "tokio-r").await else { return };
    let hang = ["admin has not run for", "push has not run for", "watch has not run for"];
    until(&world, true, StatusCode::SERVICE_UNAVAILABLE, &hang).await;
    drop(stopped);
    until(&world, true, StatusCode::OK, &[]).await;
    let ages = world.control_status("/status").await.json()["heartbeat_age_seconds"].clone();
    assert!(ages["store"].is_f64(), "{ages}");
}

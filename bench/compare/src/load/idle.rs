//! Opens many idle connections and divides the growth of the server's resident memory by them.
//!
//! Some connections open and close first, so that one-time allocations of the server do not count.
//! Kernel memory (socket buffers) is in no process's resident set. Only connections that are still
//! open at the end divide; the others are reported.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::client::TlsStream;

use super::dial::{self, Dialler};
use super::worker::timed_out;
use super::{LoadError, http1, on_own_thread, system};
use crate::failure::{Failure, FailureKind, Failures};
use crate::identity::{ClientIdentity, Group, Version};
use crate::report::IdleReport;
use crate::target::Target;
use e2e::resources;

/// Connections that open and close before the first reading.
const FOREGOING: usize = 32;
/// Handshakes in flight while the connections are opened.
const AT_ONCE: usize = 16;
/// Memory is stable when it moved by less than this between two readings...
const STILL_BYTES: u64 = 64 << 10;
/// ...this far apart...
const LOOK: Duration = Duration::from_millis(250);
/// ...or after this many readings.
const LOOKS: u32 = 40;

pub struct IdlePlan {
    pub target: Target,
    pub identity: Arc<ClientIdentity>,
    pub version: Version,
    pub group: Group,
    pub connections: usize,
    /// The expected status of one request on each connection; `None` sends none.
    pub request: Option<u16>,
    /// From the last open until memory is read.
    pub hold: Duration,
    /// Limit of opening one.
    pub timeout: Duration,
    /// Limit of opening all of them.
    pub limit: Duration,
    /// The server's process, whose memory (with its children's) is read.
    pub server: u32,
    /// The core of the load generator.
    pub cpu: Option<usize>,
}

/// Runs the plan on a thread of its own.
///
/// # Errors
/// When the server rejects the client, or its memory cannot be read.
pub fn run(plan: IdlePlan) -> Result<IdleReport, LoadError> {
    on_own_thread(plan.cpu, move || drive(plan))
}

async fn drive(plan: IdlePlan) -> Result<IdleReport, LoadError> {
    let wanted = u64::try_from(plan.connections).unwrap_or(u64::MAX).saturating_add(256);
    resources::allow_descriptors(wanted).map_err(system("making room for open connections"))?;
    let config = plan.identity.client_config(plan.version, plan.group, &[b"http/1.1"], false)?;
    let opener = Opener {
        dialler: Dialler::new(plan.target.clone(), config),
        request: plan.request.map(|status| (http1::get(&plan.target.host, &plan.target.path), status)),
        timeout: plan.timeout,
    };
    let mut failures = Failures::default();
    let foregoing = opener.open(FOREGOING, &mut failures).await;
    let negotiated = foregoing.first().and_then(dial::negotiated);
    if foregoing.is_empty() {
        return Err(nothing(&plan, &failures));
    }
    for mut stream in foregoing {
        let _ = stream.shutdown().await;
    }
    let pids = resources::family(plan.server).map_err(system("looking for the server's process"))?;
    let before = still(&pids).await?;
    let opening = tokio::time::timeout(plan.limit, opener.open(plan.connections, &mut failures)).await;
    let Ok(open) = opening else {
        return Err(nothing(&plan, &failures));
    };
    tokio::time::sleep(plan.hold).await;
    let after = still(&pids).await?;
    let opened = open.len();
    let mut kept = 0u64;
    for stream in &open {
        match alive(stream.get_ref().0) {
            Ok(()) => kept += 1,
            Err(failure) => failures.add(failure),
        }
    }
    let bytes_per_connection = after.saturating_sub(before).checked_div(kept);
    let Some(bytes_per_connection) = bytes_per_connection else {
        return Err(nothing(&plan, &failures));
    };
    Ok(IdleReport {
        connections: kept,
        opened: opened as u64,
        failures,
        negotiated,
        resident_before: before,
        resident_after: after,
        bytes_per_connection,
    })
}

fn nothing(plan: &IdlePlan, failures: &Failures) -> LoadError {
    match failures.iter().next() {
        Some((kind, counted)) => {
            LoadError::Refused { address: plan.target.address, failure: Failure::new(kind, &counted.first) }
        }
        None => LoadError::Nothing { limit: plan.limit, failures: "none, it never answered".to_owned() },
    }
}

#[derive(Clone)]
struct Opener {
    dialler: Dialler,
    request: Option<(Vec<u8>, u16)>,
    timeout: Duration,
}

impl Opener {
    /// Opens so many, a few at a time; gives up when the first ones all fail.
    async fn open(&self, count: usize, failures: &mut Failures) -> Vec<TlsStream<TcpStream>> {
        let mut open = Vec::with_capacity(count);
        let mut tasks = JoinSet::new();
        let mut started = 0;
        loop {
            while started < count && tasks.len() < AT_ONCE {
                tasks.spawn_local(self.clone().open_one());
                started += 1;
            }
            let Some(done) = tasks.join_next().await else { return open };
            match done {
                Ok(Ok(stream)) => open.push(stream),
                Ok(Err(failure)) => failures.add(failure),
                Err(error) => failures.add(Failure::new(FailureKind::Connect, error)),
            }
            if open.is_empty() && failures.total() >= AT_ONCE as u64 {
                return open;
            }
        }
    }

    async fn open_one(self) -> Result<TlsStream<TcpStream>, Failure> {
        let opening = async {
            let mut stream = self.dialler.dial().await?;
            if let Some((request, status)) = &self.request {
                let answer = http1::exchange(&mut stream, request, &mut Vec::new()).await?;
                if answer.status != *status {
                    let text = format!("{} instead of {status}", answer.status);
                    return Err(Failure::new(FailureKind::Status, text));
                }
            }
            Ok(stream)
        };
        tokio::time::timeout(self.timeout, opening).await.unwrap_or_else(|_| Err(timed_out(self.timeout)))
    }
}

/// Resident memory once it is stable.
async fn still(pids: &[u32]) -> Result<u64, LoadError> {
    let read = || resources::resident_bytes(pids).map_err(system("reading the server's memory"));
    let mut last = read()?;
    for _ in 0..LOOKS {
        tokio::time::sleep(LOOK).await;
        let now = read()?;
        if now.abs_diff(last) < STILL_BYTES {
            return Ok(now);
        }
        last = now;
    }
    Ok(last)
}

/// A connection that the server closed is readable and at its end, or broken.
fn alive(stream: &TcpStream) -> Result<(), Failure> {
    let dropped = |text: &str| Failure::new(FailureKind::Dropped, text);
    let mut byte = [std::mem::MaybeUninit::uninit()];
    let mut peeked = tokio::io::ReadBuf::uninit(&mut byte);
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match stream.poll_peek(&mut context, &mut peeked) {
        std::task::Poll::Ready(Ok(0)) => Err(dropped("the server closed an idle connection")),
        std::task::Poll::Ready(Err(error)) => Err(dropped(&error.to_string())),
        _ => Ok(()),
    }
}

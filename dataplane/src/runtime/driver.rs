//! The driver of a worker's thread, and the tasks on it.

use std::future::Future;
use std::time::Duration;
use std::{fmt, io};

use nix::time::{ClockId, clock_gettime};

/// Entries of a worker's submission queue. A full queue is submitted early, so this bounds the size
/// of a batch, not the load.
const RING_ENTRIES: u32 = 4096;

/// The kernel interface of a worker's I/O.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Driver {
    IoUring {
        /// The kernel supports COOP_TASKRUN (5.19) and SINGLE_ISSUER (6.0).
        flags: bool,
    },
    Epoll {
        /// Why io_uring is not used, for the log.
        reason: String,
    },
}

impl Driver {
    /// Selects the best driver that the kernel allows. `COUNTERSIGN_DRIVER=epoll` forces epoll.
    pub fn detect() -> Self {
        if std::env::var("COUNTERSIGN_DRIVER").is_ok_and(|v| v == "epoll") {
            return Self::Epoll { reason: "COUNTERSIGN_DRIVER=epoll asks for it".to_owned() };
        }
        let lacks_operations =
            || Self::Epoll { reason: "this kernel's io_uring lacks operations that are needed".to_owned() };
        if ring_builder(true).build(8).is_ok() {
            return if monoio::utils::detect_uring() {
                Self::IoUring { flags: true }
            } else {
                lacks_operations()
            };
        }
        match ring_builder(false).build(8) {
            Ok(_) if monoio::utils::detect_uring() => Self::IoUring { flags: false },
            Ok(_) => lacks_operations(),
            Err(error) => {
                Self::Epoll { reason: format!("io_uring is not available here: {error}{}", advice(&error)) }
            }
        }
    }

    /// `io_uring` or `epoll`, as in logs, metrics and the ready line.
    pub fn name(&self) -> &'static str {
        match self {
            Self::IoUring { .. } => "io_uring",
            Self::Epoll { .. } => "epoll",
        }
    }
}

impl fmt::Display for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::IoUring { flags: true } => f.write_str("io_uring (COOP_TASKRUN, SINGLE_ISSUER)"),
            Self::IoUring { flags: false } => {
                f.write_str("io_uring (plain: this kernel knows no COOP_TASKRUN)")
            }
            Self::Epoll { reason } => write!(f, "epoll ({reason})"),
        }
    }
}

/// What an operator can do about a ring that the kernel does not create.
fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::Unsupported => {
            "; to use it, allow io_uring_setup, io_uring_enter and io_uring_register: SystemCallFilter= of the systemd unit, \
             the seccomp profile of the container, or sysctl kernel.io_uring_disabled"
        }
        io::ErrorKind::OutOfMemory => "; to use it, raise LimitMEMLOCK= of the systemd unit (ulimit -l)",
        _ => "",
    }
}

fn ring_builder(flags: bool) -> io_uring::Builder {
    let mut builder = io_uring::IoUring::builder();
    if flags {
        builder.setup_coop_taskrun().setup_single_issuer();
    }
    builder
}

/// Runs `main` to completion on the calling thread.
///
/// # Errors
/// The kernel does not create the ring or the epoll instance, for example without locked memory.
pub fn block_on<F: Future>(driver: &Driver, main: impl FnOnce() -> F) -> io::Result<F::Output> {
    match driver {
        Driver::IoUring { flags } => {
            let mut runtime = monoio::RuntimeBuilder::<monoio::IoUringDriver>::new()
                .uring_builder(ring_builder(*flags))
                .with_entries(RING_ENTRIES)
                .enable_timer()
                .build()?;
            let output = runtime.block_on(async { main().await });
            std::mem::forget(runtime);
            Ok(output)
        }
        Driver::Epoll { .. } => {
            let mut runtime = monoio::RuntimeBuilder::<monoio::LegacyDriver>::new().enable_timer().build()?;
            let output = runtime.block_on(async { main().await });
            std::mem::forget(runtime);
            Ok(output)
        }
    }
}

/// Pins the calling thread to one CPU. A failure costs speed only, so the caller may ignore it.
///
/// # Errors
/// The CPU does not exist, or the process may not use it.
pub(crate) fn pin_to_cpu(cpu: usize) -> io::Result<()> {
    monoio::utils::bind_to_cpu_set([cpu]).map_err(|error| io::Error::other(error.to_string()))
}

/// The CPU time that the calling thread has used. `None`: the kernel has no such clock.
pub(crate) fn thread_cpu_time() -> Option<Duration> {
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).ok()?;
    Some(Duration::from(time))
}

/// Spawns a detached task on the calling worker.
pub fn spawn(future: impl Future<Output = ()> + 'static) {
    drop(monoio::spawn(future));
}

//! The runtime: the only file that names monoio.
//!
//! Owns how a worker's thread runs futures and talks to the kernel: the driver (io_uring, or epoll
//! where the kernel or a sandbox blocks it), listeners, sockets as owned read and write halves,
//! time and spawning. Everything above it speaks of [`Listener`], [`Socket`], [`sleep`],
//! [`timeout`] and [`spawn`] alone.
//!
//! Rules that cost a day to find, kept here so that nobody else needs to know them:
//! - a ring is used by the thread that made it (SINGLE_ISSUER), so [`run`] builds the runtime on
//!   that thread;
//! - an `accept` or a read in flight is never dropped: an accept is cancelled in the kernel
//!   ([`Interrupt`]), which keeps the queue, and a connection is ended with `shutdown(2)`; both
//!   complete what is in flight ([`HangUp`]);
//! - a runtime with operations in flight is never dropped: [`run`] forgets it, the process ends
//!   right after.

pub mod descriptors;

use std::cell::RefCell;
use std::future::Future;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, RawFd};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use std::{fmt, io};

use monoio::io::{AsyncReadRent, AsyncWriteRent, Canceller, OwnedReadHalf, OwnedWriteHalf, Splitable};
use nix::sys::socket::MsgFlags;
use send_wrapper::SendWrapper;
use socket2::SockFilter;

/// Entries of a worker's submission queue; a full one is submitted early, so this bounds a batch,
/// not a load.
const RING_ENTRIES: u32 = 4096;

/// What moves bytes between the kernel and a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Driver {
    /// io_uring; `flags` tells whether the kernel took COOP_TASKRUN and SINGLE_ISSUER (5.19 and
    /// 6.0).
    IoUring {
        /// Both set-up flags are in use.
        flags: bool,
    },
    /// epoll, with the reason why not io_uring.
    Epoll {
        /// For the operator's log.
        reason: String,
    },
}

impl Driver {
    /// Finds the best driver this kernel allows. `COUNTERSIGN_DRIVER=epoll` asks for epoll.
    pub fn detect() -> Self {
        if std::env::var("COUNTERSIGN_DRIVER").is_ok_and(|v| v == "epoll") {
            return Self::Epoll { reason: "COUNTERSIGN_DRIVER=epoll asks for it".to_owned() };
        }
        if ring_builder(true).build(8).is_ok() {
            return if monoio::utils::detect_uring() {
                Self::IoUring { flags: true }
            } else {
                Self::Epoll { reason: "this kernel's io_uring lacks operations that are needed".to_owned() }
            };
        }
        match ring_builder(false).build(8) {
            Ok(_) if monoio::utils::detect_uring() => Self::IoUring { flags: false },
            Ok(_) => {
                Self::Epoll { reason: "this kernel's io_uring lacks operations that are needed".to_owned() }
            }
            Err(error) => Self::Epoll { reason: format!("io_uring is not available here: {error}") },
        }
    }

    /// `io_uring` or `epoll`, as logs, metrics and the ready line print it.
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
            Self::Epoll { reason: why } => write!(f, "epoll ({why})"),
        }
    }
}

fn ring_builder(flags: bool) -> io_uring::Builder {
    let mut builder = io_uring::IoUring::builder();
    if flags {
        builder.setup_coop_taskrun().setup_single_issuer();
    }
    builder
}

/// Runs `main` to its end on this thread.
///
/// # Errors
/// When the kernel refuses the ring or the epoll instance (out of memory or of locked memory, for
/// example).
pub fn block_on<F: Future>(driver: &Driver, main: impl FnOnce() -> F) -> io::Result<F::Output> {
    match driver {
        Driver::IoUring { flags } => {
            let mut runtime = monoio::RuntimeBuilder::<monoio::IoUringDriver>::new()
                .uring_builder(ring_builder(*flags))
                .with_entries(RING_ENTRIES)
                .enable_timer()
                .build()?;
            let out = runtime.block_on(async { main().await });
            std::mem::forget(runtime);
            Ok(out)
        }
        Driver::Epoll { .. } => {
            let mut runtime = monoio::RuntimeBuilder::<monoio::LegacyDriver>::new().enable_timer().build()?;
            let out = runtime.block_on(async { main().await });
            std::mem::forget(runtime);
            Ok(out)
        }
    }
}

/// Binds this thread to one CPU. Not being allowed to costs speed only, so the caller may ignore
/// the error.
///
/// # Errors
/// When the CPU does not exist or the process may not use it.
pub fn pin_to_cpu(cpu: usize) -> io::Result<()> {
    monoio::utils::bind_to_cpu_set([cpu]).map_err(|error| io::Error::other(error.to_string()))
}

/// Runs a future on this worker beside the caller. Its result is dropped.
pub fn spawn(future: impl Future<Output = ()> + 'static) {
    drop(monoio::spawn(future));
}

/// Waits. Granularity: one millisecond.
pub async fn sleep(duration: Duration) {
    monoio::time::sleep(duration).await;
}

/// The time ran out before the future ended. The future has been dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("timed out")]
pub struct TimedOut;

/// Bounds `future` in time. It must not own a raw read or accept in flight (see the rules above).
///
/// # Errors
/// [`TimedOut`] when `duration` passes first.
pub async fn timeout<F: Future>(duration: Duration, future: F) -> Result<F::Output, TimedOut> {
    monoio::time::timeout(duration, future).await.map_err(|_| TimedOut)
}

/// A timer that can be polled and set again without allocating.
pub struct Timer(Pin<Box<monoio::time::Sleep>>);

impl Timer {
    /// A timer that fires after `duration`.
    pub fn after(duration: Duration) -> Self {
        Self(Box::pin(monoio::time::sleep(duration)))
    }

    /// Sets it to fire after `duration` from now.
    pub fn reset(&mut self, duration: Duration) {
        self.0.as_mut().reset(monoio::time::Instant::now() + duration);
    }

    /// Ready once the time has passed.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.0.as_mut().poll(cx)
    }
}

/// Gives hyper its timers and its executor.
#[derive(Debug, Clone, Copy, Default)]
pub struct HyperRuntime;

impl hyper::rt::Timer for HyperRuntime {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn hyper::rt::Sleep>> {
        Box::pin(LocalSleep(SendWrapper::new(Timer::after(duration))))
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn hyper::rt::Sleep>> {
        self.sleep(deadline.saturating_duration_since(Instant::now()))
    }

    fn reset(&self, sleep: &mut Pin<Box<dyn hyper::rt::Sleep>>, deadline: Instant) {
        match sleep.as_mut().downcast_mut_pin::<LocalSleep>() {
            Some(local) => {
                local.get_mut().0.reset(deadline.saturating_duration_since(Instant::now()));
            }
            None => *sleep = self.sleep_until(deadline),
        }
    }
}

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for HyperRuntime {
    fn execute(&self, future: F) {
        spawn(future);
    }
}

/// hyper wants its sleeps `Send`; a worker's never leave their thread, which the wrapper checks.
struct LocalSleep(SendWrapper<Timer>);

impl Future for LocalSleep {
    type Output = ();
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.get_mut().0.poll(cx)
    }
}

impl hyper::rt::Sleep for LocalSleep {}

/// A listening socket of one worker.
pub struct Listener {
    accepting: monoio::net::TcpListener,
    /// The same socket, for [`Listener::accept_queued`].
    queue: std::net::TcpListener,
    nonblocking: bool,
}

/// Ends accepts in flight without losing a connection: each completes, with one or with
/// `ECANCELED`.
#[derive(Default)]
pub struct AcceptCanceller(RefCell<Canceller>);

impl AcceptCanceller {
    /// Ends the accepts that wait now; later ones are not concerned.
    pub fn cancel(&self) {
        let next = self.0.take().cancel();
        self.0.replace(next);
    }
}

/// Whether an accept was ended by [`Interrupt::fire`].
pub fn is_cancelled(error: &io::Error) -> bool {
    error.raw_os_error() == Some(nix::libc::ECANCELED)
}

impl Listener {
    /// Takes over a bound, listening socket. Call it on the worker's own thread.
    ///
    /// # Errors
    /// When the driver cannot register it.
    pub fn from_std(listener: std::net::TcpListener, driver: &Driver) -> io::Result<Self> {
        let nonblocking = matches!(driver, Driver::Epoll { .. });
        listener.set_nonblocking(nonblocking)?;
        let queue = listener.try_clone()?;
        Ok(Self { accepting: monoio::net::TcpListener::from_std(listener)?, queue, nonblocking })
    }

    /// Waits for the next connection. Never drop the future half-way: interrupt it instead.
    ///
    /// # Errors
    /// As `accept(2)`; [`is_interrupted`] once `interrupt` has fired.
    pub async fn accept(&self, interrupt: &AcceptCanceller) -> io::Result<(Socket, SocketAddr)> {
        let handle = interrupt.0.borrow().handle();
        let (stream, peer) = self.accepting.cancelable_accept(handle).await?;
        Ok((Socket(stream), peer))
    }

    /// A connection that is in the queue already. No accept may be in flight.
    ///
    /// # Errors
    /// As `accept(2)`; [`io::ErrorKind::WouldBlock`] when the queue is empty.
    pub fn accept_queued(&self) -> io::Result<(Socket, SocketAddr)> {
        // Shared with `accepting`, where nothing is in flight any more.
        self.queue.set_nonblocking(true)?;
        let (stream, peer) = self.queue.accept()?;
        stream.set_nonblocking(self.nonblocking)?;
        Ok((Socket(monoio::net::TcpStream::from_std(stream)?), peer))
    }

    /// Stops listening: at once, while the descriptor goes with the next turn of the runtime, which
    /// a worker that ends does not take. Connections in the queue are reset.
    pub fn close(self) {
        ShutdownHandle::of(&self.queue).shutdown_both();
    }

    /// Has the kernel drop every SYN that comes from now on; connections whose handshake has begun
    /// still get into the queue. A client whose SYN was dropped sends it again a second later.
    ///
    /// # Errors
    /// As `setsockopt(2)`.
    pub fn drop_new_connections(&self) -> io::Result<()> {
        // Classic BPF over the TCP header: offset 13 has the flags (RFC 9293 section 3.1).
        const LOAD_BYTE: u16 = 0x30;
        const JUMP_IF_SET: u16 = 0x45;
        const RETURN: u16 = 0x06;
        const SYN: u32 = 0x02;
        let filter = [
            SockFilter::new(LOAD_BYTE, 0, 0, 13),
            SockFilter::new(JUMP_IF_SET, 0, 1, SYN),
            SockFilter::new(RETURN, 0, 0, 0),
            SockFilter::new(RETURN, 0, 0, u32::MAX),
        ];
        socket2::SockRef::from(&self.queue).attach_filter(&filter)
    }
}

/// A connected TCP socket.
pub struct Socket(monoio::net::TcpStream);

impl Socket {
    /// Connects. Bound it with [`timeout`]; the driver cancels a connect that is dropped.
    ///
    /// # Errors
    /// As `connect(2)`.
    pub async fn connect(addr: SocketAddr) -> io::Result<Self> {
        let stream = monoio::net::TcpStream::connect_addr(addr).await?;
        stream.set_nodelay(true)?;
        Ok(Self(stream))
    }

    /// Our own address on it.
    ///
    /// # Errors
    /// As `getsockname(2)`.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    /// Splits into owned halves and the handle that ends both.
    pub fn split(self) -> (ReadHalf, WriteHalf, ShutdownHandle) {
        let hang_up = ShutdownHandle(self.0.as_raw_fd());
        let (read, write) = self.0.into_split();
        (ReadHalf(read), WriteHalf(write), hang_up)
    }
}

/// Ends a socket with `shutdown(2)`, so that whatever is in flight on it completes.
///
/// Holds the number of a descriptor, not the descriptor: its owner (a pump's halves) must be alive
/// when it is used, which is why only a pump and its watchdog keep one.
#[derive(Debug, Clone, Copy)]
pub struct ShutdownHandle(RawFd);

impl ShutdownHandle {
    /// The handle of any socket; see above about who may keep it.
    pub fn of(socket: &impl AsRawFd) -> Self {
        Self(socket.as_raw_fd())
    }

    /// Ends both directions. An already ended socket is fine.
    pub fn shutdown_both(self) {
        let _already_gone = nix::sys::socket::shutdown(self.0, nix::sys::socket::Shutdown::Both);
    }

    /// Hands `data` to the socket without waiting, and says how much of it was taken. To be
    /// followed by [`HangUp::write`] at once: the kernel keeps the last segment back until
    /// then, so that data and end go out as one.
    pub fn try_send_final(self, data: &[u8]) -> usize {
        let more = MsgFlags::from_bits_retain(nix::libc::MSG_MORE);
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL | more;
        nix::sys::socket::send(self.0, data, flags).unwrap_or(0)
    }

    /// Ends our direction: the peer reads to the end of what was sent.
    pub fn shutdown_write(self) {
        let _already_gone = nix::sys::socket::shutdown(self.0, nix::sys::socket::Shutdown::Write);
    }
}

/// The reading half: owned, so that a read in flight owns all it needs.
pub struct ReadHalf(OwnedReadHalf<monoio::net::TcpStream>);

/// The writing half.
pub struct WriteHalf(OwnedWriteHalf<monoio::net::TcpStream>);

/// A half that can be read from, by value. The seam at which tests put a scripted transport.
pub trait Reader: Sized + 'static {
    /// Reads into `buf`, from its start up to its capacity; its length becomes what was read. 0:
    /// the end.
    fn read(self, buf: Vec<u8>) -> impl Future<Output = (Self, io::Result<usize>, Vec<u8>)> + 'static;
}

/// A half that can be written to, by value.
pub trait Writer: Sized + 'static {
    /// Writes of `buf`, from its start, what the peer takes now: how much that is, and the buffer
    /// as it was.
    fn write(self, buf: Vec<u8>) -> impl Future<Output = (Self, io::Result<usize>, Vec<u8>)> + 'static;
}

impl Reader for ReadHalf {
    async fn read(mut self, buf: Vec<u8>) -> (Self, io::Result<usize>, Vec<u8>) {
        let (result, buf) = self.0.read(buf).await;
        (self, result, buf)
    }
}

impl Writer for WriteHalf {
    async fn write(mut self, buf: Vec<u8>) -> (Self, io::Result<usize>, Vec<u8>) {
        let (result, buf) = self.0.write(buf).await;
        (self, result, buf)
    }
}

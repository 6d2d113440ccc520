//! The four runtimes: how each accepts, reads, writes and spawns.

use std::io::{self, BufRead, Read};
use std::net::TcpListener;
use std::os::fd::{AsRawFd, RawFd};
use std::rc::Rc;
use std::sync::Arc;

use bench::gateway;
use dataplane::testing::io::buffered::BufferedSocket;
use dataplane::testing::proxy::worker::SharedState;
use dataplane::testing::runtime;
use dataplane::testing::runtime::{Driver, Listener, Reader, ShutdownHandle, Writer};
use model::{Kind, TlsVersion};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use super::connection;

/// As a worker's ring.
const RING_ENTRIES: u32 = 4096;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Host {
    MonoioUring,
    MonoioEpoll,
    TokioUring,
    Tokio,
}

impl Host {
    pub(crate) const ALL: [Self; 4] = [Self::MonoioUring, Self::MonoioEpoll, Self::TokioUring, Self::Tokio];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::MonoioUring => "monoio-io_uring",
            Self::MonoioEpoll => "monoio-epoll",
            Self::TokioUring => "tokio-uring",
            Self::Tokio => "tokio",
        }
    }
}

/// Serves the site on standard input until that ends. Prints the port to standard output.
pub(crate) fn serve(host: Host) {
    let mut site = String::new();
    io::stdin().lock().read_line(&mut site).expect("a site");
    std::thread::spawn(|| {
        let _ended = io::stdin().lock().read_to_end(&mut Vec::new());
        #[expect(clippy::disallowed_methods, reason = "this process has no log")]
        std::process::exit(0);
    });
    let document = serde_json::from_str(&site).expect("a site");
    let snapshot = gateway::snapshot([(Kind::Ssl, "site", document)]);
    let shared = gateway::shared(snapshot, &[TlsVersion::V12, TlsVersion::V13], None);
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    // As the data plane does: accepted sockets inherit it.
    setsockopt(&listener, sockopt::TcpNoDelay, &true).expect("a socket");
    println!("{}", listener.local_addr().expect("an address").port());
    match host {
        Host::MonoioUring => {
            let driver = Driver::detect();
            assert!(matches!(driver, Driver::IoUring { .. }), "no io_uring here: {driver}");
            monoio(&driver, listener, &shared);
        }
        Host::MonoioEpoll => {
            monoio(&Driver::Epoll { reason: "it is measured".to_owned() }, listener, &shared);
        }
        Host::TokioUring => tokio_uring(listener, &shared),
        Host::Tokio => tokio(listener, &shared),
    }
}

/// Through `dataplane::testing::runtime`, as the data plane itself.
fn monoio(driver: &Driver, listener: TcpListener, shared: &Arc<SharedState>) {
    let accept_all = || async {
        let listener = Listener::new(Arc::new(listener), driver).expect("a listener");
        loop {
            listener.readable().await.expect("a listener");
            let Ok((socket, _)) = listener.accept() else { continue };
            runtime::spawn(connection::serve(Arc::clone(shared), BufferedSocket::new(socket)));
        }
    };
    runtime::block_on(driver, accept_all).expect("a runtime")
}

/// With the flags and the size of the data plane's ring.
fn tokio_uring(listener: TcpListener, shared: &Arc<SharedState>) {
    let mut ring = tokio_uring::uring_builder();
    if matches!(Driver::detect(), Driver::IoUring { flags: true }) {
        ring.setup_coop_taskrun().setup_single_issuer();
    }
    tokio_uring::builder().entries(RING_ENTRIES).uring_builder(&ring).start(async {
        let listener = tokio_uring::net::TcpListener::from_std(listener);
        loop {
            let (socket, _) = listener.accept().await.expect("a connection");
            let socket = Rc::new(socket);
            let shutdown = ShutdownHandle::of(&socket);
            let socket = BufferedSocket::from_halves(Ring(Rc::clone(&socket)), Ring(socket), Some(shutdown));
            tokio_uring::spawn(connection::serve(Arc::clone(shared), socket));
        }
    })
}

/// One thread, as the others.
fn tokio(listener: TcpListener, shared: &Arc<SharedState>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    tokio::task::LocalSet::new().block_on(&runtime, async {
        listener.set_nonblocking(true).expect("a socket");
        let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
        loop {
            let (socket, _) = listener.accept().await.expect("a connection");
            let fd = Rc::new(socket.as_raw_fd());
            let shutdown = ShutdownHandle::of(&fd);
            let (reader, writer) = socket.into_split();
            let reader = PollReader { half: reader, _fd: fd };
            let socket = BufferedSocket::from_halves(reader, PollWriter(writer), Some(shutdown));
            tokio::task::spawn_local(connection::serve(Arc::clone(shared), socket));
        }
    })
}

/// Either half of a socket of tokio-uring.
struct Ring(Rc<tokio_uring::net::TcpStream>);

impl Reader for Ring {
    async fn read(self, buf: Vec<u8>) -> (Self, io::Result<usize>, Vec<u8>) {
        let (result, buf) = self.0.read(buf).await;
        (self, result, buf)
    }
}

impl Writer for Ring {
    async fn write(self, buf: Vec<u8>) -> (Self, io::Result<usize>, Vec<u8>) {
        let (result, buf) = self.0.write_all(buf).await;
        (self, result.map(|()| buf.len()), buf)
    }
}

struct PollReader {
    half: OwnedReadHalf,
    /// The socket's descriptor, for its shutdown handle.
    _fd: Rc<RawFd>,
}
struct PollWriter(OwnedWriteHalf);

impl Reader for PollReader {
    async fn read(mut self, mut buf: Vec<u8>) -> (Self, io::Result<usize>, Vec<u8>) {
        let result = self.half.read_buf(&mut buf).await;
        (self, result, buf)
    }
}

impl Writer for PollWriter {
    async fn write(mut self, buf: Vec<u8>) -> (Self, io::Result<usize>, Vec<u8>) {
        let result = self.0.write_all(&buf).await;
        (self, result.map(|()| buf.len()), buf)
    }
}

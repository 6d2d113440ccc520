//! The TCP sockets of a worker: listeners, connections as owned halves, and their shutdown.
//!
//! Invariants: a read in flight completes before its socket closes, a shutdown handle never acts on
//! another socket with the same descriptor, and no descriptor is inherited by a program that this
//! one starts.

use std::any::Any;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, RawFd};
use std::rc::{Rc, Weak};
use std::sync::Arc;

use monoio::io::{AsyncReadRent, AsyncWriteRent, OwnedReadHalf, OwnedWriteHalf, Splitable};
use nix::sys::socket::{MsgFlags, Shutdown};
use socket2::SockFilter;

use super::Driver;

/// A listening socket of one worker. Another worker, and a successor of this process, may listen on
/// the same socket: it is always non-blocking, since O_NONBLOCK belongs to the socket and not to
/// its descriptor.
pub struct Listener {
    /// A descriptor of its own, which the driver waits on.
    readiness: monoio::net::TcpListener,
    socket: Arc<std::net::TcpListener>,
    /// Whether connections must not block.
    epoll: bool,
}

impl Listener {
    /// Registers a bound, listening socket with the runtime of the calling worker.
    ///
    /// # Errors
    /// The driver does not accept the socket.
    pub fn new(socket: Arc<std::net::TcpListener>, driver: &Driver) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let readiness = monoio::net::TcpListener::from_std(socket.try_clone()?)?;
        Ok(Self { readiness, socket, epoll: matches!(driver, Driver::Epoll { .. }) })
    }

    /// Waits until a connection may be in the queue. The future may be dropped: it takes none.
    ///
    /// # Errors
    /// As `poll(2)`.
    pub async fn readable(&self) -> io::Result<()> {
        self.readiness.readable(false).await
    }

    /// Accepts a connection that is in the queue. accept4(2) closes it on exec; the accept of
    /// monoio's ring does not, and a successor would inherit it.
    ///
    /// # Errors
    /// As `accept(2)`; [`io::ErrorKind::WouldBlock`] if the queue is empty.
    pub fn accept(&self) -> io::Result<(Socket, SocketAddr)> {
        let (stream, peer) = self.socket.accept()?;
        if self.epoll {
            stream.set_nonblocking(true)?;
        }
        Ok((Socket(monoio::net::TcpStream::from_std(stream)?), peer))
    }

    /// Stops listening at once, and resets the connections in the queue. `shutdown(2)` does that,
    /// for every process that has the socket; the runtime closes the descriptor on its next turn,
    /// which a stopping worker does not take.
    pub fn close(self) {
        shutdown(self.socket.as_raw_fd(), Shutdown::Both);
    }

    /// Makes the kernel drop new SYNs; connections in the TCP handshake still enter the queue. A
    /// client sends its SYN again after a second.
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
        socket2::SockRef::from(&*self.socket).attach_filter(&filter)
    }
}

/// A connected TCP socket.
pub struct Socket(monoio::net::TcpStream);

impl Socket {
    /// Connects. Dropping the future, as [`super::timeout`] does, cancels the connect.
    ///
    /// # Errors
    /// As `connect(2)`.
    pub async fn connect(addr: SocketAddr) -> io::Result<Self> {
        let stream = monoio::net::TcpStream::connect_addr(addr).await?;
        stream.set_nodelay(true)?;
        Ok(Self(stream))
    }

    /// The local address of the connection.
    ///
    /// # Errors
    /// As `getsockname(2)`.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    /// Splits the socket into owned halves, and gives a handle that shuts it down.
    pub fn split(self) -> (ReadHalf, WriteHalf, ShutdownHandle) {
        let fd = self.0.as_raw_fd();
        let (read, write) = self.0.into_split();
        // Both halves share the socket, which closes its descriptor with the last of them.
        let socket: Weak<_> = Rc::downgrade(&read.0);
        (ReadHalf(read), WriteHalf(write), ShutdownHandle { socket, fd })
    }
}

/// Ends a socket with `shutdown(2)`, which completes the operations in flight on it.
///
/// The handle does not keep the socket open. It acts only while the socket is open, so it never
/// reaches another socket that reuses the descriptor.
#[derive(Debug, Clone)]
pub struct ShutdownHandle {
    socket: Weak<dyn Any>,
    fd: RawFd,
}

impl ShutdownHandle {
    /// The handle of a socket of another runtime, or of the standard library.
    pub fn of<S: AsRawFd + 'static>(socket: &Rc<S>) -> Self {
        let fd = socket.as_raw_fd();
        let socket: Weak<S> = Rc::downgrade(socket);
        Self { socket, fd }
    }

    /// Shuts both directions down.
    pub fn shutdown_both(&self) {
        if let Some(fd) = self.open_fd() {
            shutdown(fd, Shutdown::Both);
        }
    }

    /// Shuts our direction down: the peer reads everything that was sent, and then the end.
    pub fn shutdown_write(&self) {
        if let Some(fd) = self.open_fd() {
            shutdown(fd, Shutdown::Write);
        }
    }

    /// Sends as much of `data` as the socket takes without waiting; returns the number of bytes.
    /// [`ShutdownHandle::shutdown_write`] must follow: until then the kernel holds back the last
    /// segment, so that data and FIN leave together.
    pub fn try_send_final(&self, data: &[u8]) -> usize {
        let Some(fd) = self.open_fd() else { return 0 };
        let more = MsgFlags::from_bits_retain(nix::libc::MSG_MORE);
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL | more;
        nix::sys::socket::send(fd, data, flags).unwrap_or(0)
    }

    /// The descriptor, if the socket is open.
    fn open_fd(&self) -> Option<RawFd> {
        (self.socket.strong_count() > 0).then_some(self.fd)
    }
}

fn shutdown(fd: RawFd, how: Shutdown) {
    // Fails only if the peer has reset the connection, and then there is nothing to shut down.
    let _not_connected = nix::sys::socket::shutdown(fd, how);
}

/// The read half of a socket, owned so that a read in flight owns all it needs.
pub struct ReadHalf(OwnedReadHalf<monoio::net::TcpStream>);

/// The write half of a socket.
pub struct WriteHalf(OwnedWriteHalf<monoio::net::TcpStream>);

/// A half that reads into an owned buffer. Tests implement it with a scripted transport.
pub trait Reader: Sized + 'static {
    /// Reads at most the capacity of `buf`; then `buf` holds just the bytes read. 0 bytes: the end.
    fn read(self, buf: Vec<u8>) -> impl Future<Output = (Self, io::Result<usize>, Vec<u8>)> + 'static;
}

/// A half that writes from an owned buffer.
pub trait Writer: Sized + 'static {
    /// Writes a prefix of `buf`; returns its length, and `buf` unchanged.
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

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::super::block_on;
    use super::*;

    #[test]
    fn a_shutdown_handle_acts_only_while_its_socket_is_open() {
        block_on(&Driver::detect(), || async {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let socket = Socket::connect(listener.local_addr().unwrap()).await.unwrap();
            let (read, write, handle) = socket.split();
            assert!(handle.open_fd().is_some());
            drop(read);
            assert_eq!(handle.try_send_final(b"data"), 4);
            drop(write);
            assert_eq!(handle.open_fd(), None, "another socket may have the descriptor now");
            assert_eq!(handle.try_send_final(b"data"), 0);
        })
        .unwrap();
    }
}

//! A buffered socket: polled reads and writes over a runtime that owns the buffers of an operation.
//!
//! The kernel writes into the buffer of an io_uring read until the operation completes. So each
//! direction has at most one operation in flight, which owns its half of the socket and its buffer.
//! TLS and hyper poll on top of that (`poll_fill_buf`, `poll_flush`).
//!
//! Invariant: an operation in flight is never dropped. Dropping the buffered socket shuts the
//! socket down; the operations complete, and then their buffers are freed.

use std::any::Any;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use super::timeouts::TimeoutHandle;
use crate::runtime::{ReadHalf, Reader, ShutdownHandle, Socket, WriteHalf, Writer};

/// The first read of a connection. Fits a ClientHello with a post-quantum key share. Bytes.
const READ_FIRST: usize = 4 * 1024;
/// The read in flight on an idle connection. Fits the usual request. Bytes.
const READ_SMALL: usize = 1024;
/// The reads of a connection that transfers much data. Bytes.
const READ_LARGE: usize = 64 * 1024;
/// The largest write buffer that is kept for the next write. Bytes.
const WRITE_KEPT: usize = 4 * 1024;

type Reading<R> = Pin<Box<dyn Future<Output = (R, io::Result<usize>, Vec<u8>)>>>;
type Writing<W> = Pin<Box<dyn Future<Output = (W, io::Result<usize>, Vec<u8>)>>>;

/// A socket with a read buffer and a write buffer.
pub struct BufferedSocket<R: Reader = ReadHalf, W: Writer = WriteHalf> {
    read: ReadSide<R>,
    write: WriteSide<W>,
    shutdown: Option<ShutdownHandle>,
    /// Counts a connection to an upstream until it ends.
    guard: Option<Box<dyn Any>>,
}

struct ReadSide<R> {
    state: ReadState<R>,
    data: Vec<u8>,
    consumed: usize,
    read_size: usize,
}

enum ReadState<R> {
    Idle(R),
    InFlight(Reading<R>),
    Eof(R),
    /// A read failed. Every later poll returns an error of the same kind.
    Failed(io::ErrorKind),
}

struct WriteSide<W> {
    state: WriteState<W>,
    /// The bytes for the next write.
    buf: Vec<u8>,
    /// Ends the connection if a write takes too long.
    timeouts: Option<TimeoutHandle>,
    /// See [`BufferedSocket::ignore_write_errors`].
    ignore_errors: bool,
}

enum WriteState<W> {
    Idle(W),
    InFlight(Writing<W>),
    Failed(io::ErrorKind),
}

impl BufferedSocket {
    pub fn new(socket: Socket) -> Self {
        let (reader, writer, shutdown) = socket.split();
        Self::from_halves(reader, writer, Some(shutdown))
    }
}

impl<R: Reader, W: Writer> BufferedSocket<R, W> {
    /// A buffered socket over any pair of halves.
    pub fn from_halves(reader: R, writer: W, shutdown: Option<ShutdownHandle>) -> Self {
        Self {
            read: ReadSide {
                state: ReadState::Idle(reader),
                data: Vec::new(),
                consumed: 0,
                read_size: READ_FIRST,
            },
            write: WriteSide {
                state: WriteState::Idle(writer),
                buf: Vec::new(),
                timeouts: None,
                ignore_errors: false,
            },
            shutdown,
            guard: None,
        }
    }

    /// Holds `guard` until the connection ends: the places of a connection to an upstream.
    pub fn set_guard(&mut self, guard: impl Any) {
        self.guard = Some(Box::new(guard));
    }

    /// The guard, where it is of this type.
    pub fn guard_mut<T: Any>(&mut self) -> Option<&mut T> {
        self.guard.as_mut()?.downcast_mut()
    }

    /// The handle that shuts the socket down.
    pub fn shutdown_handle(&self) -> Option<ShutdownHandle> {
        self.shutdown.clone()
    }

    /// Registers the connection's writes with its timeouts, until the socket is dropped.
    pub fn set_timeouts(&mut self, timeouts: TimeoutHandle) {
        self.write.timeouts = Some(timeouts);
    }

    /// With `ignore`, a failed write drops its data and is no error; the next read tells how the
    /// connection ended. For peers that may answer and close before they have read everything.
    pub fn ignore_write_errors(&mut self, ignore: bool) {
        self.write.ignore_errors = ignore;
    }

    /// The bytes that were read and not consumed; empty at the end of the peer's direction.
    ///
    /// # Errors
    /// The read failed.
    pub fn poll_fill_buf(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        self.read.poll_fill_buf(cx)
    }

    /// Consumes `n` bytes of what `poll_fill_buf` returned.
    pub fn consume(&mut self, n: usize) {
        self.read.consumed = self.read.consumed.saturating_add(n).min(self.read.data.len());
    }

    /// Puts bytes that were consumed back in front of those that were not: the next reads give them
    /// again. Not while a read is in flight, which [`BufferedSocket::poll_fill_buf`] starts only
    /// when all bytes are consumed.
    pub fn unread(&mut self, mut bytes: Vec<u8>) {
        bytes.extend_from_slice(self.read.data.get(self.read.consumed..).unwrap_or_default());
        self.read.data = bytes;
        self.read.consumed = 0;
    }

    /// Frees the write buffer if it is empty, and makes the next read small. For connections that
    /// become idle, whose last transfer does not predict the next one.
    pub fn shrink_buffers(&mut self) {
        self.read.read_size = READ_SMALL;
        if self.write.buf.is_empty() {
            self.write.buf = Vec::new();
        }
    }

    /// The buffer of the bytes to send; `poll_flush` sends them.
    pub fn write_buf(&mut self) -> &mut Vec<u8> {
        &mut self.write.buf
    }

    /// Whether the write buffer is empty and no write is in flight.
    pub fn is_flushed(&self) -> bool {
        self.write.buf.is_empty() && !matches!(self.write.state, WriteState::InFlight(_))
    }

    /// Starts to write the buffer. Pending only while an earlier write is in flight.
    ///
    /// # Errors
    /// The earlier write failed.
    pub fn poll_start_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.write.poll_start_write(cx)
    }

    /// Writes the buffer, and waits until the kernel has taken all of it.
    ///
    /// # Errors
    /// A write failed.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.write.poll_start_write(cx))?;
            if self.is_flushed() {
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// Writes the buffer and shuts our direction down: in one segment, if the socket takes it at
    /// once.
    ///
    /// # Errors
    /// A write failed.
    pub fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.write.poll_idle(cx))?;
        if let (Some(shutdown), WriteState::Idle(_), false) =
            (&self.shutdown, &self.write.state, self.write.buf.is_empty())
        {
            // `poll_flush` sends the rest, and reports what is wrong.
            let sent = shutdown.try_send_final(&self.write.buf);
            self.write.buf.drain(..sent);
        }
        ready!(self.poll_flush(cx))?;
        if let Some(shutdown) = &self.shutdown {
            shutdown.shutdown_write();
        }
        Poll::Ready(Ok(()))
    }
}

impl<R: Reader, W: Writer> Drop for BufferedSocket<R, W> {
    fn drop(&mut self) {
        if let Some(timeouts) = &self.write.timeouts {
            timeouts.unregister();
        }
        // Without an operation in flight the descriptor closes with the halves, which is enough.
        let reading = matches!(self.read.state, ReadState::InFlight(_));
        let in_flight = reading || matches!(self.write.state, WriteState::InFlight(_));
        if let (true, Some(shutdown)) = (in_flight, &self.shutdown) {
            shutdown.shutdown_both();
        }
    }
}

impl<R: Reader> ReadSide<R> {
    fn poll_fill_buf(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        if self.consumed >= self.data.len() {
            ready!(self.poll_read(cx))?;
        }
        Poll::Ready(Ok(self.data.get(self.consumed..).unwrap_or_default()))
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            match std::mem::replace(&mut self.state, ReadState::Failed(io::ErrorKind::Other)) {
                ReadState::Idle(half) => {
                    let mut buf = std::mem::take(&mut self.data);
                    self.consumed = 0;
                    buf.clear();
                    if buf.capacity() < self.read_size || buf.capacity() >= 2 * self.read_size {
                        buf = Vec::with_capacity(self.read_size);
                    }
                    self.state = ReadState::InFlight(Box::pin(half.read(buf)));
                }
                ReadState::InFlight(mut reading) => match reading.as_mut().poll(cx) {
                    Poll::Pending => {
                        self.state = ReadState::InFlight(reading);
                        return Poll::Pending;
                    }
                    Poll::Ready((half, result, buf)) => {
                        return Poll::Ready(self.finish(half, result, buf));
                    }
                },
                ReadState::Eof(half) => {
                    self.state = ReadState::Eof(half);
                    return Poll::Ready(Ok(()));
                }
                ReadState::Failed(kind) => {
                    self.state = ReadState::Failed(kind);
                    return Poll::Ready(Err(kind.into()));
                }
            }
        }
    }

    fn finish(&mut self, half: R, result: io::Result<usize>, buf: Vec<u8>) -> io::Result<()> {
        match result {
            Ok(0) => {
                self.data = Vec::new();
                self.state = ReadState::Eof(half);
            }
            Ok(n) => {
                // After a full buffer more data is likely; a nearly empty one is an idle
                // connection's.
                if n == buf.capacity() {
                    self.read_size = (self.read_size * 4).min(READ_LARGE);
                } else if n < self.read_size / 4 {
                    self.read_size = (self.read_size / 2).max(READ_SMALL);
                }
                self.data = buf;
                self.state = ReadState::Idle(half);
            }
            Err(error) => {
                self.state = ReadState::Failed(error.kind());
                return Err(error);
            }
        }
        Ok(())
    }
}

impl<W: Writer> WriteSide<W> {
    fn poll_start_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            match std::mem::replace(&mut self.state, WriteState::Failed(io::ErrorKind::Other)) {
                WriteState::Idle(half) => {
                    if self.buf.is_empty() {
                        self.state = WriteState::Idle(half);
                        return Poll::Ready(Ok(()));
                    }
                    let buf = std::mem::take(&mut self.buf);
                    let mut writing: Writing<W> = Box::pin(half.write(buf));
                    match writing.as_mut().poll(cx) {
                        Poll::Pending => {
                            if let Some(timeouts) = &self.timeouts {
                                timeouts.write_started();
                            }
                            self.state = WriteState::InFlight(writing);
                            return Poll::Ready(Ok(()));
                        }
                        Poll::Ready(written) => self.finish(written)?,
                    }
                }
                in_flight @ WriteState::InFlight(_) => {
                    self.state = in_flight;
                    ready!(self.poll_idle(cx))?;
                }
                WriteState::Failed(kind) => {
                    self.state = WriteState::Failed(kind);
                    self.buf.clear();
                    return Poll::Ready(if self.ignore_errors { Ok(()) } else { Err(kind.into()) });
                }
            }
        }
    }

    /// Waits for the write in flight, and starts no other.
    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let WriteState::InFlight(writing) = &mut self.state {
            let written = ready!(writing.as_mut().poll(cx));
            self.finish(written)?;
        }
        Poll::Ready(Ok(()))
    }

    fn finish(&mut self, (half, result, mut buf): (W, io::Result<usize>, Vec<u8>)) -> io::Result<()> {
        let result = match result {
            Ok(0) if !buf.is_empty() => Err(io::ErrorKind::WriteZero.into()),
            Ok(n) if n < buf.len() => {
                buf.drain(..n);
                self.state = WriteState::InFlight(Box::pin(half.write(buf)));
                // The send timeout starts again with each partial write, as nginx's `send_timeout`
                // does.
                if let Some(timeouts) = &self.timeouts {
                    timeouts.write_started();
                }
                return Ok(());
            }
            result => result,
        };
        if self.buf.capacity() == 0 && buf.capacity() <= WRITE_KEPT {
            buf.clear();
            self.buf = buf;
        }
        if let Some(timeouts) = &self.timeouts {
            timeouts.write_finished();
        }
        match result {
            Ok(_) => {
                self.state = WriteState::Idle(half);
                Ok(())
            }
            Err(error) => {
                self.state = WriteState::Failed(error.kind());
                if self.ignore_errors { Ok(()) } else { Err(error) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;

    use super::*;
    use crate::runtime::{Driver, block_on};

    #[test]
    fn bytes_that_are_put_back_are_read_again() {
        block_on(&Driver::detect(), || async {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let addr = listener.local_addr().unwrap();
            let peer = std::thread::spawn(move || {
                let mut socket = listener.accept().unwrap().0;
                socket.write_all(b"hello, world").unwrap();
            });
            let mut socket = BufferedSocket::new(Socket::connect(addr).await.unwrap());
            peer.join().unwrap();
            let mut taken = Vec::new();
            while taken.len() < 7 {
                let data = poll_fn(|cx| socket.poll_fill_buf(cx).map_ok(<[u8]>::to_vec)).await.unwrap();
                let n = data.len().min(7 - taken.len());
                taken.extend_from_slice(&data[..n]);
                socket.consume(n);
            }
            assert_eq!(taken, b"hello, ");
            socket.unread(taken);
            let mut all = Vec::new();
            loop {
                let data = poll_fn(|cx| socket.poll_fill_buf(cx).map_ok(<[u8]>::to_vec)).await.unwrap();
                if data.is_empty() {
                    break;
                }
                socket.consume(data.len());
                all.extend(data);
            }
            assert_eq!(all, b"hello, world");
        })
        .unwrap();
    }

    #[test]
    fn shutdown_sends_the_whole_buffer_first() {
        block_on(&Driver::detect(), || async {
            for size in [0, 1, 24, 4096, 1 << 20] {
                let listener = TcpListener::bind("127.0.0.1:0").unwrap();
                let addr = listener.local_addr().unwrap();
                let reader = std::thread::spawn(move || {
                    let mut received = Vec::new();
                    listener.accept().unwrap().0.read_to_end(&mut received).unwrap();
                    received
                });
                let mut socket = BufferedSocket::new(Socket::connect(addr).await.unwrap());
                let sent: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
                socket.write_buf().extend_from_slice(&sent);
                poll_fn(|cx| socket.poll_shutdown(cx)).await.unwrap();
                drop(socket);
                assert!(reader.join().unwrap() == sent, "{size} bytes");
            }
        })
        .unwrap();
    }
}

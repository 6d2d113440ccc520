//! The pump: one connection's bytes, in and out, with owned buffers.
//!
//! Stands below TLS and below plain HTTP. io_uring writes into a buffer the kernel holds until the
//! operation completes, so each direction has at most one operation in flight, which owns its half
//! and its buffer. A poll-style interface on top (`poll_fill`, `poll_drain`) is what hyper and the
//! TLS engine can use.
//!
//! Invariant: an operation in flight is never dropped while it runs. Dropping the pump hangs the
//! socket up, the operations complete, and only then do their buffers go.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::sync::OwnedSemaphorePermit;

use super::timeouts::TimeoutHandle;
use crate::runtime::{Reader, ShutdownHandle, Socket, Writer};

/// What a connection reads at first: fits a ClientHello with a post-quantum key share.
const READ_FIRST: usize = 4 * 1024;
/// What a quiet connection parks in the kernel: fits the usual request.
const READ_SMALL: usize = 1024;
/// What a connection that moves a lot of data reads at a time.
const READ_LARGE: usize = 64 * 1024;
/// The largest buffer that is kept from one write for the next. Bytes.
const WRITE_KEPT: usize = 4 * 1024;

type Reading<R> = Pin<Box<dyn Future<Output = (R, io::Result<usize>, Vec<u8>)>>>;
type Writing<W> = Pin<Box<dyn Future<Output = (W, io::Result<usize>, Vec<u8>)>>>;

/// One connection's bytes.
pub struct BufferedSocket<R: Reader = crate::runtime::ReadHalf, W: Writer = crate::runtime::WriteHalf> {
    read: ReadSide<R>,
    write: WriteSide<W>,
    shutdown: Option<ShutdownHandle>,
    /// Released when the connection ends.
    permit: Option<OwnedSemaphorePermit>,
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
    /// The peer ended its direction.
    Eof(R),
    /// A read failed; the kind is kept so that every later poll tells the same.
    Failed(io::ErrorKind),
}

struct WriteSide<W> {
    state: WriteState<W>,
    /// Empty while nothing is to be sent.
    buf: Vec<u8>,
    /// Who ends the connection when a write takes too long.
    timeouts: Option<TimeoutHandle>,
    /// A write that fails is forgotten; see [`Pump::forgive_writes`].
    ignore_errors: bool,
}

enum WriteState<W> {
    Idle(W),
    InFlight(Writing<W>),
    Failed(io::ErrorKind),
}

impl BufferedSocket {
    /// A pump over a socket.
    pub fn new(socket: Socket) -> Self {
        let (reader, writer, hang_up) = socket.split();
        Self::from_halves(reader, writer, Some(hang_up))
    }
}

impl<R: Reader, W: Writer> BufferedSocket<R, W> {
    /// A pump over any pair of halves.
    pub fn from_halves(reader: R, writer: W, hang_up: Option<ShutdownHandle>) -> Self {
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
            shutdown: hang_up,
            permit: None,
        }
    }

    /// Keeps the permit of a connection to an upstream until it ends.
    pub fn set_permit(&mut self, permit: OwnedSemaphorePermit) {
        self.permit = Some(permit);
    }

    /// The handle that ends the connection.
    pub fn shutdown_handle(&self) -> Option<ShutdownHandle> {
        self.shutdown
    }

    /// Lets the watchdog see how long writes take. It goes with the pump.
    pub fn set_timeouts(&mut self, watched: TimeoutHandle) {
        self.write.timeouts = Some(watched);
    }

    /// Whether from now on a write that fails is no error: what was to be sent is dropped, and the
    /// reading side tells how the connection ended. For peers that may answer, and close,
    /// before they have read all that is sent to them.
    pub fn ignore_write_errors(&mut self, forgive: bool) {
        self.write.ignore_errors = forgive;
    }

    /// Bytes read and not yet consumed. Empty means the peer has ended its direction.
    ///
    /// # Errors
    /// As the read.
    pub fn poll_fill_buf(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        self.read.poll_fill(cx)
    }

    /// Marks `n` bytes of what `poll_fill` gave as used.
    pub fn consume(&mut self, n: usize) {
        self.read.consumed = self.read.consumed.saturating_add(n).min(self.read.data.len());
    }

    /// What was under way says nothing about what follows: the next read is a quiet connection's,
    /// and nothing is kept for a write.
    pub fn shrink_buffers(&mut self) {
        self.read.read_size = READ_SMALL;
        if self.write.buf.is_empty() {
            self.write.buf = Vec::new();
        }
    }

    /// Where bytes to send are put; `poll_drain` sends them.
    pub fn write_buf(&mut self) -> &mut Vec<u8> {
        &mut self.write.buf
    }

    /// Whether nothing is staged and nothing is being sent.
    pub fn is_flushed(&self) -> bool {
        self.write.buf.is_empty() && !matches!(self.write.state, WriteState::InFlight(_))
    }

    /// Starts sending what is staged, and waits for nothing unless a send is already in flight.
    ///
    /// # Errors
    /// As the write that ended meanwhile.
    pub fn poll_start_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.write.poll_send(cx)
    }

    /// Sends what is staged and waits until the kernel has taken all of it.
    ///
    /// # Errors
    /// As the write.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.write.poll_send(cx))?;
            if self.is_flushed() {
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// Sends what is staged and ends our direction: in one segment, where the socket takes it at
    /// once.
    ///
    /// # Errors
    /// As the write.
    pub fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.write.poll_idle(cx))?;
        if let (Some(hang_up), WriteState::Idle(_), false) =
            (self.shutdown, &self.write.state, self.write.buf.is_empty())
        {
            // What was not taken goes the usual way, which also finds out what is wrong.
            let taken = hang_up.try_send_final(&self.write.buf);
            self.write.buf.drain(..taken);
        }
        ready!(self.poll_flush(cx))?;
        self.shutdown_write();
        Poll::Ready(Ok(()))
    }

    /// Ends our direction once everything is sent.
    pub fn shutdown_write(&self) {
        if let Some(hang_up) = self.shutdown {
            hang_up.shutdown_write();
        }
    }
}

impl<R: Reader, W: Writer> Drop for BufferedSocket<R, W> {
    fn drop(&mut self) {
        // The halves (in the states, or in the operations in flight) keep the descriptor alive here.
        if let Some(watched) = &self.write.timeouts {
            watched.unregister();
        }
        // With nothing in flight the descriptor goes with the halves, and the kernel ends the connection by
        // itself.
        let reading = matches!(self.read.state, ReadState::InFlight(_));
        let in_flight = reading || matches!(self.write.state, WriteState::InFlight(_));
        if let (true, Some(hang_up)) = (in_flight, self.shutdown) {
            hang_up.shutdown_both();
        }
    }
}

impl<R: Reader> ReadSide<R> {
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
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
                    Poll::Ready((half, result, buf)) => return Poll::Ready(self.finish(half, result, buf)),
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
                // A full buffer says that more is coming; a nearly empty one that this is a quiet connection.
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
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
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
                            if let Some(watched) = &self.timeouts {
                                watched.write_started();
                            }
                            self.state = WriteState::InFlight(writing);
                            return Poll::Ready(Ok(()));
                        }
                        Poll::Ready(done) => self.finish(done)?,
                    }
                }
                busy @ WriteState::InFlight(_) => {
                    self.state = busy;
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

    /// Waits for what is in flight, and starts nothing new.
    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let WriteState::InFlight(writing) = &mut self.state {
            let done = ready!(writing.as_mut().poll(cx));
            self.finish(done)?;
        }
        Poll::Ready(Ok(()))
    }

    fn finish(&mut self, (half, result, mut sent): (W, io::Result<usize>, Vec<u8>)) -> io::Result<()> {
        let result = match result {
            Ok(0) if !sent.is_empty() => Err(io::ErrorKind::WriteZero.into()),
            Ok(taken) if taken < sent.len() => {
                sent.drain(..taken);
                self.state = WriteState::InFlight(Box::pin(half.write(sent)));
                // The time for a write starts anew with each part that is taken, as nginx's
                // `send_timeout` does.
                if let Some(watched) = &self.timeouts {
                    watched.write_started();
                }
                return Ok(());
            }
            result => result,
        };
        if self.buf.capacity() == 0 && sent.capacity() <= WRITE_KEPT {
            sent.clear();
            self.buf = sent;
        }
        if let Some(watched) = &self.timeouts {
            watched.write_finished();
        }
        match result {
            Ok(_all) => {
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
    use std::io::Read as _;
    use std::net::TcpListener;

    use super::*;
    use crate::runtime;
    use crate::runtime::Driver;

    #[test]
    fn last_words_and_end_arrive_whole_however_much_there_is_to_say() {
        runtime::block_on(&Driver::detect(), || async {
            for size in [0, 1, 24, 4096, 1 << 20] {
                let listener = TcpListener::bind("127.0.0.1:0").unwrap();
                let addr = listener.local_addr().unwrap();
                let reading = std::thread::spawn(move || {
                    let mut heard = Vec::new();
                    listener.accept().unwrap().0.read_to_end(&mut heard).unwrap();
                    heard
                });
                let mut pump = BufferedSocket::new(Socket::connect(addr).await.unwrap());
                let said: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
                pump.write_buf().extend_from_slice(&said);
                poll_fn(|cx| pump.poll_shutdown(cx)).await.unwrap();
                drop(pump);
                assert!(reading.join().unwrap() == said, "{size} bytes");
            }
        })
        .unwrap();
    }
}

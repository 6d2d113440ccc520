//! The pump: one connection's bytes, in and out, with owned buffers.
//!
//! Stands below TLS and below plain HTTP. io_uring writes into a buffer the kernel holds until the operation
//! completes, so each direction has at most one operation in flight, which owns its half and its buffer. A
//! poll-style interface on top (`poll_fill`, `poll_drain`) is what hyper and the TLS engine can use.
//!
//! Invariant: an operation in flight is never dropped while it runs. Dropping the pump hangs the socket up, the
//! operations complete, and only then do their buffers go.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::sync::OwnedSemaphorePermit;

use super::watchdog::Watched;
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
pub struct Pump<R: Reader = crate::runtime::ReadHalf, W: Writer = crate::runtime::WriteHalf> {
    input: Input<R>,
    output: Output<W>,
    shutdown: Option<ShutdownHandle>,
    /// Released when the connection ends.
    permit: Option<OwnedSemaphorePermit>,
}

struct Input<R> {
    state: InputState<R>,
    data: Vec<u8>,
    taken: usize,
    want: usize,
}

enum InputState<R> {
    Idle(R),
    Busy(Reading<R>),
    /// The peer ended its direction.
    End(R),
    /// A read failed; the kind is kept so that every later poll tells the same.
    Failed(io::ErrorKind),
}

struct Output<W> {
    state: OutputState<W>,
    /// Empty while nothing is to be sent.
    staged: Vec<u8>,
    /// Who ends the connection when a write takes too long.
    watched: Option<Watched>,
    /// A write that fails is forgotten; see [`Pump::forgive_writes`].
    forgiving: bool,
}

enum OutputState<W> {
    Idle(W),
    Busy(Writing<W>),
    Failed(io::ErrorKind),
}

impl Pump {
    /// A pump over a socket.
    pub fn new(socket: Socket) -> Self {
        let (reader, writer, hang_up) = socket.split();
        Self::from_halves(reader, writer, Some(hang_up))
    }
}

impl<R: Reader, W: Writer> Pump<R, W> {
    /// A pump over any pair of halves.
    pub fn from_halves(reader: R, writer: W, hang_up: Option<ShutdownHandle>) -> Self {
        Self {
            input: Input { state: InputState::Idle(reader), data: Vec::new(), taken: 0, want: READ_FIRST },
            output: Output {
                state: OutputState::Idle(writer),
                staged: Vec::new(),
                watched: None,
                forgiving: false,
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
    pub fn set_watched(&mut self, watched: Watched) {
        self.output.watched = Some(watched);
    }

    /// Whether from now on a write that fails is no error: what was to be sent is dropped, and the reading side tells
    /// how the connection ended. For peers that may answer, and close, before they have read all that is sent to them.
    pub fn forgive_writes(&mut self, forgive: bool) {
        self.output.forgiving = forgive;
    }

    /// Bytes read and not yet consumed. Empty means the peer has ended its direction.
    ///
    /// # Errors
    /// As the read.
    pub fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        self.input.poll_fill(cx)
    }

    /// Marks `n` bytes of what `poll_fill` gave as used.
    pub fn consume(&mut self, n: usize) {
        self.input.taken = self.input.taken.saturating_add(n).min(self.input.data.len());
    }

    /// What was under way says nothing about what follows: the next read is a quiet connection's, and nothing is kept for a
    /// write.
    pub fn settle(&mut self) {
        self.input.want = READ_SMALL;
        if self.output.staged.is_empty() {
            self.output.staged = Vec::new();
        }
    }

    /// Where bytes to send are put; `poll_drain` sends them.
    pub fn staged(&mut self) -> &mut Vec<u8> {
        &mut self.output.staged
    }

    /// Whether nothing is staged and nothing is being sent.
    pub fn is_drained(&self) -> bool {
        self.output.staged.is_empty() && !matches!(self.output.state, OutputState::Busy(_))
    }

    /// Starts sending what is staged, and waits for nothing unless a send is already in flight.
    ///
    /// # Errors
    /// As the write that ended meanwhile.
    pub fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.output.poll_send(cx)
    }

    /// Sends what is staged and waits until the kernel has taken all of it.
    ///
    /// # Errors
    /// As the write.
    pub fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.output.poll_send(cx))?;
            if self.is_drained() {
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// Sends what is staged and ends our direction: in one segment, where the socket takes it at once.
    ///
    /// # Errors
    /// As the write.
    pub fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.output.poll_idle(cx))?;
        if let (Some(hang_up), OutputState::Idle(_), false) =
            (self.shutdown, &self.output.state, self.output.staged.is_empty())
        {
            // What was not taken goes the usual way, which also finds out what is wrong.
            let taken = hang_up.try_send_final(&self.output.staged);
            self.output.staged.drain(..taken);
        }
        ready!(self.poll_drain(cx))?;
        self.end_output();
        Poll::Ready(Ok(()))
    }

    /// Ends our direction once everything is sent.
    pub fn end_output(&self) {
        if let Some(hang_up) = self.shutdown {
            hang_up.shutdown_write();
        }
    }
}

impl<R: Reader, W: Writer> Drop for Pump<R, W> {
    fn drop(&mut self) {
        // The halves (in the states, or in the operations in flight) keep the descriptor alive here.
        if let Some(watched) = &self.output.watched {
            watched.end();
        }
        // With nothing in flight the descriptor goes with the halves, and the kernel ends the connection by itself.
        let reading = matches!(self.input.state, InputState::Busy(_));
        let in_flight = reading || matches!(self.output.state, OutputState::Busy(_));
        if let (true, Some(hang_up)) = (in_flight, self.shutdown) {
            hang_up.shutdown_both();
        }
    }
}

impl<R: Reader> Input<R> {
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        if self.taken >= self.data.len() {
            ready!(self.poll_read(cx))?;
        }
        Poll::Ready(Ok(self.data.get(self.taken..).unwrap_or_default()))
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            match std::mem::replace(&mut self.state, InputState::Failed(io::ErrorKind::Other)) {
                InputState::Idle(half) => {
                    let mut buf = std::mem::take(&mut self.data);
                    self.taken = 0;
                    buf.clear();
                    if buf.capacity() < self.want || buf.capacity() >= 2 * self.want {
                        buf = Vec::with_capacity(self.want);
                    }
                    self.state = InputState::Busy(Box::pin(half.read(buf)));
                }
                InputState::Busy(mut reading) => match reading.as_mut().poll(cx) {
                    Poll::Pending => {
                        self.state = InputState::Busy(reading);
                        return Poll::Pending;
                    }
                    Poll::Ready((half, result, buf)) => return Poll::Ready(self.finish(half, result, buf)),
                },
                InputState::End(half) => {
                    self.state = InputState::End(half);
                    return Poll::Ready(Ok(()));
                }
                InputState::Failed(kind) => {
                    self.state = InputState::Failed(kind);
                    return Poll::Ready(Err(kind.into()));
                }
            }
        }
    }

    fn finish(&mut self, half: R, result: io::Result<usize>, buf: Vec<u8>) -> io::Result<()> {
        match result {
            Ok(0) => {
                self.data = Vec::new();
                self.state = InputState::End(half);
            }
            Ok(n) => {
                // A full buffer says that more is coming; a nearly empty one that this is a quiet connection.
                if n == buf.capacity() {
                    self.want = (self.want * 4).min(READ_LARGE);
                } else if n < self.want / 4 {
                    self.want = (self.want / 2).max(READ_SMALL);
                }
                self.data = buf;
                self.state = InputState::Idle(half);
            }
            Err(error) => {
                self.state = InputState::Failed(error.kind());
                return Err(error);
            }
        }
        Ok(())
    }
}

impl<W: Writer> Output<W> {
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            match std::mem::replace(&mut self.state, OutputState::Failed(io::ErrorKind::Other)) {
                OutputState::Idle(half) => {
                    if self.staged.is_empty() {
                        self.state = OutputState::Idle(half);
                        return Poll::Ready(Ok(()));
                    }
                    let buf = std::mem::take(&mut self.staged);
                    let mut writing: Writing<W> = Box::pin(half.write(buf));
                    match writing.as_mut().poll(cx) {
                        Poll::Pending => {
                            if let Some(watched) = &self.watched {
                                watched.sending();
                            }
                            self.state = OutputState::Busy(writing);
                            return Poll::Ready(Ok(()));
                        }
                        Poll::Ready(done) => self.finish(done)?,
                    }
                }
                busy @ OutputState::Busy(_) => {
                    self.state = busy;
                    ready!(self.poll_idle(cx))?;
                }
                OutputState::Failed(kind) => {
                    self.state = OutputState::Failed(kind);
                    self.staged.clear();
                    return Poll::Ready(if self.forgiving { Ok(()) } else { Err(kind.into()) });
                }
            }
        }
    }

    /// Waits for what is in flight, and starts nothing new.
    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let OutputState::Busy(writing) = &mut self.state {
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
                self.state = OutputState::Busy(Box::pin(half.write(sent)));
                // The time for a write starts anew with each part that is taken, as nginx's
                // `send_timeout` does.
                if let Some(watched) = &self.watched {
                    watched.sending();
                }
                return Ok(());
            }
            result => result,
        };
        if self.staged.capacity() == 0 && sent.capacity() <= WRITE_KEPT {
            sent.clear();
            self.staged = sent;
        }
        if let Some(watched) = &self.watched {
            watched.sent();
        }
        match result {
            Ok(_all) => {
                self.state = OutputState::Idle(half);
                Ok(())
            }
            Err(error) => {
                self.state = OutputState::Failed(error.kind());
                if self.forgiving { Ok(()) } else { Err(error) }
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
                let mut pump = Pump::new(Socket::connect(addr).await.unwrap());
                let said: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
                pump.staged().extend_from_slice(&said);
                poll_fn(|cx| pump.poll_finish(cx)).await.unwrap();
                drop(pump);
                assert!(reading.join().unwrap() == said, "{size} bytes");
            }
        })
        .unwrap();
    }
}

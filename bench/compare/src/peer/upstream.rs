//! The upstreams behind every peer: HTTP/1.1, plain or over mutual TLS, keep-alive, one fixed small answer.
//!
//! A thread of this process on the load's core. It does as little as possible, because its time is not measured but
//! taken from the core that makes the load.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio_rustls::TlsAcceptor;

use super::PeerError;
use crate::process;

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 6\r\n\r\nhello\n";
/// Heads larger than this end the connection.
const HEAD_MAX: usize = 64 << 10;

/// Runs until it is dropped.
pub struct Upstream {
    /// Where it listens.
    pub address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Upstream {
    /// Starts it on a free port of the loopback interface, on one core.
    ///
    /// # Errors
    /// When there is no port, or the core is not ours.
    pub fn start(cpu: usize) -> Result<Self, PeerError> {
        Self::start_as(cpu, None)
    }

    /// The same over TLS.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_tls(cpu: usize, config: Arc<rustls::ServerConfig>) -> Result<Self, PeerError> {
        Self::start_as(cpu, Some(TlsAcceptor::from(config)))
    }

    fn start_as(cpu: usize, tls: Option<TlsAcceptor>) -> Result<Self, PeerError> {
        let system = |error| PeerError::system("starting the shared upstream")(error);
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).map_err(system)?;
        listener.set_nonblocking(true).map_err(system)?;
        let address = listener.local_addr().map_err(system)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(system)?;
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new().name("upstream".to_owned()).spawn(move || {
            // Unpinned it would still serve; the load generator's own pinning fails loudly for the same core.
            let _ = process::pin_current_thread(cpu);
            runtime.block_on(async {
                tokio::select! {
                    () = serve(listener, tls) => {}
                    _ = stopped => {}
                }
            });
        });
        Ok(Self { address, stop: Some(stop), thread: Some(thread.map_err(system)?) })
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn serve(listener: std::net::TcpListener, tls: Option<TlsAcceptor>) {
    let Ok(listener) = TcpListener::from_std(listener) else { return };
    loop {
        match listener.accept().await {
            Ok((stream, _)) => drop(tokio::spawn(answer(stream, tls.clone()))),
            // Out of descriptors: the ones in use will be closed.
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(10)).await,
        }
    }
}

async fn answer(stream: TcpStream, tls: Option<TlsAcceptor>) {
    let _ = stream.set_nodelay(true);
    match tls {
        None => answer_all(stream).await,
        Some(tls) => {
            if let Ok(stream) = tls.accept(stream).await {
                answer_all(stream).await;
            }
        }
    }
}

async fn answer_all<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S) {
    let mut buffer = Vec::with_capacity(4096);
    loop {
        while let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            buffer.drain(..end + 4);
            if stream.write_all(ANSWER).await.is_err() || stream.flush().await.is_err() {
                return;
            }
        }
        match stream.read_buf(&mut buffer).await {
            Ok(read) if read > 0 && buffer.len() <= HEAD_MAX => {}
            _ => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::http1;

    #[tokio::test]
    async fn it_answers_again_and_again() {
        let upstream = Upstream::start(0).unwrap();
        let mut stream = TcpStream::connect(upstream.address).await.unwrap();
        let mut buffer = Vec::new();
        for _ in 0..3 {
            let answer =
                http1::exchange(&mut stream, &http1::get("a.test", "/hello"), &mut buffer).await.unwrap();
            assert_eq!((answer.status, answer.body(&buffer)), (200, b"hello\n".to_vec()));
        }
    }
}

//! An upstream for measurements: HTTP/1.1 in clear or over TLS, keep-alive, one fixed answer; or an
//! echo of gRPC calls and WebSocket frames over TLS.
//!
//! It runs on a thread of its own, pinned to the load generator's core, and does as little as
//! possible: its CPU time is not measured, but taken from the load generator.

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;

use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio_rustls::TlsAcceptor;

use super::echo;
use crate::resources::pin_current_thread;

const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 6\r\n\r\nhello\n";
/// A longer request head ends the connection.
const HEAD_MAX: usize = 64 << 10;

/// A running upstream; dropping it stops its thread.
pub struct FixedUpstream {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl FixedUpstream {
    /// Listens on a free port of 127.0.0.1 and serves from this core.
    pub fn start(cpu: usize, tls: Option<ServerConfig>) -> Self {
        let acceptor = tls.map(|config| TlsAcceptor::from(Arc::new(config)));
        Self::serve(cpu, move |stream| answer(stream, acceptor.clone()))
    }

    /// As [`Self::start`], with echoes: gRPC where ALPN chooses `h2`, else WebSocket.
    pub fn echo(cpu: usize, mut tls: ServerConfig) -> Self {
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        Self::serve(cpu, move |stream| echoes(stream, acceptor.clone()))
    }

    fn serve<F>(cpu: usize, connection: impl Fn(TcpStream) -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        listener.set_nonblocking(true).expect("a socket can be non-blocking");
        let address = listener.local_addr().expect("a listener has an address");
        let (stop, stopped) = oneshot::channel();
        let run = move || {
            // Without its core it serves all the same; the load generator reports a core that is
            // not available.
            let _ = pin_current_thread(cpu);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime can be made").block_on(async {
                tokio::select! {
                    () = accept(listener, connection) => {}
                    _ = stopped => {}
                }
            });
        };
        let thread = std::thread::Builder::new().name("upstream".to_owned()).spawn(run);
        Self { address, stop: Some(stop), thread: Some(thread.expect("a thread can be started")) }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for FixedUpstream {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn accept<F>(listener: std::net::TcpListener, connection: impl Fn(TcpStream) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::from_std(listener).expect("a listener of this process");
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let _ = stream.set_nodelay(true);
                drop(tokio::spawn(connection(stream)));
            }
            // The process is out of descriptors until some connection closes.
            Err(_) => tokio::task::yield_now().await,
        }
    }
}

async fn answer(stream: TcpStream, acceptor: Option<TlsAcceptor>) {
    match acceptor {
        None => respond(stream).await,
        Some(acceptor) => {
            if let Ok(stream) = acceptor.accept(stream).await {
                respond(stream).await;
            }
        }
    }
}

async fn echoes(stream: TcpStream, acceptor: TlsAcceptor) {
    let Ok(stream) = acceptor.accept(stream).await else { return };
    if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
        echo::grpc(stream).await;
    } else {
        // Its error is that the peer went away.
        let _ = echo::websocket(stream).await;
    }
}

/// Answers each request head; requests have no bodies.
async fn respond(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    let mut buffer = Vec::with_capacity(4096);
    loop {
        while let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            buffer.drain(..end + 4);
            if stream.write_all(RESPONSE).await.is_err() || stream.flush().await.is_err() {
                return;
            }
        }
        match stream.read_buf(&mut buffer).await {
            Ok(1..) if buffer.len() <= HEAD_MAX => {}
            _ => return,
        }
    }
}

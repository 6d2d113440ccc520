//! An upstream that responds with the request head, byte for byte: no library parses or prints it.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// HTTP/1.1 for requests without bodies; dropping it ends it.
pub struct HeadEcho {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl HeadEcho {
    pub async fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
        let address = listener.local_addr().expect("a listener has an address");
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream));
            }
        });
        Self { address, task }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for HeadEcho {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(mut stream: TcpStream) {
    let mut got = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        while let Some(end) = got.windows(4).position(|four| four == b"\r\n\r\n") {
            let head: Vec<u8> = got.drain(..end + 4).collect();
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", head.len());
            if stream.write_all(&[answer.as_bytes(), &head].concat()).await.is_err() {
                return;
            }
        }
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(read) => got.extend_from_slice(&buffer[..read]),
        }
    }
}

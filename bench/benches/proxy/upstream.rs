//! An upstream on a thread of its own that does as little as possible: a fixed answer to every head, in clear or within TLS to
//! clients with a certificate.

use std::net::SocketAddr;
use std::sync::Arc;

use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, crypto::aws_lc_rs};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::Credentials;

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 6\r\n\r\nhello\n";

/// Starts one that lives as long as the process. `tls`: within TLS.
pub fn start(cpu: usize, tls: Option<ServerConfig>) -> SocketAddr {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    listener.set_nonblocking(true).expect("a socket");
    let address = listener.local_addr().expect("an address");
    let acceptor = tls.map(|config| TlsAcceptor::from(Arc::new(config)));
    let serve = move || {
        compare::process::pin_current_thread(cpu).expect("a core");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let listener = TcpListener::from_std(listener).expect("a listener");
            loop {
                let (stream, _) = listener.accept().await.expect("a connection");
                stream.set_nodelay(true).expect("a socket");
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    match acceptor {
                        None => answer_all(stream).await,
                        Some(acceptor) => answer_all(acceptor.accept(stream).await.expect("a client")).await,
                    }
                });
            }
        });
    };
    std::thread::Builder::new().name("upstream".to_owned()).spawn(serve).expect("a thread");
    address
}

/// Demands a certificate of the gateway.
pub fn strict(credentials: &Credentials) -> ServerConfig {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut anchors = RootCertStore::empty();
    anchors.add(credentials.root.certificate().der().clone()).expect("an anchor");
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(anchors), Arc::clone(&provider));
    let chain = credentials.upstream.chain.iter().map(|one| one.der().clone()).collect();
    let key = credentials.upstream.key().expect("a key").der().clone_key();
    ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_client_cert_verifier(verifier.build().expect("a verifier"))
        .with_single_cert(chain, key)
        .expect("a certificate")
}

async fn answer_all(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    let mut buffer = Vec::with_capacity(4096);
    loop {
        while let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            buffer.drain(..end + 4);
            if stream.write_all(ANSWER).await.is_err() {
                return;
            }
        }
        match stream.read_buf(&mut buffer).await {
            Ok(read) if read > 0 => {}
            _ => return,
        }
    }
}

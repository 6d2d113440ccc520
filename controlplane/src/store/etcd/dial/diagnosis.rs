//! Diagnoses a connection that the server closed without a reason.
//!
//! etcd sends nothing when it expects TLS and receives HTTP/2, or the other way round, and an alert
//! about the client certificate can be lost behind requests. A second connection, with the other
//! protocol or without a request, reveals the cause.
//!
//! Invariant: the second connection carries neither a password nor a document, and never turns a
//! failure into a success.

use std::io;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use super::error::{DialError, DialFailure, DialStep};
use super::observer::TlsContext;
use super::{ClientTls, Endpoint, connect_tcp, dial_context, resolve, tls_handshake};

/// The HTTP/2 connection preface with empty SETTINGS (RFC 9113 section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// The failure, or the cause that a second connection reveals.
pub(super) async fn diagnose(
    failure: DialError,
    endpoint: &Endpoint,
    client_tls: &ClientTls,
    deadline: Instant,
) -> DialError {
    let step = match &*failure.problem {
        DialFailure::Closed { step: step @ (DialStep::Tls | DialStep::Http2), .. } => *step,
        DialFailure::NotTls { .. } => DialStep::Tls,
        _ => return failure,
    };
    let cause = timeout_at(deadline, retry_and_observe(step, endpoint, client_tls, deadline)).await;
    match cause {
        Ok(Some(problem)) => {
            let diagnosed = endpoint.error(problem);
            endpoint.set_last_failure(Some(diagnosed.clone()));
            diagnosed
        }
        _ => failure,
    }
}

async fn retry_and_observe(
    step: DialStep,
    endpoint: &Endpoint,
    client_tls: &ClientTls,
    deadline: Instant,
) -> Option<DialFailure> {
    let stream = connect_tcp(&resolve(endpoint).await.ok()?, deadline).await.ok()?;
    match (endpoint.https(), step) {
        (true, DialStep::Tls) => is_http2(stream).await.ok()?.then_some(DialFailure::NotTls { http2: true }),
        (true, _) => {
            let context = dial_context(endpoint, client_tls).await.ok()?;
            let error = read_alert(context.tls.as_ref()?, stream).await?;
            match context.problem(DialStep::Tls, &error) {
                DialFailure::Closed { .. } => None,
                cause => Some(cause),
            }
        }
        (false, _) => is_tls(stream).await.ok()?.then_some(DialFailure::UnexpectedTls),
    }
}

/// Sends the preface and expects a SETTINGS frame.
async fn is_http2(mut stream: TcpStream) -> io::Result<bool> {
    stream.write_all(PREFACE).await?;
    let mut head = [0; 9];
    stream.read_exact(&mut head).await?;
    Ok(matches!(head, [_, _, _, 4, _, 0, 0, 0, 0]))
}

/// Sends a ClientHello and expects a TLS record.
async fn is_tls(mut stream: TcpStream) -> io::Result<bool> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let server_name = rustls::pki_types::ServerName::IpAddress(std::net::Ipv4Addr::LOCALHOST.into());
    let mut connection =
        rustls::ClientConnection::new(Arc::new(config), server_name).map_err(io::Error::other)?;
    let mut bytes = Vec::new();
    connection.write_tls(&mut bytes)?;
    stream.write_all(&bytes).await?;
    let mut head = [0; 3];
    stream.read_exact(&mut head).await?;
    // A handshake record, or an alert, of version 3.x.
    Ok(matches!(head, [0x15 | 0x16, 3, _]))
}

/// Shakes hands, sends nothing, and reads the server's alert.
async fn read_alert(tls: &TlsContext, stream: TcpStream) -> Option<io::Error> {
    let mut stream = match tls_handshake(tls, stream, &[b"h2"]).await {
        Ok(stream) => stream,
        Err(error) => return Some(error),
    };
    let mut byte = [0; 1];
    stream.read(&mut byte).await.err()
}

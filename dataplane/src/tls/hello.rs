//! The ClientHello: read within bounds, and what it says before anything is decided.
//!
//! First TLS step of a connection: it leads from bytes to the name by which the snapshot chooses the site.
//! Bounded in bytes by rustls (a handshake message of at most 64 KiB) and in time by the caller.

use std::{
    future::poll_fn,
    io,
    sync::Arc,
    task::{Context, Poll, ready},
};

use model::Name;
use rustls::{
    ServerConfig,
    server::{Accepted, Acceptor},
};

use super::engine::{Engine, EngineError};
use crate::{
    net::pump::Pump,
    rt::{Reader, Writer},
};

/// The first byte of every TLS connection: a record of type handshake.
const HANDSHAKE_RECORD: u8 = 22;

/// No ClientHello.
#[derive(Debug, thiserror::Error)]
pub enum HelloError {
    /// A request line came instead.
    #[error("plain HTTP was spoken to the TLS port")]
    PlainHttp,
    /// Something else came instead.
    #[error("the peer does not speak TLS")]
    NotTls,
    /// TLS, but not a ClientHello we can read. An alert has been staged.
    #[error(transparent)]
    Tls(#[from] rustls::Error),
    /// The connection failed underneath.
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
    /// The peer went away.
    #[error("the peer ended the connection before its ClientHello was complete")]
    Ended,
}

/// A ClientHello that was read, and what came with it.
pub struct Hello {
    accepted: Accepted,
}

/// Reads the ClientHello. What follows it stays with the acceptor and the pump.
///
/// # Errors
/// [`HelloError`]; where TLS was spoken the alert is staged in the pump.
pub async fn read<R: Reader, W: Writer>(pump: &mut Pump<R, W>) -> Result<Hello, HelloError> {
    let mut acceptor = Acceptor::default();
    let mut first = true;
    poll_fn(|cx| poll_read(&mut acceptor, &mut first, pump, cx)).await
}

fn poll_read<R: Reader, W: Writer>(
    acceptor: &mut Acceptor,
    first: &mut bool,
    pump: &mut Pump<R, W>,
    cx: &mut Context<'_>,
) -> Poll<Result<Hello, HelloError>> {
    loop {
        let mut data = ready!(pump.poll_fill(cx))?;
        match data.first() {
            None => return Poll::Ready(Err(HelloError::Ended)),
            Some(&byte) if *first && byte != HANDSHAKE_RECORD => {
                let error =
                    if byte.is_ascii_uppercase() { HelloError::PlainHttp } else { HelloError::NotTls };
                return Poll::Ready(Err(error));
            }
            Some(_) => *first = false,
        }
        let n = acceptor.read_tls(&mut data)?;
        pump.consume(n);
        match acceptor.accept() {
            Ok(Some(accepted)) => return Poll::Ready(Ok(Hello { accepted })),
            Ok(None) => {}
            Err((error, mut alert)) => {
                alert.write_all(pump.staged())?;
                return Poll::Ready(Err(error.into()));
            }
        }
    }
}

impl Hello {
    /// The name the client asks for; `fallback` stands in for an absent one (`apisix.ssl.fallback_sni`).
    pub fn server_name(&self, fallback: Option<&Name>) -> Option<Name> {
        match self.accepted.client_hello().server_name() {
            Some(sni) => Name::from_sni(sni),
            None => fallback.cloned(),
        }
    }

    /// Starts the handshake under the configuration of the site that was chosen.
    ///
    /// # Errors
    /// The two do not go together; the alert that says so is put into `out`.
    pub fn begin(self, config: Arc<ServerConfig>, out: &mut Vec<u8>) -> Result<Box<Engine>, EngineError> {
        match self.accepted.into_connection(config) {
            Ok(connection) => Ok(Box::new(Engine::from(connection))),
            Err((error, mut alert)) => {
                let _staging_never_fails = alert.write_all(out);
                Err(error.into())
            }
        }
    }
}

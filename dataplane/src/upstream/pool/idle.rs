//! The idle connections of one key, for the next request of its identity.
//!
//! Invariant: taken and returned at the end, so the first one is the oldest.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::client::conn::http1::SendRequest;

use crate::io::flag::Flag;
use crate::upstream::client_tls::ClientTlsConfig;
use crate::upstream::request_body::RequestBody;

/// An open HTTP/1 connection without a request on it. Dropping it ends the connection in order.
pub(crate) struct Http1Connection {
    pub sender: SendRequest<RequestBody>,
    /// Ends the task of the connection.
    pub abort: Rc<Flag>,
    /// The requests that it has served.
    pub requests: u32,
    /// Of its TLS.
    pub config: Option<Arc<ClientTlsConfig>>,
}

impl Http1Connection {
    /// Whether its identity is no longer used.
    pub(crate) fn is_retired(&self) -> bool {
        self.config.as_ref().is_some_and(|config| config.is_retired())
    }
}

struct IdleConnection {
    connection: Http1Connection,
    since: Instant,
    timeout: Duration,
}

#[derive(Default)]
pub(super) struct IdleConnections(Vec<IdleConnection>);

impl IdleConnections {
    /// Takes the youngest, which the node is least likely to have closed.
    pub(super) fn take(&mut self) -> Option<Http1Connection> {
        while let Some(IdleConnection { connection, since, timeout }) = self.0.pop() {
            if connection.sender.is_ready() && since.elapsed() < timeout {
                return Some(connection);
            }
        }
        None
    }

    /// Keeps a connection for `timeout`, or returns it where there are `size` already.
    pub(super) fn keep(
        &mut self,
        connection: Http1Connection,
        size: u32,
        timeout: Duration,
    ) -> Option<Http1Connection> {
        if self.0.len() >= usize::try_from(size).unwrap_or(usize::MAX) {
            return Some(connection);
        }
        self.0.push(IdleConnection { connection, since: Instant::now(), timeout });
        None
    }

    /// Since when the oldest is idle.
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.0.first().map(|idle| idle.since)
    }

    /// Takes the oldest out.
    pub(super) fn remove_oldest(&mut self) -> Option<Http1Connection> {
        if self.0.is_empty() { None } else { Some(self.0.remove(0).connection) }
    }

    /// Closes those that the node has closed, those past their time, and those of identities that
    /// are no longer used.
    pub(super) fn sweep(&mut self) {
        self.0.retain(|IdleConnection { connection, since, timeout }| {
            !connection.sender.is_closed() && since.elapsed() < *timeout && !connection.is_retired()
        });
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

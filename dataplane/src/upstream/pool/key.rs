//! The connections of one key, at one node: the idle ones of HTTP/1, all of HTTP/2, how many are
//! being opened, and the requests that wait for them.
//!
//! Invariant: an HTTP/2 connection stays here until it is retired, idle or not; an HTTP/1 one is
//! here only while it is idle.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::time::Instant;

use tokio::sync::oneshot;

use super::idle::{Http1Connection, IdleConnections};
use crate::reason::Reason;
use crate::upstream::http2::connection::{Http2Connection, STREAMS_MAX};

/// What decides who the peers of a connection are to each other, and what they speak, at one node
/// (invariant 7).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct ConnectionKey {
    pub protocol: UpstreamProtocol,
    /// The server name and the generation of the configuration. `None`: no TLS.
    pub tls: Option<(Rc<str>, u64)>,
}

/// The version of HTTP to a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum UpstreamProtocol {
    Http1,
    /// With prior knowledge in clear, by ALPN within TLS.
    Http2,
    /// HTTP/2 where the node selects it by ALPN, else HTTP/1.
    Negotiated,
    /// A WebSocket's or TCP stream's own connection, which never enters the pool.
    Unpooled,
}

impl UpstreamProtocol {
    /// How many requests at a time a connection carries before its node says more.
    fn streams(self) -> u32 {
        match self {
            Self::Http1 | Self::Unpooled => 1,
            Self::Http2 | Self::Negotiated => STREAMS_MAX,
        }
    }
}

/// Connections that leave the pool. They close when they are dropped, outside of every borrow.
pub(super) type Removed = (Option<Http1Connection>, Vec<Rc<Http2Connection>>);

/// A connection could not be opened; shared by all requests that waited for it.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{detail}")]
pub struct DialError {
    pub reason: Reason,
    pub detail: Rc<str>,
}

/// The keys whose requests wait for a slot of their node, once for each slot, in the order of their
/// arrival.
#[derive(Default)]
pub(super) struct SlotQueue {
    places: BTreeMap<u64, ConnectionKey>,
    next: u64,
}

impl SlotQueue {
    /// Enters at the end. Gives the place.
    fn push(&mut self, key: ConnectionKey) -> u64 {
        let place = self.next;
        self.next += 1;
        self.places.insert(place, key);
        place
    }

    pub(super) fn first(&self) -> Option<&ConnectionKey> {
        self.places.first_key_value().map(|(_, key)| key)
    }

    pub(super) fn pop_first(&mut self) -> Option<ConnectionKey> {
        self.places.pop_first().map(|(_, key)| key)
    }

    fn remove(&mut self, place: Option<u64>) {
        if let Some(place) = place {
            self.places.remove(&place);
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.places.len()
    }
}

pub(super) struct KeyPool<G> {
    pub idle: IdleConnections,
    pub http2: Vec<Rc<Http2Connection>>,
    /// In the order of their arrival.
    pub waiters: BTreeMap<u64, Waiter<G>>,
    /// Its places in the queue for slots.
    pub places: VecDeque<u64>,
    /// Connections that are being opened.
    pub dialling: usize,
    /// How many requests at a time a new connection is expected to carry.
    pub streams: u32,
}

pub(super) struct Waiter<G> {
    /// It takes no HTTP/1 connection that has served a request.
    pub fresh: bool,
    pub grant: oneshot::Sender<G>,
}

impl<G> KeyPool<G> {
    pub(super) fn new(key: &ConnectionKey) -> Self {
        Self {
            idle: IdleConnections::default(),
            http2: Vec::new(),
            waiters: BTreeMap::new(),
            places: VecDeque::new(),
            dialling: 0,
            streams: key.protocol.streams(),
        }
    }

    fn streams(&self) -> usize {
        usize::try_from(self.streams).unwrap_or(usize::MAX)
    }

    /// The requests that `dialling` connections will carry beside those that open them.
    fn expected(&self, dialling: usize) -> usize {
        dialling.saturating_mul(self.streams().saturating_sub(1))
    }

    /// Whether so many waiting requests need another connection than those that are being opened.
    pub(super) fn is_dial_needed(&self, waiting: usize) -> bool {
        waiting > self.expected(self.dialling)
    }

    /// Has as many places in the queue for slots as its requests need connections: takes further
    /// ones, and leaves the last.
    pub(super) fn update_places(&mut self, key: &ConnectionKey, queue: &mut SlotQueue) {
        let uncovered = self.waiters.len().saturating_sub(self.expected(self.dialling));
        let needed = uncovered.div_ceil(self.streams().max(1));
        while self.places.len() < needed {
            self.places.push_back(queue.push(key.clone()));
        }
        while self.places.len() > needed {
            queue.remove(self.places.pop_back());
        }
    }

    /// Takes the requests out that waited for one of the connections that are being opened, and for
    /// nothing else.
    pub(super) fn take_dependent(&mut self) -> Vec<Waiter<G>> {
        let others = self.expected(self.dialling.saturating_sub(1));
        let queued = self.places.len().saturating_mul(self.streams());
        let dependent = self.waiters.len().saturating_sub(others).saturating_sub(queued);
        let dependent = dependent.min(self.expected(1));
        (0..dependent).map_while(|_| self.waiters.pop_first()).map(|(_, waiter)| waiter).collect()
    }

    /// An HTTP/2 connection on which a stream may be opened.
    pub(super) fn open_http2(&self) -> Option<Rc<Http2Connection>> {
        self.http2.iter().find(|connection| connection.can_open()).map(Rc::clone)
    }

    /// Takes the HTTP/2 connections out on which no stream will be opened. Those with streams live
    /// on with them.
    pub(super) fn remove_retired(&mut self) -> Vec<Rc<Http2Connection>> {
        let retired = self.http2.extract_if(.., |connection| connection.is_retired()).collect();
        if let Some(connection) = self.http2.last() {
            self.streams = connection.limit().max(1);
        }
        retired
    }

    /// Takes an HTTP/2 connection without a stream out.
    pub(super) fn remove_idle_http2(&mut self) -> Option<Rc<Http2Connection>> {
        let index = self.http2.iter().position(|connection| connection.idle_since().is_some())?;
        Some(self.http2.swap_remove(index))
    }

    /// Since when its oldest idle connection is idle.
    pub(super) fn oldest_idle(&self) -> Option<Instant> {
        let http2 = self.http2.iter().filter_map(|connection| connection.idle_since());
        http2.chain(self.idle.oldest()).min()
    }

    /// Takes the connection out that has been idle for longest.
    pub(super) fn remove_oldest(&mut self) -> Removed {
        let Some(oldest) = self.oldest_idle() else { return Removed::default() };
        if self.idle.oldest() == Some(oldest) {
            return (self.idle.remove_oldest(), Vec::new());
        }
        let is_oldest = |connection: &Rc<Http2Connection>| connection.idle_since() == Some(oldest);
        let index = self.http2.iter().position(is_oldest);
        (None, index.map(|index| self.http2.swap_remove(index)).into_iter().collect())
    }

    /// Takes the idle connections out that are past their time, or that the node has closed.
    pub(super) fn sweep(&mut self) -> Removed {
        self.idle.sweep();
        let gone = |connection: &mut Rc<Http2Connection>| connection.is_expired() || connection.is_retired();
        (None, self.http2.extract_if(.., gone).collect())
    }

    /// Takes all idle connections out.
    pub(super) fn clear(&mut self) -> (IdleConnections, Vec<Rc<Http2Connection>>) {
        let idle = |connection: &mut Rc<Http2Connection>| connection.idle_since().is_some();
        (std::mem::take(&mut self.idle), self.http2.extract_if(.., idle).collect())
    }

    pub(super) fn idle_count(&self) -> usize {
        self.idle.len() + self.http2.len() - self.busy_http2()
    }

    /// HTTP/2 connections with a stream.
    pub(super) fn busy_http2(&self) -> usize {
        self.http2.iter().filter(|connection| connection.idle_since().is_none()).count()
    }

    /// Whether nothing would be lost with it. Its entries in the queue refer to it.
    pub(super) fn is_unused(&self) -> bool {
        let connections = self.idle.len() + self.http2.len() + self.dialling;
        connections == 0 && self.waiters.is_empty() && self.places.is_empty()
    }
}

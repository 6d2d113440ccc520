//! The limit on the requests that one client has in flight on this worker. A request holds an
//! upstream connection, and memory, from when it is forwarded until the client has the response.
//!
//! A client is an IPv4 address or an IPv6 /64, since one machine may use all of that. Behind a
//! proxy of `real_ip_from` it is the address that the proxy names. A proxy that names none, and one
//! of `trusted_addresses`, is not limited: it forwards for many clients. Invariant: the table holds
//! a client while a connection or a request of it exists, and no longer.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::rc::{Rc, Weak};

use foldhash::fast::RandomState;

use crate::observability::HasReason;
use crate::reason::Reason;

/// The network part of an IPv6 address.
const NETWORK_MASK: u128 = !0 << 64;

/// The limit of one worker, with the clients that have requests or connections.
pub(crate) struct RequestLimiter {
    /// Requests in flight per client. 0: no limit.
    max: Cell<usize>,
    /// Clients choose the keys: the hash is seeded at random.
    clients: RefCell<HashMap<IpAddr, Weak<ClientRequests>, RandomState>>,
}

/// The requests of one client.
pub(crate) struct ClientRequests {
    address: IpAddr,
    in_flight: Cell<usize>,
    limiter: Rc<RequestLimiter>,
}

/// One request in flight, until it is dropped.
pub(crate) struct RequestPermit(Rc<ClientRequests>);

/// The client has reached its limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the client has {0} requests in flight on this worker (countersign.limits.requests_per_client)")]
pub(crate) struct TooManyRequests(usize);

impl HasReason for TooManyRequests {
    fn reason(&self) -> Reason {
        Reason::TooManyRequests
    }
}

impl RequestLimiter {
    /// A limit of `max` requests per client. 0: no limit.
    pub(crate) fn new(max: usize) -> Rc<Self> {
        Rc::new(Self { max: Cell::new(max), clients: RefCell::default() })
    }

    /// Changes the limit. Requests above a lower one go on.
    pub(crate) fn set_max(&self, max: usize) {
        self.max.set(max);
    }

    /// `None`: there is no limit.
    pub(crate) fn when_limited(self: &Rc<Self>) -> Option<&Rc<Self>> {
        (self.max.get() > 0).then_some(self)
    }

    /// The client with this address.
    pub(crate) fn client(self: &Rc<Self>, address: IpAddr) -> Rc<ClientRequests> {
        let address = client_key(address);
        let mut clients = self.clients.borrow_mut();
        if let Some(client) = clients.get(&address).and_then(Weak::upgrade) {
            return client;
        }
        let client = ClientRequests { address, in_flight: Cell::new(0), limiter: Rc::clone(self) };
        let client = Rc::new(client);
        clients.insert(address, Rc::downgrade(&client));
        client
    }
}

impl ClientRequests {
    /// Counts a request in flight.
    ///
    /// # Errors
    /// [`TooManyRequests`] at the limit.
    pub(crate) fn acquire(self: &Rc<Self>) -> Result<RequestPermit, TooManyRequests> {
        let in_flight = self.in_flight.get();
        if in_flight >= self.limiter.max.get() {
            return Err(TooManyRequests(in_flight));
        }
        self.in_flight.set(in_flight + 1);
        Ok(RequestPermit(Rc::clone(self)))
    }
}

impl Drop for ClientRequests {
    fn drop(&mut self) {
        self.limiter.clients.borrow_mut().remove(&self.address);
    }
}

impl Drop for RequestPermit {
    fn drop(&mut self) {
        self.0.in_flight.set(self.0.in_flight.get().saturating_sub(1));
    }
}

fn client_key(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & NETWORK_MASK).into(),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_an_ipv4_address_or_an_ipv6_network() {
        let limiter = RequestLimiter::new(2);
        let acquire = |address: &str| limiter.client(address.parse().unwrap()).acquire();
        let permits = [acquire("192.0.2.1"), acquire("::ffff:192.0.2.1")].map(Result::unwrap);
        assert_eq!(acquire("192.0.2.1").err(), Some(TooManyRequests(2)));
        assert!(acquire("192.0.2.2").is_ok());
        let [first, _second] = permits;
        drop(first);
        assert!(acquire("192.0.2.1").is_ok());
        let _permits = [acquire("2001:db8::1"), acquire("2001:db8::ffff:ffff:ffff:ffff")].map(Result::unwrap);
        assert!(acquire("2001:db8::2").is_err());
        assert!(acquire("2001:db8:0:1::1").is_ok());
    }

    #[test]
    fn a_client_is_removed_with_its_last_request() {
        let limiter = RequestLimiter::new(1);
        let client = limiter.client([192, 0, 2, 1].into());
        let permit = client.acquire().unwrap();
        drop(client);
        assert!(limiter.client([192, 0, 2, 1].into()).acquire().is_err());
        drop(permit);
        assert!(limiter.clients.borrow().is_empty());
    }
    #[test]
    fn another_limit_applies_to_the_next_request() {
        let limiter = RequestLimiter::new(0);
        assert!(limiter.when_limited().is_none());
        limiter.set_max(1);
        assert!(limiter.when_limited().is_some());
        let client = limiter.client([192, 0, 2, 1].into());
        let _permit = client.acquire().unwrap();
        assert!(client.acquire().is_err());
        limiter.set_max(2);
        assert!(client.acquire().is_ok());
    }
}

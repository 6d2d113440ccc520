//! What each client has under way on this worker: a request holds an upstream's connection, and
//! memory, from when it is forwarded until the client has its answer.
//!
//! A client is an address, over IPv6 a /64: one machine may use all of that. Behind a proxy of
//! `real_ip_from` it is the address that the proxy names. A proxy that names none, and one of
//! `trusted_addresses`, speaks for many and is not limited. Invariant: a client is in the table as
//! long as a connection or a request of its lives, and no longer.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::rc::{Rc, Weak};

use foldhash::fast::RandomState;

/// The part of an IPv6 address that names a network.
const NETWORK_MASK: u128 = !0 << 64;

/// A worker's clients.
pub struct RequestLimiter {
    /// Requests a client may have under way.
    max: usize,
    /// Strangers choose the keys: the hash is seeded at random.
    clients: RefCell<HashMap<IpAddr, Weak<ClientRequests>, RandomState>>,
}

/// One client.
pub struct ClientRequests {
    address: IpAddr,
    in_flight: Cell<usize>,
    limiter: Rc<RequestLimiter>,
}

/// One of a client's requests; dropping it says that the request is over.
pub struct RequestPermit(Rc<ClientRequests>);

/// The client has as many requests under way as it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the client has {0} requests under way on this worker (countersign.limits.requests_per_client)")]
pub struct TooManyRequests(usize);

impl RequestLimiter {
    /// A table whose clients may have so many requests under way. `None` for 0: no limit.
    pub fn new(max: usize) -> Option<Rc<Self>> {
        (max > 0).then(|| Rc::new(Self { max, clients: RefCell::default() }))
    }

    /// The client with this address.
    pub fn client(self: &Rc<Self>, address: IpAddr) -> Rc<ClientRequests> {
        let address = client_key(address);
        let mut known = self.clients.borrow_mut();
        if let Some(client) = known.get(&address).and_then(Weak::upgrade) {
            return client;
        }
        let client = Rc::new(ClientRequests { address, in_flight: Cell::new(0), limiter: Rc::clone(self) });
        known.insert(address, Rc::downgrade(&client));
        client
    }
}

impl ClientRequests {
    /// Begins a request.
    ///
    /// # Errors
    /// [`TooManyRequests`]
    pub fn acquire(self: &Rc<Self>) -> Result<RequestPermit, TooManyRequests> {
        let under_way = self.in_flight.get();
        if under_way >= self.limiter.max {
            return Err(TooManyRequests(under_way));
        }
        self.in_flight.set(under_way + 1);
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
    fn a_client_is_an_address_or_an_ipv6_network() {
        let clients = RequestLimiter::new(2).unwrap();
        let begin = |address: &str| clients.client(address.parse().unwrap()).acquire();
        let held = [begin("192.0.2.1"), begin("::ffff:192.0.2.1")].map(Result::unwrap);
        assert_eq!(begin("192.0.2.1").err(), Some(TooManyRequests(2)));
        assert!(begin("192.0.2.2").is_ok());
        let [first, _second] = held;
        drop(first);
        assert!(begin("192.0.2.1").is_ok());
        let _held = [begin("2001:db8::1"), begin("2001:db8::ffff:ffff:ffff:ffff")].map(Result::unwrap);
        assert!(begin("2001:db8::2").is_err());
        assert!(begin("2001:db8:0:1::1").is_ok());
    }

    #[test]
    fn a_client_is_forgotten_with_its_last_request() {
        assert!(RequestLimiter::new(0).is_none());
        let clients = RequestLimiter::new(1).unwrap();
        let client = clients.client([192, 0, 2, 1].into());
        let under_way = client.acquire().unwrap();
        drop(client);
        assert!(clients.client([192, 0, 2, 1].into()).acquire().is_err());
        drop(under_way);
        assert!(clients.clients.borrow().is_empty());
    }
}

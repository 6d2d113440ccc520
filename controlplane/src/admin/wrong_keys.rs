//! The limit on the wrong admin keys of one address (`countersign.admin.wrong_keys_per_minute`).
//!
//! An address is an IPv4 address or an IPv6 /64, since one machine may use all of that. Only wrong
//! keys are counted, after the comparison: a correct key is always taken, so no client can lock an
//! administrator out. Invariant: the table is bounded, and no flood of addresses removes a count.
//! Addresses beyond the bound share one count.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The time in which wrong keys are counted; then all counts begin anew.
const WINDOW: Duration = Duration::from_secs(60);

/// Addresses with a count of their own.
const ADDRESSES_MAX: usize = 4096;

/// The network part of an IPv6 address.
const NETWORK_MASK: u128 = !0 << 64;

/// The wrong keys of the current window.
#[derive(Debug)]
pub(super) struct WrongKeys {
    /// Wrong keys per window and address; 0: no limit.
    max: u32,
    window: Arc<Mutex<Window>>,
}

#[derive(Debug, Default)]
struct Window {
    /// `None` before the first wrong key.
    started: Option<Instant>,
    counts: HashMap<IpAddr, u32>,
    /// The count of all addresses beyond [`ADDRESSES_MAX`].
    others: u32,
}

impl WrongKeys {
    /// Allows `max` wrong keys a minute; 0: any number.
    pub(super) fn new(max: u32) -> Self {
        Self { max, window: Arc::default() }
    }

    /// This limit on the counts of `former`.
    pub(super) fn with_counts_of(self, former: &Self) -> Self {
        Self { max: self.max, window: Arc::clone(&former.window) }
    }

    /// Counts a wrong key.
    ///
    /// # Errors
    /// Beyond the limit: the seconds until the next window, at least 1.
    pub(super) fn record(&self, address: IpAddr, now: Instant) -> Result<(), u64> {
        if self.max == 0 {
            return Ok(());
        }
        // A count is one store, so a poisoned lock is still consistent.
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        let mut age = window.started.map_or(WINDOW, |started| now.saturating_duration_since(started));
        if age >= WINDOW {
            window.started = Some(now);
            window.counts.clear();
            window.others = 0;
            age = Duration::ZERO;
        }
        let address = network(address);
        let tracked = window.counts.len() < ADDRESSES_MAX || window.counts.contains_key(&address);
        let count = match tracked {
            true => window.counts.entry(address).or_default(),
            false => &mut window.others,
        };
        *count = count.saturating_add(1);
        if *count <= self.max {
            return Ok(());
        }
        Err(WINDOW.saturating_sub(age).as_secs_f64().ceil().max(1.0) as u64)
    }
}

fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & NETWORK_MASK).into(),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(address: &str) -> IpAddr {
        address.parse().unwrap()
    }

    #[test]
    fn an_address_has_so_many_wrong_keys_a_minute() {
        let (keys, start) = (WrongKeys::new(2), Instant::now());
        let seconds = |seconds: u64| start + Duration::from_secs(seconds);
        assert_eq!(keys.record(ip("192.0.2.1"), start), Ok(()));
        assert_eq!(keys.record(ip("::ffff:192.0.2.1"), seconds(1)), Ok(()));
        assert_eq!(keys.record(ip("192.0.2.1"), seconds(1)), Err(59));
        assert_eq!(keys.record(ip("192.0.2.1"), start + Duration::from_millis(59_900)), Err(1));
        assert_eq!(keys.record(ip("192.0.2.2"), seconds(1)), Ok(()));
        assert_eq!(keys.record(ip("2001:db8::1"), seconds(1)), Ok(()));
        assert_eq!(keys.record(ip("2001:db8::ffff:0:0:1"), seconds(1)), Ok(()));
        assert_eq!(keys.record(ip("2001:db8::2"), seconds(2)), Err(58));
        assert_eq!(keys.record(ip("2001:db8:0:1::2"), seconds(2)), Ok(()));
        assert_eq!(keys.record(ip("192.0.2.1"), seconds(60)), Ok(()), "the next minute");
        let wider = WrongKeys::new(3).with_counts_of(&keys);
        assert_eq!(keys.record(ip("192.0.2.1"), seconds(61)), Ok(()));
        assert_eq!(wider.record(ip("192.0.2.1"), seconds(61)), Ok(()), "the third of this minute");
        assert_eq!(wider.record(ip("192.0.2.1"), seconds(61)), Err(59));
        assert!((0..1000).all(|_| WrongKeys::new(0).record(ip("192.0.2.1"), start).is_ok()));
    }

    #[test]
    fn a_flood_of_addresses_removes_no_count() {
        let (keys, start) = (WrongKeys::new(3), Instant::now());
        let first = ip("192.0.2.1");
        assert!((0..3).all(|_| keys.record(first, start).is_ok()));
        let flood = |nth: u32| keys.record(IpAddr::from(nth.to_be_bytes()), start).is_ok();
        let accepted = (0..100_000).filter(|nth| flood(*nth)).count();
        assert_eq!(accepted, ADDRESSES_MAX - 1 + 3, "the others share one count");
        assert!(keys.record(first, start).is_err());
        assert_eq!(keys.window.lock().unwrap().counts.len(), ADDRESSES_MAX);
    }
}

//! Name -> site: the one resolver, for the SNI of every handshake and the Host of every request.
//!
//! Contract 4.2 with two differences: a wildcard covers one label, judged on the entry that matched (not on
//! any entry of the same object), and `*` is a catch-all wherever it is written. A name that only a wildcard
//! of fewer labels ends is refused, and does not fall through to a shorter wildcard or `*`.
//! Among ssls that claim the same name the lowest id wins, whatever the order in which they came.

use std::sync::Arc;

use smallvec::SmallVec;

use crate::host_index::{Bucket, HostIndex};
use crate::name::Name;
use crate::resource::Ssl;

/// The ssls that claim one name, lowest id first.
type Claims = SmallVec<[Arc<Ssl>; 1]>;

impl Bucket for Claims {
    fn is_empty(&self) -> bool {
        SmallVec::is_empty(self)
    }
}

#[derive(Clone)]
pub(crate) struct SniIndex(HostIndex<Claims>);

impl SniIndex {
    pub(crate) fn new() -> SniIndex {
        SniIndex(HostIndex::new())
    }

    /// The ssl that answers to a name.
    pub(crate) fn find(&self, name: &Name) -> Option<&Arc<Ssl>> {
        if let Some(claims) = self.0.exact(name) {
            return claims.first();
        }
        match self.0.suffixes(name).next() {
            Some((star, _)) if star.contains(&b'.') => None,
            Some((_, claims)) => claims.first(),
            None => self.0.any().first(),
        }
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn insert(&mut self, ssl: &Arc<Ssl>) {
        self.change(ssl, |claims| {
            let place = claims.partition_point(|other| other.id < ssl.id);
            claims.insert(place, Arc::clone(ssl));
        });
    }

    pub(crate) fn remove(&mut self, ssl: &Arc<Ssl>) {
        self.change(ssl, |claims| claims.retain(|other| other.id != ssl.id));
    }

    fn change(&mut self, ssl: &Ssl, change: impl Fn(&mut Claims)) {
        if !ssl.client_side && ssl.enabled {
            for name in &ssl.names {
                self.0.change(name, &change);
            }
        }
    }
}

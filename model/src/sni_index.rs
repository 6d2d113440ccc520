//! Name -> site: the one resolver, for the SNI of every handshake and the Host of every request.
//!
//! Contract 4.2 with two differences: a wildcard covers one label, judged on the entry that matched
//! (not on any entry of the same object), and `*` is a catch-all wherever it is written. A name
//! that only a wildcard of fewer labels ends is refused, and does not fall through to a shorter
//! wildcard or `*`. Among ssls that claim the same name the lowest id wins, whatever the order in
//! which they came.

use std::sync::Arc;

use smallvec::SmallVec;

use crate::host_index::{Bucket, HostIndex};
use crate::host_name::HostName;
use crate::resource::Ssl;

/// The ssls that claim one name, lowest id first.
type Claimants = SmallVec<[Arc<Ssl>; 1]>;

impl Bucket for Claimants {
    fn is_empty(&self) -> bool {
        SmallVec::is_empty(self)
    }
}

/// How a name was looked up, and what answers to it.
#[derive(Debug, Clone, Copy)]
pub enum SiteLookup<'a> {
    /// An entry that is this very name.
    Exact(&'a Arc<Ssl>),
    /// A wildcard that covers it; `star` is the label that stands for its `*`.
    Wildcard {
        /// Who answers.
        ssl: &'a Arc<Ssl>,
        /// How much of the name's front the `*` covers, in bytes.
        star: usize,
    },
    /// The longest wildcard that ends the name has fewer labels, and a wildcard covers one: nobody
    /// answers.
    TooManyLabels {
        /// Whose wildcard it is.
        ssl: &'a Arc<Ssl>,
        /// How much of the name's front the `*` would have to cover, in bytes.
        star: usize,
    },
    /// The catch-all entry `*`.
    Any(&'a Arc<Ssl>),
    /// No entry fits.
    Nothing,
}

impl<'a> SiteLookup<'a> {
    /// Who answers.
    pub fn ssl(self) -> Option<&'a Arc<Ssl>> {
        match self {
            SiteLookup::Exact(ssl) | SiteLookup::Wildcard { ssl, .. } | SiteLookup::Any(ssl) => Some(ssl),
            SiteLookup::TooManyLabels { .. } | SiteLookup::Nothing => None,
        }
    }
}

#[derive(Clone)]
pub(crate) struct SniIndex(HostIndex<Claimants>);

impl SniIndex {
    pub(crate) fn new() -> SniIndex {
        SniIndex(HostIndex::new())
    }

    /// Looks for the ssl that answers to a name.
    #[inline]
    pub(crate) fn find(&self, name: &HostName) -> SiteLookup<'_> {
        if let Some(ssl) = self.0.exact(name).and_then(|claims| claims.first()) {
            return SiteLookup::Exact(ssl);
        }
        let wildcard = self.0.suffixes(name).next();
        match wildcard.and_then(|(star, claims)| Some((star, claims.first()?))) {
            Some((star, ssl)) if star.contains(&b'.') => SiteLookup::TooManyLabels { ssl, star: star.len() },
            Some((star, ssl)) => SiteLookup::Wildcard { ssl, star: star.len() },
            None => self.0.any().first().map_or(SiteLookup::Nothing, SiteLookup::Any),
        }
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn insert(&mut self, ssl: &Arc<Ssl>) {
        self.update(ssl, |claims| {
            let place = claims.partition_point(|other| other.id < ssl.id);
            claims.insert(place, Arc::clone(ssl));
        });
    }

    pub(crate) fn remove(&mut self, ssl: &Arc<Ssl>) {
        self.update(ssl, |claims| claims.retain(|other| other.id != ssl.id));
    }

    fn update(&mut self, ssl: &Ssl, change: impl Fn(&mut Claimants)) {
        if !ssl.client_side && ssl.enabled {
            for name in &ssl.names {
                self.0.update(name, &change);
            }
        }
    }
}

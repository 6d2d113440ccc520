//! Finds the site of a name, for the SNI of every handshake and the Host of every request.
//!
//! The rules are those of contract 4.2, except that a wildcard covers one label of the entry that
//! matched (not of any entry of the same object), and that `*` matches everything wherever it is
//! written. A name whose longest wildcard has too few labels has no site, and does not fall through
//! to a shorter wildcard or `*`. The lowest id wins among ssls with the same name, whatever the
//! order of insertion.

use std::sync::Arc;

use smallvec::SmallVec;

use crate::host_index::{Bucket, HostIndex};
use crate::host_name::HostName;
use crate::resource::Ssl;

/// The ssls that claim a name, lowest id first.
type Claimants = SmallVec<[Arc<Ssl>; 1]>;

impl Bucket for Claimants {
    fn is_empty(&self) -> bool {
        SmallVec::is_empty(self)
    }
}

/// The result of a site lookup.
#[derive(Debug, Clone, Copy)]
pub enum SiteLookup<'a> {
    /// An entry is exactly the name.
    Exact(&'a Arc<Ssl>),
    /// A wildcard covers the name.
    Wildcard {
        /// The site.
        ssl: &'a Arc<Ssl>,
        /// The length of the label that the `*` covers, in bytes.
        star: usize,
    },
    /// The longest matching wildcard would have to cover more than one label, so the name has no
    /// site.
    TooManyLabels {
        /// The ssl with the wildcard.
        ssl: &'a Arc<Ssl>,
        /// The length of the labels that the `*` would have to cover, in bytes.
        star: usize,
    },
    /// The entry `*` matches.
    Any(&'a Arc<Ssl>),
    /// No entry matches.
    NotFound,
}

impl<'a> SiteLookup<'a> {
    /// The site, if the name has one.
    pub fn ssl(self) -> Option<&'a Arc<Ssl>> {
        match self {
            SiteLookup::Exact(ssl) | SiteLookup::Wildcard { ssl, .. } | SiteLookup::Any(ssl) => Some(ssl),
            SiteLookup::TooManyLabels { .. } | SiteLookup::NotFound => None,
        }
    }
}

#[derive(Clone)]
pub(crate) struct SniIndex {
    names: HostIndex<Claimants>,
    /// The number of sites with [`Ssl::may_demand_clients`].
    protected: usize,
}

impl SniIndex {
    pub(crate) fn new() -> SniIndex {
        SniIndex { names: HostIndex::new(), protected: 0 }
    }

    /// Whether a site demands client certificates, or is blocked.
    pub(crate) fn has_protected(&self) -> bool {
        self.protected > 0
    }

    /// Finds the ssl of a name.
    #[inline]
    pub(crate) fn find(&self, name: &HostName) -> SiteLookup<'_> {
        if let Some(ssl) = self.names.exact(name).and_then(|claims| claims.first()) {
            return SiteLookup::Exact(ssl);
        }
        let wildcard = self.names.suffixes(name).next();
        match wildcard.and_then(|(star, claims)| Some((star, claims.first()?))) {
            Some((star, ssl)) if star.contains(&b'.') => SiteLookup::TooManyLabels { ssl, star: star.len() },
            Some((star, ssl)) => SiteLookup::Wildcard { ssl, star: star.len() },
            None => self.names.any().first().map_or(SiteLookup::NotFound, SiteLookup::Any),
        }
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.names.is_empty() && self.protected == 0
    }

    pub(crate) fn insert(&mut self, ssl: &Arc<Ssl>) {
        self.update(ssl, |claims| {
            let position = claims.partition_point(|other| other.id < ssl.id);
            claims.insert(position, Arc::clone(ssl));
        });
        self.protected += usize::from(is_protected(ssl));
    }

    pub(crate) fn remove(&mut self, ssl: &Arc<Ssl>) {
        self.update(ssl, |claims| claims.retain(|other| other.id != ssl.id));
        self.protected = self.protected.saturating_sub(usize::from(is_protected(ssl)));
    }

    fn update(&mut self, ssl: &Ssl, change: impl Fn(&mut Claimants)) {
        if is_site(ssl) {
            for name in &ssl.names {
                self.names.update(name, &change);
            }
        }
    }
}

fn is_site(ssl: &Ssl) -> bool {
    !ssl.client_side && ssl.enabled
}

fn is_protected(ssl: &Ssl) -> bool {
    is_site(ssl) && ssl.may_demand_clients()
}

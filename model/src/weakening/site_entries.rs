//! The names of ssls as entries, in the order of `sni_index`.

use std::borrow::Cow;
use std::cmp::Ordering;

use super::entries::IndexEntry;
use super::ssl::{covers, policy_weakens, restricts_clients};
use crate::host_index::search_rank;
use crate::id::{Id, Kind};
use crate::pattern::SniPattern;
use crate::resource::{Resource, Ssl};
use crate::snapshot::Snapshot;

/// A name of an enabled ssl of `type: server`.
pub(super) struct SiteEntry<'a> {
    pub(super) name: &'a SniPattern,
    ssl: &'a Ssl,
}

pub(super) fn site_entries(snapshot: &Snapshot) -> Vec<SiteEntry<'_>> {
    let sites = snapshot.resources_of(Kind::Ssl).values().filter_map(|versioned| match &versioned.resource {
        Resource::Ssl(ssl) if ssl.enabled && !ssl.client_side => Some(&**ssl),
        _ => None,
    });
    sites.flat_map(|ssl| ssl.names.iter().map(move |name| SiteEntry { name, ssl })).collect()
}

impl SiteEntry<'_> {
    /// Whether names of `other` may have no site because of this wildcard, which covers one label:
    /// a longer name does not go on to a shorter wildcard or `*`.
    fn leaves_without_site(&self, other: &Self) -> bool {
        let SniPattern::Suffix(suffix) = self.name else { return false };
        match other.name {
            SniPattern::Any => true,
            SniPattern::Exact(name) | SniPattern::Suffix(name) => {
                let star = name.as_bytes().strip_suffix(suffix.as_bytes());
                star.is_some_and(|star| star.contains(&b'.'))
            }
        }
    }
}

impl IndexEntry for SiteEntry<'_> {
    fn id(&self) -> &Id {
        &self.ssl.id
    }

    fn stems(&self) -> [Cow<'_, [u8]>; 2] {
        [self.name.stem().into(), Cow::default()]
    }

    fn search_order(&self, other: &Self) -> Ordering {
        search_rank(self.name).cmp(&search_rank(other.name)).then_with(|| self.id().cmp(other.id()))
    }

    /// A wildcard decides at any depth, if only that there is no site.
    fn overlaps(&self, other: &Self) -> bool {
        self.name.overlaps(other.name)
    }

    fn covers(&self, other: &Self) -> bool {
        covers(self.name, other.name)
    }

    fn protects(&self) -> bool {
        restricts_clients(self.ssl)
    }

    fn weakens(&self, protected: &Self) -> bool {
        if self.leaves_without_site(protected) {
            return true;
        }
        if self.id() == protected.id() || self.ssl.blocked.is_some() {
            return false;
        }
        match (&self.ssl.client, &protected.ssl.client) {
            (None, _) => true,
            // The policy of a blocked site is unknown.
            (Some(_), None) => false,
            (Some(policy), Some(before)) => policy_weakens(before, policy),
        }
    }
}

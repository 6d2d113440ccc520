//! What a worker keeps of the routes and sites that it serves, so that a report of a request looks
//! nothing up by name and shares nothing with another core.
//!
//! Invariant: an entry keeps the memory of its resource, so that the address which is its key stays
//! that of its resource; those of a former snapshot are removed by [`RouteTable::retain_current`].

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::{Arc, Weak};

use foldhash::fast::RandomState;
use model::{Id, Route, Snapshot, Ssl};

use crate::observability::metrics::series::{RouteRecorder, SeriesSlot, SiteCounters};

/// A route, for reports.
#[derive(Debug)]
pub(crate) struct RouteEntry {
    pub(crate) route: Arc<Route>,
    pub(super) series: SeriesSlot<RouteRecorder>,
}

/// A site, for reports.
#[derive(Debug)]
pub(crate) struct SiteEntry {
    id: Id,
    /// Weak: connections keep their entry, and the private key of a site that is gone must not
    /// stay in memory for them.
    ssl: Weak<Ssl>,
    pub(super) series: SeriesSlot<Arc<SiteCounters>>,
}

impl RouteEntry {
    /// The id of the route.
    pub(crate) fn id(&self) -> &Id {
        &self.route.id
    }
}

impl SiteEntry {
    /// The id of the ssl object.
    pub(crate) fn id(&self) -> &Id {
        &self.id
    }
}

/// The entries of one worker.
#[derive(Default)]
pub(crate) struct RouteTable {
    routes: Entries<RouteEntry>,
    sites: Entries<SiteEntry>,
}

/// By the address of the resource.
type Entries<T> = RefCell<HashMap<usize, Rc<T>, RandomState>>;

impl RouteTable {
    /// The entry of a route.
    pub(crate) fn route(&self, route: &Arc<Route>) -> Rc<RouteEntry> {
        let mut routes = self.routes.borrow_mut();
        let entry = routes.entry(Arc::as_ptr(route).addr());
        Rc::clone(entry.or_insert_with(|| {
            Rc::new(RouteEntry { route: Arc::clone(route), series: SeriesSlot::default() })
        }))
    }

    /// The entry of a site.
    pub(crate) fn site(&self, ssl: &Arc<Ssl>) -> Rc<SiteEntry> {
        let mut sites = self.sites.borrow_mut();
        let entry = sites.entry(Arc::as_ptr(ssl).addr());
        Rc::clone(entry.or_insert_with(|| {
            let (id, ssl) = (ssl.id.clone(), Arc::downgrade(ssl));
            Rc::new(SiteEntry { id, ssl, series: SeriesSlot::default() })
        }))
    }

    /// Removes the entries whose resource is not this snapshot's.
    pub(crate) fn retain_current(&self, snapshot: &Snapshot) {
        self.routes.borrow_mut().retain(|_, entry| {
            snapshot.route(entry.id()).is_some_and(|current| Arc::ptr_eq(current, &entry.route))
        });
        self.sites.borrow_mut().retain(|_, entry| {
            snapshot.ssl(entry.id()).is_some_and(|current| Arc::as_ptr(current) == entry.ssl.as_ptr())
        });
    }
}

//! The routes of one host pattern by path: a persistent radix tree.
//!
//! Exact paths and prefixes hang in the same tree, so one walk down along the request's path finds the exact
//! route at its end and, on the way back, the prefixes from the longest to the shortest (contract 7.1). A
//! change copies the nodes on its own path only. Depth and work of a lookup are bounded by what is
//! configured, however long the request's path.

use std::cmp::Reverse;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::resource::Route;
use crate::uri::UriPattern;

/// The tree; empty without any allocation.
#[derive(Clone, Default)]
pub(crate) struct Paths {
    root: Node,
}

#[derive(Clone, Default)]
struct Node {
    /// What leads here from the parent; empty for the root only.
    label: Box<[u8]>,
    /// For the path that ends here.
    exact: Candidates,
    /// For every path that gets here.
    under: Candidates,
    /// By first byte of their label, ascending.
    children: Vec<(u8, Arc<Node>)>,
}

/// In the order in which they are asked.
type Candidates = SmallVec<[Candidate; 1]>;

/// A route at one of its uris.
#[derive(Clone)]
pub(crate) struct Candidate {
    pub(crate) route: Arc<Route>,
    pub(crate) uri: UriPattern,
}

impl Candidate {
    /// Priority, then the longer original path, then the order of keys.
    fn rank(&self) -> impl Ord + '_ {
        let uri = self.uri.as_str();
        (Reverse(self.route.priority), Reverse(uri.len()), &self.route.id, uri)
    }
}

impl Paths {
    pub(crate) fn is_empty(&self) -> bool {
        self.root.is_empty()
    }

    /// The first candidate that takes the request.
    pub(crate) fn find(&self, path: &str, takes: impl Fn(&Candidate) -> bool) -> Option<&Arc<Route>> {
        self.root.find(path.as_bytes(), &takes)
    }

    pub(crate) fn insert(&mut self, route: &Arc<Route>) {
        for uri in &route.uris {
            let candidate = Candidate { route: Arc::clone(route), uri: uri.clone() };
            self.root.change(uri.prefix().as_bytes(), |node| {
                let candidates = node.candidates(uri);
                let place = candidates.partition_point(|other| other.rank() < candidate.rank());
                candidates.insert(place, candidate);
            });
        }
    }

    pub(crate) fn remove(&mut self, route: &Route) {
        for uri in &route.uris {
            self.root.change(uri.prefix().as_bytes(), |node| {
                node.candidates(uri).retain(|other| other.route.id != route.id || other.uri != *uri);
            });
        }
    }
}

impl Node {
    fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.under.is_empty() && self.children.is_empty()
    }

    fn candidates(&mut self, uri: &UriPattern) -> &mut Candidates {
        if uri.is_exact() { &mut self.exact } else { &mut self.under }
    }

    /// Deepest first: what ends here, or what is further down; then what covers everything from here.
    fn find(&self, rest: &[u8], takes: &impl Fn(&Candidate) -> bool) -> Option<&Arc<Route>> {
        let deeper = match rest.first() {
            None => self.exact.iter().find(|candidate| takes(candidate)).map(|found| &found.route),
            Some(first) => self
                .child(*first)
                .and_then(|child| rest.strip_prefix(&*child.label).and_then(|rest| child.find(rest, takes))),
        };
        deeper.or_else(|| self.under.iter().find(|candidate| takes(candidate)).map(|found| &found.route))
    }

    fn child(&self, first: u8) -> Option<&Node> {
        let place = self.children.binary_search_by_key(&first, |(byte, _)| *byte).ok()?;
        self.children.get(place).map(|(_, child)| &**child)
    }

    /// Changes the node at `key` below this one, which is made if it is not there and dropped if it ends
    /// up empty.
    fn change(&mut self, key: &[u8], change: impl FnOnce(&mut Node)) {
        let Some(first) = key.first() else { return change(self) };
        let place = match self.children.binary_search_by_key(first, |(byte, _)| *byte) {
            Ok(place) => place,
            Err(place) => {
                let leaf = Node { label: key.into(), ..Node::default() };
                self.children.insert(place, (*first, Arc::new(leaf)));
                place
            }
        };
        let Some((_, child)) = self.children.get_mut(place) else { return };
        let child = Arc::make_mut(child);
        let common = child.label.iter().zip(key).take_while(|(a, b)| a == b).count();
        child.split(common);
        child.change(key.get(common..).unwrap_or_default(), change);
        if child.is_empty() {
            self.children.remove(place);
        } else {
            child.join();
        }
    }

    /// Puts a node in the middle of the label, if that is where another key leaves it.
    fn split(&mut self, at: usize) {
        let (head, tail) = self.label.split_at(at);
        let (head, Some(first)) = (Box::from(head), tail.first().copied()) else { return };
        let label = Box::from(tail);
        let upper = Node { label: head, ..Node::default() };
        let lower = Node { label, ..std::mem::replace(self, upper) };
        self.children.push((first, Arc::new(lower)));
    }

    /// The opposite of [`Node::split`]: a node that holds nothing is one with its only child.
    fn join(&mut self) {
        if let ([(_, only)], true, true) =
            (self.children.as_slice(), self.exact.is_empty(), self.under.is_empty())
        {
            let mut joined = Node::clone(only);
            joined.label = [&*self.label, &*only.label].concat().into();
            *self = joined;
        }
    }
}

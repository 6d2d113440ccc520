//! The routes of one host pattern by path: a persistent radix tree.
//!
//! Exact paths and prefixes hang in the same tree, so one walk down along the request's path finds
//! the exact route at its end and, on the way back, the prefixes from the longest to the shortest
//! (contract 7.1). A change copies the nodes on its own path only. Work of a lookup is bounded by
//! what is configured, however long the request's path. Nothing here recurses: prefixes may nest as
//! deep as a uri is long.

use std::cmp::Reverse;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::resource::Route;
use crate::uri::UriPattern;

/// The tree; empty without any allocation.
#[derive(Clone, Default)]
pub(crate) struct PathTree {
    root: TreeNode,
}

#[derive(Clone, Default)]
struct TreeNode {
    /// What leads here from the parent; empty for the root only.
    label: Box<[u8]>,
    /// For the path that ends here.
    exact: Candidates,
    /// For every path that gets here.
    prefix: Candidates,
    /// By first byte of their label, ascending.
    children: Vec<(u8, Arc<TreeNode>)>,
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

/// Prefixes that may nest along one path before a lookup allocates.
const NESTED: usize = 32;

impl PathTree {
    pub(crate) fn is_empty(&self) -> bool {
        !self.root.has_candidates() && self.root.children.is_empty()
    }

    /// The first candidate that takes the request: of the path itself, then of prefixes, longest
    /// first.
    pub(crate) fn find(&self, path: &str, takes: impl Fn(&Candidate) -> bool) -> Option<&Arc<Route>> {
        let mut passed: SmallVec<[&Candidates; NESTED]> = SmallVec::new();
        let (mut node, mut rest) = (&self.root, path.as_bytes());
        let exact = loop {
            if !node.prefix.is_empty() {
                passed.push(&node.prefix);
            }
            let Some(first) = rest.first() else { break Some(&node.exact) };
            let child = node.child(*first);
            match child.and_then(|child| Some((child, rest.strip_prefix(&*child.label)?))) {
                Some(next) => (node, rest) = next,
                None => break None,
            }
        };
        let candidates = exact.into_iter().chain(passed.into_iter().rev()).flatten();
        candidates.into_iter().find(|candidate| takes(candidate)).map(|found| &found.route)
    }

    pub(crate) fn insert(&mut self, route: &Arc<Route>) {
        for uri in &route.uris {
            let candidate = Candidate { route: Arc::clone(route), uri: uri.clone() };
            self.root.update_or_insert(uri.prefix().as_bytes(), |node| {
                let candidates = node.candidates(uri);
                let place = candidates.partition_point(|other| other.rank() < candidate.rank());
                candidates.insert(place, candidate);
            });
        }
    }

    pub(crate) fn remove(&mut self, route: &Route) {
        for uri in &route.uris {
            self.root.update(uri.prefix().as_bytes(), |node| {
                node.candidates(uri).retain(|other| other.route.id != route.id || other.uri != *uri);
            });
        }
    }
}

impl TreeNode {
    fn new(label: &[u8]) -> TreeNode {
        let (exact, under, children) = Default::default();
        TreeNode { label: label.into(), exact, prefix: under, children }
    }

    /// Whether a route hangs here.
    fn has_candidates(&self) -> bool {
        !self.exact.is_empty() || !self.prefix.is_empty()
    }

    fn candidates(&mut self, uri: &UriPattern) -> &mut Candidates {
        if uri.is_exact() { &mut self.exact } else { &mut self.prefix }
    }

    fn child_position(&self, first: u8) -> Result<usize, usize> {
        self.children.binary_search_by_key(&first, |(byte, _)| *byte)
    }

    fn child(&self, first: u8) -> Option<&TreeNode> {
        self.children.get(self.child_position(first).ok()?).map(|(_, child)| &**child)
    }

    /// Changes the node at `key` below this one, made if it is not there.
    fn update_or_insert(&mut self, key: &[u8], change: impl FnOnce(&mut TreeNode)) {
        let (mut node, mut rest) = (self, key);
        while let Some(first) = rest.first() {
            let place = node.child_position(*first).unwrap_or_else(|place| {
                node.children.insert(place, (*first, Arc::new(TreeNode::new(rest))));
                place
            });
            let Some((_, child)) = node.children.get_mut(place) else { return };
            node = Arc::make_mut(child);
            let common = node.label.iter().zip(rest).take_while(|(a, b)| a == b).count();
            node.split(common);
            rest = rest.get(common..).unwrap_or_default();
        }
        change(node);
    }

    /// Changes the node at `key` below this one, if there is one, and drops or joins it when it
    /// holds nothing any more. Every node but the root holds something or has several children.
    fn update(&mut self, key: &[u8], change: impl FnOnce(&mut TreeNode)) {
        let Some(first) = key.first() else { return change(self) };
        let (mut parent, mut first, mut rest) = (self, *first, key);
        loop {
            let Ok(place) = parent.child_position(first) else { return };
            let Some((_, child)) = parent.children.get_mut(place) else { return };
            let Some(below) = rest.strip_prefix(&*child.label) else { return };
            if let Some(next) = below.first() {
                (first, rest) = (*next, below);
                let Some((_, child)) = parent.children.get_mut(place) else { return };
                parent = Arc::make_mut(child);
                continue;
            }
            let node = Arc::make_mut(child);
            change(node);
            node.join();
            if !node.has_candidates() && node.children.is_empty() {
                parent.children.remove(place);
                parent.join();
            }
            return;
        }
    }

    /// Puts a node in the middle of the label, if that is where another key leaves it.
    fn split(&mut self, at: usize) {
        let (head, tail) = self.label.split_at(at);
        let Some(first) = tail.first().copied() else { return };
        let (upper, tail) = (TreeNode::new(head), Box::from(tail));
        let mut lower = std::mem::replace(self, upper);
        lower.label = tail;
        self.children.push((first, Arc::new(lower)));
    }

    /// The opposite of [`Node::split`]: a node that holds nothing is one with its only child. The
    /// root stays what it is.
    fn join(&mut self) {
        if let ([(_, only)], false, false) =
            (self.children.as_slice(), self.has_candidates(), self.label.is_empty())
        {
            let mut joined = TreeNode::clone(only);
            joined.label = [&*self.label, &*only.label].concat().into();
            *self = joined;
        }
    }
}

/// A tree as deep as a uri is long would be dropped by as many calls within each other.
impl Drop for TreeNode {
    fn drop(&mut self) {
        let mut waiting = std::mem::take(&mut self.children);
        while let Some((_, child)) = waiting.pop() {
            if let Some(mut child) = Arc::into_inner(child) {
                waiting.append(&mut child.children);
            }
        }
    }
}

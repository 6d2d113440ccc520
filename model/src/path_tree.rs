//! A persistent radix tree that finds the routes of one host pattern by path.
//!
//! Exact paths and prefixes share the tree, so one descent along the request's path finds the exact
//! route at its end and the prefixes on the way, which apply from the longest to the shortest
//! (contract 7.1). A change copies the nodes on its own path only. The cost of a lookup is bounded
//! by the configured uris, not by the request's path. Nothing recurses, because prefixes may be
//! nested as deep as a uri is long.

use std::cmp::Reverse;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::resource::Route;
use crate::uri::UriPattern;

/// The tree; an empty one does not allocate.
#[derive(Clone, Default)]
pub(crate) struct PathTree {
    root: TreeNode,
}

#[derive(Clone, Default)]
struct TreeNode {
    /// The bytes between the parent and this node; empty for the root only.
    label: Box<[u8]>,
    /// Routes whose uri is exactly this path.
    exact: Candidates,
    /// Routes whose uri is a prefix that ends here.
    prefix: Candidates,
    /// Sorted by the first byte of their label.
    children: Vec<(u8, Arc<TreeNode>)>,
}

/// Sorted by rank.
type Candidates = SmallVec<[Candidate; 1]>;

/// A route with one of its uris.
#[derive(Clone)]
pub(crate) struct Candidate {
    pub(crate) route: Arc<Route>,
    pub(crate) uri: UriPattern,
}

impl Candidate {
    /// Priority, then the longer uri, then the order of keys.
    fn rank(&self) -> impl Ord + '_ {
        let uri = self.uri.as_str();
        (Reverse(self.route.priority), Reverse(uri.len()), &self.route.id, uri)
    }

    /// The place in a search among the candidates that match one path: the exact path comes first,
    /// then the longest prefix.
    pub(crate) fn search_rank(&self) -> impl Ord + '_ {
        (!self.uri.is_exact(), Reverse(self.uri.prefix().len()), self.rank())
    }
}

/// Nested prefixes of a lookup that need no allocation.
const NESTED: usize = 32;

impl PathTree {
    pub(crate) fn is_empty(&self) -> bool {
        !self.root.has_candidates() && self.root.children.is_empty()
    }

    /// The first candidate that accepts the request: of the exact path, then of the prefixes,
    /// longest first.
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
        candidates.into_iter().find(|candidate| takes(candidate)).map(|candidate| &candidate.route)
    }

    pub(crate) fn insert(&mut self, route: &Arc<Route>) {
        for uri in &route.uris {
            let candidate = Candidate { route: Arc::clone(route), uri: uri.clone() };
            self.root.update_or_insert(uri.prefix().as_bytes(), |node| {
                let candidates = node.candidates(uri);
                let position = candidates.partition_point(|other| other.rank() < candidate.rank());
                candidates.insert(position, candidate);
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

    /// Whether a uri ends at this node.
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

    /// Updates the node at `key`, and inserts it first if it is missing.
    fn update_or_insert(&mut self, key: &[u8], change: impl FnOnce(&mut TreeNode)) {
        let (mut node, mut rest) = (self, key);
        while let Some(first) = rest.first() {
            let position = node.child_position(*first).unwrap_or_else(|position| {
                node.children.insert(position, (*first, Arc::new(TreeNode::new(rest))));
                position
            });
            let Some((_, child)) = node.children.get_mut(position) else { return };
            node = Arc::make_mut(child);
            let common = node.label.iter().zip(rest).take_while(|(a, b)| a == b).count();
            node.split(common);
            rest = rest.get(common..).unwrap_or_default();
        }
        change(node);
    }

    /// Updates the node at `key`, if there is one, and removes or joins it when it became empty.
    /// Each node but the root has candidates or several children.
    fn update(&mut self, key: &[u8], change: impl FnOnce(&mut TreeNode)) {
        let Some(first) = key.first() else { return change(self) };
        let (mut parent, mut first, mut rest) = (self, *first, key);
        loop {
            let Ok(position) = parent.child_position(first) else { return };
            let Some((_, child)) = parent.children.get_mut(position) else { return };
            let Some(below) = rest.strip_prefix(&*child.label) else { return };
            if let Some(next) = below.first() {
                (first, rest) = (*next, below);
                let Some((_, child)) = parent.children.get_mut(position) else { return };
                parent = Arc::make_mut(child);
                continue;
            }
            let node = Arc::make_mut(child);
            change(node);
            node.join();
            if !node.has_candidates() && node.children.is_empty() {
                parent.children.remove(position);
                parent.join();
            }
            return;
        }
    }

    /// Splits the label at `at`, where another key branches off.
    fn split(&mut self, at: usize) {
        let (head, tail) = self.label.split_at(at);
        let Some(first) = tail.first().copied() else { return };
        let (upper, tail) = (TreeNode::new(head), Box::from(tail));
        let mut lower = std::mem::replace(self, upper);
        lower.label = tail;
        self.children.push((first, Arc::new(lower)));
    }

    /// The inverse of [`TreeNode::split`]: joins a node without candidates with its only child,
    /// except the root.
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

/// Drops children in a loop, because a recursive drop would nest as deep as a uri is long.
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

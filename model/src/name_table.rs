//! Names -> values in as few dependent reads of memory as a persistent map can do: what a lookup
//! among a million names costs is the cache lines it waits for, not the instructions between them.
//!
//! A copy shares everything; a change copies the path to one bucket. The path is short and its
//! nodes are few, so they stay in a core's caches, and what they say leads straight to a slot: name
//! and value in one cache line, in the bucket's own allocation, at a place that the hash tells.
//! Names over 38 bytes lie elsewhere and cost one line more. Invariant: a name that is here stands
//! in the run of full slots that begins at its place; and at most [`NEAR`] slots behind it, unless
//! more names than that share all that a table reads of hashes.
//!
//! The hash has a random key, since in a fleet that many share everybody names his own sites:
//! nobody can choose names that fall together. A name that is only asked about is not stored, so
//! all that it can do is to be compared with one run.

use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;

use foldhash::quality::RandomState;

use crate::host_name::HostName;

/// What hangs at one name. Empty ones are dropped from the table.
pub(crate) trait Bucket: Clone + Default {
    fn is_empty(&self) -> bool;
}

/// See above. A clone is cheap and shares everything.
#[derive(Clone)]
pub(crate) struct NameTable<V> {
    root: TableNode<V>,
    /// Of the root.
    marks: BloomBits,
    hasher: RandomState,
}

/// Two words: with the marks a branch is twelve cache lines, and a change copies one or two that
/// are not in the caches.
#[derive(Clone)]
enum TableNode<V> {
    /// Names whose hashes agree so far; at least one.
    Bucket(Arc<[TableSlot<V>]>),
    /// By the next bits of the hash; `None`: nothing.
    Branch(Option<Arc<Branch<V>>>),
}

#[derive(Clone)]
struct Branch<V> {
    /// What each way's node has.
    marks: [BloomBits; FAN_OUT],
    nodes: [TableNode<V>; FAN_OUT],
}

/// One cache line, if the value has at most 24 bytes.
#[derive(Clone)]
#[repr(align(64))]
struct TableSlot<V>(Option<(HostName, V)>);

const BITS: u32 = 5;
const FAN_OUT: usize = 1 << BITS;
/// Names that have come together to this depth stay together.
const DEPTH_MAX: u32 = 32 / BITS;
/// How many slots behind its place a name may stand, which is how many there are behind a bucket's
/// last place.
const PROBE_MAX: usize = 2;
/// How many places a bucket may have: one that is full gets more, until it is split among the nodes
/// of a branch.
const CAPACITIES: [usize; 16] = [1, 2, 4, 6, 8, 12, 16, 20, 24, 28, 36, 44, 52, 60, 76, CAPACITY_MAX];
const CAPACITY_MAX: usize = 92;

/// What decides where a name is, and what of it is left further down.
#[derive(Clone, Copy)]
struct NameHash {
    /// The lowest bits say which way a branch leads.
    path: u32,
    /// Which of a bucket's places, as a fraction.
    place: u32,
}

/// Two bits for each name of a bucket, by its hash; of a branch all. They stand before the way to
/// the bucket, so that most names that are not here need no memory beyond that.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct BloomBits(u64);

impl BloomBits {
    const NONE: BloomBits = BloomBits(0);
    const ALL: BloomBits = BloomBits(u64::MAX);

    #[inline]
    fn may_contain(self, hash: NameHash) -> bool {
        let mark = hash.bloom_mask();
        self.0 & mark == mark
    }

    fn add(&mut self, hash: NameHash) {
        self.0 |= hash.bloom_mask();
    }
}

impl NameHash {
    #[inline]
    fn of(hasher: &RandomState, name: &[u8]) -> NameHash {
        let mut state = hasher.build_hasher();
        state.write(name);
        let hash = state.finish();
        NameHash { path: hash as u32, place: (hash >> 32) as u32 }
    }

    #[inline]
    fn branch_index(self) -> usize {
        self.path as usize % FAN_OUT
    }

    #[inline]
    fn descend(self) -> NameHash {
        NameHash { path: self.path >> BITS, ..self }
    }

    /// By bits that say nothing of the way, and little of the place.
    #[inline]
    fn bloom_mask(self) -> u64 {
        let bit = |by: u32| 1 << ((self.place >> by) % u64::BITS);
        bit(0) | bit(6)
    }

    /// The place in a bucket with so many slots.
    #[inline]
    fn place(self, slots: usize) -> usize {
        let places = slots.saturating_sub(PROBE_MAX).min(CAPACITY_MAX) as u64;
        ((u64::from(self.place) * places) >> 32) as usize
    }
}

impl<V: Bucket> NameTable<V> {
    pub(crate) fn new() -> NameTable<V> {
        NameTable { root: TableNode::Branch(None), marks: BloomBits::NONE, hasher: RandomState::default() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        matches!(self.root, TableNode::Branch(None))
    }

    /// What hangs at this name. For names that are mostly here.
    #[inline]
    pub(crate) fn get(&self, name: &[u8]) -> Option<&V> {
        self.find(name, |_, _| true)
    }

    /// The same, for names that are often not here: then most of them need no memory beyond the way
    /// to the bucket.
    #[inline]
    pub(crate) fn get_filtered(&self, name: &[u8]) -> Option<&V> {
        self.find(name, BloomBits::may_contain)
    }

    #[inline]
    fn find(&self, name: &[u8], may_have: impl Fn(BloomBits, NameHash) -> bool) -> Option<&V> {
        let run = self.run(NameHash::of(&self.hasher, name), may_have)?;
        let mut full = run.iter().map_while(|slot| slot.0.as_ref());
        full.find(|(held, _)| held.as_bytes() == name).map(|(_, value)| value)
    }

    /// What begins with the run that a name with this hash stands in.
    #[inline]
    fn run(
        &self,
        mut hash: NameHash,
        may_have: impl Fn(BloomBits, NameHash) -> bool,
    ) -> Option<&[TableSlot<V>]> {
        let mut node = &self.root;
        loop {
            match node {
                TableNode::Bucket(slots) => return slots.get(hash.place(slots.len())..),
                TableNode::Branch(branch) => {
                    let (branch, way) = (branch.as_ref()?, hash.branch_index());
                    if !may_have(*branch.marks.get(way)?, hash) {
                        return None;
                    }
                    node = branch.nodes.get(way)?;
                }
            }
            hash = hash.descend();
        }
    }

    /// Changes what hangs at a name. Tells whether anything hung there before, and does after.
    pub(crate) fn change(&mut self, name: &HostName, change: impl FnOnce(&mut V)) -> (bool, bool) {
        let hash = NameHash::of(&self.hasher, name.as_bytes());
        self.root.change(&mut self.marks, &self.hasher, name, (hash, 0), change)
    }
}

impl<V: Bucket> TableNode<V> {
    fn change(
        &mut self,
        marks: &mut BloomBits,
        hasher: &RandomState,
        name: &HostName,
        (hash, depth): (NameHash, u32),
        change: impl FnOnce(&mut V),
    ) -> (bool, bool) {
        match self {
            TableNode::Branch(Some(branch)) => {
                let branch = Arc::make_mut(branch);
                let way =
                    (branch.nodes.get_mut(hash.branch_index()), branch.marks.get_mut(hash.branch_index()));
                let (Some(next), Some(of_next)) = way else { return (false, false) };
                let told = next.change(of_next, hasher, name, (hash.descend(), depth + 1), change);
                if told == (true, false) && branch.nodes.iter().all(TableNode::is_empty) {
                    (*self, *marks) = (TableNode::Branch(None), BloomBits::NONE);
                }
                told
            }
            TableNode::Bucket(slots) => match probe(slots, hash, name) {
                Probe::Here(at) => {
                    let after = Arc::make_mut(slots).get_mut(at).is_some_and(|slot| slot.change(change));
                    if !after {
                        (*self, *marks) = TableNode::of(hasher, take_entries(slots), depth);
                    }
                    (true, after)
                }
                Probe::Free(at) => {
                    let entry = new_entry(name, change);
                    let after = entry.is_some();
                    if let (Some(_), Some(slot)) = (&entry, Arc::make_mut(slots).get_mut(at)) {
                        slot.0 = entry;
                        marks.add(hash);
                    }
                    (false, after)
                }
                Probe::Nowhere => {
                    let Some(entry) = new_entry(name, change) else { return (false, false) };
                    let mut entries = take_entries(slots);
                    entries.push(entry);
                    (*self, *marks) = TableNode::of(hasher, entries, depth);
                    (false, true)
                }
            },
            TableNode::Branch(None) => {
                let Some(entry) = new_entry(name, change) else { return (false, false) };
                (*self, *marks) = TableNode::of(hasher, vec![entry], depth);
                (false, true)
            }
        }
    }

    fn is_empty(&self) -> bool {
        matches!(self, TableNode::Branch(None))
    }

    /// These names, all different, at that depth.
    fn of(hasher: &RandomState, entries: Vec<(HostName, V)>, depth: u32) -> (TableNode<V>, BloomBits) {
        if entries.is_empty() {
            return (TableNode::Branch(None), BloomBits::NONE);
        }
        let hash = |(name, _): &(HostName, V)| {
            let hash = NameHash::of(hasher, name.as_bytes());
            (0..depth).fold(hash, |hash, _| hash.descend())
        };
        let hashes: Vec<NameHash> = entries.iter().map(hash).collect();
        let seated =
            CAPACITIES.iter().find_map(|places| assign_slots(&hashes, places + PROBE_MAX, PROBE_MAX));
        let seated = match seated {
            None if depth >= DEPTH_MAX => {
                // Room for all of them behind the last place.
                assign_slots(&hashes, CAPACITY_MAX + hashes.len(), hashes.len())
            }
            seated => seated,
        };
        let mut entries: Vec<Option<(HostName, V)>> = entries.into_iter().map(Some).collect();
        if let Some(seats) = seated {
            let mut take = |seat: Option<usize>| entries.get_mut(seat?)?.take();
            let slots = seats.into_iter().map(|seat| TableSlot(take(seat)));
            let mut marks = BloomBits::NONE;
            hashes.iter().for_each(|hash| marks.add(*hash));
            return (TableNode::Bucket(slots.collect()), marks);
        }
        let mut ways: [Vec<(HostName, V)>; FAN_OUT] = Default::default();
        for (hash, entry) in hashes.iter().zip(entries) {
            if let Some(way) = ways.get_mut(hash.branch_index()) {
                way.extend(entry);
            }
        }
        let mut marks = [BloomBits::NONE; FAN_OUT];
        let mut of_ways = marks.iter_mut();
        let nodes = ways.map(|entries| {
            let (node, found) = TableNode::of(hasher, entries, depth + 1);
            if let Some(of_way) = of_ways.next() {
                *of_way = found;
            }
            node
        });
        (TableNode::Branch(Some(Arc::new(Branch { marks, nodes }))), BloomBits::ALL)
    }
}

/// Where a name stands in a bucket, or could.
enum Probe {
    Here(usize),
    Free(usize),
    Nowhere,
}

fn probe<V>(slots: &[TableSlot<V>], hash: NameHash, name: &HostName) -> Probe {
    let start = hash.place(slots.len());
    for (at, slot) in slots.iter().enumerate().skip(start) {
        match &slot.0 {
            Some((held, _)) if held == name => return Probe::Here(at),
            Some(_) => {}
            None if at <= start + PROBE_MAX => return Probe::Free(at),
            None => return Probe::Nowhere,
        }
    }
    Probe::Nowhere
}

/// Which of the names each slot gets; `None` when there is no slot for one of them near its place.
fn assign_slots(hashes: &[NameHash], slots: usize, near: usize) -> Option<Vec<Option<usize>>> {
    let mut seats = vec![None; slots];
    for (which, hash) in hashes.iter().enumerate() {
        let mut run = seats.iter_mut().skip(hash.place(slots)).take(near + 1);
        *run.find(|seat| seat.is_none())? = Some(which);
    }
    Some(seats)
}

/// Taken out when nobody else holds the bucket, else copied.
fn take_entries<V: Clone>(slots: &mut Arc<[TableSlot<V>]>) -> Vec<(HostName, V)> {
    match Arc::get_mut(slots) {
        Some(slots) => slots.iter_mut().filter_map(|slot| slot.0.take()).collect(),
        None => slots.iter().filter_map(|slot| slot.0.clone()).collect(),
    }
}

/// A name that was not there before; `None` when nothing hangs there now either.
fn new_entry<V: Bucket>(name: &HostName, change: impl FnOnce(&mut V)) -> Option<(HostName, V)> {
    let mut value = V::default();
    change(&mut value);
    (!value.is_empty()).then(|| (name.clone(), value))
}

impl<V: Bucket> TableSlot<V> {
    /// Changes what hangs here, and tells whether anything still does.
    fn change(&mut self, change: impl FnOnce(&mut V)) -> bool {
        let left = self.0.as_mut().is_some_and(|(_, value)| {
            change(value);
            !value.is_empty()
        });
        if !left {
            self.0 = None;
        }
        left
    }
}

#[cfg(test)]
mod tests;

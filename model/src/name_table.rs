//! A persistent hash table from names to values with as few dependent memory reads as possible: a
//! lookup among a million names costs the cache lines that it waits for.
//!
//! A copy shares everything, and a change copies the path to one bucket. The branches are few and
//! stay in a core's caches; they lead to a slot in a bucket's single allocation, where the hash
//! places name and value in one cache line. Names over 38 bytes are stored elsewhere and cost
//! another line. Invariant: a name is in the run of full slots that begins at its place, at most
//! [`PROBE_MAX`] slots behind it, unless more names than that share all hash bits that the table
//! reads.
//!
//! The hash has a random key, because the users of a shared gateway choose their own names: they
//! cannot choose colliding ones. Names that are only looked up are not stored, so the worst that
//! they can cause is a comparison with one run.

use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;

use foldhash::quality::RandomState;

use crate::host_name::HostName;

/// A value of the table. The table drops empty ones.
pub(crate) trait Bucket: Clone + Default {
    fn is_empty(&self) -> bool;
}

/// The table. A clone is cheap and shares everything.
#[derive(Clone)]
pub(crate) struct NameTable<V> {
    root: TableNode<V>,
    /// Of the root.
    marks: BloomBits,
    hasher: RandomState,
}

/// Two words: a branch with its bloom bits has twelve cache lines, of which a change copies one or
/// two uncached ones.
#[derive(Clone)]
enum TableNode<V> {
    /// One or more names whose hashes agree so far.
    Bucket(Arc<[TableSlot<V>]>),
    /// Indexed by the next bits of the hash; `None` is empty.
    Branch(Option<Arc<Branch<V>>>),
}

#[derive(Clone)]
struct Branch<V> {
    /// The bloom bits of each child.
    marks: [BloomBits; FAN_OUT],
    nodes: [TableNode<V>; FAN_OUT],
}

/// One cache line, if the value has at most 24 bytes.
#[derive(Clone)]
#[repr(align(64))]
struct TableSlot<V>(Option<(HostName, V)>);

const BITS: u32 = 5;
const FAN_OUT: usize = 1 << BITS;
/// Buckets at this depth are not split further.
const DEPTH_MAX: u32 = 32 / BITS;
/// How far behind its place a name may be stored, and so the number of slots behind a bucket's last
/// place.
const PROBE_MAX: usize = 2;
/// Bucket sizes, without the slots behind the last place. A full bucket grows to the next size, and
/// from the largest splits into a branch.
const CAPACITIES: [usize; 16] = [1, 2, 4, 6, 8, 12, 16, 20, 24, 28, 36, 44, 52, 60, 76, CAPACITY_MAX];
const CAPACITY_MAX: usize = 92;

/// A hash, shifted to the current depth.
#[derive(Clone, Copy)]
struct NameHash {
    /// The lowest bits index a branch.
    path: u32,
    /// The place in a bucket, as a fraction of its size.
    place: u32,
}

/// A bloom filter with two bits for each name of a bucket; all bits for a branch. The parent stores
/// it, so that lookups of absent names rarely read a bucket.
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

    /// Uses bits that are independent of the branch index, and nearly so of the place.
    #[inline]
    fn bloom_mask(self) -> u64 {
        let bit = |by: u32| 1 << ((self.place >> by) % u64::BITS);
        bit(0) | bit(6)
    }

    /// The place in a bucket of this size.
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

    /// The value of a name, for names that are mostly present.
    #[inline]
    pub(crate) fn get(&self, name: &[u8]) -> Option<&V> {
        self.find(name, |_, _| true)
    }

    /// The value of a name, for names that are often absent: the bloom bits save most reads of a
    /// bucket.
    #[inline]
    pub(crate) fn get_filtered(&self, name: &[u8]) -> Option<&V> {
        self.find(name, BloomBits::may_contain)
    }

    #[inline]
    fn find(&self, name: &[u8], may_have: impl Fn(BloomBits, NameHash) -> bool) -> Option<&V> {
        let run = self.run(NameHash::of(&self.hasher, name), may_have)?;
        let mut full = run.iter().map_while(|slot| slot.0.as_ref());
        full.find(|(stored, _)| stored.as_bytes() == name).map(|(_, value)| value)
    }

    /// The slots from the place of the hash on.
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

    /// Updates the value of a name. Returns whether there was one before and is one now.
    pub(crate) fn update(&mut self, name: &HostName, change: impl FnOnce(&mut V)) -> (bool, bool) {
        let hash = NameHash::of(&self.hasher, name.as_bytes());
        self.root.update(&mut self.marks, &self.hasher, name, (hash, 0), change)
    }
}

impl<V: Bucket> TableNode<V> {
    fn update(
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
                let presence = next.update(of_next, hasher, name, (hash.descend(), depth + 1), change);
                if presence == (true, false) && branch.nodes.iter().all(TableNode::is_empty) {
                    (*self, *marks) = (TableNode::Branch(None), BloomBits::NONE);
                }
                presence
            }
            TableNode::Bucket(slots) => match probe(slots, hash, name) {
                Probe::Here(at) => {
                    let after = Arc::make_mut(slots).get_mut(at).is_some_and(|slot| slot.update(change));
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

    /// Builds a node of different names at that depth.
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
                // Adds a slot for each behind the last place.
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

/// The result of probing a bucket for a name.
enum Probe {
    Here(usize),
    Free(usize),
    Nowhere,
}

fn probe<V>(slots: &[TableSlot<V>], hash: NameHash, name: &HostName) -> Probe {
    let start = hash.place(slots.len());
    for (at, slot) in slots.iter().enumerate().skip(start) {
        match &slot.0 {
            Some((stored, _)) if stored == name => return Probe::Here(at),
            Some(_) => {}
            None if at <= start + PROBE_MAX => return Probe::Free(at),
            None => return Probe::Nowhere,
        }
    }
    Probe::Nowhere
}

/// Assigns each slot an entry; `None` if an entry has no free slot near its place.
fn assign_slots(hashes: &[NameHash], slots: usize, near: usize) -> Option<Vec<Option<usize>>> {
    let mut seats = vec![None; slots];
    for (which, hash) in hashes.iter().enumerate() {
        let mut run = seats.iter_mut().skip(hash.place(slots)).take(near + 1);
        *run.find(|seat| seat.is_none())? = Some(which);
    }
    Some(seats)
}

/// Moves the entries out of an unshared bucket, or else copies them.
fn take_entries<V: Clone>(slots: &mut Arc<[TableSlot<V>]>) -> Vec<(HostName, V)> {
    match Arc::get_mut(slots) {
        Some(slots) => slots.iter_mut().filter_map(|slot| slot.0.take()).collect(),
        None => slots.iter().filter_map(|slot| slot.0.clone()).collect(),
    }
}

/// An entry for a new name; `None` if its value is empty.
fn new_entry<V: Bucket>(name: &HostName, change: impl FnOnce(&mut V)) -> Option<(HostName, V)> {
    let mut value = V::default();
    change(&mut value);
    (!value.is_empty()).then(|| (name.clone(), value))
}

impl<V: Bucket> TableSlot<V> {
    /// Updates the value and returns whether there is still one.
    fn update(&mut self, change: impl FnOnce(&mut V)) -> bool {
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

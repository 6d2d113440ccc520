//! The table against a standard map, with names that collide often; copies; and equal hashes.

use std::collections::HashMap;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// A value of numbers.
impl Bucket for Vec<u32> {
    fn is_empty(&self) -> bool {
        Vec::is_empty(self)
    }
}

type Model = HashMap<String, Vec<u32>>;

fn name(number: u32) -> HostName {
    // Some names are too long to be inline.
    let padding = "x".repeat(if number.is_multiple_of(7) { 40 } else { 0 });
    HostName::from_sni(&format!("n{number}{padding}.test")).unwrap()
}

/// Adds a number, or removes all.
fn update(table: &mut NameTable<Vec<u32>>, model: &mut Model, (number, put): (u32, bool)) {
    let name = name(number);
    let before = model.contains_key(name.as_str());
    let presence = table.update(&name, |stored| if put { stored.push(number) } else { stored.clear() });
    if put {
        model.entry(name.to_string()).or_default().push(number);
    } else {
        model.remove(name.as_str());
    }
    assert_eq!(presence, (before, put));
}

fn check(table: &NameTable<Vec<u32>>, model: &Model, names: u32) {
    for number in 0..names {
        let name = name(number);
        assert_eq!(table.get(name.as_bytes()), model.get(name.as_str()), "{name}");
        assert_eq!(table.get_filtered(name.as_bytes()), model.get(name.as_str()), "{name}");
    }
    assert_eq!(table.is_empty(), model.is_empty());
}

#[test]
fn a_slot_is_a_cache_line_and_a_node_two_words() {
    type Claims = smallvec::SmallVec<[Arc<crate::resource::Ssl>; 1]>;
    assert_eq!(size_of::<TableSlot<Claims>>(), 64);
    assert_eq!(size_of::<TableNode<Claims>>(), 16);
}

#[test]
fn many_names_are_inserted_found_and_removed() {
    const NAMES: u32 = 40_000;
    let (mut table, mut model) = (NameTable::new(), Model::new());
    (0..NAMES).for_each(|number| update(&mut table, &mut model, (number, true)));
    check(&table, &model, NAMES + 1000);
    let whole = (table.clone(), model.clone());
    (0..NAMES).for_each(|number| update(&mut table, &mut model, (number, false)));
    assert!(table.is_empty());
    check(&table, &model, NAMES);
    // A change of one copy leaves the other alone.
    check(&whole.0, &whole.1, NAMES);
}

#[test]
fn names_with_equal_hashes_are_kept_apart_by_their_text() {
    let entry = |number| (name(number), vec![number]);
    // The last depth takes any number of equal hashes.
    let hasher = RandomState::default();
    let (TableNode::Bucket(slots), _) = TableNode::of(&hasher, (0..1000).map(entry).collect(), DEPTH_MAX)
    else {
        panic!("nothing branches at the last depth");
    };
    for number in 0..1000 {
        let mut hash = NameHash::of(&hasher, name(number).as_bytes());
        hash.path = 0;
        assert!(matches!(probe(&slots, hash, &name(number)), Probe::Here(_)), "{number}");
    }
    let same = [NameHash { path: 0, place: u32::MAX }; 300];
    assert!(assign_slots(&same, CAPACITY_MAX + PROBE_MAX, PROBE_MAX).is_none());
    let seats = assign_slots(&same, CAPACITY_MAX + same.len(), same.len()).unwrap();
    assert_eq!(seats.iter().flatten().count(), same.len());
}

proptest! {
    #[test]
    fn the_table_is_a_map_with_independent_copies(
        before in vec((0..300_u32, prop::bool::weighted(0.7)), 0..600),
        after in vec((0..300_u32, any::<bool>()), 0..300),
    ) {
        let (mut table, mut model) = (NameTable::new(), Model::new());
        before.into_iter().for_each(|step| update(&mut table, &mut model, step));
        let (old, old_model) = (table.clone(), model.clone());
        after.into_iter().for_each(|step| update(&mut table, &mut model, step));
        check(&table, &model, 300);
        check(&old, &old_model, 300);
    }

    #[test]
    fn names_are_near_their_place(numbers in vec(0..u32::MAX, 1..200)) {
        let mut table = NameTable::new();
        for number in &numbers {
            table.update(&name(*number), |stored| *stored = vec![*number]);
        }
        let mut waiting = vec![table.root.clone()];
        while let Some(node) = waiting.pop() {
            match node {
                TableNode::Branch(branch) => waiting.extend(branch.iter().flat_map(|branch| branch.nodes.iter().cloned())),
                TableNode::Bucket(slots) => for (at, (stored, _)) in slots.iter().enumerate().filter_map(|(at, slot)| Some((at, slot.0.as_ref()?))) {
                    let place = NameHash::of(&table.hasher, stored.as_bytes()).place(slots.len());
                    prop_assert!((place..=place + PROBE_MAX).contains(&at));
                }
            }
        }
    }
}

//! Load balancing over the nodes of an upstream: weighted round robin, higher priority first.
//!
//! The rounds are made once and cached on the upstream; selecting a node is one atomic add. All
//! cores share the counter, so the weights hold for the gateway and not just for each core.
//! Contract section 8.

use std::sync::atomic::{AtomicUsize, Ordering};

use model::{Node, Upstream};

/// The length of a round; weights that need more are scaled down, to at least one turn each.
const ROUND_MAX: u64 = 4096;

pub struct Balancer {
    /// By priority, highest first.
    levels: Vec<PriorityLevel>,
}

/// The nodes of one priority.
struct PriorityLevel {
    /// Indexes of the upstream's nodes, each as often as its weight, spread evenly.
    round: Vec<usize>,
    next: AtomicUsize,
}

impl Balancer {
    pub fn new(upstream: &Upstream) -> Self {
        let nodes = &upstream.nodes;
        // One node takes everything, whatever its weight (contract section 8).
        if nodes.len() == 1 {
            return Self { levels: vec![PriorityLevel { round: vec![0], next: AtomicUsize::new(0) }] };
        }
        let mut priorities: Vec<i32> = nodes.iter().map(|n| n.priority).collect();
        priorities.sort_unstable_by(|a, b| b.cmp(a));
        priorities.dedup();
        let levels = priorities.into_iter().map(|priority| PriorityLevel::new(nodes, priority)).collect();
        Self { levels }
    }

    /// The nodes to try for one request, in order, each once. Empty when every weight is 0.
    pub fn node_order(&self) -> Vec<usize> {
        let mut order = Vec::new();
        for level in &self.levels {
            if level.round.is_empty() {
                continue;
            }
            let start = level.next.fetch_add(1, Ordering::Relaxed) % level.round.len();
            let (before, from) = level.round.split_at(start);
            for &node in from.iter().chain(before) {
                if !order.contains(&node) {
                    order.push(node);
                }
            }
        }
        order
    }

    /// The first of [`Balancer::node_order`], without a list.
    pub fn first_node(&self) -> Option<usize> {
        let level = self.levels.iter().find(|level| !level.round.is_empty())?;
        let turn = level.next.fetch_add(1, Ordering::Relaxed) % level.round.len();
        level.round.get(turn).copied()
    }
}

impl PriorityLevel {
    fn new(nodes: &[Node], priority: i32) -> Self {
        let mut members: Vec<(usize, u64)> = nodes
            .iter()
            .enumerate()
            .filter(|(_, node)| node.priority == priority && node.weight > 0)
            .map(|(index, node)| (index, u64::from(node.weight)))
            .collect();
        let divisor = members.iter().fold(0, |acc, (_, weight)| gcd(acc, *weight)).max(1);
        let total: u64 = members.iter().map(|(_, weight)| weight / divisor).sum();
        let shrink = total.div_ceil(ROUND_MAX).max(1);
        for (_, weight) in &mut members {
            *weight = (*weight / divisor / shrink).max(1);
        }
        Self { round: smooth_weighted_round(&members), next: AtomicUsize::new(0) }
    }
}

/// nginx's smooth weighted round robin: each turn goes to the node furthest behind its share.
fn smooth_weighted_round(members: &[(usize, u64)]) -> Vec<usize> {
    let total: u64 = members.iter().map(|(_, weight)| weight).sum();
    let mut credit = vec![0_i128; members.len()];
    let mut round = Vec::new();
    for _ in 0..total {
        for (credit, (_, weight)) in credit.iter_mut().zip(members) {
            *credit += i128::from(*weight);
        }
        let Some(best) =
            credit.iter().enumerate().max_by(|a, b| a.1.cmp(b.1).then(b.0.cmp(&a.0))).map(|(index, _)| index)
        else {
            break;
        };
        if let (Some(credit), Some((node, _))) = (credit.get_mut(best), members.get(best)) {
            *credit -= i128::from(total);
            round.push(*node);
        }
    }
    round
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn level(weights: &[u32]) -> PriorityLevel {
        let nodes: Vec<Node> = weights
            .iter()
            .map(|&weight| Node { host: "127.0.0.1".into(), port: Some(1), weight, priority: 0 })
            .collect();
        PriorityLevel::new(&nodes, 0)
    }

    #[test]
    fn a_round_follows_the_weights_evenly() {
        assert_eq!(level(&[1, 1]).round, [0, 1]);
        assert_eq!(level(&[5, 1, 1]).round, [0, 0, 1, 0, 2, 0, 0]);
        assert_eq!(level(&[200, 100]).round.len(), 3);
    }

    #[test]
    fn a_node_of_weight_zero_gets_no_turn() {
        assert_eq!(level(&[0, 3]).round, [1]);
        assert!(level(&[0, 0]).round.is_empty());
    }

    #[test]
    fn huge_weights_do_not_make_huge_rounds() {
        let round = level(&[u32::MAX, 1, u32::MAX - 1]).round;
        assert!(round.len() as u64 <= ROUND_MAX + 3, "{}", round.len());
        assert!(round.contains(&1));
    }

    #[test]
    fn every_node_is_tried_once_and_priorities_in_order() {
        let node = |weight, priority| Node { host: "h".into(), port: Some(1), weight, priority };
        let nodes = [node(1, 0), node(2, 10), node(1, 10)];
        let balancer =
            Balancer { levels: vec![PriorityLevel::new(&nodes, 10), PriorityLevel::new(&nodes, 0)] };
        for _ in 0..5 {
            let order = balancer.node_order();
            assert_eq!(order.len(), 3);
            assert_eq!(order[2], 0);
        }
    }
}

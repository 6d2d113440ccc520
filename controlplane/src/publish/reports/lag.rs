//! The nodes and control planes that have not acknowledged a revision.
//!
//! Invariant: whatever is unknown or unreadable counts as behind.

use serde::Serialize;

use super::entry::{ControlPlaneEntry, Entries, FleetReport};
use crate::publish::fleet::ConnectedNode;

/// Entries of `behind` in a response.
pub(super) const BEHIND_MAX: usize = 50;

/// A node or control plane that has not acknowledged a revision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BehindView {
    /// The other control plane; left out: this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) control_plane: Option<String>,
    /// The node; left out when unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) node: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) instance: Option<String>,
    /// The acknowledged revision, if any counts.
    pub(super) acknowledged: Option<u64>,
    pub(super) problem: String,
}

/// Nodes and control planes that have not acknowledged `revision`; `own` are all nodes connected
/// here.
pub(super) fn behind(
    revision: u64,
    own: &[ConnectedNode],
    nodes: usize,
    others: &Entries,
) -> Vec<BehindView> {
    let reached = |node: &ConnectedNode| node.acknowledged.is_some_and(|reached| reached >= revision);
    let mut behind: Vec<BehindView> =
        own.iter().filter(|node| !reached(node)).map(|node| BehindView::node(None, node)).collect();
    let mut nodes = nodes;
    match others {
        Err(problem) => behind.push(BehindView::unknown(
            None,
            format!("what the other control planes serve is not known: {problem}"),
        )),
        Ok(others) => {
            for entry in others.iter() {
                let (name, report) = match &entry.report {
                    None => {
                        behind.extend(behind_silent(entry, own, others));
                        continue;
                    }
                    Some(Ok(report)) => (report.name(), report),
                    Some(Err(problem)) => {
                        let name = entry.process.clone();
                        behind.push(BehindView::unknown(Some(name), problem.clone()));
                        continue;
                    }
                };
                nodes += report.nodes;
                // A dead control plane lists nodes that have reconnected elsewhere.
                let is_elsewhere = |node: &ConnectedNode| {
                    let same = |other: &ConnectedNode| {
                        (&other.name, &other.instance) == (&node.name, &node.instance) && reached(other)
                    };
                    own.iter().any(same) || live_reports(others).any(|report| report.oldest.iter().any(same))
                };
                let late = report.oldest.iter().filter(|node| !reached(node) && !is_elsewhere(node));
                behind.extend(late.map(|node| BehindView::node(Some(name.clone()), node)));
                let unnamed = report.nodes.saturating_sub(report.oldest.len());
                if unnamed > 0 && report.oldest.last().is_none_or(|last| !reached(last)) {
                    let problem = format!("more nodes may be behind: {unnamed} are not in its report");
                    behind.push(BehindView::unknown(Some(name), problem));
                }
            }
        }
    }
    if nodes == 0 {
        behind.push(BehindView::unknown(None, "no data plane is connected".to_owned()));
    }
    behind.truncate(BEHIND_MAX);
    behind
}

fn live_reports(others: &[ControlPlaneEntry]) -> impl Iterator<Item = &FleetReport> {
    others.iter().filter_map(|entry| entry.report.as_ref()?.as_ref().ok())
}

/// The nodes of a silent control plane, which may serve them still, cut off from the store. A node
/// that is connected to another control plane counts there.
fn behind_silent(
    entry: &ControlPlaneEntry,
    own: &[ConnectedNode],
    others: &[ControlPlaneEntry],
) -> Vec<BehindView> {
    let Some(nodes) = &entry.nodes else { return Vec::new() };
    let control_plane = format!("{} ({})", nodes.host, nodes.push);
    let is_named = |entry: &ControlPlaneEntry, name: &String| {
        let named = entry.nodes.as_ref().is_some_and(|nodes| nodes.names.contains(name));
        entry.report.is_some() && named
    };
    let is_elsewhere = |name: &String| {
        own.iter().any(|node| node.name == *name)
            || others.iter().any(|entry| is_named(entry, name))
            || live_reports(others).any(|report| report.oldest.iter().any(|node| node.name == *name))
    };
    let lost = nodes.names.iter().filter(|name| !is_elsewhere(name)).take(BEHIND_MAX);
    let problem = "its control plane no longer reports: it may serve on, cut off from the store";
    let view = |name: &String| BehindView {
        node: Some(name.clone()),
        ..BehindView::unknown(Some(control_plane.clone()), problem.to_owned())
    };
    let mut behind: Vec<BehindView> = lost.map(view).collect();
    if nodes.more {
        let problem = "it no longer reports, and more nodes than it names may be there".to_owned();
        behind.push(BehindView::unknown(Some(control_plane), problem));
    }
    behind
}

impl BehindView {
    fn node(control_plane: Option<String>, node: &ConnectedNode) -> Self {
        Self {
            control_plane,
            node: Some(node.name.clone()),
            instance: Some(node.instance.clone()),
            acknowledged: node.acknowledged,
            problem: "it has not acknowledged the revision".to_owned(),
        }
    }

    fn unknown(control_plane: Option<String>, problem: String) -> Self {
        Self { control_plane, node: None, instance: None, acknowledged: None, problem }
    }
}

//! What each control plane stores for the others: a report of its lagging nodes, and their names.
//!
//! Invariant: an entry that is unreadable is kept as unreadable, never dropped.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::publish::fleet::ConnectedNode;
use crate::store::ReportEntry;

/// A control plane's stored report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FleetReport {
    pub(super) host: String,
    /// The push listener's address.
    pub(super) push: String,
    pub(super) version: String,
    /// The newest revision that it knows.
    pub(super) revision: u64,
    pub(super) nodes: usize,
    /// At most [`NODES_MAX`](super::NODES_MAX) nodes, the oldest revisions first.
    pub(super) oldest: Vec<ConnectedNode>,
    pub(super) written_at: u64,
    /// As `ControlPlaneIdentity::place`.
    #[serde(default)]
    pub(super) place: Option<String>,
}

/// The names of a control plane's nodes, kept longer than its report.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct NodeNames {
    pub(super) host: String,
    pub(super) push: String,
    pub(super) names: BTreeSet<String>,
    /// There are more than [`NAMES_MAX`](super::NAMES_MAX).
    pub(super) more: bool,
    #[serde(default)]
    pub(super) place: Option<String>,
}

/// Another control plane's entry.
#[derive(Debug, Clone)]
pub(super) struct ControlPlaneEntry {
    /// The entry's name: one process's life.
    pub(super) process: String,
    /// `None`: its lease expired without a withdrawal.
    pub(super) report: Option<Result<FleetReport, String>>,
    pub(super) nodes: Option<NodeNames>,
}

pub(super) type Entries = Result<Arc<Vec<ControlPlaneEntry>>, String>;

impl FleetReport {
    /// Machine and push address, for messages.
    pub(super) fn name(&self) -> String {
        format!("{} ({})", self.host, self.push)
    }
}

impl ControlPlaneEntry {
    pub(super) fn place(&self) -> Option<&String> {
        let reported = self.report.as_ref().and_then(|report| report.as_ref().ok()?.place.as_ref());
        reported.or_else(|| self.nodes.as_ref()?.place.as_ref())
    }
}

impl From<ReportEntry> for ControlPlaneEntry {
    fn from(entry: ReportEntry) -> Self {
        let report =
            |text: String| serde_json::from_str(&text).map_err(|_| "its report cannot be read".to_owned());
        // Unreadable names count as more nodes.
        let nodes = |text: String| {
            serde_json::from_str(&text).unwrap_or_else(|_| NodeNames { more: true, ..NodeNames::default() })
        };
        Self { process: entry.process, report: entry.text.map(report), nodes: entry.nodes.map(nodes) }
    }
}

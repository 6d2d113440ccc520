//! A node's refusal to apply a change, in the log and in the node's entry of `fleet`: it rejects
//! the change, or holds another store's state.

use std::fmt;

use proto::push::{Hold, Loss, Nack};
use serde::Serialize;

use super::fleet::{NodeRegistration, ResourceErrorView};

/// Characters of a store's identity.
const STORE_CHARS: usize = 300;

/// The state that a node holds, and what this store's state would remove.
#[derive(Debug, Clone, Serialize)]
pub struct HoldView {
    /// The store whose state the node serves.
    pub serves: String,
    pub revision: u64,
    /// Sites that this store lacks.
    pub sites: LossView,
    pub routes: LossView,
    pub stream_routes: LossView,
}

/// The loss of one kind of resource.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct LossView {
    pub gone: u64,
    pub total: u64,
}

impl fmt::Display for LossView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.gone, self.total)
    }
}

impl fmt::Display for HoldView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { serves, revision, sites, routes, stream_routes } = self;
        write!(
            f,
            "it serves revision {revision} of the store {serves}, of which this store lacks {sites} sites, {routes} routes and \
             {stream_routes} stream routes"
        )
    }
}

impl HoldView {
    pub(super) fn new(hold: &Hold) -> Self {
        let loss = |loss: Option<Loss>| {
            loss.map_or_else(LossView::default, |Loss { gone, total }| LossView { gone, total })
        };
        // Operators' terminals print this text, so control characters are dropped.
        let serves = hold.store.chars().filter(|c| !c.is_control()).take(STORE_CHARS).collect();
        Self {
            serves,
            revision: hold.kept,
            sites: loss(hold.sites),
            routes: loss(hold.routes),
            stream_routes: loss(hold.stream_routes),
        }
    }
}

/// Records and logs that a node rejected a change.
pub(super) fn record_nack(member: &NodeRegistration, node: &str, nack: Nack) {
    let refusals: Vec<ResourceErrorView> = nack
        .refusals
        .into_iter()
        .map(|refusal| {
            let key = refusal.key.as_ref().and_then(|key| model::wire::key_from_wire(key).ok());
            let resource = key.map(|key| key.to_string()).unwrap_or_default();
            ResourceErrorView { resource, field: refusal.field, problem: refusal.problem }
        })
        .collect();
    for refusal in refusals.iter().take(3) {
        tracing::error!(
            node,
            revision = nack.revision,
            resource = refusal.resource,
            field = refusal.field,
            problem = refusal.problem,
            "a data plane refused a change and keeps what it had"
        );
    }
    member.record_nack(nack.revision, refusals);
}

/// Records and logs that a node holds another store's state; `ours` is this store.
pub(super) fn record_hold(member: &NodeRegistration, node: &str, ours: &str, hold: &Hold) {
    let hold = HoldView::new(hold);
    tracing::error!(
        node,
        serves = hold.serves,
        store = ours,
        sites_gone = hold.sites.to_string(),
        routes_gone = hold.routes.to_string(),
        "a data plane serves the state of another store, and holds ours because it would take most of that away. If this control \
         plane's settings are wrong (countersign.store.path, deployment.etcd.prefix, deployment.etcd.host), mend them and restart it. If \
         this store is meant, accept it: POST /apisix/admin/dataplanes/accept_store"
    );
    member.record_hold(hold);
}

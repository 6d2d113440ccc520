//! What a node answers when it does not take a change over: it refuses the change, or holds another
//! store's state. In the log and in the node's entry of `fleet`.

use std::fmt;

use proto::push::{Hold, Loss, Nack};
use serde::Serialize;

use super::fleet::{NodeRegistration, ResourceErrorView};

/// Of a store's identity.
const STORE_CHARS: usize = 300;

/// What a node serves instead of our store's state, and what that would take away.
#[derive(Debug, Clone, Serialize)]
pub struct HoldView {
    /// The store whose state the node serves.
    pub serves: String,
    /// The revision of that state.
    pub revision: u64,
    /// Sites of that state that ours does not serve.
    pub sites: LossView,
    /// Routes.
    pub routes: LossView,
    /// Stream routes.
    pub stream_routes: LossView,
}

/// How many of one kind.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct LossView {
    /// Would no longer be served.
    pub gone: u64,
    /// Are served.
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
    /// As the node says.
    pub(super) fn new(hold: &Hold) -> Self {
        let loss = |loss: Option<Loss>| {
            loss.map_or_else(LossView::default, |Loss { gone, total }| LossView { gone, total })
        };
        // Printed by people's terminals; a node is trusted to say what it serves, not to be free of
        // faults.
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

/// The node refused a change.
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

/// The node holds the state of our store, `ours`.
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

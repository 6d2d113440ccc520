//! Responses of a node that does not apply a change: it rejects the change, or holds another
//! store's state. Both are logged and recorded in the node's entry of `fleet`.

use proto::push::{Hold, Loss, Nack};

use super::fleet::{HoldView, LossView, NodeRegistration, ResourceErrorView};

/// Characters of a store's identity.
const STORE_CHARS: usize = 300;

/// Records and logs that a node rejected a change.
pub(super) fn record_nack(registration: &NodeRegistration, node: &str, nack: Nack) {
    let errors: Vec<ResourceErrorView> = nack
        .errors
        .into_iter()
        .map(|error| {
            let key = error.key.as_ref().and_then(|key| model::wire::key_from_wire(key).ok());
            let resource = key.map(|key| key.to_string()).unwrap_or_default();
            ResourceErrorView { resource, field: error.field, problem: error.problem }
        })
        .collect();
    for error in errors.iter().take(3) {
        tracing::error!(
            node,
            revision = nack.revision,
            resource = error.resource,
            field = error.field,
            problem = error.problem,
            "a data plane rejected a change and keeps its state"
        );
    }
    registration.record_nack(nack.revision, errors);
}

/// Records and logs that a node holds another store's state; `ours` is this store.
pub(super) fn record_hold(registration: &NodeRegistration, node: &str, ours: &str, hold: &Hold) {
    let hold = hold_view(hold);
    tracing::error!(
        node,
        held_store = hold.store,
        store = ours,
        sites_gone = hold.sites.to_string(),
        routes_gone = hold.routes.to_string(),
        "a data plane serves the state of another store, and holds ours because it would take most of that away. If this control \
         plane's settings are wrong (countersign.store.path, deployment.etcd.prefix, deployment.etcd.host), mend them and restart it. If \
         this store is meant, accept it: POST /apisix/admin/dataplanes/accept_store"
    );
    registration.record_hold(hold);
}

/// The view of a node's message.
fn hold_view(hold: &Hold) -> HoldView {
    let loss = |loss: Option<Loss>| {
        loss.map_or_else(LossView::default, |Loss { gone, total }| LossView { gone, total })
    };
    // Operators' terminals print this text, so control characters are dropped.
    let store = hold.store.chars().filter(|c| !c.is_control()).take(STORE_CHARS).collect();
    HoldView {
        store,
        revision: hold.kept,
        sites: loss(hold.sites),
        routes: loss(hold.routes),
        stream_routes: loss(hold.stream_routes),
    }
}

//! What only the workers know: their connections and pools.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde_json::{Value, json};
use telemetry::status::PageReply;

use super::json_reply;
use super::paging::PageQuery;
use crate::proxy::connection_counts::{ClientKey, Group, GroupKey};
use crate::proxy::worker::WorkerCommand;
use crate::status::workers::{Answers, WorkerQuestions};

/// `/v1/connections`: the open TLS connections by site and client, the most first.
pub(super) async fn connections(workers: WorkerQuestions, page: PageQuery) -> PageReply {
    let Answers { answers, silent } = workers.ask(WorkerCommand::Connections).await;
    let mut groups: std::collections::HashMap<GroupKey, Group> = std::collections::HashMap::new();
    let (mut other_groups, mut other_connections) = (0, 0);
    for (_, counts) in answers {
        other_groups += counts.other_groups;
        other_connections += counts.other_connections;
        for (key, Group { subject, connections }) in counts.groups {
            let group = groups.entry(key).or_insert_with(|| Group { subject, connections: 0 });
            group.connections += connections;
        }
    }
    let mut groups: Vec<_> = groups.into_iter().collect();
    groups.sort_by_cached_key(|(key, group)| (Reverse(group.connections), key.site.clone(), client_id(key)));
    let total: u64 = groups.iter().map(|(_, group)| group.connections).sum::<u64>() + other_connections;
    let count = groups.len();
    let shown: Vec<Value> = page.of(groups.iter()).map(shown_group).collect();
    // Further groups of one worker may be those of another.
    json_reply(&json!({
        "connections": total,
        "groups": shown,
        "all_groups": count,
        "not_listed": {"groups_at_most": other_groups, "connections": other_connections},
        "workers_without_answer": silent,
    }))
}

fn client_id(key: &GroupKey) -> Option<[u8; 32]> {
    match key.client {
        ClientKey::Verified(fingerprint) => Some(fingerprint),
        ClientKey::Rejected | ClientKey::Anonymous => None,
    }
}

fn shown_group((key, group): &(GroupKey, Group)) -> Value {
    let client = match key.client {
        ClientKey::Verified(fingerprint) => json!({
            "subject": group.subject,
            "fingerprint_sha256": data_encoding::HEXLOWER.encode(&fingerprint),
        }),
        ClientKey::Rejected => "rejected certificate".into(),
        ClientKey::Anonymous => Value::Null,
    };
    json!({
        "site": key.site.as_ref().map(ToString::to_string),
        "client": client,
        "connections": group.connections,
    })
}

/// Over all workers.
#[derive(Default)]
struct PoolTotals {
    idle: u64,
    in_use: u64,
    waiting: u64,
    /// By worker.
    max: Option<u32>,
}

/// `/v1/pools`: the connections to each node of upstreams, the most first.
pub(super) async fn pools(workers: WorkerQuestions, page: PageQuery) -> PageReply {
    let Answers { answers, silent } = workers.ask(WorkerCommand::Pools).await;
    let mut nodes: BTreeMap<(SocketAddr, u32), PoolTotals> = BTreeMap::new();
    for node in answers.into_iter().flat_map(|(_, nodes)| nodes) {
        let totals = nodes.entry((node.addr, node.max)).or_default();
        totals.idle += node.idle;
        totals.in_use += node.open.saturating_sub(node.idle);
        totals.waiting += node.waiting;
        totals.max = Some(node.max).filter(|max| *max != u32::MAX);
    }
    let mut nodes: Vec<_> = nodes.into_iter().collect();
    nodes.sort_by_key(|(_, totals)| Reverse(totals.idle + totals.in_use));
    let shown = page.of(nodes.iter()).map(|((addr, _), totals)| {
        json!({
            "node": addr,
            "idle": totals.idle,
            "in_use": totals.in_use,
            "waiting": totals.waiting,
            "max_per_worker": totals.max,
        })
    });
    let shown: Vec<Value> = shown.collect();
    json_reply(&json!({"nodes": shown, "all_nodes": nodes.len(), "workers_without_answer": silent}))
}

//! Three members that elect a leader among themselves.

use super::builder::Ports;
use super::{Access, Etcd, EtcdBuilder, Keys};
use crate::client::bounded;

/// A cluster of three.
pub struct Cluster {
    members: Vec<Etcd>,
    /// What the members call themselves.
    ids: Vec<u64>,
}

const NAMES: [&str; 3] = ["one", "two", "three"];

impl Cluster {
    /// Three members of this shape, running.
    pub async fn of_three(builder: EtcdBuilder) -> Self {
        let ports: Vec<Ports> = NAMES.iter().map(|_| Ports::any()).collect();
        let all: Vec<String> = NAMES.iter().zip(&ports).map(|(name, ports)| ports.member(name)).collect();
        let all = all.join(",");
        let make = |(name, ports): (&&str, Ports)| builder.make(name, ports, all.clone());
        let members = NAMES.iter().zip(ports).map(make).collect();
        let mut cluster = Self { members, ids: Vec::new() };
        cluster.members.iter_mut().for_each(Etcd::spawn);
        for member in &mut cluster.members {
            member.serving().await;
            cluster.ids.push(member.keys().await.member().await);
        }
        cluster
    }

    /// How a control plane gets in: by all members.
    pub fn access(&self) -> Access {
        let mut access = self.members[0].access();
        access.hosts = self.members.iter().map(Etcd::url).collect();
        access
    }

    /// One member.
    pub fn member(&mut self, index: usize) -> &mut Etcd {
        &mut self.members[index]
    }

    /// Reads and writes by way of one member.
    pub async fn keys(&self, index: usize) -> Keys {
        self.members[index].keys().await
    }

    /// Which member leads, as this one sees it, which waits for an election that is under way.
    pub async fn leader(&self, seen_by: usize) -> usize {
        let mut keys = self.keys(seen_by).await;
        let leader = bounded("a leader", async {
            loop {
                // A linearizable read is answered when there is a leader; an election may break it off.
                if keys.try_get("nothing").await.is_ok()
                    && let Some(leader) = keys.leader().await
                {
                    return leader;
                }
            }
        })
        .await;
        let known = self.ids.iter().position(|id| *id == leader);
        known.unwrap_or_else(|| panic!("the leader {leader:x} is no member"))
    }
}

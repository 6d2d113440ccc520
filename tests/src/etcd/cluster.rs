//! Three members that elect a leader.

use super::builder::MemberPorts;
use super::{Access, Etcd, EtcdBuilder, Keys};
use crate::client::bounded;

pub struct Cluster {
    members: Vec<Etcd>,
    /// The members' ids.
    ids: Vec<u64>,
}

const NAMES: [&str; 3] = ["one", "two", "three"];

impl Cluster {
    pub async fn of_three(builder: EtcdBuilder) -> Self {
        let ports: Vec<MemberPorts> = NAMES.iter().map(|_| MemberPorts::any()).collect();
        let all: Vec<String> = NAMES.iter().zip(&ports).map(|(name, ports)| ports.member(name)).collect();
        let all = all.join(",");
        let make = |(name, ports): (&&str, MemberPorts)| builder.make(name, ports, all.clone());
        let members = NAMES.iter().zip(ports).map(make).collect();
        let mut cluster = Self { members, ids: Vec::new() };
        cluster.members.iter_mut().for_each(Etcd::spawn);
        for member in &mut cluster.members {
            member.serving().await;
            cluster.ids.push(member.keys().await.member().await);
        }
        cluster
    }

    /// As [`Etcd::access`], through all members.
    pub fn access(&self) -> Access {
        let mut access = self.members[0].access();
        access.hosts = self.members.iter().map(Etcd::url).collect();
        access
    }

    pub fn member(&mut self, index: usize) -> &mut Etcd {
        &mut self.members[index]
    }

    /// A client of the keys, through one member.
    pub async fn keys(&self, index: usize) -> Keys {
        self.members[index].keys().await
    }

    /// The leader, as this member sees it; waits for an election to end.
    pub async fn leader(&self, seen_by: usize) -> usize {
        let mut keys = self.keys(seen_by).await;
        let leader = bounded("a leader", async {
            loop {
                // A linearizable read needs a leader; an election may interrupt it.
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

impl From<&Cluster> for Access {
    fn from(cluster: &Cluster) -> Self {
        cluster.access()
    }
}

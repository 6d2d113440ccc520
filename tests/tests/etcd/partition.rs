//! Thousands of writes while the network between control plane and etcd is cut, held, or one-way,
//! and while members of a cluster are killed or paused. `ledger` has the properties that hold
//! afterwards.

use e2e::etcd::{Authorities, Cluster, Etcd};
use e2e::proxy::{Network, Proxy};
use e2e::world::World;
use serde_json::json;

use super::ledger::{Ledger, Watched};

/// Breaks the network repeatedly, each time after some more writes were made, and repairs it after
/// some failed.
async fn trouble(proxy: &Proxy, mut writes: Watched) {
    let script = [
        (Network::Cut, 700, 40),
        (Network::HoldAnswers, 900, 20),
        (Network::Cut, 1_300, 100),
        (Network::Hold, 400, 20),
        (Network::HoldAnswers, 1_100, 20),
        (Network::Cut, 800, 20),
        (Network::Hold, 1_500, 20),
        (Network::Cut, 600, 60),
    ];
    for (network, after, failures) in script {
        writes.made(after).await;
        proxy.set(network).await;
        writes.failed(failures).await;
        proxy.set(Network::Forward).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_writes_survive_network_failures() {
    let etcd = Etcd::plain().await;
    let proxy = Proxy::to(etcd.address()).await;
    let access = etcd.access().through(&[proxy.address()]);
    let impatient = json!({"deployment": {"etcd": {"timeout": 1}}});
    let world = World::builder().etcd(access).settings(impatient).nodes(&["node-1", "node-2"]).start().await;
    let mut keys = etcd.keys().await;
    let ledger = Ledger::open(&world, 1, &mut keys, 625).await;
    trouble(&proxy, ledger.watched()).await;
    let tally = ledger.close(&world, &mut keys, 2).await;
    assert!(tally.not_made >= 100, "the network was broken: {tally:?}");
}

/// One member at a time, mostly the leader: killed, or paused until another is elected.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_control_planes_write_while_members_fail() {
    let mut cluster = Cluster::of_three(Etcd::builder().mutual(&Authorities::generate())).await;
    let mut access = cluster.access();
    access.hosts.rotate_left(cluster.leader(0).await);
    let world = World::builder().etcd(access).control_planes(2).start().await;
    let mut keys = cluster.keys(0).await;
    let ledger = Ledger::open(&world, 2, &mut keys, 150).await;
    let mut writes = ledger.watched();
    for (paused, leads) in [(false, true), (true, true), (true, false), (false, false), (true, true)] {
        writes.made(200).await;
        let leader = cluster.leader(0).await;
        let victim = if leads { leader } else { (leader + 1) % 3 };
        if paused {
            cluster.member(victim).pause();
            cluster.leader((victim + 1) % 3).await;
        } else {
            cluster.member(victim).kill().await;
        }
        writes.made(100).await;
        if paused {
            cluster.member(victim).resume();
        } else {
            cluster.member(victim).start().await;
        }
    }
    let mut keys = cluster.keys(0).await;
    ledger.close(&world, &mut keys, 1).await;
}

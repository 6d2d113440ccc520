//! The etcd servers and the proxy of the other suites work as described.

use e2e::etcd::{Authorities, Cluster, Etcd};
use e2e::proxy::{Network, Proxy};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

#[tokio::test]
async fn an_etcd_survives_a_kill_and_can_be_restored() {
    let mut etcd = Etcd::plain().await;
    let mut keys = etcd.keys().await;
    keys.put("/a", "1").await;
    let save = etcd.save().await;
    let at = keys.revision().await;
    keys.put("/a", "2").await;
    let changed = keys.put("/b", "2").await;
    assert_eq!(changed, at + 2);

    etcd.kill().await;
    etcd.start().await;
    let mut keys = etcd.keys().await;
    assert_eq!(keys.get("/a").await.unwrap().value, b"2");
    assert_eq!(keys.revision().await, changed);
    let history = keys.history("/", at, changed).await;
    assert_eq!(history.len(), 3, "{history:?}");

    etcd.restore(&save).await;
    let mut keys = etcd.keys().await;
    assert_eq!(keys.get("/a").await.unwrap().value, b"1");
    assert_eq!(keys.get("/b").await, None);
    assert_eq!(keys.revision().await, at, "revisions went back");
}

#[tokio::test]
async fn tests_can_connect_to_every_kind_of_etcd() {
    let authorities = Authorities::generate();
    for etcd in [
        Etcd::tls(&authorities).await,
        Etcd::mutual(&authorities).await,
        Etcd::with_password().await,
        Etcd::builder().argument("--max-request-bytes=5000000").start().await,
    ] {
        let mut keys = etcd.keys().await;
        let revision = keys.put("/a", "1").await;
        assert_eq!(keys.with_prefix("/").await[0].modified, revision);
        assert!(etcd.ctl(&["get", "/a"]).await.contains("/a\n1"));
    }
}

#[tokio::test]
async fn a_cluster_has_another_leader_when_one_is_killed_or_paused() {
    let mut cluster = Cluster::of_three(Etcd::builder()).await;
    let first = cluster.leader(0).await;
    let other = (first + 1) % 3;
    cluster.keys(other).await.put("/a", "1").await;
    cluster.member(first).kill().await;
    let second = cluster.leader(other).await;
    assert_ne!(second, first);
    cluster.keys(other).await.put("/a", "2").await;
    cluster.member(first).start().await;
    assert_eq!(cluster.keys(first).await.get("/a").await.unwrap().value, b"2");

    let leader = cluster.leader(first).await;
    cluster.member(leader).pause();
    let mut keys = cluster.keys((leader + 1) % 3).await;
    // An election interrupts pending reads.
    while keys.try_get("/a").await.is_err() {}
    keys.put("/a", "3").await;
    cluster.member(leader).resume();
    let mut keys = cluster.keys(leader).await;
    let seen = loop {
        if let Ok(seen) = keys.try_get("/a").await {
            break seen;
        }
    };
    assert_eq!(seen.unwrap().value, b"3");
}

#[tokio::test]
async fn a_proxy_holds_and_cuts() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = Proxy::to(listener.local_addr().unwrap()).await;
    let mut client = TcpStream::connect(proxy.address()).await.unwrap();
    let (mut server, _) = listener.accept().await.unwrap();
    let mut got = [0; 4];
    client.write_all(b"ping").await.unwrap();
    server.read_exact(&mut got).await.unwrap();

    // Requests arrive, the response waits until the network heals.
    proxy.set(Network::HoldAnswers).await;
    client.write_all(b"more").await.unwrap();
    server.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"more");
    server.write_all(b"pong").await.unwrap();
    proxy.set(Network::Hold).await;
    client.write_all(b"last").await.unwrap();
    let waiting = TcpStream::connect(proxy.address()).await.unwrap();
    proxy.set(Network::Forward).await;
    client.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"pong");
    server.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"last");
    listener.accept().await.unwrap();
    assert_eq!(proxy.connections(), 2);

    proxy.set(Network::Cut).await;
    assert!(client.read(&mut got).await.is_err(), "it is reset");
    assert!(TcpStream::connect(proxy.address()).await.is_err(), "it is refused");
    drop(waiting);
    proxy.set(Network::Forward).await;
    let _client = TcpStream::connect(proxy.address()).await.unwrap();
    listener.accept().await.unwrap();
}

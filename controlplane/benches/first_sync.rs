//! Duration of a data plane's first sync of 10,000 ssls, and of one change after it: both ends,
//! real TLS, one machine.
//!
//! Dominated by the node's compilation (parsing a certificate, comparing it with its key), about 50
//! us a resource; one change costs a round trip. Targets: 5 s and 50 ms. Prints the times and
//! asserts nothing. `cargo bench -p controlplane`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    missing_docs,
    dead_code
)]

#[path = "../tests/push/world.rs"]
mod world;

use model::Kind;
use pki::ca::{Authority, AuthoritySpec};
use world::{World, ssl};

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let world = World::new();
    let sites = Authority::root(&AuthoritySpec::new("Sites")).unwrap();
    let mut revision = 0;
    for nth in 0..10_000 {
        revision = world.put(Kind::Ssl, &nth.to_string(), ssl(&sites, &format!("s{nth}.test"))).await;
    }
    let started = std::time::Instant::now();
    let control = world.control().await;
    println!("control plane loaded after {:?}", started.elapsed());
    let started = std::time::Instant::now();
    let node = world.node(control.address());
    control.wait_acknowledged(revision).await;
    println!("10,000 ssls live {:?} after the node's start", started.elapsed());
    let changed = ssl(&sites, "s5.test");
    let started = std::time::Instant::now();
    let revision = world.put(Kind::Ssl, "5", changed).await;
    let committed = started.elapsed();
    control.wait_acknowledged(revision).await;
    println!(
        "one change live {:?} after it was sent, {:?} after it was committed",
        started.elapsed(),
        started.elapsed() - committed
    );
    let started = std::time::Instant::now();
    node.stop().await;
    println!("stopped, the newest snapshot on disk, after {:?}", started.elapsed());
    let size = std::fs::metadata(world.path("kept/last_good.snapshot")).unwrap().len();
    let started = std::time::Instant::now();
    let node = world.node("127.0.0.1:1".parse().unwrap());
    assert_eq!(node.snapshot().len(Kind::Ssl), 10_000);
    println!("started from the last good file ({size} bytes) in {:?}", started.elapsed());
    node.stop().await;
    control.stop().await;
}

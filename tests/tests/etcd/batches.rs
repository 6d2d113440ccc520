//! `kill -9` of etcd and of the control plane in a burst of batches: none is stored in part, and no
//! acknowledged one is lost.

use e2e::batches::{BatchWriters, assert_whole};

use super::stage::Stage;

/// The number of batches before each kill, uneven on purpose.
const KILLS_AFTER: [u64; 4] = [1, 3, 8, 14];

#[tokio::test]
async fn a_kill_stores_no_part_of_a_batch() {
    let Stage { mut etcd, mut world, .. } = Stage::start().await;
    let mut stored = Vec::new();
    for (round, more) in KILLS_AFTER.into_iter().enumerate() {
        let mut writers = BatchWriters::start(&world.admin(), &stored);
        writers.progress(more).await;
        let acknowledged = if round % 2 == 0 {
            let mark = world.control_log().mark();
            etcd.kill().await;
            let acknowledged = writers.finished().await;
            // Reads come from memory until then.
            world.control_log().line_after(mark, &["no healthy etcd endpoint available"]).await;
            etcd.start().await;
            world.control_log().line_after(mark, &["reconnected to etcd"]).await;
            acknowledged
        } else {
            world.kill_control().await;
            let acknowledged = writers.finished().await;
            world.start_control().await;
            acknowledged
        };
        stored = assert_whole(&world.admin(), &acknowledged).await;
    }
}

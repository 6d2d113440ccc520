//! The folder of a test's etcd: in memory where there is room, because etcd syncs every write.

use nix::sys::statvfs::statvfs;
use tempfile::TempDir;

const MEMORY: &str = "/dev/shm";
/// A server preallocates about 130 MB for its log; several run side by side.
const ROOM: u64 = 4 << 30;

pub(super) fn folder() -> TempDir {
    let mut builder = tempfile::Builder::new();
    let named = builder.prefix("countersign-etcd-");
    let made = if free(MEMORY) >= ROOM { named.tempdir_in(MEMORY) } else { named.tempdir() };
    made.expect("a temporary folder")
}

fn free(path: &str) -> u64 {
    statvfs(path).map_or(0, |found| found.blocks_available() * found.fragment_size())
}

//! Upgrades of a data plane: a successor takes over the listeners while clients use them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use e2e::process::program;
use e2e::steady_load::SteadyLoad;
use e2e::world::World;
use serde_json::{Value, json};

use crate::steady::{LoadedWorld, loaded_world_of};

/// A loaded world whose data plane's program can be exchanged.
struct Exchangeable {
    loaded: LoadedWorld,
    programs: tempfile::TempDir,
    /// The file of the newest generation.
    program: PathBuf,
    links: usize,
}

async fn exchangeable(settings: Value) -> Exchangeable {
    // Beside the programs, since a hard link is on one disk.
    let programs = tempfile::tempdir_in(program("dataplane").parent().unwrap()).unwrap();
    for name in ["controlplane", "dataplane"] {
        fs::hard_link(program(name), programs.path().join(name)).unwrap();
    }
    let loaded = loaded_world_of(World::builder().programs(programs.path()), settings).await;
    let program = programs.path().join("dataplane");
    Exchangeable { loaded, programs, program, links: 0 }
}

impl Exchangeable {
    /// Replaces the data plane's program by a script; `$PROGRAM` is a link to the right one, which
    /// the next call replaces.
    fn replace_program(&mut self, script: &str) {
        self.links += 1;
        let link = self.programs.path().join(format!("dataplane-{}", self.links));
        fs::hard_link(program("dataplane"), &link).unwrap();
        self.write_program(&format!("#!/bin/sh\nPROGRAM={}\n{script}\n", link.display()));
        self.program = link;
    }

    /// Replaces the data plane's program.
    fn write_program(&self, content: &str) {
        let new = self.programs.path().join("new");
        fs::write(&new, content).unwrap();
        fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(new, &self.program).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upgrades_under_load_fail_no_operation() {
    let mut test = exchangeable(json!({})).await;
    let load = SteadyLoad::start(&test.loaded.targets);
    load.more(50).await;
    // More workers, fewer, and other drivers.
    for (workers, driver) in [(4, "io_uring"), (1, "epoll"), (2, "io_uring")] {
        test.replace_program(&format!("COUNTERSIGN_DRIVER={driver} exec \"$PROGRAM\" \"$@\""));
        let world = &mut test.loaded.world;
        world.change_settings(json!({"countersign": {"workers": workers}}));
        let successor = world.upgrade_node().await;
        assert_eq!(successor.ready()["workers"], workers);
        assert_eq!(successor.ready()["driver"], driver);
        load.more(200).await;
    }
    let status = test.loaded.world.status("/status").await.json();
    assert_eq!(status["generation"], 4, "{status}");
    assert_eq!(test.loaded.world.metric("countersign_upgrades_total{result=\"ok\"}").await, 3);
    load.stop().await.assert_flawless();
}

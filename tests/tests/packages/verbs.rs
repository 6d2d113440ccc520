//! The `countersign` script, as people type it.

use e2e::process::{EVENT_TIMEOUT, program};
use e2e::shell::{Shell, ShellOutput};
use e2e::world::World;
use tokio::time::timeout;

use super::packaging;

/// A machine with both programs on its PATH and the settings of a world that does not run.
struct Installation {
    world: World,
    config: String,
}

impl Installation {
    async fn new() -> Self {
        let mut world = World::start().await;
        // The ports of the first start, in one file for both.
        let config = world.write_config("node-1").display().to_string();
        world.stop_node().await;
        world.stop_control().await;
        Self { world, config }
    }

    async fn run(&self, words: &str) -> ShellOutput {
        let programs = program("dataplane").parent().unwrap().display().to_string();
        let path = format!("{programs}:{}", std::env::var("PATH").unwrap());
        let folder = self.world.folder();
        let shell = Shell::new(folder).set("PATH", path).set("COUNTERSIGN_LOG_DIR", folder.display());
        let script = format!("'{}' {words}", packaging("countersign").display());
        timeout(EVENT_TIMEOUT, shell.set("COUNTERSIGN_CONFIG", &self.config).run(&script)).await.unwrap()
    }
}

#[tokio::test]
async fn start_reload_upgrade_quit_and_stop_a_plane() {
    let machine = Installation::new().await;
    let nothing = machine.run("reload").await;
    assert!(nothing.exit == 1 && nothing.err.contains("nothing runs with"), "{nothing:?}");
    let tested = machine.run("test --plane dataplane").await;
    assert!(tested.exit == 0 && tested.out.contains("is fine: the data plane can start"), "{tested:?}");

    let started = machine.run("--plane dataplane start").await;
    assert!(started.exit == 0 && started.out.contains("dataplane runs: process "), "{started:?}");
    let again = machine.run("start --plane dataplane").await;
    assert!(again.exit == 0 && again.out.contains("runs already: process "), "{again:?}");
    let pid =
        |output: &ShellOutput| output.out.split("process ").nth(1).unwrap().trim().parse::<u32>().unwrap();
    assert_eq!(pid(&started), pid(&again));

    for verb in ["reload", "reopen", "upgrade"] {
        let done = machine.run(verb).await;
        assert_eq!(done.exit, 0, "{verb}: {done:?}");
        assert!(done.out.contains("controlplane does not run"), "{verb}: {done:?}");
    }
    let upgraded = machine.run("start --plane dataplane").await;
    assert_ne!(pid(&upgraded), pid(&started), "the successor runs");

    let restarted = machine.run("--plane dataplane restart").await;
    assert!(restarted.exit == 0 && restarted.out.contains("has stopped"), "{restarted:?}");
    let stopped = machine.run("stop").await;
    assert!(stopped.exit == 0 && stopped.out.contains("dataplane has stopped"), "{stopped:?}");
    let idle = machine.run("quit --plane dataplane").await;
    assert!(idle.exit == 0 && idle.out.contains("does not run"), "{idle:?}");
}

/// The ports and the store of a running pair are its own; those of other programs are named.
#[tokio::test]
async fn a_running_pair_is_no_problem() {
    let world = World::start().await;
    let config = world.write_config("node-1").display().to_string();
    let machine = Installation { world, config };
    let tested = machine.run("test").await;
    assert_eq!(tested.exit, 0, "{tested:?}");
    for plane in ["the control plane can start", "the data plane can start"] {
        assert!(tested.out.contains(plane) && !tested.out.contains("problem: "), "{tested:?}");
    }
    let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = other.local_addr().unwrap().to_string();
    let settings = std::fs::read_to_string(&machine.config).unwrap();
    let changed = settings.replace(&machine.world.push_address().to_string(), &address);
    std::fs::write(&machine.config, changed).unwrap();
    let tested = machine.run("test --plane controlplane").await;
    assert_eq!(tested.exit, 1, "{tested:?}");
    assert!(
        tested.out.contains(&format!("problem: countersign.push.listen: cannot listen on {address}")),
        "{tested:?}"
    );
}

#[tokio::test]
async fn a_plane_that_cannot_start_shows_why() {
    let machine = Installation::new().await;
    std::fs::write(&machine.config, "apisix: {unknown_key: 1, ssl: 7}\n").unwrap();
    let failed = machine.run("start --plane dataplane").await;
    assert!(
        failed.exit == 1 && failed.err.contains("did not start") && failed.err.contains("ssl"),
        "{failed:?}"
    );
    let tested = machine.run("test --plane dataplane").await;
    assert_eq!(tested.exit, 1, "{tested:?}");
}

#[tokio::test]
async fn versions_and_mistakes() {
    let machine = Installation::new().await;
    let versions = machine.run("version").await;
    assert!(
        versions.out.contains("controlplane 0.") && versions.out.contains("dataplane 0."),
        "{versions:?}"
    );
    for (words, problem) in [
        ("strat", "unknown verb: strat"),
        ("", "a verb is missing"),
        ("start stop", "one verb at a time"),
        ("start --plane both", "unknown plane: both"),
        ("--force start", "unknown option: --force"),
        ("start -c", "-c needs a file"),
    ] {
        let refused = machine.run(words).await;
        assert!(refused.exit == 2 && refused.err.contains(problem), "{words}: {refused:?}");
        assert!(refused.err.contains("Usage: countersign"), "{words}");
    }
    assert!(machine.run("--help").await.out.contains("reopen"));
}

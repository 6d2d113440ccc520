//! The `countersign` script, as people type it.

use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;

use e2e::process::{EVENT_TIMEOUT, program};
use e2e::shell::{Shell, ShellOutput};
use e2e::world::World;
use serde_json::json;
use tokio::time::timeout;

use super::packaging;

/// A machine with both programs on its PATH and the settings of a world that does not run.
struct Installation {
    world: World,
    config: String,
    http: SocketAddr,
}

impl Installation {
    async fn new() -> Self {
        Self::of(World::start().await).await
    }

    async fn of(mut world: World) -> Self {
        // The ports of the first start, in one file for both.
        let config = world.write_config("node-1").display().to_string();
        let http = world.http();
        world.stop_node().await;
        world.stop_control().await;
        Self { world, config, http }
    }

    async fn run(&self, words: &str) -> ShellOutput {
        self.run_in("", words).await
    }

    /// With shell words in front of the command.
    async fn run_in(&self, before: &str, words: &str) -> ShellOutput {
        let programs = program("dataplane").parent().unwrap().display().to_string();
        let path = format!("{programs}:{}", std::env::var("PATH").unwrap());
        let folder = self.world.folder();
        let shell = Shell::new(folder).set("PATH", path).set("COUNTERSIGN_LOG_DIR", folder.display());
        let script = format!("{before} '{}' {words}", packaging("countersign").display());
        timeout(EVENT_TIMEOUT, shell.set("COUNTERSIGN_CONFIG", &self.config).run(&script)).await.unwrap()
    }
}

/// The process that a `start` prints.
fn pid(output: &ShellOutput) -> u32 {
    output.out.split("process ").nth(1).unwrap().trim().parse().unwrap()
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
    let http = world.http();
    let machine = Installation { world, config, http };
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

/// Whether the process has not ended.
fn runs(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

/// A data plane that was upgraded while a request was under way: both processes, and the request.
async fn upgraded_under_a_request(
    machine: &Installation,
    upstream: &TcpListener,
) -> ([u32; 2], [TcpStream; 2]) {
    let first = machine.run("start --plane dataplane").await;
    let mut client = TcpStream::connect(machine.http).unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nHost: app.test\r\n\r\n").unwrap();
    let (request, _) = upstream.accept().unwrap();
    let upgraded = machine.run("upgrade --plane dataplane").await;
    assert_eq!(upgraded.exit, 0, "{upgraded:?}");
    let second = machine.run("start --plane dataplane").await;
    let pids = [pid(&first), pid(&second)];
    assert!(pids[0] != pids[1] && pids.into_iter().all(runs), "{pids:?}");
    (pids, [client, request])
}

#[tokio::test]
async fn every_generation_ends_with_a_stop() {
    let upstream = TcpListener::bind("127.0.0.1:0").unwrap();
    let world = World::builder().open(upstream.local_addr().unwrap()).start().await;
    let machine = Installation::of(world).await;
    assert_eq!(machine.run("start --plane dataplane").await.exit, 0);
    let (pids, _request) = upgraded_under_a_request(&machine, &upstream).await;
    let ended = machine.run("stop --plane dataplane").await;
    assert!(ended.exit == 0 && ended.out.contains("dataplane has stopped"), "{ended:?}");
    assert!(!pids.into_iter().any(runs), "{pids:?}");

    assert_eq!(machine.run("start --plane dataplane").await.exit, 0);
    let (pids, request) = upgraded_under_a_request(&machine, &upstream).await;
    let output = machine.world.folder().join("quit.out");
    let says_what_it_waits_for = async {
        let line = format!("waiting for the open connections of process {}", pids[0]);
        while !std::fs::read_to_string(&output).unwrap_or_default().contains(&line) {
            tokio::task::yield_now().await;
        }
        drop(request);
    };
    let (ended, ()) = tokio::join!(machine.run("quit --plane dataplane > quit.out"), says_what_it_waits_for);
    let text = std::fs::read_to_string(&output).unwrap();
    assert!(ended.exit == 0 && text.contains("dataplane has stopped"), "{ended:?} {text}");
    assert!(!pids.into_iter().any(runs), "{pids:?}");
}

#[tokio::test]
async fn a_broken_file_hides_no_running_plane() {
    let mut machine = Installation::new().await;
    let started = machine.run("start --plane dataplane").await;
    machine.world.change_settings(json!({"nginx_config": {"error_log_level": "loud"}}));
    machine.world.write_config("node-1");
    for verb in ["reload", "upgrade"] {
        let refused = machine.run(verb).await;
        assert!(refused.exit == 1 && !refused.err.contains("nothing runs"), "{verb}: {refused:?}");
        assert!(!refused.out.contains("dataplane does not run"), "{verb}: {refused:?}");
    }
    let ended = machine.run("quit --plane dataplane").await;
    assert!(ended.exit == 0 && ended.out.contains("dataplane has stopped"), "{ended:?}");
    assert!(!runs(pid(&started)));
}

/// A command that can say neither that a plane runs nor that it does not.
#[tokio::test]
async fn an_error_is_not_a_plane_that_does_not_run() {
    let machine = Installation::new().await;
    let programs = machine.world.folder().join("programs");
    std::fs::create_dir(&programs).unwrap();
    let script = programs.join("dataplane");
    std::fs::write(&script, "#!/bin/sh\necho 'the socket cannot be used' >&2\nexit 1\n").unwrap();
    std::fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).unwrap();
    let words = format!("PATH='{}':\"$PATH\"", programs.display());
    for verb in ["start", "stop", "quit", "restart", "reload", "upgrade", "reopen"] {
        let failed = machine.run_in(&words, &format!("{verb} --plane dataplane")).await;
        assert!(failed.exit == 1 && failed.err.contains("the socket cannot be used"), "{verb}: {failed:?}");
        assert!(!failed.out.contains("does not run"), "{verb}: {failed:?}");
    }
}

#[tokio::test]
async fn a_plane_does_not_need_the_folder_of_its_start() {
    let machine = Installation::new().await;
    let started = machine.run_in("mkdir gone && cd gone &&", "start --plane dataplane").await;
    assert_eq!(started.exit, 0, "{started:?}");
    let upgraded = machine.run_in("rmdir gone &&", "upgrade --plane dataplane").await;
    assert_eq!(upgraded.exit, 0, "{upgraded:?}");
    // A relative file is that of the folder of the call.
    let name = std::path::Path::new(&machine.config).file_name().unwrap().to_str().unwrap();
    let stopped = machine.run(&format!("stop --plane dataplane -c {name}")).await;
    assert!(stopped.exit == 0 && stopped.out.contains("has stopped"), "{stopped:?}");
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

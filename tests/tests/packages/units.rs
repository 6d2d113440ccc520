//! The systemd units: systemd's own checks, and what the programs need beyond them.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use e2e::documents::route;
use e2e::peers;
use e2e::upstream::Upstream;
use e2e::world::World;
use http::StatusCode;
use serde_json::json;

use super::unit_file::UnitFile;
use super::{packaging, run};

const UNITS: [(&str, &str); 2] =
    [("controlplane", "countersign-controlplane.service"), ("dataplane", "countersign-dataplane.service")];

/// Tenths of the exposure that `systemd-analyze security` computes: what is left is the network.
const EXPOSURE_MAX: u32 = 20;

#[test]
fn systemd_accepts_the_units() {
    if peers::installed("systemd-analyze").is_none() {
        return;
    }
    // The programs and systemd's own units, in a root of their own.
    let root = tempfile::tempdir().unwrap();
    let (bin, units) = (root.path().join("usr/bin"), root.path().join("usr/lib/systemd/system"));
    fs::create_dir_all(&bin).unwrap();
    fs::create_dir_all(&units).unwrap();
    let system = ["/usr/lib/systemd/system", "/lib/systemd/system"].map(Path::new);
    let system = system.into_iter().find(|folder| folder.is_dir()).expect("systemd has units");
    run(Command::new("cp").arg("-a").arg(system.join(".")).arg(&units));
    for (name, _) in UNITS {
        fs::copy("/bin/true", bin.join(name)).unwrap();
    }
    let sockets = ["countersign-controlplane.socket", "countersign-dataplane.socket"];
    for unit in UNITS.map(|(_, unit)| unit).into_iter().chain(sockets) {
        fs::copy(packaging("systemd").join(unit), units.join(unit)).unwrap();
    }
    for unit in UNITS.map(|(_, unit)| unit).into_iter().chain(sockets) {
        let output = Command::new("systemd-analyze")
            .args(["verify", "--man=no", "--root"])
            .arg(root.path())
            .arg(unit)
            .output()
            .unwrap();
        let problems = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && problems.is_empty(), "{unit}: {problems}");
    }
}

#[test]
fn the_units_expose_little() {
    if peers::installed("systemd-analyze").is_none() {
        return;
    }
    for (_, unit) in UNITS {
        run(Command::new("systemd-analyze")
            .args(["security", "--offline=true", &format!("--threshold={EXPOSURE_MAX}")])
            .arg(packaging("systemd").join(unit)));
    }
}

#[test]
fn the_units_fit_the_programs() {
    for (name, file) in UNITS {
        let unit = UnitFile::read(file);
        for (key, value) in [
            ("Type", "notify"),
            ("NotifyAccess", "main"),
            ("User", "countersign"),
            ("CapabilityBoundingSet", "CAP_NET_BIND_SERVICE"),
            ("AmbientCapabilities", "CAP_NET_BIND_SERVICE"),
            ("NoNewPrivileges", "yes"),
            ("ProtectSystem", "strict"),
            ("LimitCORE", "0"),
        ] {
            assert_eq!(unit.one(key), value, "{file}: {key}");
        }
        assert_eq!(unit.one("StateDirectory"), format!("countersign/{name}"));
        let config = "/etc/countersign/config.yaml";
        assert_eq!(unit.command("ExecStart"), [&format!("/usr/bin/{name}"), "-c", config]);
        assert_eq!(unit.command("ExecReload"), [&format!("/usr/bin/{name}"), "reload", "-c", config]);
        // An etcd that is down for long is no reason to give up; no plane waits for the other.
        assert_eq!(unit.one("StartLimitIntervalSec"), "0");
        assert_eq!(unit.one("After"), "network-online.target");
        assert!(unit.one("LimitNOFILE").parse::<u64>().unwrap() >= 1 << 20);
        // A hanging loop is noticed after five seconds: the watchdog must leave it the time.
        assert!(unit.one("WatchdogSec").parse::<u64>().unwrap() >= 10);
    }
    // The defaults of worker_shutdown_timeout and drain_delay.
    let example = fs::read_to_string(super::workspace().join("conf/config.yaml.example")).unwrap();
    let seconds = |key: &str| {
        let line = example.lines().find(|line| line.trim_start_matches(['#', ' ']).starts_with(key)).unwrap();
        let value = line.split_once(": ").unwrap().1.split([' ', 's']).next().unwrap();
        value.parse::<u64>().unwrap_or_else(|_| panic!("{line}"))
    };
    let longest = seconds("worker_shutdown_timeout:") + seconds("drain_delay:");
    let unit = UnitFile::read("countersign-dataplane.service");
    assert!(unit.one("TimeoutStopSec").parse::<u64>().unwrap() >= longest + 10);
}

/// The system calls that a unit's filter allows.
fn allowed_calls(unit: &UnitFile) -> BTreeSet<String> {
    let text = run(Command::new("systemd-analyze").arg("syscall-filter"));
    let members = |set: &str| -> Vec<String> {
        let mut lines = text.lines().skip_while(|line| line.trim() != set).skip(1);
        let members = lines.by_ref().take_while(|line| line.starts_with(' '));
        members.map(|line| line.trim().to_owned()).filter(|line| !line.starts_with('#')).collect()
    };
    fn expand(name: &str, members: &dyn Fn(&str) -> Vec<String>, into: &mut BTreeSet<String>) {
        if name.starts_with('@') {
            members(name).iter().for_each(|member| expand(member, members, into));
        } else {
            into.insert(name.to_owned());
        }
    }
    let mut allowed = BTreeSet::new();
    for value in unit.all("SystemCallFilter") {
        let mut set = BTreeSet::new();
        let names = value.trim_start_matches('~');
        names.split(' ').for_each(|name| expand(name, &members, &mut set));
        match value.starts_with('~') {
            true => allowed.retain(|call| !set.contains(call)),
            false => allowed.extend(set),
        }
    }
    // Always allowed, systemd.exec(5).
    allowed.extend(
        ["execve", "exit", "exit_group", "getrlimit", "rt_sigreturn", "sigreturn"].map(str::to_owned),
    );
    allowed
}

/// What strace counted in these files.
fn traced_calls(folder: &Path, program: &str) -> BTreeSet<String> {
    let text = fs::read_to_string(folder.join(format!("{program}.calls"))).unwrap();
    let rows = text.lines().skip_while(|line| !line.starts_with("---")).skip(1);
    let rows = rows.take_while(|line| !line.starts_with("---"));
    rows.map(|line| line.split_whitespace().last().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn the_filter_allows_every_call_of_the_programs() {
    if peers::installed("strace").is_none() || peers::installed("systemd-analyze").is_none() {
        return;
    }
    let traces = tempfile::tempdir().unwrap();
    // The program keeps its process id: strace is its grandchild.
    let script =
        format!("exec strace -D -f -qq -c -o '{}'/$(basename \"$1\").calls \"$@\"", traces.path().display());
    let upstream = Upstream::plain("plain").await;
    let mut world = World::builder().script(&script).start().await;
    let route = route("app.test", "/*", &[upstream.address()]);
    world.apply(&[("ssls/app", world.protected_site()), ("routes/app", route)]).await;
    assert_eq!(world.verified_client("app.test").get("/").await.unwrap().status, StatusCode::OK);
    assert!(world.stop_node().await.success());
    assert!(world.stop_control().await.success());
    for (name, file) in UNITS {
        let (calls, allowed) = (traced_calls(traces.path(), name), allowed_calls(&UnitFile::read(file)));
        assert!(calls.contains("accept4") || calls.contains("io_uring_enter"), "{name}: {calls:?}");
        let denied: Vec<_> = calls.difference(&allowed).collect();
        assert!(denied.is_empty(), "{file} denies what {name} calls: {denied:?}");
    }
}

/// A unit whose filter has no io_uring: strace fails the call as the filter would.
#[tokio::test]
async fn without_io_uring_the_log_names_the_filter() {
    if peers::installed("strace").is_none() {
        return;
    }
    let script = "case $1 in *dataplane) set -- strace -D -f -qq -o /dev/null -e trace=io_uring_setup -e inject=io_uring_setup:error=EPERM \"$@\";; esac; exec \"$@\"";
    let settings = json!({"countersign": {"workers": 1}});
    let upstream = Upstream::plain("plain").await;
    let world = World::builder().settings(settings).open(upstream.address()).script(script).start().await;
    assert_eq!(world.node_ready()["driver"], "epoll");
    let line = world.node_log().line_with(&["serving", "epoll"]).await;
    assert!(line.contains("SystemCallFilter= of the systemd unit"), "{line}");
    assert_eq!(world.client("app.test").get("/").await.unwrap().status, StatusCode::OK);
}

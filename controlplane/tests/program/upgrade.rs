//! `controlplane upgrade` and SIGUSR2: a new process takes over the listeners and the embedded
//! store.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::listeners::curl;
use crate::site::{PlainConnection, Running, Site, program};

const KEY: &str = "known";

/// A control plane that runs through a link, so that its file can be replaced.
struct Installed {
    site: Site,
    first: Option<Running>,
    /// The process that serves.
    pid: i32,
    admin: SocketAddr,
}

impl Installed {
    fn start() -> Self {
        let mut site = Site::new();
        let admin = &mut site.settings["deployment"]["admin"];
        let plain = json!({"ip": "127.0.0.1", "port": 0, "https_admin": false});
        admin["admin_listen"] = json!([plain, {"ip": "127.0.0.1", "port": 0}]);
        admin["admin_key"] = json!([{"name": "admin", "key": KEY, "role": "admin"}]);
        let mut installed = Self { site, first: None, pid: 0, admin: ([127, 0, 0, 1], 0).into() };
        installed.install(None);
        let mut command = Command::new(installed.link());
        command.env_remove("RUST_LOG");
        let running = installed.site.start_program(command);
        installed.pid = running.child.id().try_into().unwrap();
        installed.admin = running.admin()[0];
        installed.first = Some(running);
        installed
    }

    fn link(&self) -> PathBuf {
        self.site.path("controlplane")
    }

    /// Installs a script, or the program itself.
    fn install(&self, script: Option<&str>) {
        let _absent = fs::remove_file(self.link());
        match script {
            None => symlink(program().get_program(), self.link()).unwrap(),
            Some(script) => {
                fs::write(self.link(), format!("#!/bin/sh\n{script}\n")).unwrap();
                fs::set_permissions(self.link(), fs::Permissions::from_mode(0o755)).unwrap();
            }
        }
    }

    fn command(&self, verb: &str) -> (bool, String) {
        let output = program().args([verb, "-c"]).arg(self.site.path("config.yaml")).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        (output.status.success(), text.trim().to_owned())
    }

    #[track_caller]
    fn upgrade(&mut self) {
        let (done, text) = self.command("upgrade");
        assert!(done, "{text} {}", self.log());
        let pid = text.strip_prefix("the control plane is process ").and_then(|text| text.split_once(" now"));
        self.pid = pid.unwrap_or_else(|| panic!("{text}")).0.parse().unwrap();
    }

    #[track_caller]
    fn upgrade_fails(&self, expected: &[&str]) {
        let (done, text) = self.command("upgrade");
        for expected in expected {
            assert!(!done && text.contains(expected), "{expected}: {text}");
        }
        assert!(text.contains("the control plane serves as before"), "{text}");
    }

    fn call(&self, method: &str, path: &str, body: Option<&Value>) -> (u16, String) {
        let mut connection = PlainConnection::open(self.admin).unwrap();
        let answer = connection.call(method, path, KEY, body).unwrap();
        (answer.status, answer.body)
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid), signal).unwrap();
    }

    /// Ends everything; all processes have one standard error.
    fn log(&mut self) -> String {
        let _gone = kill(Pid::from_raw(self.pid), Signal::SIGTERM);
        self.first.take().unwrap().ended().1
    }

    /// Waits until the process has ended, which is a child of this test or of its predecessor.
    fn wait_ended(pid: i32) {
        let deadline = Instant::now() + Duration::from_secs(60);
        let runs = || {
            let status = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            !status.is_empty() && !status.contains(") Z ")
        };
        while runs() {
            assert!(Instant::now() < deadline, "process {pid} does not end");
            std::thread::yield_now();
        }
    }
}

impl Drop for Installed {
    fn drop(&mut self) {
        if self.first.is_some() {
            let _gone = kill(Pid::from_raw(self.pid), Signal::SIGKILL);
        }
    }
}

/// Writes until it is stopped: over kept connections, or each write over a new one. Returns the
/// numbers of the acknowledged writes.
fn write_on(address: SocketAddr, first: u64, keep: bool, stop: Arc<AtomicBool>) -> JoinHandle<BTreeSet<u64>> {
    std::thread::spawn(move || {
        let mut acknowledged = BTreeSet::new();
        let mut connection = None;
        for n in (first..).step_by(2).take_while(|_| !stop.load(Ordering::SeqCst)) {
            let mut open = connection.take().unwrap_or_else(|| PlainConnection::open(address).unwrap());
            let body = json!({"nodes": {"127.0.0.1:1980": n}});
            let answer = open.call("PUT", &format!("upstreams/{n}"), KEY, Some(&body));
            let answer = answer.unwrap_or_else(|error| panic!("write {n}: {error}"));
            assert_eq!(answer.status, 201, "{answer:?}");
            acknowledged.insert(n);
            connection = Some(open).filter(|_| keep && !answer.closes);
        }
        acknowledged
    })
}

#[test]
fn ten_upgrades_under_writes_lose_nothing() {
    let mut installed = Installed::start();
    let stop = Arc::<AtomicBool>::default();
    let writers = [(0, true), (1, false)]
        .map(|(first, keep)| write_on(installed.admin, first, keep, Arc::clone(&stop)));
    let mut pids = BTreeSet::from([installed.pid]);
    for _ in 0..10 {
        installed.upgrade();
        assert!(pids.insert(installed.pid));
    }
    stop.store(true, Ordering::SeqCst);
    let acknowledged: Vec<_> = writers.into_iter().map(|writer| writer.join().unwrap()).collect();
    assert!(acknowledged.iter().all(|writes| writes.len() > 20), "{acknowledged:?}");
    let (status, list) = installed.call("GET", "upstreams", None);
    let list: Value = serde_json::from_str(&list).unwrap();
    let stored = list["list"].as_array().unwrap().iter();
    let stored: BTreeSet<u64> =
        stored.map(|item| item["value"]["id"].as_str().unwrap().parse().unwrap()).collect();
    assert_eq!(status, 200);
    assert!(acknowledged.iter().flatten().all(|n| stored.contains(n)), "an acknowledged write is lost");
    // The socket for backups and the status listener have moved, too.
    let mut backup = program();
    backup.args(["backup", "--to"]).arg(installed.site.path("copy.redb"));
    let backup = backup.arg("-c").arg(installed.site.path("config.yaml")).output().unwrap();
    assert!(backup.status.success(), "{backup:?}");
    let status = installed.first.as_ref().unwrap().ready["status"].as_str().unwrap().to_owned();
    let (code, _) = curl(&installed.site, &[&format!("http://{status}/status/ready")]);
    assert_eq!(code, 200);
    for pid in pids.into_iter().filter(|pid| *pid != installed.pid) {
        Installed::wait_ended(pid);
    }
    let log = installed.log();
    assert_eq!(log.matches("this one ends").count(), 10, "{log}");
    for bad in ["stopped before", "did not end in order", "may still accept", "panicked", "cannot be"] {
        assert!(!log.contains(bad), "{bad}: {log}");
    }
}

#[test]
fn an_upgrade_that_fails_changes_nothing() {
    let mut installed = Installed::start();
    let mut kept = PlainConnection::open(installed.admin).unwrap();
    let pair = |name: &str| fs::read_to_string(installed.site.path(name)).unwrap();
    let ssl =
        json!({"cert": pair("pki/push-server.crt"), "key": pair("pki/push-server.key"), "snis": ["a.test"]});
    assert_eq!(kept.call("PUT", "ssls/1", KEY, Some(&ssl)).unwrap().status, 201);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let busy = taken.local_addr().unwrap().to_string();

    installed.install(Some("exit 3"));
    installed.upgrade_fails(&["exit status: 3"]);
    installed.install(None);
    let settings = &installed.site;
    settings.with("/apisix", json!({"enable_admn": true}));
    let (done, text) = installed.command("upgrade");
    assert!(!done && text.contains("enable_admn"), "{text}");
    // Until here the predecessor had paused nothing.
    assert_eq!(kept.call("GET", "routes", KEY, None).unwrap().status, 200);
    // These fail after it has closed the store.
    settings.with("/apisix/data_encryption/keyring", json!(["another-key-16by"]));
    installed.upgrade_fails(&["1 of 1 private keys in the store"]);
    settings.with("/countersign/push/listen", json!(busy));
    installed.upgrade_fails(&["countersign.push.listen", "another program listens there"]);
    assert_eq!(installed.call("PUT", "ssls/2", Some(&ssl)).0, 201);
    assert_eq!(installed.call("GET", "ssls/1", None).0, 200);
    settings.config();
    let before = installed.pid;
    installed.upgrade();
    assert_eq!(installed.call("GET", "ssls/2", None).0, 200);
    Installed::wait_ended(before);
    // By a signal, too; the socket of the new process answers.
    let before = installed.pid;
    installed.signal(Signal::SIGUSR2);
    Installed::wait_ended(before);
    let (done, text) = installed.command("reload");
    assert!(done && text.contains("no setting has changed"), "{text}");
    let (_, upgraded) = installed.command("upgrade");
    installed.pid = upgraded.split(' ').nth(5).unwrap().parse().unwrap();
    let log = installed.log();
    assert_eq!(log.matches("this process serves on as before").count(), 4, "{log}");
}

#[test]
fn a_second_upgrade_waits_for_its_turn() {
    let mut installed = Installed::start();
    let file = installed.site.path("successor");
    installed.install(Some(&format!("echo $$ > {0}.new && mv {0}.new {0}; exec sleep 600", file.display())));
    std::thread::scope(|scope| {
        let first = scope.spawn(|| installed.command("upgrade"));
        while !file.exists() {
            std::thread::yield_now();
        }
        let (done, text) = installed.command("upgrade");
        assert!(!done && text.contains("an upgrade is under way"), "{text}");
        // Requests are served meanwhile, and a successor that hangs does not stay.
        assert_eq!(installed.call("GET", "routes", None).0, 200);
        let successor = fs::read_to_string(&file).unwrap().trim().parse().unwrap();
        kill(Pid::from_raw(successor), Signal::SIGKILL).unwrap();
        let (done, text) = first.join().unwrap();
        assert!(!done && text.contains("ended before it had started, with signal: 9"), "{text}");
    });
    installed.install(None);
    installed.upgrade();
    assert_eq!(installed.call("GET", "routes", None).0, 200);
    let log = installed.log();
    assert!(!log.contains("panicked"), "{log}");
}

#[test]
fn settings_that_need_an_upgrade_get_one() {
    let mut installed = Installed::start();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    installed.site.settings["countersign"]["push"]["listen"] = json!(free.to_string());
    installed.site.settings["deployment"]["admin"]["admin_listen"].as_array_mut().unwrap().pop();
    installed.site.settings["deployment"]["admin"]["admin_api_mtls"]["admin_ssl_ca_cert"] = json!("");
    installed.site.config();
    let (done, text) = installed.command("reload");
    assert!(
        done && text.contains("(`controlplane upgrade`), and are as before: countersign.push.listen"),
        "{text}"
    );
    assert!(std::net::TcpStream::connect(free).is_err());
    let before = installed.first.as_ref().unwrap().admin()[1];
    let former_push = installed.first.as_ref().unwrap().ready["push"].as_str().unwrap().to_owned();
    installed.upgrade();
    std::net::TcpStream::connect(free).unwrap();
    assert_eq!(installed.call("GET", "routes", None).0, 200);
    // What the new settings do not have is closed once the old process has ended.
    let first = installed.first.as_ref().unwrap().child.id().try_into().unwrap();
    Installed::wait_ended(first);
    for gone in [before, former_push.parse().unwrap()] {
        assert!(std::net::TcpStream::connect(gone).is_err(), "{gone}");
    }
    let log = installed.log();
    assert!(!log.contains("panicked"), "{log}");
}

#[test]
fn commands_without_a_running_program_say_so() {
    let site = Site::new();
    for verb in ["reload", "upgrade"] {
        let output = program().args([verb, "-c"]).arg(site.config()).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1));
        assert!(
            text.contains("controlplane.sock") && text.contains("the control plane does not run"),
            "{text}"
        );
    }
}

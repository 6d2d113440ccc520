//! The life of the Debian packages on a machine: installed, started as the units do, upgraded over
//! themselves, removed, purged.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};

use e2e::peers;

use super::build::{PACKAGES, VERSIONS, build, packages};
use super::machine::Machine;
use super::unit_file::UnitFile;

const CONFIG: &str = "/etc/countersign/config.yaml";

/// A service, started as its unit would start it.
struct Service(Child);

impl Service {
    /// Waits for the ready line.
    fn start(machine: &Machine, plane: &str) -> Self {
        let unit =
            UnitFile::parse(&machine.run(&format!("cat /lib/systemd/system/countersign-{plane}.service")));
        let (user, command) = (unit.one("User"), unit.one("ExecStart"));
        let log = format!("/var/log/{plane}.test.log");
        // What User=, AmbientCapabilities=, NoNewPrivileges= and UMask= do.
        let mut child = machine
            .command(&format!(
                "umask {}; exec setpriv --reuid={user} --regid={user} --init-groups --no-new-privs --inh-caps=-all,+net_bind_service \
                 --ambient-caps=+net_bind_service --bounding-set=-all,+net_bind_service {command} 2>>{log}",
                unit.one("UMask"),
            ))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let log = || machine.run(&format!("cat {log}"));
        assert!(line.starts_with("ready {"), "{plane} is not ready: {line}{}", log());
        Self(child)
    }

    fn is_running(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }
}

/// Installs all packages of a version.
fn install(machine: &Machine, folder: &std::path::Path) {
    let archive = |package: &&str| {
        let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let mut found = entries.filter(|path| path.extension().is_some_and(|extension| extension == "deb"));
        let is_it = |path: &std::path::PathBuf| path.to_str().unwrap().contains(*package);
        found.find(is_it).unwrap_or_else(|| panic!("no {package} in {}", folder.display()))
    };
    // The folder is a part of the copy of this machine, except for /tmp.
    let script: Vec<_> = PACKAGES.iter().map(archive).collect();
    machine.run("mkdir -p /run/debs");
    for path in script {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let file = fs::File::open(&path).unwrap();
        let mut copy = machine.command(&format!("cat >/run/debs/{name}"));
        assert!(copy.stdin(file).status().unwrap().success());
    }
    machine.run("DEBIAN_FRONTEND=noninteractive dpkg -i /run/debs/*.deb && rm -r /run/debs");
}

#[test]
fn installed_started_upgraded_removed_and_purged() {
    if peers::installed("dpkg-deb").is_none() {
        return;
    }
    let Some(machine) = Machine::copy_of_this() else { return };
    install(&machine, packages());
    nothing_runs_before_pki_init(&machine);
    what_is_installed_is_usable(&machine);

    machine.run(&format!("runuser -u countersign -- controlplane pki init -c {CONFIG}"));
    for plane in ["controlplane", "dataplane"] {
        conditions(&machine, plane).iter().for_each(|path| {
            machine.run(&format!("test -e {path}"));
        });
    }
    let mut services = ["controlplane", "dataplane"].map(|plane| Service::start(&machine, plane));
    configure(&machine);
    serves(&machine);

    // A new version beside running programs, with settings that were changed.
    machine.run(&format!("echo '# changed here' >>{CONFIG}"));
    let next = build(VERSIONS[1]);
    install(&machine, next.path());
    assert_eq!(machine.run("dpkg-query -W -f '${Version}' countersign-dataplane"), VERSIONS[1]);
    machine.run(&format!("grep -q 'changed here' {CONFIG}"));
    assert!(services.iter_mut().all(Service::is_running), "a package upgrade ends nothing by itself");
    serves(&machine);
    drop(next);

    // The programs on disk take over, as the packages' scripts have it where systemd runs.
    machine.run("countersign upgrade");
    for service in &mut services {
        service.0.wait().unwrap();
    }
    serves(&machine);
    machine.run("countersign stop");
    machine.run("dpkg --remove countersign-dataplane countersign-controlplane countersign-common");
    machine
        .run("! test -e /usr/bin/dataplane && ! test -e /lib/systemd/system/countersign-dataplane.service");
    machine.run(&format!("test -e {CONFIG} && test -e /var/lib/countersign/controlplane/store.redb"));
    let purged =
        machine.run("dpkg --purge countersign-dataplane countersign-controlplane countersign-common");
    assert!(purged.contains("/etc/countersign/pki is kept"), "{purged}");
    machine.run(&format!(
        "! test -e {CONFIG} && ! test -e /var/lib/countersign && ! test -e /var/log/countersign"
    ));
    machine.run("test -e /etc/countersign/pki/keyring");
}

/// The files without which a unit does not start.
fn conditions(machine: &Machine, plane: &str) -> Vec<String> {
    let unit = UnitFile::parse(&machine.run(&format!("cat /lib/systemd/system/countersign-{plane}.service")));
    unit.all("ConditionPathExists").into_iter().map(str::to_owned).collect()
}

fn nothing_runs_before_pki_init(machine: &Machine) {
    for plane in ["controlplane", "dataplane"] {
        machine.run(&format!("! pgrep -x {plane}"));
        machine.run(&format!("! find /etc/systemd/system -name 'countersign-{plane}*' | grep ."));
        let conditions = conditions(machine, plane);
        assert!(!conditions.is_empty());
        conditions.iter().for_each(|path| {
            machine.run(&format!("! test -e {path}"));
        });
    }
}

fn what_is_installed_is_usable(machine: &Machine) {
    let mode = |path: &str| machine.run(&format!("stat -c '%A %U %G' {path}"));
    assert_eq!(mode("/etc/countersign/pki"), "drwxr-x--- countersign countersign\n");
    assert_eq!(mode("/var/lib/countersign/controlplane"), "drwx------ countersign countersign\n");
    assert_eq!(mode("/var/lib/countersign/dataplane"), "drwx------ countersign countersign\n");
    assert_eq!(mode("/var/log/countersign"), "drwxr-x--- countersign countersign\n");
    assert_eq!(mode("/usr/bin/dataplane"), "-rwxr-xr-x root root\n");
    let shell = machine.run("getent passwd countersign");
    assert!(shell.trim().ends_with("/usr/sbin/nologin"), "{shell}");
    let page = machine.run("zcat /usr/share/man/man1/dataplane.1.gz");
    assert!(page.contains(".TH dataplane 1") && page.contains("accept\\-new\\-store"), "{page}");
    machine.run("test -e /usr/share/man/man1/controlplane-admin.1.gz");
    for plane in ["controlplane", "dataplane"] {
        let script = format!("source /usr/share/bash-completion/completions/{plane} && complete -p {plane}");
        assert!(machine.run(&script).contains("complete"));
    }
    let conffiles = machine.run("dpkg-query -W -f '${Conffiles}' countersign-common");
    assert!(conffiles.contains(CONFIG) && conffiles.contains("/etc/logrotate.d/countersign"), "{conffiles}");
    machine.run("dpkg --verify countersign-common countersign-controlplane countersign-dataplane");
}

/// A site for clients with certificates, and a route to the data plane's own status port.
fn configure(machine: &Machine) {
    machine.run(&format!(
        "cd /etc/countersign/pki
         pki() {{ controlplane pki issue \"$@\"; }}
         pki ca 'Site CA' --out site-ca && pki ca 'Client CA' --out client-ca
         pki server app.example --ca site-ca --out site && pki client alice --ca client-ca --out alice
         controlplane admin -c {CONFIG} put ssls/1 -f - <<END
{{\"snis\": [\"app.example\"], \"cert\": \"$(cat site.crt)\", \"key\": \"$(cat site.key)\",
 \"client\": {{\"ca\": \"$(cat client-ca.crt)\", \"depth\": 1}}}}
END
         controlplane admin -c {CONFIG} put routes/1 --wait 10 \
            --json '{{\"host\": \"app.example\", \"uri\": \"/*\", \"upstream\": {{\"nodes\": {{\"127.0.0.1:7085\": 1}}}}}}'"
    ));
}

fn serves(machine: &Machine) {
    let curl = "cd /etc/countersign/pki && curl -sS --max-time 60 --cacert site-ca.crt --resolve app.example:9443:127.0.0.1";
    let ok = machine.run(&format!("{curl} --cert alice.crt --key alice.key https://app.example:9443/status"));
    assert!(ok.contains("\"status\":\"ok\""), "{ok}");
    assert!(!machine.try_run(&format!("{curl} https://app.example:9443/status")).success, "no certificate");
}

//! The environment of the demo: its folder, the certificates, and the running programs.
//!
//! Invariant: the folder is locked while the demo runs, and nothing runs after it was stopped.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail, ensure};
use data_encoding::HEXLOWER;
use pki::ca::{Authority, LeafSpec};
use rustls::pki_types::UnixTime;
use serde_json::Value;

use super::{DemoPorts, Tally, shell};
use crate::credentials::Credential;
use crate::process::{Launch, Log, Process, program, run_to_end};
use crate::upstream::Upstream;

/// Marks a folder that the demo made and may empty.
const MARK: &str = ".countersign-demo";

pub(super) struct Environment {
    dir: PathBuf,
    config: PathBuf,
    ports: DemoPorts,
    admin_key: String,
    environment: Vec<(String, String)>,
    control: Option<Process>,
    node: Option<Process>,
    upstreams: Vec<Upstream>,
    /// Locked while the demo runs.
    _taken: File,
}

impl Environment {
    /// Makes the certificates and starts everything.
    pub(super) async fn start(dir: &Path, ports: DemoPorts) -> anyhow::Result<Self> {
        for (port, variable) in ports.named() {
            TcpListener::bind(("127.0.0.1", port)).with_context(|| {
                format!(
                    "port {port} cannot be used; choose another, for example `make demo {variable}={}`",
                    port ^ 0x4000
                )
            })?;
        }
        let config =
            fs::canonicalize("conf/config.yaml").context("run the demo from the top of the repository")?;
        let taken = claim_folder(dir)?;
        let admin_key = random_key()?;
        let absolute = fs::canonicalize(dir)?;
        let environment = environment(&absolute, &ports, &admin_key);
        let mut demo = Self {
            dir: dir.to_owned(),
            config,
            ports,
            admin_key,
            environment,
            control: None,
            node: None,
            upstreams: Vec::new(),
            _taken: taken,
        };
        demo.make_certificates().await?;
        demo.start_upstreams().await?;
        demo.start_control().await?;
        demo.node = Some(demo.start_program("dataplane").await?);
        Ok(demo)
    }

    async fn make_certificates(&self) -> anyhow::Result<()> {
        let pki = self.file("");
        let pki = pki.trim_end_matches('/');
        let commands = [
            format!("pki init --dir {pki} --admin-name admin.example --node-name dataplane"),
            format!("pki issue ca SiteCA --out {pki}/site-ca"),
            format!("pki issue ca ClientCA --out {pki}/client-ca"),
            format!("pki issue ca OtherCA --out {pki}/other-ca"),
            format!("pki issue ca UpstreamCA --out {pki}/upstream-ca"),
            format!("pki issue server app.example --ca {pki}/site-ca --out {pki}/site"),
            format!("pki issue client alice --ca {pki}/client-ca --out {pki}/alice"),
            format!("pki issue client mallory --ca {pki}/other-ca --out {pki}/mallory"),
            format!("pki issue server strict.example --ca {pki}/upstream-ca --out {pki}/strict"),
            format!("pki issue client the-gateway --ca {pki}/upstream-ca --out {pki}/gateway"),
            format!("pki issue ca EtcdCA --out {pki}/etcd-ca"),
            format!("pki issue ca EtcdClientCA --out {pki}/etcd-client-ca"),
            format!("pki issue server localhost 127.0.0.1 --ca {pki}/etcd-ca --out {pki}/etcd-server"),
            format!("pki issue client controlplane --ca {pki}/etcd-client-ca --out {pki}/etcd-client"),
        ];
        println!("Making certificates with `controlplane pki` ...");
        for command in &commands {
            let arguments: Vec<&str> = command.split(' ').collect();
            let ended = run_to_end("controlplane", &arguments, Path::new(".")).await;
            ensure!(ended.status.success(), "controlplane {command} failed:\n{}", ended.stderr);
        }
        // `pki` makes no expired certificate, and the demo needs one.
        let authority = Authority::from_pem(&self.read("client-ca.crt")?, &self.read("client-ca.key")?)?;
        let past =
            SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)? - Duration::from_secs(10 * 86_400);
        let expired =
            authority.issue(&LeafSpec::client("old-alice").valid(UnixTime::since_unix_epoch(past), 9))?;
        fs::write(self.file("expired.crt"), &expired.chain_pem)?;
        fs::write(self.file("expired.key"), expired.key_pem.as_bytes())?;
        Ok(())
    }

    async fn start_upstreams(&mut self) -> anyhow::Result<()> {
        let strict =
            Credential { certificate_pem: self.read("strict.crt")?, key_pem: self.read("strict.key")? };
        let (plain_at, strict_at) = (local(self.ports.upstream), local(self.ports.strict_upstream));
        self.upstreams.push(Upstream::plain_at("plain", plain_at).await);
        let authority = self.read("upstream-ca.crt")?;
        self.upstreams.push(Upstream::demanding_at("strict", strict_at, &strict, &authority).await);
        Ok(())
    }

    async fn start_program(&self, name: &'static str) -> anyhow::Result<Process> {
        let log = Log::file(self.dir.join(format!("{name}.log")));
        let launch = Launch::new(name, &self.config).environment(&self.environment);
        launch.try_start(&log).await.map_err(anyhow::Error::msg)
    }

    /// Starts the control plane, also after [`Environment::kill_control`].
    pub(super) async fn start_control(&mut self) -> anyhow::Result<()> {
        self.control = Some(self.start_program("controlplane").await?);
        Ok(())
    }

    /// `kill -9` of the control plane.
    pub(super) async fn kill_control(&mut self) {
        if let Some(control) = self.control.take() {
            control.kill_9().await;
        }
    }

    /// 0 while it is down.
    pub(super) fn control_id(&self) -> u32 {
        self.control.as_ref().map_or(0, Process::id)
    }

    /// A path in the PKI folder, as printed.
    pub(super) fn file(&self, name: &str) -> String {
        self.dir.join("pki").join(name).display().to_string()
    }

    /// A path in the demo's folder, as printed.
    pub(super) fn path(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }

    /// The text of a file of the PKI folder.
    pub(super) fn read(&self, name: &str) -> anyhow::Result<String> {
        fs::read_to_string(self.file(name)).with_context(|| format!("cannot read {}", self.file(name)))
    }

    /// A file of the PKI folder as a JSON text within a single-quoted argument.
    pub(super) fn json_of(&self, name: &str) -> String {
        format!("\"'\"$(cat {})\"'\"", self.file(name))
    }

    /// A curl command for the Admin API; `more` comes before the URL.
    pub(super) fn admin(&self, more: &str, path: &str) -> String {
        self.admin_at(self.ports.admin, more, path)
    }

    /// The same for the control plane at this port.
    pub(super) fn admin_at(&self, port: u16, more: &str, path: &str) -> String {
        let certificate =
            format!("--cert {} --key {}", self.file("admin-client.crt"), self.file("admin-client.key"));
        let key = format!("-H 'X-API-KEY: {}'", self.admin_key);
        let options = format!("{certificate} \\\n  {key}{}{more}", if more.is_empty() { "" } else { " " });
        self.admin_command(port, &options, path)
    }

    /// The same with these credentials.
    pub(super) fn admin_with(&self, options: &str, path: &str) -> String {
        self.admin_command(self.ports.admin, options, path)
    }

    fn admin_command(&self, port: u16, options: &str, path: &str) -> String {
        let between = if options.is_empty() { String::new() } else { format!(" {options}") };
        format!(
            "curl --cacert {}{between} \\\n  --resolve admin.example:{port}:127.0.0.1 https://admin.example:{port}/apisix/admin/{path}",
            self.file("admin-ca.crt"),
        )
    }

    pub(super) fn admin_key(&self) -> &str {
        &self.admin_key
    }

    pub(super) fn etcd_port(&self) -> u16 {
        self.ports.etcd
    }

    pub(super) fn key_header(&self) -> String {
        format!("-H 'X-API-KEY: {}'", self.admin_key)
    }

    /// A curl command for the protected site.
    pub(super) fn site(&self, options: &str, path: &str) -> String {
        let port = self.ports.https;
        let between = if options.is_empty() { String::new() } else { format!(" {options}") };
        format!(
            "curl --cacert {}{between} \\\n  --resolve app.example:{port}:127.0.0.1 https://app.example:{port}{path}",
            self.file("site-ca.crt"),
        )
    }

    /// curl's options for one of the clients.
    pub(super) fn client(&self, name: &str) -> String {
        format!("--cert {} --key {}", self.file(&format!("{name}.crt")), self.file(&format!("{name}.key")))
    }

    /// Waits until the data plane serves everything written so far.
    pub(super) async fn wait_acknowledged(&self) -> anyhow::Result<()> {
        let fleet = shell::run(&self.admin("", "dataplanes")).await?;
        let fleet: Value =
            serde_json::from_str(fleet.body()).context("the Admin API lists the data planes")?;
        let revision = fleet["revision"].as_u64().context("the fleet has a revision")?;
        let waited = self.admin("", &format!("'dataplanes?acknowledged={revision}&timeout=20'"));
        let settled = shell::run(&waited).await?;
        let body: Value = serde_json::from_str(settled.body())?;
        let acknowledged = body["list"][0]["acknowledged"].as_u64();
        ensure!(
            acknowledged >= Some(revision),
            "the data plane did not follow to revision {revision}: {body}"
        );
        Ok(())
    }

    /// The addresses of both upstreams: plain, strict.
    pub(super) fn upstreams(&self) -> (String, String) {
        (local(self.ports.upstream).to_string(), local(self.ports.strict_upstream).to_string())
    }

    pub(super) fn print_overview(&self) {
        let ready = self.node.as_ref().map(Process::ready).cloned().unwrap_or_default();
        let driver = ready["driver"].as_str().unwrap_or("?").to_owned();
        println!(
            "  control plane  Admin API 127.0.0.1:{} (mTLS)   push 127.0.0.1:{} (mTLS)   log {}",
            self.ports.admin,
            self.ports.push,
            self.path("controlplane.log")
        );
        println!(
            "  data plane     HTTP 127.0.0.1:{}   HTTPS 127.0.0.1:{}   {driver}, {} workers   log {}",
            self.ports.http,
            self.ports.https,
            ready["workers"],
            self.path("dataplane.log")
        );
        println!("  upstreams      127.0.0.1:{} plain HTTP", self.ports.upstream);
        println!(
            "                 127.0.0.1:{} TLS, demands a client certificate",
            self.ports.strict_upstream
        );
    }

    /// Prints some commands to try.
    pub(super) fn print_suggestions(&self, shown: &Tally) {
        println!("\n{shown}. Everything keeps running; try, in another terminal:\n");
        shell::print_command(&self.site(&format!("--http2 {}", self.client("alice")), "/anything"));
        shell::print_command(&self.site(&self.client("alice"), "/strict/hello"));
        shell::print_command(&self.site(&self.client("mallory"), "/anything"));
        shell::print_command(&self.admin("", "routes"));
        shell::print_command(&self.admin("", "dataplanes"));
        shell::print_command(&format!("curl http://127.0.0.1:{}/metrics", self.ports.status));
        shell::print_command(&format!(
            "{} pki show {}",
            program_path("controlplane"),
            self.file("alice.crt")
        ));
        println!("\nCtrl-C stops all of it.");
    }

    /// Waits for Ctrl-C, SIGTERM, or the end of a program.
    pub(super) async fn until_interrupted(&mut self) -> anyhow::Result<()> {
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        let (Some(control), Some(node)) = (&mut self.control, &mut self.node) else { bail!("nothing runs") };
        let ended = tokio::select! {
            interrupted = tokio::signal::ctrl_c() => return interrupted.map_err(Into::into),
            _ = terminate.recv() => return Ok(()),
            status = control.wait() => ("control plane", status),
            status = node.wait() => ("data plane", status),
        };
        // On a terminal Ctrl-C ends the programs, too.
        ensure!(
            ended.1.success(),
            "the {} ended with {}; see its log in {}",
            ended.0,
            ended.1,
            self.dir.display()
        );
        Ok(())
    }

    pub(super) async fn stop(&mut self) {
        for process in [self.node.take(), self.control.take()].into_iter().flatten() {
            process.stop_if_running().await;
        }
        self.upstreams.clear();
    }
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// A program's path relative to the repository.
pub(super) fn program_path(name: &str) -> String {
    let path = program(name);
    let here = std::env::current_dir().unwrap_or_default();
    path.strip_prefix(&here).unwrap_or(&path).display().to_string()
}

/// Empties the demo's folder and locks it; any other folder, or that of a running demo, is an
/// error.
fn claim_folder(dir: &Path) -> anyhow::Result<File> {
    let mark = dir.join(MARK);
    if dir.exists() {
        let bare =
            fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?.next().is_none();
        ensure!(
            bare || mark.exists(),
            "{} is not the demo's folder; choose another with DEMO_DIR=...",
            dir.display()
        );
        if !bare && File::open(&mark)?.try_lock().is_err() {
            bail!("another demo runs in {}; give this one a folder with DEMO_DIR=...", dir.display());
        }
        fs::remove_dir_all(dir).with_context(|| format!("cannot empty {}", dir.display()))?;
    }
    fs::create_dir_all(dir.join("data")).with_context(|| format!("cannot make {}", dir.display()))?;
    fs::write(&mark, "made by `make demo`, emptied at its next start\n")?;
    let taken = File::open(&mark)?;
    taken.try_lock().with_context(|| format!("cannot take {}", dir.display()))?;
    Ok(taken)
}

fn random_key() -> anyhow::Result<String> {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| anyhow::anyhow!("the system gives no random bytes"))?;
    Ok(HEXLOWER.encode(&bytes))
}

/// The variables in conf/config.yaml.
fn environment(dir: &Path, ports: &DemoPorts, admin_key: &str) -> Vec<(String, String)> {
    let folder = |name: &str| dir.join(name).display().to_string();
    [
        ("COUNTERSIGN_PKI", folder("pki")),
        ("COUNTERSIGN_DATA", folder("data")),
        ("COUNTERSIGN_ADMIN_KEY", admin_key.to_owned()),
        ("COUNTERSIGN_ADMIN_PORT", ports.admin.to_string()),
        ("COUNTERSIGN_PUSH_PORT", ports.push.to_string()),
        ("COUNTERSIGN_HTTP_PORT", ports.http.to_string()),
        ("COUNTERSIGN_HTTPS_PORT", ports.https.to_string()),
        ("COUNTERSIGN_STATUS_PORT", ports.status.to_string()),
        // Any port: no scenario needs it.
        ("COUNTERSIGN_CONTROL_STATUS_PORT", "0".to_owned()),
        ("COUNTERSIGN_NODE", "dataplane".to_owned()),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value))
    .collect()
}

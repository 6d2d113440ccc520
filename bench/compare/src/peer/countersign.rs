//! The Countersign pair: a control plane on the load's core, a data plane with one worker on the measured core.
//!
//! Configured as a user would: settings in one file, resources through the Admin API over mTLS. Only the data plane
//! is measured; the control plane is not on any request's way.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use pki::mint::Minted;
use serde_json::{Value, json};

use super::admin::Admin;
use super::child::{Server, version_line};
use super::credentials::Credentials;
use super::{Cores, HOST, Installed, Kind, PROXIED, PROXIED_MTLS, Peer, PeerError, RSA_HOST, Stage, program};
use crate::identity::ClientIdentity;
use crate::target::Target;

/// The two programs.
#[derive(Clone)]
pub struct Programs {
    control: PathBuf,
    data: PathBuf,
}

impl Programs {
    /// Looks for them in a folder, by default the one this program is in.
    ///
    /// # Errors
    /// Missing: says how to build them.
    pub fn find(folder: Option<&Path>) -> Result<Self, PeerError> {
        let own = program::own_folder()?;
        // They run in another folder than we do.
        let folder = std::path::absolute(folder.unwrap_or(&own))
            .map_err(PeerError::system("asking for the current folder"))?;
        let find = |name: &str| {
            let path = folder.join(name);
            if path.is_file() {
                return Ok(path);
            }
            let hint = format!(
                "{} is not built; run `cargo build --release -p controlplane -p dataplane`, or say where it is with --bin-dir",
                path.display()
            );
            Err(PeerError::Missing { peer: Kind::Countersign, hint })
        };
        Ok(Self { control: find("controlplane")?, data: find("dataplane")? })
    }
}

impl Installed for Programs {
    fn kind(&self) -> Kind {
        Kind::Countersign
    }

    fn version(&self) -> String {
        version_line(&self.data, "--version").unwrap_or_else(|| "unknown".to_owned())
    }

    fn start(&self, stage: &Stage<'_>) -> Result<Box<dyn Peer>, PeerError> {
        let pair = Countersign::start(self, stage.folder, stage.cores, stage.credentials)?;
        stage.runtime.block_on(async {
            pair.configure(stage.credentials, stage.upstreams.plain).await?;
            pair.configure_more(stage.credentials, stage.upstreams.mtls).await
        })?;
        Ok(Box::new(pair))
    }
}

/// A running pair.
pub struct Countersign {
    programs: Programs,
    folder: PathBuf,
    cores: Cores,
    key: String,
    operator: Arc<ClientIdentity>,
    admin: Target,
    // Dropped in this order: the data plane first, so that it does not log a lost control plane.
    data: Server,
    address: SocketAddr,
    control: Server,
}

impl Countersign {
    /// Starts both in a folder of their own. Nothing is configured yet, so nothing is served.
    ///
    /// # Errors
    /// When one of them does not become ready.
    pub fn start(
        programs: &Programs,
        folder: &Path,
        cores: Cores,
        credentials: &Credentials,
    ) -> Result<Self, PeerError> {
        credentials.write_planes(folder)?;
        let key = format!("bench-{}-{:?}", std::process::id(), std::time::Instant::now())
            .replace(|character: char| !character.is_ascii_alphanumeric(), "");
        let control_path = write_settings(folder, "control", &key, "127.0.0.1:0")?;
        let (control, ready) = spawn(&programs.control, folder, &control_path, cores.load, &[])?;
        let admin_address: SocketAddr = address_in(&ready, "admin")?;
        let push: SocketAddr = address_in(&ready, "push")?;
        write_settings(folder, "data", &key, &push.to_string())?;
        let admin = Target::parse(&format!("https://{admin_address}/"), Some("admin.test"), false)
            .map_err(|error| PeerError::Admin(error.to_string()))?;
        let (data, address) = spawn_data(programs, folder, cores)?;
        Ok(Self {
            programs: programs.clone(),
            folder: folder.to_owned(),
            cores,
            key,
            operator: credentials.operator()?,
            admin,
            data,
            address,
            control,
        })
    }

    /// A new connection to the Admin API.
    ///
    /// # Errors
    /// Never in practice: what was minted is readable.
    pub fn admin(&self) -> Result<Admin, PeerError> {
        Admin::new(&self.admin, &self.operator, &self.key)
    }

    /// PUTs the site and the route to the plain upstream, and waits until the data plane has them.
    ///
    /// # Errors
    /// When the Admin API refuses or the data plane does not acknowledge.
    pub async fn configure(&self, credentials: &Credentials, plain: SocketAddr) -> Result<(), PeerError> {
        let mut admin = self.admin()?;
        admin.put("ssls/bench", &site_document(credentials, HOST)?).await?;
        let revision = admin.put("routes/bench", &route_document(plain)).await?;
        admin.wait_acknowledged(revision).await
    }

    /// The rest of what every peer serves: the name with an RSA certificate, and the route to the mTLS upstream.
    ///
    /// # Errors
    /// As [`Self::configure`].
    pub async fn configure_more(&self, credentials: &Credentials, mtls: SocketAddr) -> Result<(), PeerError> {
        let mut admin = self.admin()?;
        admin.put("ssls/bench-rsa", &document(credentials, RSA_HOST, &credentials.rsa_site()?)).await?;
        let gateway = credentials.gateway();
        let shown =
            json!({"client_cert": gateway.chain_pem, "client_key": gateway.key_pem.as_str(), "verify": true});
        let upstream = program::with(upstream("https", mtls), "tls", shown);
        let revision = admin.put("routes/bench-mtls", &route(PROXIED_MTLS, upstream)).await?;
        admin.wait_acknowledged(revision).await
    }

    /// The control plane's process, which is not measured.
    pub fn control_pid(&self) -> u32 {
        self.control.pid()
    }

    /// Ends the data plane; [`Self::start_data`] starts it again.
    pub fn stop_data(&mut self) {
        self.data.stop();
    }

    /// Starts the data plane, with or without the last good snapshot it left, and gives the moment it was started.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn start_data(&mut self, forget: bool) -> Result<std::time::Instant, PeerError> {
        self.data.stop();
        if forget {
            match std::fs::remove_file(self.folder.join("last_good.snapshot")) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(PeerError::system("removing the last good snapshot")(error));
                }
                _ => {}
            }
        }
        (self.data, self.address) = spawn_data(&self.programs, &self.folder, self.cores)?;
        Ok(self.data.started)
    }
}

impl Peer for Countersign {
    fn kind(&self) -> Kind {
        Kind::Countersign
    }

    fn address(&self) -> SocketAddr {
        self.address
    }

    fn server(&self) -> &Server {
        &self.data
    }

    fn restart(&mut self) -> Result<(), PeerError> {
        self.start_data(false).map(drop)
    }
}

/// An `ssl` document for one name, demanding client certificates from the run's client authority.
///
/// # Errors
/// When the name cannot be expressed.
pub fn site_document(credentials: &Credentials, name: &str) -> Result<Value, PeerError> {
    Ok(document(credentials, name, &credentials.site(name)?))
}

/// The same for a certificate that is there already.
pub fn document(credentials: &Credentials, name: &str, minted: &Minted) -> Value {
    json!({
        "cert": minted.chain_pem,
        "key": minted.key_pem.as_str(),
        "snis": [name],
        "client": {"ca": credentials.client_ca_pem(), "depth": 1},
    })
}

/// The route to the plain upstream that every peer serves.
pub fn route_document(plain: SocketAddr) -> Value {
    route(PROXIED, upstream("http", plain))
}

fn route(uri: &str, upstream: Value) -> Value {
    json!({"uri": uri, "hosts": [HOST, RSA_HOST], "upstream": upstream})
}

fn upstream(scheme: &str, address: SocketAddr) -> Value {
    json!({
        "type": "roundrobin",
        "scheme": scheme,
        "nodes": {address.to_string(): 1},
        "keepalive_pool": {"size": 320, "idle_timeout": 60, "requests": 1_000_000_000},
    })
}

fn spawn_data(programs: &Programs, folder: &Path, cores: Cores) -> Result<(Server, SocketAddr), PeerError> {
    let path = folder.join("data.yaml");
    let (data, ready) = spawn(&programs.data, folder, &path, cores.server, &[])?;
    // A worker may choose its core itself; here there is only one to choose.
    crate::process::pin_process(data.pid(), cores.server)
        .map_err(PeerError::system("pinning the data plane"))?;
    let address = ready.get("https").and_then(|list| list.get(0)).and_then(Value::as_str);
    let address = address.and_then(|text| text.parse().ok());
    let address = address
        .ok_or_else(|| PeerError::Admin(format!("the data plane's ready line names no https: {ready}")))?;
    Ok((data, address))
}

fn spawn(
    program: &Path,
    folder: &Path,
    settings: &Path,
    cpu: usize,
    arguments: &[&str],
) -> Result<(Server, Value), PeerError> {
    let mut command = Command::new(program);
    command.arg("-c").arg(settings).args(arguments).current_dir(folder);
    command.stdout(Stdio::piped()).env("RUST_LOG", "warn");
    let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut server = Server::spawn(command, cpu, &folder.join(format!("{name}.log")))?;
    let ready = server.wait_ready()?;
    Ok((server, ready))
}

fn address_in(ready: &Value, listener: &str) -> Result<SocketAddr, PeerError> {
    let address = ready.get(listener).and_then(Value::as_str).and_then(|text| text.parse().ok());
    address.ok_or_else(|| {
        PeerError::Admin(format!("the control plane's ready line names no {listener}: {ready}"))
    })
}

/// JSON is YAML: the file needs no printer of its own. One worker, session tickets on, nothing closed early.
fn write_settings(folder: &Path, name: &str, key: &str, push: &str) -> Result<PathBuf, PeerError> {
    let any_port = json!({"ip": "127.0.0.1", "port": 0});
    // The control plane reads the node's block too, but dials nobody: any good address will do until it has one.
    let control_planes = [if push.ends_with(":0") { "127.0.0.1:9280" } else { push }];
    let settings = json!({
        "deployment": {"admin": {
            "admin_key": [{"name": "bench", "key": key, "role": "admin"}],
            "admin_listen": any_port,
            "https_admin": true,
            "admin_api_mtls": {
                "admin_ssl_cert": "admin.crt",
                "admin_ssl_cert_key": "admin.key",
                "admin_ssl_ca_cert": "operator-ca.crt",
            },
        }},
        "apisix": {
            "enable_ipv6": false,
            "node_listen": [any_port],
            // 16 bytes, ours alone: what this run stores is gone with its folder.
            "data_encryption": {"keyring": [format!("{key:k<16.16}")]},
            "ssl": {"listen": [any_port], "ssl_session_tickets": true, "ssl_trusted_certificate": folder.join("upstream-ca.crt")},
            "status": any_port,
        },
        "nginx_config": {"http": {"keepalive_timeout": "600s"}},
        "countersign": {
            "push": {"listen": push, "cert": "push-server.crt", "key": "push-server.key", "ca": "operator-ca.crt"},
            "control_plane": {"status": "127.0.0.1:0"},
            "store": {"path": "store.redb"},
            "node": {
                "name": "bench-node",
                "control_planes": control_planes,
                "server_name": "controlplane",
                "cert": "node.crt",
                "key": "node.key",
                "ca": "operator-ca.crt",
                "last_good": "last_good.snapshot",
            },
            "workers": 1,
        },
    });
    let path = folder.join(format!("{name}.yaml"));
    std::fs::write(&path, format!("{settings:#}\n"))
        .map_err(PeerError::system(format!("writing {}", path.display())))?;
    // It holds an admin key.
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600))
        .map_err(PeerError::system(format!("closing {}", path.display())))?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_settings_are_ones_the_programs_take() {
        let folder = tempfile::tempdir().unwrap();
        Credentials::mint().unwrap().write_planes(folder.path()).unwrap();
        for push in ["127.0.0.1:0", "127.0.0.1:41002"] {
            let path = write_settings(folder.path(), "data", "abcdefghijklmnop", push).unwrap();
            let settings = conf::load(&path).unwrap();
            assert!(settings.apisix.ssl.session_tickets);
            assert_eq!(settings.countersign.workers, 1);
            assert_eq!(settings.warnings, Vec::<String>::new());
        }
    }
}

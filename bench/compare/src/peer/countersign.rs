//! The Countersign pair: a control plane on the load's core, a data plane with one worker on the
//! measured core.
//!
//! A [`World`] of the end-to-end tests starts both programs; resources are written through the
//! Admin API over mutual TLS, as an operator would. Only the data plane is measured.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Instant;

use e2e::admin::AdminConnection;
use e2e::credentials::Credential;
use e2e::world::World;
use http::Method;
use serde_json::{Value, json};

use super::child::version_line;
use super::credentials::Credentials;
use super::{
    CALL, Cores, HOST, Installed, Kind, PROXIED, PROXIED_MTLS, Peer, PeerError, RSA_HOST, SOCKET,
    StartContext, program,
};
use crate::peer::program::Runtime;

/// The name of the data plane.
const NODE: &str = "node-1";

/// The folder with both programs.
#[derive(Clone)]
pub struct Programs(PathBuf);

impl Programs {
    /// Looks for them in a folder, by default the one of this program.
    ///
    /// # Errors
    /// [`PeerError::Missing`], with the command that builds them.
    pub fn find(folder: Option<&Path>) -> Result<Self, PeerError> {
        let own = program::own_folder()?;
        // They run in another working directory than this program.
        let folder = std::path::absolute(folder.unwrap_or(&own))
            .map_err(PeerError::system("reading the current folder"))?;
        for name in ["controlplane", "dataplane"] {
            let path = folder.join(name);
            if !path.is_file() {
                let hint = format!(
                    "{} is not built; run `cargo build --release -p controlplane -p dataplane`, \
                     or name its folder with --bin-dir",
                    path.display()
                );
                return Err(PeerError::Missing { peer: Kind::Countersign, hint });
            }
        }
        Ok(Self(folder))
    }
}

impl Installed for Programs {
    fn kind(&self) -> Kind {
        Kind::Countersign
    }

    fn version(&self) -> String {
        version_line(&self.0.join("dataplane"), "--version").unwrap_or_else(|| "unknown".to_owned())
    }

    fn start(&self, context: &StartContext<'_>) -> Result<Box<dyn Peer>, PeerError> {
        let pair = context.runtime.block_on(async {
            let pair = Countersign::start(self, context.cores, context.credentials).await?;
            pair.configure(context.credentials, context.upstreams.plain).await?;
            pair.configure_mtls(context.credentials, context.upstreams.mtls).await?;
            pair.configure_echo(context.credentials, context.upstreams.echo).await?;
            Ok::<_, PeerError>(pair)
        })?;
        Ok(Box::new(Running { pair, runtime: context.runtime.handle().clone() }))
    }
}

/// Both programs, running.
pub struct Countersign {
    world: World,
    cores: Cores,
    started: Instant,
}

impl Countersign {
    /// Starts both, without any resource.
    ///
    /// # Errors
    /// When the data plane cannot be pinned to its core.
    pub async fn start(
        programs: &Programs,
        cores: Cores,
        credentials: &Credentials,
    ) -> Result<Self, PeerError> {
        let started = Instant::now();
        let world = World::builder()
            .placed(&programs.0, cores.load, cores.server)
            .settings(settings())
            .file("bench-upstream-ca.crt", credentials.upstream_ca_pem())
            .control_environment("RUST_LOG", "warn")
            .node_environment("RUST_LOG", "warn")
            .start()
            .await;
        let pair = Self { world, cores, started };
        pair.pin()?;
        Ok(pair)
    }

    /// Where the data plane serves HTTPS.
    pub fn address(&self) -> SocketAddr {
        self.world.https()
    }

    /// The data plane's process, which is measured.
    pub fn pid(&self) -> u32 {
        self.world.node_id()
    }

    /// The control plane's process, which is not.
    pub fn control_pid(&self) -> u32 {
        self.world.control_process(0).id()
    }

    /// A new connection to the Admin API.
    ///
    /// # Errors
    /// When the handshake fails.
    pub async fn admin(&self) -> Result<Admin, PeerError> {
        let session = self.world.admin().connect().await;
        Ok(Admin(session.map_err(|failure| PeerError::Admin(failure.to_string()))?))
    }

    /// PUTs the site and the route to the plain upstream, and waits until they are served.
    ///
    /// # Errors
    /// When the Admin API rejects one of them.
    pub async fn configure(&self, credentials: &Credentials, plain: SocketAddr) -> Result<(), PeerError> {
        let mut admin = self.admin().await?;
        admin.put("ssls/bench", &site_document(credentials, HOST)).await?;
        let revision = admin.put("routes/bench", &route_document(plain)).await?;
        self.wait_acknowledged(revision).await;
        Ok(())
    }

    /// PUTs the site with an RSA certificate and the route to the mTLS upstream.
    ///
    /// # Errors
    /// As [`Self::configure`].
    pub async fn configure_mtls(&self, credentials: &Credentials, mtls: SocketAddr) -> Result<(), PeerError> {
        let mut admin = self.admin().await?;
        admin.put("ssls/bench-rsa", &document(credentials, RSA_HOST, &credentials.rsa_site())).await?;
        let upstream = verified_upstream(credentials, "https", mtls);
        let revision = admin.put("routes/bench-mtls", &route(PROXIED_MTLS, upstream)).await?;
        self.wait_acknowledged(revision).await;
        Ok(())
    }

    /// PUTs the routes for calls and sockets.
    ///
    /// # Errors
    /// As [`Self::configure`].
    pub async fn configure_echo(&self, credentials: &Credentials, echo: SocketAddr) -> Result<(), PeerError> {
        let mut admin = self.admin().await?;
        let calls = route(CALL, verified_upstream(credentials, "grpcs", echo));
        admin.put("routes/bench-call", &calls).await?;
        let sockets = route(SOCKET, verified_upstream(credentials, "https", echo));
        let sockets = program::with(sockets, "enable_websocket", json!(true));
        let revision = admin.put("routes/bench-socket", &sockets).await?;
        self.wait_acknowledged(revision).await;
        Ok(())
    }

    /// Waits until the data plane has acknowledged a revision.
    pub async fn wait_acknowledged(&self, revision: u64) {
        self.world.wait_acknowledged(revision).await;
    }

    /// Stops the data plane; [`Self::start_data`] starts it again.
    pub async fn stop_data(&mut self) {
        self.world.stop_node().await;
    }

    /// Starts the stopped data plane, with or without its last-good file, and gives the moment of
    /// the start.
    ///
    /// # Errors
    /// When the file cannot be removed, or the process cannot be pinned.
    pub async fn start_data(&mut self, forget: bool) -> Result<Instant, PeerError> {
        if forget {
            match std::fs::remove_file(self.world.last_good(NODE)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(PeerError::system("removing the last-good file")(error));
                }
                _ => {}
            }
        }
        self.started = Instant::now();
        self.world.start_node().await;
        self.pin()?;
        Ok(self.started)
    }

    /// A worker chooses a core itself; only the measured one is left to choose.
    fn pin(&self) -> Result<(), PeerError> {
        e2e::resources::pin_process(self.pid(), self.cores.server)
            .map_err(PeerError::system("pinning the data plane"))
    }
}

/// The pair as a [`Peer`], whose callers are not async.
struct Running {
    pair: Countersign,
    runtime: Runtime,
}

impl Peer for Running {
    fn kind(&self) -> Kind {
        Kind::Countersign
    }

    fn address(&self) -> SocketAddr {
        self.pair.address()
    }

    fn pid(&self) -> u32 {
        self.pair.pid()
    }

    fn command(&self) -> String {
        format!("dataplane -c {NODE}.yaml")
    }

    fn started(&self) -> Instant {
        self.pair.started
    }

    fn restart(&mut self) -> Result<(), PeerError> {
        self.runtime.block_on(async {
            self.pair.stop_data().await;
            self.pair.start_data(false).await.map(drop)
        })
    }
}

/// A connection to the Admin API that stays open.
pub struct Admin(AdminConnection);

impl Admin {
    /// PUTs a document and gives the revision of its commit.
    ///
    /// # Errors
    /// With the response, unless it is 200 or 201.
    pub async fn put(&mut self, path: &str, document: &Value) -> Result<u64, PeerError> {
        let failed = |text: String| PeerError::Admin(format!("PUT {path}: {text}"));
        let answer = self.0.call(Method::PUT, path, Some(document)).await;
        let answer = answer.map_err(|failure| failed(failure.to_string()))?;
        match answer.revision {
            Some(revision) if answer.status.is_success() => Ok(revision),
            _ => Err(failed(format!("{} {}", answer.status, answer.reply.text().trim_end()))),
        }
    }
}

/// An `ssl` document for one name that requires client certificates.
pub fn site_document(credentials: &Credentials, name: &str) -> Value {
    document(credentials, name, &credentials.site(name))
}

/// As [`site_document`], with this certificate.
pub fn document(credentials: &Credentials, name: &str, certificate: &Credential) -> Value {
    json!({
        "cert": certificate.certificate_pem,
        "key": certificate.key_pem,
        "snis": [name],
        "client": {"ca": credentials.client_ca_pem(), "depth": 1},
    })
}

/// The route to the plain upstream.
pub fn route_document(plain: SocketAddr) -> Value {
    route(PROXIED, upstream("http", plain))
}

fn route(uri: &str, upstream: Value) -> Value {
    json!({"uri": uri, "hosts": [HOST, RSA_HOST], "upstream": upstream})
}

/// An upstream that is shown the gateway's certificate, and verified.
fn verified_upstream(credentials: &Credentials, scheme: &str, address: SocketAddr) -> Value {
    let gateway = credentials.gateway();
    let tls = json!({"client_cert": gateway.certificate_pem, "client_key": gateway.key_pem, "verify": true});
    program::with(upstream(scheme, address), "tls", tls)
}

fn upstream(scheme: &str, address: SocketAddr) -> Value {
    json!({
        "type": "roundrobin",
        "scheme": scheme,
        "nodes": {address.to_string(): 1},
        "keepalive_pool": {"size": 320, "idle_timeout": 60, "requests": 1_000_000_000},
    })
}

/// One worker, session tickets on, nothing closed early.
fn settings() -> Value {
    json!({
        "apisix": {
            "ssl": {
                "ssl_session_tickets": true,
                "ssl_trusted_certificate": "bench-upstream-ca.crt",
            },
        },
        "nginx_config": {"http": {"keepalive_timeout": "600s"}},
        "countersign": {"workers": 1},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_settings_are_valid() {
        let folder = tempfile::tempdir().unwrap();
        let ca = folder.path().join("ca.crt");
        std::fs::write(&ca, Credentials::generate().upstream_ca_pem()).unwrap();
        // A relative path starts at the working directory, which is not the test's.
        let absolute = json!({"apisix": {"ssl": {"ssl_trusted_certificate": ca}}});
        let builder = World::builder().settings(settings()).settings(absolute);
        let world = builder.without_control().nodes(&[]).start().await;
        let settings = conf::load(&world.write_config(NODE)).unwrap();
        assert!(settings.apisix.ssl.session_tickets);
        assert_eq!(settings.countersign.workers, 1);
    }
}

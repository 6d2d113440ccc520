//! The control plane of one test: an Admin API on an ephemeral port over an embedded store in a
//! temporary folder, and a client.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use conf::{AdminRole, AdminTlsSettings, ClientRole, TlsVersion};
use controlplane::testing::admin::ReloadingTls;
use controlplane::testing::admin::ResponseHeaders;
use controlplane::testing::admin::{Access, AllowedAddresses, ApiKey};
use controlplane::testing::admin::{AdminApi, AdminServer, BoundListener, Limits};
use controlplane::testing::change::ChangePipeline;
use controlplane::testing::current_snapshot::{CurrentSnapshot, ListenerSettings};
use controlplane::testing::publish;
use controlplane::testing::publish::FleetStatus;
use controlplane::testing::store::{EmbeddedStore, Store};
use futures_util::future::BoxFuture;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use pki::Keyring;
use pki::ca::{Authority, AuthoritySpec, IssuedCertificate, LeafSpec};
use rustls::RootCertStore;
use rustls::pki_types::ServerName;
use serde_json::{Value, json};
use telemetry::{Heartbeat, Readiness};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

pub(crate) const KEY: &str = "edd1c9f034335f136f87ad84b625c8f1";
pub(crate) const VIEWER: &str = "4054f7cf07e344346cd3f287985e76a2";
/// The default keyring.
pub(crate) const RING: &str = "qeddd145sfvddff3";

/// Configures a world.
pub(crate) struct Builder {
    pub allow: Option<Vec<ipnet::IpNet>>,
    pub real_ip: Option<model::RealIp>,
    pub keys: bool,
    pub client_roles: Vec<ClientRole>,
    /// 0: no limit.
    pub wrong_keys_per_minute: u32,
    pub https: bool,
    /// A second listener, which speaks plain HTTP.
    pub plain_listener: bool,
    pub ca: bool,
    pub keyring: Vec<&'static str>,
    pub limits: Limits,
    pub body_timeout: Duration,
    pub versions: Vec<TlsVersion>,
    /// The data planes' plain-HTTP listener.
    pub plain: Option<SocketAddr>,
    pub streams: bool,
    pub protect_client_auth: bool,
}

impl Builder {
    pub(crate) async fn start(self) -> World {
        let folder = tempfile::tempdir().unwrap();
        let servers = Authority::root(&AuthoritySpec::new("servers")).unwrap();
        let clients = Authority::root(&AuthoritySpec::new("clients")).unwrap();
        let files = self.files(&folder, &servers, &clients);
        let tls = self.https.then(|| ReloadingTls::load(&files, &self.versions, None).unwrap());
        let store: Arc<dyn Store> = Arc::new(EmbeddedStore::open(&folder.path().join("store.redb")).unwrap());
        let keyring =
            Arc::new(Keyring::new(self.keyring.iter().map(|key| (*key).to_owned()).collect()).unwrap());
        let (stop, stopped) = watch::channel(false);
        let settings = publish::LiveSettings {
            keyring: Arc::clone(&keyring),
            allowed_names: Arc::default(),
            ticket_lifetime: None,
        };
        let (_, settings) = watch::channel(settings);
        let heartbeat = Heartbeat::new("watch", Readiness::Required);
        let following = publish::store_watcher::start(
            Arc::clone(&store),
            settings,
            "countersign.keyring_file",
            false,
            heartbeat,
            stopped.clone(),
        );
        let publish::store_watcher::WatcherHandle { latest, findings, .. } = following.await.unwrap();
        let listeners = ListenerSettings {
            versions: vec![model::TlsVersion::V12, model::TlsVersion::V13],
            plain_http: self.plain.into_iter().collect(),
            ..ListenerSettings::default()
        };
        let admin = AdminApi {
            current: CurrentSnapshot::new(latest, findings, listeners),
            keyring: Arc::clone(&keyring),
            changes: ChangePipeline::new(Arc::clone(&store), Arc::clone(&keyring))
                .with_protected_client_auth(self.protect_client_auth),
            store: Arc::clone(&store),
            access: self.access(),
            fleet: Arc::new(Fleet),
            denied: publish::DeniedNodes::load(Arc::clone(&store)).await.unwrap(),
            acceptance: publish::StoreAcceptance::start(Arc::clone(&store), stopped.clone()).await,
            headers: ResponseHeaders { server_tokens: true, cors: true },
            body_timeout: self.body_timeout,
            stream_routes_enabled: self.streams,
        };
        let mut listeners = vec![self.bind(tls).await];
        if self.plain_listener {
            listeners.push(self.bind(None).await);
        }
        let server = AdminServer::start(listeners, &Arc::new(admin), self.limits, &Arc::default()).unwrap();
        let addresses = server.addresses();
        let (address, plain_address) = (addresses[0], addresses.get(1).copied());
        let task = tokio::spawn(close_after(stopped, server));
        let identity = clients.issue(&LeafSpec::client("tester")).unwrap();
        World {
            folder,
            files,
            servers,
            clients,
            identity,
            store,
            keyring,
            address,
            plain_address,
            stop,
            task,
        }
    }

    fn files(&self, folder: &TempDir, servers: &Authority, clients: &Authority) -> AdminTlsSettings {
        let server = servers.issue(&LeafSpec::server("admin.test")).unwrap();
        let write = |name: &str, text: &str| -> PathBuf {
            let path = folder.path().join(name);
            fs::write(&path, text).unwrap();
            path
        };
        AdminTlsSettings {
            cert: write("server.crt", &server.chain_pem),
            key: write("server.pem", &server.key_pem),
            ca: self.ca.then(|| write("ca.crt", &clients.certificate_pem())),
        }
    }

    fn access(&self) -> Access {
        let keys = [
            ApiKey { name: "admin", key: KEY, role: AdminRole::Admin },
            ApiKey { name: "viewer", key: VIEWER, role: AdminRole::Viewer },
        ];
        Access::new(self.keys.then_some(&keys[..]))
            .with_client_roles(self.client_roles.clone())
            .with_wrong_keys_per_minute(self.wrong_keys_per_minute)
    }

    async fn bind(&self, tls: Option<ReloadingTls>) -> BoundListener {
        let allowed = AllowedAddresses::new(self.allow.clone(), self.real_ip.clone());
        BoundListener { listener: TcpListener::bind("127.0.0.1:0").await.unwrap(), tls, allowed }
    }
}

async fn close_after(mut stopped: watch::Receiver<bool>, server: AdminServer) {
    drop(stopped.wait_for(|stop| *stop).await);
    server.close().await;
}

/// One data plane at revision 7.
struct Fleet;

impl FleetStatus for Fleet {
    fn view(&self) -> BoxFuture<'_, Value> {
        let view = json!({"list": [{"name": "node-1", "acknowledged": 7}], "total": 1, "revision": 7});
        Box::pin(std::future::ready(view))
    }

    fn wait_acknowledged(&self, revision: u64, _: Duration) -> BoxFuture<'_, Result<Value, Value>> {
        Box::pin(async move {
            let view = self.view().await;
            if revision <= 7 { Ok(view) } else { Err(view) }
        })
    }
}

pub(crate) struct World {
    pub folder: TempDir,
    pub files: AdminTlsSettings,
    pub servers: Authority,
    pub clients: Authority,
    /// A valid client certificate.
    pub identity: IssuedCertificate,
    pub store: Arc<dyn Store>,
    pub keyring: Arc<Keyring>,
    pub address: SocketAddr,
    /// Of the second listener, if there is one.
    pub plain_address: Option<SocketAddr>,
    pub stop: watch::Sender<bool>,
    pub task: tokio::task::JoinHandle<()>,
}

impl World {
    pub(crate) fn builder() -> Builder {
        Builder {
            allow: Some(vec!["127.0.0.0/24".parse().unwrap()]),
            real_ip: None,
            keys: true,
            client_roles: Vec::new(),
            wrong_keys_per_minute: 0,
            https: true,
            plain_listener: false,
            ca: true,
            keyring: vec![RING],
            limits: Limits::default(),
            body_timeout: Duration::from_secs(30),
            versions: vec![TlsVersion::V12, TlsVersion::V13],
            plain: None,
            streams: false,
            protect_client_auth: false,
        }
    }

    pub(crate) async fn start() -> Self {
        Self::builder().start().await
    }

    /// A TLS connection with this certificate, or none.
    pub(crate) async fn connect(
        &self,
        identity: Option<&IssuedCertificate>,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        self.connect_by(identity, rustls::ALL_VERSIONS).await
    }

    pub(crate) async fn connect_by(
        &self,
        identity: Option<&IssuedCertificate>,
        versions: &[&'static rustls::SupportedProtocolVersion],
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add(self.servers.certificate().der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots);
        let config = match identity {
            None => config.with_no_client_auth(),
            Some(identity) => {
                // Skips rustls' check of the pair, which rejects v1 certificates.
                let key = identity.key().unwrap();
                let signer = provider.key_provider.load_private_key(key.der().clone_key()).unwrap();
                let chain = identity.chain.iter().map(|certificate| certificate.der().clone()).collect();
                let certified = Arc::new(rustls::sign::CertifiedKey::new(chain, signer));
                config.with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(certified)))
            }
        };
        let stream = TcpStream::connect(self.address).await?;
        let name = ServerName::try_from("admin.test").unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, stream).await
    }

    /// A request with this certificate.
    pub(crate) async fn send(
        &self,
        identity: Option<&IssuedCertificate>,
        request: Request<Full<Bytes>>,
    ) -> Response {
        exchange(self.connect(identity).await.unwrap(), request).await
    }

    /// A request with a valid certificate and the admin key.
    pub(crate) async fn call(&self, method: Method, path: &str, body: impl Into<Body>) -> Response {
        self.send(Some(&self.identity), request(method, path, Some(KEY), body.into())).await
    }

    /// As [`Self::call`], with one more header.
    pub(crate) async fn call_with(
        &self,
        (name, value): (&'static str, &str),
        method: Method,
        path: &str,
        body: impl Into<Body>,
    ) -> Response {
        let mut request = request(method, path, Some(KEY), body.into());
        request.headers_mut().insert(name, value.parse().unwrap());
        self.send(Some(&self.identity), request).await
    }

    pub(crate) async fn get(&self, path: &str) -> Response {
        self.call(Method::GET, path, "").await
    }

    pub(crate) async fn put(&self, path: &str, body: Value) -> Response {
        self.call(Method::PUT, path, body).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Response {
        self.call(Method::POST, path, body).await
    }

    pub(crate) async fn patch(&self, path: &str, body: Value) -> Response {
        self.call(Method::PATCH, path, body).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Response {
        self.call(Method::DELETE, path, "").await
    }

    /// A certificate and key for a name.
    pub(crate) fn pair(&self, name: &str) -> IssuedCertificate {
        self.servers.issue(&LeafSpec::server(name)).unwrap()
    }
}

/// The body of a request.
pub(crate) struct Body(Vec<u8>);

impl From<Value> for Body {
    fn from(value: Value) -> Self {
        Self(value.to_string().into())
    }
}

impl From<&str> for Body {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl From<String> for Body {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

/// A request below `/apisix/admin`, or to any path when it starts with two slashes.
pub(crate) fn request(method: Method, path: &str, key: Option<&str>, body: Body) -> Request<Full<Bytes>> {
    let path = path
        .strip_prefix('/')
        .filter(|path| path.starts_with('/'))
        .map_or_else(|| format!("/apisix/admin{path}"), str::to_owned);
    let mut builder = Request::builder().method(method).uri(path).header("host", "admin.test");
    if let Some(key) = key {
        builder = builder.header("X-API-KEY", key);
    }
    builder.body(Full::new(Bytes::from(body.0))).unwrap()
}

pub(crate) async fn exchange<S>(stream: S, request: Request<Full<Bytes>>) -> Response
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    let connection = tokio::spawn(connection);
    let response = sender.send_request(request).await.unwrap();
    let (head, body) = response.into_parts();
    let text = String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap();
    drop(sender);
    let _ = connection.await;
    Response { status: head.status, headers: head.headers, text }
}

#[derive(Debug)]
pub(crate) struct Response {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub text: String,
}

impl Response {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    pub(crate) fn revision(&self) -> u64 {
        self.header("x-countersign-revision").unwrap_or_else(|| panic!("{self:?}")).parse().unwrap()
    }

    /// A 400 with exactly this message.
    #[track_caller]
    pub(crate) fn assert_error(&self, message: &str) {
        assert_eq!(
            (self.status.as_u16(), self.json()["error_msg"].as_str()),
            (400, Some(message)),
            "{self:?}"
        );
    }

    #[track_caller]
    pub(crate) fn ok(self) -> Self {
        assert!(self.status.is_success(), "{self:?}");
        self
    }

    #[track_caller]
    pub(crate) fn key_not_found(&self) {
        assert_eq!(
            (self.status.as_u16(), self.json()),
            (404, json!({"message": "Key not found"})),
            "{self:?}"
        );
    }
}

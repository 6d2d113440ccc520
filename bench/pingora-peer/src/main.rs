//! A minimal mutual TLS proxy on Pingora with rustls, which `compare` measures beside the data
//! plane.
//!
//! `pingora-peer SETTINGS FOLDER LISTEN PLAIN MTLS`: Pingora's settings file, the folder of the
//! certificates, the listen address and the two upstreams. It does what every peer does and no
//! more; any error ends it.

use std::error::Error;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::listeners::tls::TlsSettings;
use pingora::prelude::{HttpPeer, ProxyHttp, Server, Session, http_proxy_service};
use pingora::protocols::ALPN;
use pingora::server::configuration::ServerConf;
use pingora::utils::tls::CertKey;
use rustls::RootCertStore;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ResolvesServerCertUsingSni, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;

const HOST: &str = "bench.test";
const RSA_HOST: &str = "rsa.bench.test";

struct Proxy {
    plain: HttpPeer,
    mtls: HttpPeer,
    port: String,
}

#[async_trait]
impl ProxyHttp for Proxy {
    type CTX = ();

    fn new_ctx(&self) -> Self::CTX {}

    async fn request_filter(&self, session: &mut Session, (): &mut ()) -> pingora::Result<bool> {
        if matches!(session.req_header().uri.path(), "/hello" | "/hello-mtls") {
            return Ok(false);
        }
        let mut answer = ResponseHeader::build(404, Some(1))?;
        answer.insert_header("Content-Length", "0")?;
        session.write_response_header(Box::new(answer), true).await?;
        session.write_response_body(None, true).await?;
        Ok(true)
    }

    async fn upstream_peer(&self, session: &mut Session, (): &mut ()) -> pingora::Result<Box<HttpPeer>> {
        let strict = session.req_header().uri.path() == "/hello-mtls";
        Ok(Box::new(if strict { self.mtls.clone() } else { self.plain.clone() }))
    }

    /// The headers of the other peers.
    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        request: &mut RequestHeader,
        (): &mut (),
    ) -> pingora::Result<()> {
        let client = session.client_addr().and_then(|address| address.as_inet());
        let client = client.map(|address| address.ip().to_string()).unwrap_or_default();
        // An HTTP/2 request has no Host, and the upstream speaks HTTP/1.1.
        let host = request.headers.get("host").and_then(|host| host.to_str().ok()).map(str::to_owned);
        let host = host.or_else(|| request.uri.host().map(str::to_owned)).unwrap_or_else(|| HOST.to_owned());
        request.insert_header("Host", &host)?;
        request.insert_header("X-Real-IP", &client)?;
        request.insert_header("X-Forwarded-For", &client)?;
        request.insert_header("X-Forwarded-Proto", "https")?;
        request.insert_header("X-Forwarded-Host", &host)?;
        request.insert_header("X-Forwarded-Port", &self.port)
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == "--version") {
        println!("Pingora {} on rustls with ring", env!("PINGORA_VERSION"));
        return Ok(());
    }
    let [settings, folder, listen, plain, mtls] = <[String; 5]>::try_from(arguments)
        .map_err(|_| "expected SETTINGS FOLDER LISTEN PLAIN MTLS; see `compare --help`")?;
    let (folder, listen) = (PathBuf::from(folder), listen.parse::<SocketAddr>()?);
    let _ = ring::default_provider().install_default();

    let mut server = Server::new_with_opt_and_conf(None, ServerConf::load_from_yaml(settings)?);
    server.bootstrap();
    let mut proxy = http_proxy_service(
        &server.configuration,
        Proxy {
            plain: HttpPeer::new(plain.parse::<SocketAddr>()?, false, String::new()),
            mtls: upstream(&folder, mtls.parse()?)?,
            port: listen.port().to_string(),
        },
    );
    proxy.add_tls_with_settings(&listen.to_string(), None, listener(&folder)?);
    server.add_service(proxy);
    server.run_forever()
}

/// Verified with the CA in Pingora's settings; gets the gateway's certificate.
fn upstream(folder: &Path, address: SocketAddr) -> Result<HttpPeer, Box<dyn Error>> {
    let chain = certificates(folder, "gateway.crt")?;
    let key = PrivateKeyDer::from_pem_file(folder.join("gateway.key"))?;
    let shown = CertKey::new(chain.iter().map(|one| one.to_vec()).collect(), key.secret_der().to_vec());
    let mut peer = HttpPeer::new(address, true, HOST.to_owned());
    peer.client_cert_key = Some(Arc::new(shown));
    peer.options.alpn = ALPN::H1;
    Ok(peer)
}

/// Two names, client certificates required, HTTP/2 and HTTP/1.1.
fn listener(folder: &Path) -> Result<TlsSettings, Box<dyn Error>> {
    let mut anchors = RootCertStore::empty();
    for anchor in certificates(folder, "client-ca.crt")? {
        anchors.add(anchor)?;
    }
    let mut names = ResolvesServerCertUsingSni::new();
    for (name, file) in [(HOST, "site"), (RSA_HOST, "rsa")] {
        let key = PrivateKeyDer::from_pem_file(folder.join(format!("{file}.key")))?;
        let key = ring::sign::any_supported_type(&key)?;
        names.add(name, CertifiedKey::new(certificates(folder, &format!("{file}.crt"))?, key))?;
    }
    let at = |name: &str| folder.join(name).display().to_string();
    let mut settings = TlsSettings::intermediate(&at("site.crt"), &at("site.key"))?;
    settings.set_cert_resolver(Arc::new(names));
    settings.set_client_cert_verifier(WebPkiClientVerifier::builder(Arc::new(anchors)).build()?);
    settings.enable_h2();
    Ok(settings)
}

fn certificates(folder: &Path, name: &str) -> Result<Vec<CertificateDer<'static>>, Box<dyn Error>> {
    Ok(CertificateDer::pem_file_iter(folder.join(name))?.collect::<Result<_, _>>()?)
}

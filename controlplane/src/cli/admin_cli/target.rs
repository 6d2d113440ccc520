//! Where the Admin API is and what a command presents there: flags, then environment variables,
//! then the configuration.
//!
//! Invariant: the admin key comes from a file or an environment variable, never from the command
//! line, and is not sent in clear to another machine unless a flag allows it.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use clap::Args;
use conf::{AdminKeyValue, AdminListener, AdminRole, AdminTlsSettings, ConfError, Settings};
use http::Uri;
use mtls::{ConfiguredFile, ConfiguredFileRef, FileError};
use rustls_pki_types::ServerName;
use zeroize::Zeroizing;

use crate::admin::key_file::{AdminKeyError, KeyFile};
use crate::cli::listeners::dialable;
use crate::cli::pki_cli::subject_alt_names;
use crate::server::admin_key_folder;

/// Holds the admin key.
const KEY_VARIABLE: &str = "COUNTERSIGN_ADMIN_KEY";
/// The client certificate of `pki init`, in the folder of the server's certificate.
const CLIENT_CERT: &str = "admin-client.crt";
const CLIENT_CERT_KEY: &str = "admin-client.key";
/// The port of a URL without one.
const DEFAULT_PORT: u16 = 9180;

/// Flags about the connection, of every `admin` command.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Connection")]
pub(crate) struct ConnectionArgs {
    /// URL of the Admin API. Default: the address in the configuration (deployment.admin)
    #[arg(long, global = true, value_name = "URL", env = "COUNTERSIGN_ADMIN_URL", hide_env_values = true)]
    url: Option<String>,
    /// Client certificate, a PEM file. Default: admin-client.crt in the folder of admin_ssl_cert
    #[arg(long, global = true, value_name = "FILE", env = "COUNTERSIGN_ADMIN_CERT", hide_env_values = true)]
    cert: Option<PathBuf>,
    /// Private key of the client certificate, a PEM file. Default: admin-client.key beside it
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "COUNTERSIGN_ADMIN_CERT_KEY",
        hide_env_values = true
    )]
    cert_key: Option<PathBuf>,
    /// CA of the server's certificate, a PEM file. Default: admin_ssl_ca_cert
    #[arg(long, global = true, value_name = "FILE", env = "COUNTERSIGN_ADMIN_CA", hide_env_values = true)]
    ca: Option<PathBuf>,
    /// Name that the server's certificate must have. Default: the URL's host
    #[arg(
        long,
        global = true,
        value_name = "NAME",
        env = "COUNTERSIGN_ADMIN_SERVER_NAME",
        hide_env_values = true
    )]
    server_name: Option<String>,
    /// File with the admin key. Default: the variable COUNTERSIGN_ADMIN_KEY (the key itself), then
    /// admin_key in the configuration or the file of its generated key
    #[arg(long, global = true, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// Send the admin key to another machine over http://, in clear
    #[arg(long, global = true)]
    allow_plain_http: bool,
}

/// Why the flags, variables and configuration give no target.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TargetError {
    #[error("{0}\nwithout a configuration, --url URL or COUNTERSIGN_ADMIN_URL names the Admin API")]
    Configuration(#[source] ConfError),
    #[error("--url {url:?}: {problem}; expected https://HOST:PORT")]
    Url { url: String, problem: &'static str },
    #[error("the Admin API is disabled in {path} (apisix.enable_admin)", path = .0.display())]
    Disabled(PathBuf),
    #[error(
        "deployment.admin.admin_listen has port 0, so the kernel chose the port: name it with --url, it is in the ready line"
    )]
    PortZero,
    #[error("{given} is given and {missing} is not: a client certificate and its private key go together")]
    Pair { given: &'static str, missing: &'static str },
    #[error("no CA is known to verify the server's certificate with: --ca FILE or COUNTERSIGN_ADMIN_CA")]
    NoCa,
    #[error("--server-name {0:?} is neither a host name nor an IP address")]
    ServerName(String),
    #[error(
        "http://{0} would carry the admin key in clear over a network: use https://, or --allow-plain-http if the network is yours"
    )]
    PlainHttp(String),
    #[error("{0}")]
    File(#[from] FileError),
    #[error("{0}")]
    Key(#[from] AdminKeyError),
    #[error("--key-file {path}: it must hold one line with the key", path = .0.display())]
    KeyContent(PathBuf),
}

/// The Admin API and the credentials for it.
pub(super) struct ApiTarget {
    pub https: bool,
    /// As in the URL, without brackets.
    pub host: String,
    pub port: u16,
    /// The expected name of the server, with `https`.
    pub server_name: ServerName<'static>,
    /// `Some` with `https`.
    pub ca: Option<ConfiguredFile>,
    /// Certificate and key.
    pub pair: Option<(ConfiguredFile, ConfiguredFile)>,
    pub key: Option<PresentedKey>,
}

/// An admin key and where it is from.
pub(super) struct PresentedKey {
    pub value: Zeroizing<String>,
    pub source: String,
}

/// An address before credentials are known.
struct ApiAddress {
    https: bool,
    host: String,
    port: u16,
    /// The name in the server's certificate, unless it is `host`.
    server_name: Option<String>,
}

impl ConnectionArgs {
    /// The target of these flags, of the environment and of the configuration at `config`.
    ///
    /// # Errors
    /// [`TargetError`], whose message names the flag.
    pub(super) fn target(&self, config: &Path) -> Result<ApiTarget, TargetError> {
        let url = self.url.as_deref().filter(|url| !url.is_empty());
        let settings = match conf::load(config) {
            Ok(settings) => Some(settings),
            // Another machine than the control plane's has no configuration.
            Err(ConfError::Unreadable { .. }) if url.is_some() => None,
            Err(error) => return Err(TargetError::Configuration(error)),
        };
        let settings = settings.as_ref();
        let address = match (url, settings) {
            (Some(url), _) => parse_url(url)?,
            (None, Some(settings)) => configured_address(settings)?,
            (None, None) => return Err(TargetError::Url { url: String::new(), problem: "it is empty" }),
        };
        let key = self.admin_key(settings)?;
        if !address.https && key.is_some() && !is_loopback(&address.host) && !self.allow_plain_http {
            return Err(TargetError::PlainHttp(address.host));
        }
        let name = self.server_name.clone().filter(|name| !name.is_empty()).or(address.server_name);
        let name = name.unwrap_or_else(|| address.host.clone());
        let server_name =
            ServerName::try_from(name.clone()).map_err(|_| TargetError::ServerName(name.clone()))?;
        let (ca, pair) = match address.https {
            true => (Some(self.ca(settings)?), self.pair(settings)?),
            false => (None, None),
        };
        Ok(ApiTarget {
            https: address.https,
            host: address.host,
            port: address.port,
            server_name,
            ca,
            pair,
            key,
        })
    }

    fn ca(&self, settings: Option<&Settings>) -> Result<ConfiguredFile, TargetError> {
        if let Some(path) = given(self.ca.as_ref()) {
            return Ok(ConfiguredFile::new("--ca", path));
        }
        let settings = settings.ok_or(TargetError::NoCa)?;
        if let Some(path) = first_tls(settings).and_then(|tls| tls.ca.as_ref()) {
            return Ok(ConfiguredFile::new(conf::ADMIN_CA, path));
        }
        let system = settings.apisix.ssl.trusted_certificate.as_ref().ok_or(TargetError::NoCa)?;
        Ok(ConfiguredFile::new("apisix.ssl.ssl_trusted_certificate", system))
    }

    fn pair(
        &self,
        settings: Option<&Settings>,
    ) -> Result<Option<(ConfiguredFile, ConfiguredFile)>, TargetError> {
        match (given(self.cert.as_ref()), given(self.cert_key.as_ref())) {
            (Some(cert), Some(key)) => {
                let pair = (ConfiguredFile::new("--cert", cert), ConfiguredFile::new("--cert-key", key));
                return Ok(Some(pair));
            }
            (Some(_), None) => return Err(TargetError::Pair { given: "--cert", missing: "--cert-key" }),
            (None, Some(_)) => return Err(TargetError::Pair { given: "--cert-key", missing: "--cert" }),
            (None, None) => {}
        }
        // A server that requires none needs none; one that does says so.
        Ok(settings.and_then(first_tls).and_then(configured_pair))
    }

    fn admin_key(&self, settings: Option<&Settings>) -> Result<Option<PresentedKey>, TargetError> {
        if let Some(path) = given(self.key_file.as_ref()) {
            let text = ConfiguredFileRef { setting: "--key-file", path }.read_text()?;
            let key = text.trim();
            if key.is_empty() || key.contains(char::is_whitespace) {
                return Err(TargetError::KeyContent(path.to_owned()));
            }
            let value = Zeroizing::new(key.to_owned());
            return Ok(Some(PresentedKey { value, source: path.display().to_string() }));
        }
        if let Some(key) = std::env::var(KEY_VARIABLE).ok().filter(|key| !key.is_empty()) {
            let source = KEY_VARIABLE.to_owned();
            return Ok(Some(PresentedKey { value: Zeroizing::new(key), source }));
        }
        settings.map_or(Ok(None), configured_key)
    }
}

fn given(path: Option<&PathBuf>) -> Option<&Path> {
    path.map(PathBuf::as_path).filter(|path| !path.as_os_str().is_empty())
}

fn parse_url(url: &str) -> Result<ApiAddress, TargetError> {
    let invalid = |problem| TargetError::Url { url: url.to_owned(), problem };
    let uri: Uri = url.parse().map_err(|_| invalid("this is no URL"))?;
    let https = match uri.scheme_str() {
        Some("https") => true,
        Some("http") => false,
        _ => return Err(invalid("it must begin with https:// (or http:// on this machine)")),
    };
    if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return Err(invalid("it holds a user name"));
    }
    if !matches!(uri.path().trim_end_matches('/'), "" | "/apisix/admin") || uri.query().is_some() {
        return Err(invalid("it has a path or a query"));
    }
    let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(|| invalid("it has no host"))?;
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    Ok(ApiAddress { https, host, port: uri.port_u16().unwrap_or(DEFAULT_PORT), server_name: None })
}

/// The address of a control plane with these settings, on this machine: that of the first listener
/// that a client certificate is there for, or that requires none.
fn configured_address(settings: &Settings) -> Result<ApiAddress, TargetError> {
    let admin = &settings.deployment.admin;
    if !admin.enabled {
        return Err(TargetError::Disabled(settings.path.clone()));
    }
    let is_usable = |listener: &&AdminListener| match &listener.tls {
        Some(tls) => tls.ca.is_none() || configured_pair(tls).is_some(),
        None => true,
    };
    let usable = admin.listeners.iter().find(is_usable).or(admin.listeners.first());
    let listener = usable.ok_or_else(|| TargetError::Disabled(settings.path.clone()))?;
    let address = dialable(listener.address);
    if address.port() == 0 {
        return Err(TargetError::PortZero);
    }
    let tls = listener.tls.as_ref();
    Ok(ApiAddress {
        https: tls.is_some(),
        host: address.ip().to_string(),
        port: address.port(),
        server_name: tls.and_then(|tls| certificate_name(tls, address)),
    })
}

/// The first listener with TLS.
fn first_tls(settings: &Settings) -> Option<&AdminTlsSettings> {
    settings.deployment.admin.listeners.iter().find_map(|listener| listener.tls.as_ref())
}

/// The client certificate of `pki init` beside the server's, if it is there.
fn configured_pair(tls: &AdminTlsSettings) -> Option<(ConfiguredFile, ConfiguredFile)> {
    let folder = tls.cert.parent()?;
    let (cert, key) = (folder.join(CLIENT_CERT), folder.join(CLIENT_CERT_KEY));
    let pair = (ConfiguredFile::new("--cert", &cert), ConfiguredFile::new("--cert-key", &key));
    cert.exists().then_some(pair)
}

/// A name of the configured server certificate: the address if it has that, else its first name. A
/// certificate that cannot be read gives none, and the address is expected.
fn certificate_name(tls: &AdminTlsSettings, address: SocketAddr) -> Option<String> {
    let chain = ConfiguredFileRef { setting: conf::ADMIN_CERT, path: &tls.cert }.read_certificates().ok()?;
    let names = subject_alt_names(chain.first()?);
    let ip = address.ip().to_string();
    if names.contains(&ip) {
        return Some(ip);
    }
    names.into_iter().find(|name| !name.contains(['*', '/']) && ServerName::try_from(name.as_str()).is_ok())
}

/// The first key of role admin in the settings, or in the file of a generated one. Of a key with a
/// hash only the hash is known here.
fn configured_key(settings: &Settings) -> Result<Option<PresentedKey>, TargetError> {
    let admin = &settings.deployment.admin;
    if !admin.key_required {
        return Ok(None);
    }
    for entry in admin.keys.iter().filter(|entry| entry.role == AdminRole::Admin) {
        match &entry.key {
            AdminKeyValue::Clear(key) => {
                let value = Zeroizing::new(key.expose().to_owned());
                let source = format!("deployment.admin.admin_key ({})", entry.name);
                return Ok(Some(PresentedKey { value, source }));
            }
            AdminKeyValue::Generated => {
                let file = KeyFile::new(&entry.name, admin_key_folder(settings))?;
                if let Some(value) = file.read_text()? {
                    return Ok(Some(PresentedKey { value, source: file.path.display().to_string() }));
                }
            }
            AdminKeyValue::Sha256(_) => {}
        }
    }
    Ok(None)
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_parsed() {
        let address = |url: &str| parse_url(url).map(|address| (address.https, address.host, address.port));
        assert_eq!(address("https://admin.example").unwrap(), (true, "admin.example".into(), 9180));
        assert_eq!(address("https://[::1]:9443/").unwrap(), (true, "::1".into(), 9443));
        assert_eq!(address("http://127.0.0.1:1/apisix/admin/").unwrap(), (false, "127.0.0.1".into(), 1));
        for url in
            ["", "admin.example", "ftp://a", "https://a/b", "https://a?b=c", "https://u:p@a", "https://"]
        {
            let error = address(url).unwrap_err().to_string();
            assert!(error.contains("https://HOST:PORT"), "{url}: {error}");
        }
    }

    #[test]
    fn plain_http_to_another_machine_needs_a_flag() {
        let folder = tempfile::tempdir().unwrap();
        let key_file = folder.path().join("key");
        std::fs::write(&key_file, "secret\n").unwrap();
        let target = |url: &str, allow_plain_http| {
            let args = ConnectionArgs {
                url: Some(url.to_owned()),
                key_file: Some(key_file.clone()),
                allow_plain_http,
                ..ConnectionArgs::default()
            };
            args.target(&folder.path().join("absent.yaml"))
        };
        assert!(matches!(target("http://192.0.2.1", false), Err(TargetError::PlainHttp(_))));
        assert!(target("http://192.0.2.1", true).is_ok());
        let local = target("http://localhost:80", false).unwrap();
        assert_eq!(local.key.unwrap().value.as_str(), "secret");
        assert!(matches!(target("https://192.0.2.1", false), Err(TargetError::NoCa)));
    }

    #[test]
    fn a_certificate_needs_its_key() {
        let args = ConnectionArgs { cert: Some("a.crt".into()), ..ConnectionArgs::default() };
        let error = args.pair(None).unwrap_err().to_string();
        assert!(error.contains("--cert is given and --cert-key is not"), "{error}");
        let args = ConnectionArgs { cert_key: Some("a.key".into()), ..ConnectionArgs::default() };
        assert!(args.pair(None).unwrap_err().to_string().contains("--cert-key is given"));
        assert!(ConnectionArgs::default().pair(None).unwrap().is_none());
    }
}

//! `deployment.admin`, typed: the listeners of the Admin API, and who may use it.

use std::net::SocketAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use model::ClientIdentity;

use crate::secret::Secret;

/// `deployment.admin`: the Admin API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdminSettings {
    /// `apisix.enable_admin` and the role: false disables the Admin API.
    pub enabled: bool,
    /// `admin_key_required`: false disables the key check.
    pub key_required: bool,
    /// `admin_key`; empty only where `client_roles` is not, or where no key is required.
    pub keys: Vec<AdminKey>,
    /// `client_roles`: the first entry that matches a verified client certificate gives its role.
    pub client_roles: Vec<ClientRole>,
    /// `admin_listen`: at least one.
    pub listeners: Vec<AdminListener>,
    /// `protect_client_auth`: a write that weakens the authentication of clients must say so.
    pub protect_client_auth: bool,
    /// `enable_admin_cors`
    pub cors: bool,
    /// `admin_api_version` is `v3` (anything else means the shapes of v2).
    pub v3: bool,
}

impl Default for AdminSettings {
    fn default() -> Self {
        Self {
            enabled: true,
            key_required: true,
            keys: Vec::new(),
            client_roles: Vec::new(),
            listeners: Vec::new(),
            protect_client_auth: false,
            cors: true,
            v3: true,
        }
    }
}

impl AdminSettings {
    /// The certificate files of the listeners, each combination once.
    pub fn tls_settings(&self) -> Vec<&AdminTlsSettings> {
        let mut distinct = Vec::new();
        for tls in self.listeners.iter().filter_map(|listener| listener.tls.as_ref()) {
            if !distinct.contains(&tls) {
                distinct.push(tls);
            }
        }
        distinct
    }
}

/// One listener of the Admin API: `admin_listen`, or an entry of its list with what it lacks taken
/// from `deployment.admin`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdminListener {
    /// `ip` and `port`; port 0 lets the kernel pick.
    pub address: SocketAddr,
    /// `https_admin` and `admin_api_mtls`. `None`: plain HTTP.
    pub tls: Option<AdminTlsSettings>,
    /// `allow_admin`; `None` allows every address, an empty list none.
    pub allow: Option<Vec<IpNet>>,
}

/// `admin_api_mtls`: PEM files, absolute (relative ones start at the file's folder).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdminTlsSettings {
    /// `admin_ssl_cert`
    pub cert: PathBuf,
    /// `admin_ssl_cert_key`
    pub key: PathBuf,
    /// `admin_ssl_ca_cert`; `Some` makes a client certificate of this CA mandatory.
    pub ca: Option<PathBuf>,
}

/// One entry of `admin_key`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdminKey {
    /// For logs.
    pub name: String,
    /// The expected key.
    pub key: AdminKeyValue,
    /// The role of the key.
    pub role: AdminRole,
}

/// `admin_key[].key`
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdminKeyValue {
    /// Empty or absent: the control plane generates one.
    Generated,
    /// The key in clear.
    Clear(Secret),
    /// `sha256:` and 64 hexadecimal digits: the SHA-256 of the key.
    Sha256([u8; 32]),
}

/// What a caller may do. A greater role may do everything that a smaller one may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum AdminRole {
    /// `viewer`: requests that change nothing.
    Viewer,
    /// `admin`: everything.
    Admin,
}

/// One entry of `client_roles`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientRole {
    /// `match` as in the file, for logs: `san_uri=spiffe://example.org/ci`.
    pub name: String,
    /// `match`: an allow-list with one entry.
    pub client: ClientIdentity,
    /// The role of the matching clients.
    pub role: AdminRole,
}

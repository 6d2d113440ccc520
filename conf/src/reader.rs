//! Merged tree -> `Settings`: each key is read once, with its type, unit and rule.
//!
//! Last step of loading. An invalid value is recorded with its line and reading continues, so that
//! one run reports every problem; the placeholder never leaves this crate, because problems make
//! the load fail.

mod access_log;
mod admin;
mod admin_listen;
pub(crate) mod countersign;
mod nginx;
mod paths;
mod proxy_protocol;
mod real_ip;
mod ssl;
pub(crate) mod status;
mod stream;
mod tracing;

use std::net::SocketAddr;
use std::path::{Component, Path, PathBuf};

pub use admin_listen::ADMIN_LISTEN;

use crate::environment::Lookup;
use crate::error::ConfProblem;
use crate::files;
use crate::secret::Secret;
use crate::settings::{
    ApisixSettings, ConfigProvider, DeploymentRole, DeploymentSettings, EtcdSettings, EtcdTlsSettings,
    HttpLimits, UNSPECIFIED,
};
use crate::tree::{YamlNode, YamlValue};
use crate::value::{self, ValueError};

/// Reads keys from the merged tree and collects the problems.
pub(crate) struct Reader<'a> {
    /// The user's tree merged over the defaults.
    pub merged: &'a YamlNode,
    /// The defaults: used in place of an invalid value.
    pub defaults: &'a YamlNode,
    /// The user's tree, to see whether a key is in the file.
    pub user: Option<&'a YamlNode>,
    /// The folder of the file: the base of our own paths and the Admin API's.
    pub folder: &'a Path,
    /// The working directory: the base of APISIX's other paths.
    pub working: &'a Path,
    pub environment: &'a Lookup<'a>,
    pub problems: Vec<ConfProblem>,
    /// Line (0: not in the file) and text.
    pub warnings: Vec<(usize, String)>,
}

impl Reader<'_> {
    pub(crate) fn deployment(&mut self) -> DeploymentSettings {
        let role = self.required("deployment.role", |node| {
            Ok(match value::text(node)?.as_str() {
                "traditional" => DeploymentRole::Traditional,
                "control_plane" => DeploymentRole::ControlPlane,
                "data_plane" => DeploymentRole::DataPlane,
                _ => return Err(ValueError::expected("traditional, control_plane or data_plane", node)),
            })
        });
        DeploymentSettings { role, provider: self.provider(role), admin: self.admin(role), etcd: self.etcd() }
    }

    fn provider(&mut self, role: DeploymentRole) -> ConfigProvider {
        let path = match role {
            DeploymentRole::Traditional => "deployment.role_traditional.config_provider",
            DeploymentRole::ControlPlane => "deployment.role_control_plane.config_provider",
            DeploymentRole::DataPlane => {
                let path = "deployment.role_data_plane.config_provider";
                let provider = self.required(path, value::text);
                if provider != "push" {
                    self.warn(
                        path,
                        "a data plane is fed by the control plane (countersign.node), this is ignored",
                    );
                }
                return ConfigProvider::Embedded;
            }
        };
        self.required(path, |node| match value::text(node)?.as_str() {
            "embedded" => Ok(ConfigProvider::Embedded),
            "etcd" => Ok(ConfigProvider::Etcd),
            _ => Err(ValueError::expected("embedded (one local file) or etcd", node)),
        })
    }

    fn etcd(&mut self) -> EtcdSettings {
        let overridden = (self.environment)("APISIX_DEPLOYMENT_ETCD_HOST").and_then(|text| {
            let hosts = serde_json::from_str::<Vec<String>>(&text);
            if let Err(error) = &hosts {
                let text =
                    format!("parse ${{APISIX_DEPLOYMENT_ETCD_HOST}} failed, error:{error}; it is ignored");
                self.warnings.push((0, text));
            }
            hosts.ok().filter(|hosts| !hosts.is_empty())
        });
        let hosts = self.required("deployment.etcd.host", |node| {
            let hosts = value::list(node, |host| {
                let text = value::text(host)?;
                let good = text.starts_with("http://") || text.starts_with("https://");
                if good {
                    Ok(text)
                } else {
                    Err(ValueError::expected("a URL starting http:// or https://", host))
                }
            })?;
            if hosts.is_empty() { Err(ValueError::new("at least one host is needed")) } else { Ok(hosts) }
        });
        let tls = EtcdTlsSettings {
            cert: self.path("deployment.etcd.tls.cert", self.working),
            key: self.path("deployment.etcd.tls.key", self.working),
            // Only a literal `false` disables verification; other values are errors.
            verify: self.optional("deployment.etcd.tls.verify", value::boolean).unwrap_or(true),
            sni: self.optional("deployment.etcd.tls.sni", value::text),
        };
        if tls.cert.is_some() != tls.key.is_some() {
            self.problem("deployment.etcd.tls", "cert and key belong together: give both or none".into());
        }
        let user = self.optional("deployment.etcd.user", value::text);
        let password = self.optional("deployment.etcd.password", value::secret);
        if user.is_some() != password.is_some() {
            self.problem("deployment.etcd", "user and password belong together: give both or none".into());
        }
        EtcdSettings {
            hosts: overridden.unwrap_or(hosts),
            prefix: self.required("deployment.etcd.prefix", value::text),
            timeout: self.required("deployment.etcd.timeout", value::seconds_positive),
            watch_timeout: self.required("deployment.etcd.watch_timeout", value::seconds_positive),
            startup_retry: self.required("deployment.etcd.startup_retry", value::non_negative),
            resync_delay: self.required("deployment.etcd.resync_delay", value::seconds),
            health_check_timeout: self.required("deployment.etcd.health_check_timeout", value::seconds),
            user,
            password,
            tls,
        }
    }

    pub(crate) fn apisix(&mut self) -> ApisixSettings {
        let enable_ipv6 = self.flag("apisix.enable_ipv6");
        let node_listen = self.required("apisix.node_listen", |node| match &node.value {
            YamlValue::List(_) => value::list(node, |entry| value::listener(entry, 9080, enable_ipv6)),
            _ => value::listener(node, 9080, enable_ipv6).map(|addresses| vec![addresses]),
        });
        let status = self.data_plane_status();
        let trusted = self.trusted_addresses();
        let proxy_mode = self.proxy_mode();
        let ssl = self.ssl(enable_ipv6);
        ApisixSettings {
            node_listen: node_listen.concat(),
            enable_ipv6,
            proxy_mode,
            streams: self.streams(proxy_mode),
            proxy_protocol: self.proxy_protocol_listen(proxy_mode, ssl.enable, enable_ipv6),
            enable_http2: self.flag("apisix.enable_http2"),
            ssl,
            keyring: self.keyring(),
            status,
            control: self.control(),
            server_tokens: self.flag("apisix.enable_server_tokens"),
            trusted_addresses: trusted,
            paths: self.paths(),
            show_upstream_status: self.flag("apisix.show_upstream_status_in_response_header"),
        }
    }

    fn keyring(&mut self) -> Vec<Secret> {
        let field = "apisix.data_encryption.keyring";
        let keyring = self.optional(field, |node| match &node.value {
            YamlValue::List(_) => value::list(node, value::secret),
            _ => value::secret(node).map(|key| vec![key]),
        });
        let keyring = keyring.unwrap_or_default();
        for (nth, key) in keyring.iter().enumerate() {
            let bytes = key.expose().len();
            if bytes != 16 && bytes != 32 {
                let message =
                    format!("entry {} is {bytes} bytes long; each must be exactly 16 or 32 bytes", nth + 1);
                self.problem(field, message);
            }
        }
        let file = self.merged.get_path(countersign::KEYRING_FILE).and_then(|node| value::text(node).ok());
        if file.is_some_and(|file| !file.is_empty()) {
            // A key of that file encrypts.
        } else if keyring.first().is_some_and(|key| files::PUBLIC_KEYRING.contains(&key.expose())) {
            let text = "a key of APISIX's public default keyring seals: private keys at rest are as good as in clear; \
                        put a key of your own first (16 or 32 random bytes) and keep the old ones behind it, or name \
                        a countersign.keyring_file";
            self.warn(field, text);
        } else if keyring.is_empty() {
            self.warn(field, "empty: private keys are stored in clear");
        }
        keyring
    }

    pub(crate) fn http(&mut self) -> HttpLimits {
        let (verify, depth) = self.snippets();
        self.check_plugins();
        HttpLimits {
            client_header_timeout: self
                .required("nginx_config.http.client_header_timeout", value::nginx_time),
            keepalive_timeout: self.required("nginx_config.http.keepalive_timeout", value::nginx_time),
            client_body_timeout: self.required("nginx_config.http.client_body_timeout", value::nginx_time),
            send_timeout: self.required("nginx_config.http.send_timeout", value::nginx_time),
            client_max_body_size: self.required("nginx_config.http.client_max_body_size", value::nginx_size),
            upstream_keepalive: self.required("nginx_config.http.upstream.keepalive", value::non_negative),
            upstream_keepalive_requests: self
                .required("nginx_config.http.upstream.keepalive_requests", value::non_negative),
            upstream_keepalive_timeout: self
                .required("nginx_config.http.upstream.keepalive_timeout", value::nginx_time),
            worker_shutdown_timeout: self.required("nginx_config.worker_shutdown_timeout", value::nginx_time),
            proxy_ssl_verify: verify,
            proxy_ssl_verify_depth: depth,
        }
    }

    /// One of our own paths; it has a default.
    fn file(&mut self, field: &str) -> PathBuf {
        let text = self.required(field, |node| {
            let text = value::text(node)?;
            if text.is_empty() { Err(ValueError::expected("a path", node)) } else { Ok(text) }
        });
        without_parent_dirs(&self.folder.join(text))
    }

    /// An optional path; an empty text counts as absent.
    fn path(&mut self, field: &str, start: &Path) -> Option<PathBuf> {
        self.optional(field, value::text).filter(|text| !text.is_empty()).map(|text| start.join(text))
    }

    fn socket(&mut self, field: &str) -> SocketAddr {
        self.required(field, |node| value::socket_addr(node).map(Some)).unwrap_or(UNSPECIFIED)
    }

    /// An optional key. An invalid value is recorded and counts as absent.
    fn optional<T>(&mut self, field: &str, parse: impl Fn(&YamlNode) -> Result<T, ValueError>) -> Option<T> {
        let node = self.merged.get_path(field).filter(|node| !node.is_null())?;
        parse(node).map_err(|error| self.value_problems(field, node.line, error)).ok()
    }

    /// Records the errors of the value at `field`, which begins on `line`.
    fn value_problems(&mut self, field: &str, line: usize, error: ValueError) {
        for ValueError { subpath, line: own, message, .. } in error.into_each() {
            self.problem_at(Some(own.unwrap_or(line)), &format!("{field}{subpath}"), message);
        }
    }

    /// A key that always has a value. `null` is an error: it deletes the default, which may have
    /// been a protection.
    fn required<T: Default>(&mut self, field: &str, parse: impl Fn(&YamlNode) -> Result<T, ValueError>) -> T {
        self.reject_null(field);
        let value = self.optional(field, &parse);
        value.or_else(|| self.defaults.get_path(field).and_then(|node| parse(node).ok())).unwrap_or_default()
    }

    /// A boolean. `null` is false, as in APISIX, where it deletes the default.
    fn flag(&mut self, field: &str) -> bool {
        let null = self.user.and_then(|user| user.get_path(field)).is_some_and(YamlNode::is_null);
        !null && self.required(field, value::boolean)
    }

    /// Records a `null` that deletes the default of this key, at the key or above it. Records each
    /// `null` once.
    fn reject_null(&mut self, field: &str) {
        let ends = field.match_indices('.').map(|(at, _)| at).chain([field.len()]);
        let mut paths = ends.filter_map(|end| field.get(..end));
        let null =
            |path: &&str| self.user.and_then(|user| user.get_path(path)).is_some_and(YamlNode::is_null);
        let Some(path) = paths.find(null) else { return };
        let message = "null deletes the default: write a value or remove the line".to_owned();
        let problem = ConfProblem { line: self.line(path), field: path.to_owned(), message };
        if !self.problems.contains(&problem) {
            self.problems.push(problem);
        }
    }

    fn problem(&mut self, field: &str, message: String) {
        self.problem_at(self.line(field), field, message);
    }

    fn problem_at(&mut self, line: Option<usize>, field: &str, message: String) {
        self.problems.push(ConfProblem { line, field: field.to_owned(), message });
    }

    fn warn(&mut self, field: &str, text: &str) {
        let line = self.line(field).unwrap_or(0);
        self.warnings.push((line, format!("{field}: {text}")));
    }

    /// The line of a key in the user's file, or that of the nearest key above it.
    fn line(&self, field: &str) -> Option<usize> {
        let user = self.user?;
        let mut path = field;
        loop {
            if let Some(node) = user.get_path(path) {
                return Some(node.line);
            }
            path = path.rsplit_once('.')?.0;
        }
    }
}

/// Rejects two listeners on one port before the kernel does (contract 1.3).
pub(crate) fn port_conflicts(reader: &mut Reader<'_>, listeners: &[(&str, SocketAddr)]) {
    for (nth, (what, address)) in listeners.iter().enumerate() {
        // The entries of `admin_listen` were compared with each other, by their lines.
        let compared = |other: &str| *what == ADMIN_LISTEN && other == ADMIN_LISTEN;
        let mut others = listeners.iter().take(nth).filter(|(other, _)| !compared(other));
        if let Some((other, _)) = others.find(|(_, other)| conflict(*other, *address)) {
            let message = format!("port {} conflicts with {other}; give each its own", address.port());
            reader.problem(what, message);
        }
    }
}

/// Whether the kernel would refuse one of two listeners.
fn conflict(one: SocketAddr, other: SocketAddr) -> bool {
    let overlap = one.ip() == other.ip() || one.ip().is_unspecified() || other.ip().is_unspecified();
    one.port() == other.port() && one.port() != 0 && one.is_ipv4() == other.is_ipv4() && overlap
}

/// `/a/conf/../data` as `/a/data`, for messages.
pub(crate) fn without_parent_dirs(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                out.pop();
            }
            part => out.push(part),
        }
    }
    out
}

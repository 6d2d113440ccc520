//! `deployment.admin.admin_listen`: one listener, as in APISIX, or a list of them.
//!
//! What an entry of the list lacks comes from `deployment.admin`. Invariant: a listener speaks
//! plain HTTP to other machines only where the file says `plain_http: true`, and an entry drops no
//! protection of `deployment.admin` by an omission.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use ipnet::IpNet;

use super::{Reader, conflict};
use crate::settings::{AdminListener, AdminTlsSettings, UNSPECIFIED};
use crate::tree::{YamlNode, YamlValue};
use crate::value::{self, ValueError};

/// The setting of the Admin API's listeners.
pub const ADMIN_LISTEN: &str = "deployment.admin.admin_listen";
const ENTRY: &str = "deployment.admin.admin_listen[]";
const MTLS: &str = "deployment.admin.admin_api_mtls";

/// Entries of the list: each has a share of the connections.
const LISTENERS_MAX: usize = 16;
const PORT: u16 = 9180;

/// A listener as the file has it.
struct ListenerSpec {
    line: Option<usize>,
    address: SocketAddr,
    plain_http: bool,
    https: bool,
    files: TlsFiles,
    allow: Option<Vec<IpNet>>,
}

/// The files of `admin_api_mtls`.
#[derive(Clone)]
struct TlsFiles {
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
    ca: Option<PathBuf>,
}

impl Reader<'_> {
    /// `enabled`: the Admin API is; else only the types of the values are checked.
    pub(super) fn admin_listeners(&mut self, enabled: bool) -> Vec<AdminListener> {
        let specs = match self.merged.get_path(ADMIN_LISTEN) {
            Some(YamlNode { value: YamlValue::List(entries), line }) => self.entries(entries, *line, enabled),
            _ => vec![self.single(enabled)],
        };
        let listener = |spec: ListenerSpec| {
            let tls = match spec.files {
                TlsFiles { cert: Some(cert), key: Some(key), ca } if enabled && spec.https => {
                    Some(AdminTlsSettings { cert, key, ca })
                }
                _ => None,
            };
            AdminListener { address: spec.address, tls, allow: spec.allow }
        };
        specs.into_iter().map(listener).collect()
    }

    /// What `deployment.admin` says, with the default address.
    fn common(&mut self) -> ListenerSpec {
        let mut file = |name: &str| self.path(&format!("{MTLS}.{name}"), self.folder);
        let files = TlsFiles {
            cert: file("admin_ssl_cert"),
            key: file("admin_ssl_cert_key"),
            ca: file("admin_ssl_ca_cert"),
        };
        ListenerSpec {
            line: self.line(ADMIN_LISTEN),
            address: SocketAddr::new(UNSPECIFIED.ip(), PORT),
            plain_http: false,
            https: self.flag("deployment.admin.https_admin"),
            files,
            allow: self.optional("deployment.admin.allow_admin", |node| value::list(node, value::network)),
        }
    }

    /// APISIX's form. It may speak plain HTTP on every address while `allow_admin` denies other
    /// machines, which is APISIX's default.
    fn single(&mut self, enabled: bool) -> ListenerSpec {
        let (ip, port) = (format!("{ADMIN_LISTEN}.ip"), format!("{ADMIN_LISTEN}.port"));
        self.reject_null(&ip);
        self.reject_null(&port);
        let known_problems = self.problems.len();
        let mut spec = self.common();
        spec.address.set_ip(self.optional(&ip, value::ip).unwrap_or(spec.address.ip()));
        spec.address.set_port(self.optional(&port, value::port).unwrap_or(PORT));
        let plain_http = format!("{ADMIN_LISTEN}.plain_http");
        spec.plain_http = self.optional(&plain_http, value::boolean).unwrap_or_default();
        if enabled {
            let line = self.line(MTLS);
            self.check_files(&spec, &spec.files, MTLS, line);
            // An unreadable value may be the missing one: it has its own problem.
            let complete = self.problems.len() == known_problems;
            if complete && !allows_only_loopback(spec.allow.as_deref()) {
                self.check_plain_http(&spec, ADMIN_LISTEN);
            }
        }
        spec
    }

    fn entries(&mut self, entries: &[YamlNode], line: usize, enabled: bool) -> Vec<ListenerSpec> {
        if !(1..=LISTENERS_MAX).contains(&entries.len()) {
            let message = format!(
                "{} entries: there are 1 to {LISTENERS_MAX} (apisix.enable_admin: false disables the Admin API)",
                entries.len()
            );
            self.problem_at(Some(line), ADMIN_LISTEN, message);
        }
        let common = self.common();
        let mut specs: Vec<ListenerSpec> = Vec::new();
        for entry in entries {
            let spec = self.entry(entry, &common, enabled);
            let clash = specs.iter().find(|other| conflict(other.address, spec.address));
            if let Some(ListenerSpec { address, line: Some(line), .. }) = clash {
                let message = format!(
                    "{} conflicts with {address} on line {line}; give each its own port",
                    spec.address
                );
                self.problem_at(spec.line, ENTRY, message);
            }
            specs.push(spec);
        }
        if enabled && common.files.ca.is_some() && !specs.iter().any(|spec| spec.https) {
            let message =
                "admin_ssl_ca_cert would verify no client: no entry of admin_listen has https_admin: true";
            self.problem(MTLS, message.into());
        }
        specs
    }

    fn entry(&mut self, entry: &YamlNode, common: &ListenerSpec, enabled: bool) -> ListenerSpec {
        if !matches!(entry.value, YamlValue::Map(_)) {
            let error = ValueError::expected("{ip, port, ...}", entry);
            self.problem_at(Some(entry.line), ENTRY, error.message);
        }
        let ip = self.part(entry, "ip", value::ip).unwrap_or(common.address.ip());
        let port = self.part(entry, "port", value::port).unwrap_or(PORT);
        let own_ca = self.part_file(entry, "admin_ssl_ca_cert");
        let own = TlsFiles {
            cert: self.part_file(entry, "admin_ssl_cert").flatten(),
            key: self.part_file(entry, "admin_ssl_cert_key").flatten(),
            ca: own_ca.clone().flatten(),
        };
        let field = format!("{ENTRY}.admin_api_mtls");
        if own.cert.is_some() != own.key.is_some() {
            let message = "admin_ssl_cert and admin_ssl_cert_key belong together: give both or none";
            self.problem_at(Some(entry.line), &field, message.into());
        }
        let pair = if own.cert.is_some() || own.key.is_some() { &own } else { &common.files };
        let files = TlsFiles { ca: own_ca.unwrap_or_else(|| common.files.ca.clone()), ..pair.clone() };
        let spec = ListenerSpec {
            line: Some(entry.line),
            address: SocketAddr::new(ip, port),
            plain_http: self.part(entry, "plain_http", value::boolean).unwrap_or_default(),
            https: self.part(entry, "https_admin", value::boolean).unwrap_or(common.https),
            files,
            allow: self
                .part(entry, "allow_admin", |node| value::list(node, value::network))
                .map_or_else(|| common.allow.clone(), Some),
        };
        if enabled {
            self.check_files(&spec, &own, &field, spec.line);
            self.check_plain_http(&spec, ENTRY);
        }
        spec
    }

    /// A key of an entry. `null` is an error: it might mean the default, or nothing.
    fn part<T>(
        &mut self,
        entry: &YamlNode,
        name: &str,
        parse: impl Fn(&YamlNode) -> Result<T, ValueError>,
    ) -> Option<T> {
        let node = entry.get_path(name)?;
        let parsed = match node.is_null() {
            true => {
                Err(ValueError::new("null: write a value, or remove the line to have deployment.admin's"))
            }
            false => parse(node),
        };
        parsed.map_err(|error| self.value_problems(&format!("{ENTRY}.{name}"), node.line, error)).ok()
    }

    /// A file of an entry's `admin_api_mtls`; `Some(None)`: an empty text, no file.
    fn part_file(&mut self, entry: &YamlNode, name: &str) -> Option<Option<PathBuf>> {
        let folder: &Path = self.folder;
        let text = self.part(entry, &format!("admin_api_mtls.{name}"), value::text)?;
        Some(Some(text).filter(|text| !text.is_empty()).map(|text| folder.join(text)))
    }

    /// Files that HTTPS needs, and files that plain HTTP does not use. `own`: those that the file
    /// names at `field`.
    fn check_files(&mut self, spec: &ListenerSpec, own: &TlsFiles, field: &str, line: Option<usize>) {
        let has_pair = |files: &TlsFiles| files.cert.is_some() && files.key.is_some();
        if spec.https && !has_pair(&spec.files) {
            let message = "missing ssl cert for https admin: https_admin is true, so admin_ssl_cert and \
                           admin_ssl_cert_key must name files (`controlplane pki init` makes them)";
            self.problem_at(line, field, message.into());
        } else if !spec.https && has_pair(own) {
            let text = "not used, because https_admin is false: the Admin API speaks plain HTTP";
            self.warnings.push((line.unwrap_or(0), format!("{field}: {text}")));
        } else if !spec.https && own.ca.is_some() {
            let message = "admin_ssl_ca_cert without https_admin, admin_ssl_cert and admin_ssl_cert_key \
                           would verify no client";
            self.problem_at(line, field, message.into());
        }
    }

    fn check_plain_http(&mut self, spec: &ListenerSpec, field: &str) {
        if spec.https || spec.plain_http || spec.address.ip().to_canonical().is_loopback() {
            return;
        }
        let message = format!(
            "plain HTTP on {}: keys and documents would travel in clear. Set https_admin: true (with admin_api_mtls), or a \
             loopback ip such as 127.0.0.1, or write plain_http: true beside the port if the network may read them",
            spec.address
        );
        self.problem_at(spec.line, field, message);
    }
}

/// Whether `allow_admin` denies every other machine.
pub(super) fn allows_only_loopback(allow: Option<&[IpNet]>) -> bool {
    let loopback = |net: &IpNet| match net.network() {
        IpAddr::V4(network) => network.is_loopback() && net.prefix_len() >= 8,
        IpAddr::V6(network) => network.is_loopback() && net.prefix_len() == 128,
    };
    allow.is_some_and(|allow| allow.iter().all(loopback))
}

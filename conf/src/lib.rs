//! The configuration file of both planes: APISIX's keys and ours, with line numbers, defaults and
//! suggestions.
//!
//! Loading: `tree` (YAML text with lines) -> `environment` (`${{NAME:=default}}`) -> `schema`
//! (rejects misspelt keys) -> `tree::merge` over `defaults.yaml` -> `reader` (types, units, rules)
//! -> `Settings`. Invariant: the result is either complete settings or every problem of the file.

#![warn(missing_docs)]

use std::path::{Path, PathBuf};

mod apisix_yaml;
mod changes;
mod ciphers;
mod control_command;
mod environment;
mod error;
mod files;
mod log_format;
mod path_key;
mod reader;
mod schema;
mod secret;
mod settings;
mod tree;
mod value;

pub use apisix_yaml::{parse_apisix_yaml, parse_yaml, read_apisix_yaml};
pub use changes::{ChangedKeys, KeyValues, upgrade_keys};
pub use ciphers::Ciphers;
pub use control_command::{AskError, ControlTarget};
pub use error::{ConfError, ConfProblem};
pub use files::{
    ADMIN_CA, ADMIN_CERT, ADMIN_CERT_KEY, KeyringFileError, MissingFiles, STATUS_CA, STATUS_CERT, STATUS_KEY,
};
pub use log_format::{LogEscape, LogFormat, LogPart, LogSubsystem, LogVariable};
pub use model::TlsVersion;
pub use reader::ADMIN_LISTEN;
pub use reader::countersign::host_name;
pub use reader::status::{CONTROL, CONTROL_PLANE_STATUS, PROMETHEUS, STATUS};
pub use schema::{Plane, unsupported_keys};
pub use secret::Secret;
pub use settings::{
    AccessLogSettings, AdminKey, AdminKeyValue, AdminListener, AdminRole, AdminSettings, AdminTlsSettings,
    ApisixSettings, ClientRole, CollectorSettings, CollectorTlsSettings, ConfigProvider, CountersignSettings,
    DefaultListener, DeploymentRole, DeploymentSettings, EtcdSettings, EtcdTlsSettings, HttpLimits,
    LimitSettings, LogSettings, MetricsSettings, NodeSettings, PathSettings, ProcessUser, PrometheusSettings,
    ProxyMode, ProxyProtocolListen, ProxyProtocolVersion, PushSettings, RealIpSettings, SamplingRatio,
    Settings, SslSettings, StatusSettings, StatusTlsSettings, StoreSettings, StreamListener, TlsSettings,
    TraceParents, TracingSettings,
};

const DEFAULTS: &str = include_str!("defaults.yaml");
const BYTES_MAX: u64 = 1 << 20;

/// Loads the file with the process's environment and working directory.
///
/// # Errors
/// [`ConfError`], whose `Display` names the line and the fix.
pub fn load(path: &Path) -> Result<Settings, ConfError> {
    let working = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
    let text = read_text(path, BYTES_MAX)?;
    let mut settings = load_text(path, &text, &working, &|name| std::env::var(name).ok())?;
    settings.warnings.extend(settings.exposed_files());
    Ok(settings)
}

/// Settings that were read again.
#[derive(Debug)]
pub struct Reloaded {
    /// The settings of the file, but for the keys that need an upgrade, which are as before.
    pub settings: Settings,
    /// The keys that differ in the file.
    pub changed: ChangedKeys,
}

/// Reads the file of `running` again, for one of the programs.
///
/// # Errors
/// As [`load`]; and where the file does not agree with a key that needs an upgrade.
pub fn reload(running: &Settings, plane: Plane) -> Result<Reloaded, ConfError> {
    let working = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
    let (path, environment) = (&running.path, &|name: &str| std::env::var(name).ok());
    let text = read_text(path, BYTES_MAX)?;
    reload_text(running, plane, &text, &working, environment).map(|mut reloaded| {
        let exposed = reloaded.settings.exposed_files();
        reloaded.settings.warnings.extend(exposed);
        reloaded
    })
}

fn reload_text(
    running: &Settings,
    plane: Plane,
    text: &str,
    working: &Path,
    environment: &environment::Lookup<'_>,
) -> Result<Reloaded, ConfError> {
    let path = &running.path;
    let mut settings = load_text(path, text, working, environment)?;
    let changed = running.values.changed_keys(&settings.values, plane);
    if !changed.upgrade.is_empty() {
        let kept = Some((&running.values, plane));
        settings = load_with_kept(path, text, working, environment, kept)?;
    }
    Ok(Reloaded { settings, changed })
}

/// Like [`load`], from a text. Reads only the files that the settings need.
///
/// # Errors
/// As [`load`].
pub fn load_text(
    path: &Path,
    text: &str,
    working: &Path,
    environment: &dyn Fn(&str) -> Option<String>,
) -> Result<Settings, ConfError> {
    load_with_kept(path, text, working, environment, None)
}

/// `kept`: the values that the keys of a program have which need an upgrade.
fn load_with_kept(
    path: &Path,
    text: &str,
    working: &Path,
    environment: &environment::Lookup<'_>,
    kept: Option<(&KeyValues, Plane)>,
) -> Result<Settings, ConfError> {
    let syntax = |tree::SyntaxError { line, column, message }| {
        let path = path.to_owned();
        ConfError::Syntax { path, line, column, message }
    };
    let defaults = tree::parse(DEFAULTS).map_err(syntax)?;
    let empty = tree::YamlNode { line: 0, value: tree::YamlValue::Map(Vec::new()) };
    let defaults = defaults.unwrap_or_else(|| empty.clone());
    let mut user = tree::parse(text).map_err(syntax)?;

    let has_secrets = user.as_ref().is_some_and(files::has_secrets);
    let (mut problems, mut warnings) = (Vec::new(), Vec::new());
    if let Some(user) = &mut user {
        environment::substitute(user, environment, &mut problems);
        schema::check(user, &mut problems, &mut warnings);
    }
    if let Some((values, plane)) = kept {
        values.keep_in(user.get_or_insert_with(|| empty.clone()), &defaults, plane);
    }
    let merged = tree::merge(&defaults, user.as_ref().unwrap_or(&empty));
    let folder = working.join(path.parent().unwrap_or(Path::new("")));
    // Without symlinks, so that `..` in a relative path can be resolved textually.
    let folder = folder.canonicalize().unwrap_or(folder);
    let mut reader = reader::Reader {
        merged: &merged,
        defaults: &defaults,
        user: user.as_ref(),
        folder: &folder,
        working,
        environment,
        problems,
        warnings,
    };
    let mut settings = Settings {
        path: path.to_owned(),
        has_secrets,
        warnings: Vec::new(),
        values: changes::KeyValues::new(&merged),
        log: reader.log(),
        access_log: reader.access_log(LogSubsystem::Http),
        stream_access_log: reader.access_log(LogSubsystem::Stream),
        user: reader.user(),
        deployment: reader.deployment(),
        apisix: reader.apisix(),
        http: reader.http(),
        real_ip: reader.real_ip(),
        stream_real_ip_from: reader.stream_real_ip_from(),
        prometheus: reader.prometheus(),
        countersign: reader.countersign(),
    };
    check_listeners(&mut reader, &mut settings);

    let reader::Reader { mut problems, mut warnings, .. } = reader;
    if !problems.is_empty() {
        problems.sort_by_key(|problem| problem.line.unwrap_or(usize::MAX));
        return Err(ConfError::Invalid { path: path.to_owned(), problems });
    }
    warnings.sort();
    let place = |line: usize| if line == 0 { String::new() } else { format!("{line}:") };
    let messages =
        warnings.into_iter().map(|(line, text)| format!("{}:{} {text}", path.display(), place(line)));
    settings.warnings = messages.collect();
    Ok(settings)
}

/// Rejects listeners that cannot be, and leaves out those that are only open by default where
/// their ports are taken.
fn check_listeners(reader: &mut reader::Reader<'_>, settings: &mut Settings) {
    reader.check_proxy_protocol(settings);
    reader.check_status_access(settings);
    let listeners = listeners(settings);
    reader::port_conflicts(reader, &listeners);
    reader.leave_out_taken_defaults(settings, &listeners);
}

/// Every listener that the file names, or must have, with its key.
fn listeners(settings: &Settings) -> Vec<(&'static str, std::net::SocketAddr)> {
    let admin = &settings.deployment.admin;
    let mut listeners = vec![("countersign.push.listen", settings.countersign.push.listen)];
    let of_admin = admin.listeners.iter().filter(|_| admin.enabled);
    listeners.extend(of_admin.map(|listener| (reader::ADMIN_LISTEN, listener.address)));
    let status = settings.countersign.control_plane.status;
    listeners.extend(status.map(|address| (CONTROL_PLANE_STATUS, address)));
    listeners.extend(settings.apisix.status.map(|address| (STATUS, address)));
    let prometheus = settings.prometheus.as_ref().map(|prometheus| (PROMETHEUS, prometheus.listener));
    let defaults = [settings.apisix.control.map(|listener| (CONTROL, listener)), prometheus];
    let named = defaults.into_iter().flatten().filter(|(_, listener)| listener.is_named);
    listeners.extend(named.map(|(key, listener)| (key, listener.address)));
    if settings.apisix.proxy_mode.streams() {
        let streams = settings.apisix.streams.iter();
        listeners.extend(streams.map(|listener| ("apisix.stream_proxy.tcp", listener.addr)));
    }
    if !settings.apisix.proxy_mode.http() {
        return listeners;
    }
    listeners.extend(settings.apisix.node_listen.iter().map(|address| ("apisix.node_listen", *address)));
    if settings.apisix.ssl.enable {
        listeners.extend(settings.apisix.ssl.listen.iter().map(|address| ("apisix.ssl.listen", *address)));
    }
    let with_proxy_protocol = &settings.apisix.proxy_protocol;
    let http = with_proxy_protocol.http.iter();
    listeners.extend(http.map(|address| ("apisix.proxy_protocol.listen_http_port", *address)));
    let https = with_proxy_protocol.https.iter();
    listeners.extend(https.map(|address| ("apisix.proxy_protocol.listen_https_port", *address)));
    listeners
}

fn read_text(path: &Path, bytes_max: u64) -> Result<String, ConfError> {
    let unreadable = |error: std::io::Error| ConfError::Unreadable {
        path: path.to_owned(),
        hint: match error.kind() {
            std::io::ErrorKind::NotFound => " (name another one with -c PATH)",
            std::io::ErrorKind::InvalidData => " (it must be UTF-8 text)",
            _ => "",
        },
        error,
    };
    let read = process::bounded_read::read_any(path, bytes_max);
    let text = read.map_err(|error| unreadable(error.into()))?;
    Ok(text.to_string())
}

#[cfg(test)]
mod tests;

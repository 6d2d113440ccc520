//! The listeners for operators: `apisix.status`, `apisix.control`, `plugin_attr.prometheus`,
//! `countersign.control_plane.status`, and `countersign.status`.
//!
//! Invariant: settings with a listener that other machines reach have an allow-list or mutual TLS
//! for it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::{Reader, conflict};
use crate::files::{STATUS_CA, STATUS_CERT, STATUS_KEY};
use crate::settings::{DefaultListener, PrometheusSettings, Settings, StatusSettings, StatusTlsSettings};
use crate::value::{self, ValueError};

/// The setting of the control API's listener.
pub const CONTROL: &str = "apisix.control";
/// The setting of the Prometheus exporter's listener.
pub const PROMETHEUS: &str = "plugin_attr.prometheus.export_addr";
/// The setting of the data plane's status listener.
pub const STATUS: &str = "apisix.status";
/// The setting of the control plane's status listener.
pub const CONTROL_PLANE_STATUS: &str = "countersign.control_plane.status";

impl Reader<'_> {
    pub(super) fn data_plane_status(&mut self) -> Option<SocketAddr> {
        self.merged.get_path(STATUS).is_some().then(|| self.listener_address(STATUS, 7085))
    }

    pub(super) fn control(&mut self) -> Option<DefaultListener> {
        let listener = self.default_listener(CONTROL, 9090);
        self.flag("apisix.enable_control").then_some(listener)
    }

    pub(crate) fn prometheus(&mut self) -> Option<PrometheusSettings> {
        let listener = self.default_listener(PROMETHEUS, 9091);
        let uri = self.required("plugin_attr.prometheus.export_uri", |node| {
            let uri = value::text(node)?;
            let path = uri.starts_with('/') && !uri.contains(['?', '#', ' ']);
            if path { Ok(uri) } else { Err(ValueError::expected("a path, which begins with /", node)) }
        });
        let prefix = self.required("plugin_attr.prometheus.metric_prefix", |node| {
            let prefix = value::text(node)?;
            let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
            let fine = prefix.chars().all(is_name) && !prefix.starts_with(|c: char| c.is_ascii_digit());
            let expected = "the beginning of a metric's name: letters, digits and _";
            if fine { Ok(prefix) } else { Err(ValueError::expected(expected, node)) }
        });
        let enabled = self.flag("plugin_attr.prometheus.enable_export_server");
        enabled.then_some(PrometheusSettings { listener, uri, prefix })
    }

    fn default_listener(&mut self, field: &str, port: u16) -> DefaultListener {
        let in_file = |name: &str| {
            let node = self.user.and_then(|user| user.get_path(&format!("{field}.{name}")));
            node.is_some_and(|node| !node.is_null())
        };
        let is_named = in_file("ip") || in_file("port");
        DefaultListener { address: self.listener_address(field, port), is_named }
    }

    fn listener_address(&mut self, field: &str, port: u16) -> SocketAddr {
        let ip = self.optional(&format!("{field}.ip"), value::ip).unwrap_or(Ipv4Addr::LOCALHOST.into());
        SocketAddr::new(ip, self.optional(&format!("{field}.port"), value::port).unwrap_or(port))
    }

    pub(super) fn status_settings(&mut self) -> StatusSettings {
        let allow = self.optional("countersign.status.allow", |node| value::list(node, value::network));
        let files = [STATUS_CERT, STATUS_KEY, STATUS_CA].map(|field| self.path(field, self.folder));
        let tls = match files {
            [Some(cert), Some(key), Some(ca)] => Some(StatusTlsSettings { cert, key, ca }),
            [None, None, None] => None,
            _ => {
                let message = "cert, key and ca belong together: give all three, or none";
                self.problem("countersign.status.tls", message.to_owned());
                None
            }
        };
        StatusSettings { allow, tls }
    }

    /// Rejects listeners that any other machine could reach.
    pub(crate) fn check_status_access(&mut self, settings: &Settings) {
        let StatusSettings { allow: None, tls: None } = settings.countersign.status else { return };
        let apisix = &settings.apisix;
        let listeners = [
            (STATUS, apisix.status),
            (CONTROL, apisix.control.map(|listener| listener.address)),
            (PROMETHEUS, settings.prometheus.as_ref().map(|prometheus| prometheus.listener.address)),
            (CONTROL_PLANE_STATUS, settings.countersign.control_plane.status),
        ];
        for (field, address) in listeners {
            let Some(address) = address.filter(|address| !is_loopback(address.ip())) else { continue };
            let message = format!(
                "{address}: other machines reach this address. Name those that may connect in countersign.status.allow (a list of \
                 networks), or require certificates with countersign.status.tls (cert, key, ca), or write 127.0.0.1"
            );
            self.problem(field, message);
        }
    }

    /// Leaves out the listeners that are open by default where another setting has their port.
    pub(crate) fn leave_out_taken_defaults(
        &mut self,
        settings: &mut Settings,
        listeners: &[(&'static str, SocketAddr)],
    ) {
        let mut is_taken = |field: &str, listener: DefaultListener, switch: &str| {
            let other = listeners.iter().find(|(_, other)| conflict(*other, listener.address));
            let Some((other, _)) = other.filter(|_| !listener.is_named) else { return false };
            let message = format!(
                "{} is an address of {other}, so this listener is not opened: give it another port, or write {switch}: false",
                listener.address
            );
            self.warn(field, &message);
            true
        };
        settings.apisix.control.take_if(|listener| is_taken(CONTROL, *listener, "apisix.enable_control"));
        settings.prometheus.take_if(|prometheus| {
            is_taken(PROMETHEUS, prometheus.listener, "plugin_attr.prometheus.enable_export_server")
        });
    }
}

fn is_loopback(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}

//! `countersign`: the keys that APISIX does not have.

use super::Reader;
use crate::environment::Lookup;
use crate::settings::{
    ControlPlaneSettings, CountersignAdminSettings, CountersignSettings, LimitSettings, MetricsSettings,
    NodeSettings, PushSettings, StoreSettings, TlsSettings,
};
use crate::value::{self, ValueError};

/// The key of the keyring file.
pub(super) const KEYRING_FILE: &str = "countersign.keyring_file";

impl Reader<'_> {
    pub(crate) fn countersign(&mut self) -> CountersignSettings {
        let push = PushSettings {
            listen: self.socket("countersign.push.listen"),
            cert: self.file("countersign.push.cert"),
            key: self.file("countersign.push.key"),
            ca: self.file("countersign.push.ca"),
            allowed_names: self
                .required("countersign.push.allowed_names", |node| value::list(node, value::text)),
        };
        // Unlike other keys it may be null, which disables the listener.
        let control_plane = ControlPlaneSettings {
            status: self.optional("countersign.control_plane.status", value::socket_addr),
        };
        let admin = CountersignAdminSettings {
            wrong_keys_per_minute: self
                .required("countersign.admin.wrong_keys_per_minute", value::non_negative),
        };
        let name = self.optional("countersign.node.name", value::text).filter(|name| !name.is_empty());
        let node = NodeSettings {
            name: name.unwrap_or_else(|| node_name(self.environment)),
            control_planes: self.required("countersign.node.control_planes", |node| {
                let planes = value::list(node, value::host_and_port)?;
                if planes.is_empty() {
                    Err(ValueError::new("at least one host:port is needed"))
                } else {
                    Ok(planes)
                }
            }),
            server_name: self.required("countersign.node.server_name", |node| {
                let name = value::text(node)?;
                if name.is_empty() { Err(ValueError::expected("a DNS name", node)) } else { Ok(name) }
            }),
            cert: self.file("countersign.node.cert"),
            key: self.file("countersign.node.key"),
            ca: self.file("countersign.node.ca"),
            last_good: self.file("countersign.node.last_good"),
            last_good_max_age: self.required("countersign.node.last_good_max_age", value::seconds),
            wait_for_control_plane: self.required("countersign.node.wait_for_control_plane", value::seconds),
        };
        let metrics = MetricsSettings {
            by_route: self.flag("countersign.metrics.by_route"),
            by_site: self.flag("countersign.metrics.by_site"),
            series_max: self.required("countersign.metrics.series_max", value::non_negative) as usize,
        };
        let limits = self.limits();
        let (store, workers) = (StoreSettings { path: self.file("countersign.store.path") }, self.workers());
        let tls = TlsSettings { own_records: self.flag("countersign.tls.own_records") };
        let tracing = self.tracing();
        let ticket_lifetime = self.required("countersign.ticket_lifetime", value::ticket_lifetime);
        let preserve_header_case = self.flag("countersign.preserve_header_case");
        let keyring_file = self.path(KEYRING_FILE, self.folder);
        CountersignSettings {
            push,
            control_plane,
            status: self.status_settings(),
            admin,
            store,
            node,
            keyring_file,
            workers,
            tls,
            metrics,
            tracing,
            limits,
            preserve_header_case,
            ticket_lifetime,
            drain_delay: self.required("countersign.drain_delay", value::seconds),
            drain_idle_timeout: self.required("countersign.drain_idle_timeout", value::seconds),
        }
    }

    fn limits(&mut self) -> LimitSettings {
        LimitSettings {
            handshake_timeout: self.required("countersign.limits.handshake_timeout", value::seconds_positive),
            connections_per_worker: self.connections(),
            requests_per_client: self.required("countersign.limits.requests_per_client", value::non_negative)
                as usize,
            upstream_connections_per_node: self
                .required("countersign.limits.upstream_connections_per_node", value::non_negative),
            header_line_bytes: self.required("countersign.limits.header_line_bytes", value::at_least_one),
            header_bytes: self.required("countersign.limits.header_bytes", value::at_least_one),
            idle_release_timeout: self.required("countersign.limits.idle_release_timeout", value::seconds),
        }
    }

    fn workers(&mut self) -> usize {
        let ours = self.required("countersign.workers", value::non_negative);
        if ours != 0 {
            return ours as usize;
        }
        let apisix = self.required("nginx_config.worker_processes", |node| {
            if value::text(node).is_ok_and(|text| text == "auto") { Ok(0) } else { value::non_negative(node) }
        });
        let reserved =
            (self.environment)("APISIX_WORKER_PROCESSES").and_then(|text| text.trim().parse().ok());
        reserved.unwrap_or(apisix) as usize
    }
}

/// The kernel's host name of this machine, if any.
pub fn host_name() -> Option<String> {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    Some(kernel.trim().to_owned()).filter(|name| !name.is_empty())
}

/// The default of `countersign.node.name`.
fn node_name(environment: &Lookup<'_>) -> String {
    host_name().or_else(|| environment("HOSTNAME")).unwrap_or_else(|| "dataplane".to_owned())
}

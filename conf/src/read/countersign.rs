//! `countersign`: the keys that APISIX does not have.

use super::Reader;
use crate::environment::Lookup;
use crate::settings::{ControlPlane, Countersign, Limits, Node, Push, Store, Tls};
use crate::value::{self, Wrong};

impl Reader<'_> {
    pub fn countersign(&mut self) -> Countersign {
        let push = Push {
            listen: self.socket("countersign.push.listen"),
            cert: self.file("countersign.push.cert"),
            key: self.file("countersign.push.key"),
            ca: self.file("countersign.push.ca"),
            allowed_names: self.need("countersign.push.allowed_names", |node| value::list(node, value::text)),
        };
        // Unlike other keys it may be null: then there is no such listener.
        let control_plane =
            ControlPlane { status: self.read("countersign.control_plane.status", value::socket) };
        let name = self.read("countersign.node.name", value::text).filter(|name| !name.is_empty());
        let node = Node {
            name: name.unwrap_or_else(|| host_name(self.environment)),
            control_planes: self.need("countersign.node.control_planes", |node| {
                let planes = value::list(node, value::host_and_port)?;
                if planes.is_empty() {
                    Err(Wrong::new("at least one host:port is needed"))
                } else {
                    Ok(planes)
                }
            }),
            server_name: self.need("countersign.node.server_name", |node| {
                let name = value::text(node)?;
                if name.is_empty() { Err(Wrong::expected("a DNS name", node)) } else { Ok(name) }
            }),
            cert: self.file("countersign.node.cert"),
            key: self.file("countersign.node.key"),
            ca: self.file("countersign.node.ca"),
            last_good: self.file("countersign.node.last_good"),
        };
        let limits = Limits {
            handshake_timeout: self.need("countersign.limits.handshake_timeout", value::seconds_positive),
            connections_per_worker: self.connections(),
            header_line_bytes: self.need("countersign.limits.header_line_bytes", value::at_least_one),
            header_bytes: self.need("countersign.limits.header_bytes", value::at_least_one),
            rest_after: self.need("countersign.limits.rest_after", value::seconds),
        };
        let (store, workers) = (Store { path: self.file("countersign.store.path") }, self.workers());
        let tls = Tls { own_records: self.switch("countersign.tls.own_records") };
        let ticket_lifetime = self.need("countersign.ticket_lifetime", value::ticket_lifetime);
        let preserve_header_case = self.switch("countersign.preserve_header_case");
        Countersign {
            push,
            control_plane,
            store,
            node,
            workers,
            tls,
            limits,
            preserve_header_case,
            ticket_lifetime,
        }
    }

    fn workers(&mut self) -> usize {
        let ours = self.need("countersign.workers", value::whole);
        if ours != 0 {
            return ours as usize;
        }
        let apisix = self.need("nginx_config.worker_processes", |node| {
            if value::text(node).is_ok_and(|text| text == "auto") { Ok(0) } else { value::whole(node) }
        });
        let reserved =
            (self.environment)("APISIX_WORKER_PROCESSES").and_then(|text| text.trim().parse().ok());
        reserved.unwrap_or(apisix) as usize
    }
}

/// The kernel's name of this machine.
fn host_name(environment: &Lookup<'_>) -> String {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let name = kernel.map(|text| text.trim().to_owned()).filter(|name| !name.is_empty());
    name.or_else(|| environment("HOSTNAME")).unwrap_or_else(|| "dataplane".to_owned())
}

//! The settings of a control plane for an etcd, and the files they name.

use std::net::SocketAddr;

use serde_json::{Value, json};

use super::Etcd;
use crate::credentials::Credential;
use crate::settings::merge;

#[derive(Clone, Default)]
pub struct Access {
    /// `deployment.etcd.host`
    pub hosts: Vec<String>,
    /// The authority of the servers' certificates; written as `etcd-ca.crt`.
    pub authority_pem: Option<String>,
    /// The client certificate; written as `etcd-client.crt` and `etcd-client.key`.
    pub client: Option<Credential>,
    /// Name and password.
    pub user: Option<(String, String)>,
}

impl Access {
    /// Through these addresses (of proxies), one for each host in order.
    pub fn through(mut self, addresses: &[SocketAddr]) -> Self {
        assert_eq!(self.hosts.len(), addresses.len(), "one address a host");
        for (host, address) in self.hosts.iter_mut().zip(addresses) {
            let (scheme, _) = host.split_once("://").expect("a URL");
            *host = format!("{scheme}://{address}");
        }
        self
    }

    /// By another name of the host.
    pub fn named(mut self, name: &str) -> Self {
        for host in &mut self.hosts {
            *host = host.replace("127.0.0.1", name);
        }
        self
    }

    /// The settings, with shorter timeouts than the defaults.
    pub fn settings(&self) -> Value {
        let mut settings = json!({
            "deployment": {
                "role_traditional": {"config_provider": "etcd"},
                "etcd": {
                    "host": self.hosts,
                    "timeout": 5,
                    "resync_delay": 1,
                    "health_check_timeout": 1,
                },
            },
        });
        if self.authority_pem.is_some() {
            merge(&mut settings, json!({"apisix": {"ssl": {"ssl_trusted_certificate": "etcd-ca.crt"}}}));
        }
        let etcd = &mut settings["deployment"]["etcd"];
        if self.client.is_some() {
            etcd["tls"] = json!({"cert": "etcd-client.crt", "key": "etcd-client.key"});
        }
        if let Some((user, password)) = &self.user {
            merge(etcd, json!({"user": user, "password": password}));
        }
        settings
    }
}

impl From<&Etcd> for Access {
    fn from(etcd: &Etcd) -> Self {
        etcd.access()
    }
}

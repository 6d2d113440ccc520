//! How a control plane gets into an etcd: the settings, and the files they name.

use std::net::SocketAddr;

use serde_json::{Value, json};

use super::{Cluster, Etcd};
use crate::credentials::Credential;
use crate::settings::merge;

/// How a control plane gets in.
#[derive(Clone, Default)]
pub struct Access {
    /// `deployment.etcd.host`
    pub hosts: Vec<String>,
    /// Who signed the servers' certificates; written as `etcd-ca.crt`.
    pub authority_pem: Option<String>,
    /// What the control plane shows; written as `etcd-client.crt` and `etcd-client.key`.
    pub client: Option<Credential>,
    /// Name and password.
    pub user: Option<(String, String)>,
}

impl Access {
    /// The same through these addresses (a proxy's), one a host and in their order.
    pub fn through(mut self, addresses: &[SocketAddr]) -> Self {
        assert_eq!(self.hosts.len(), addresses.len(), "one address a host");
        for (host, address) in self.hosts.iter_mut().zip(addresses) {
            let (scheme, _) = host.split_once("://").expect("a URL");
            *host = format!("{scheme}://{address}");
        }
        self
    }

    /// The same by another name of the host.
    pub fn named(mut self, name: &str) -> Self {
        for host in &mut self.hosts {
            *host = host.replace("127.0.0.1", name);
        }
        self
    }

    /// What belongs into the settings file. Waits are shorter than the usual ones, so that tests are.
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

impl From<&Cluster> for Access {
    fn from(cluster: &Cluster) -> Self {
        cluster.access()
    }
}

//! The files of a world: a settings file for each program, and the certificates.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use serde_json::json;

use super::World;
use crate::credentials::Credential;
use crate::etcd::Access;
use crate::settings::merge;

impl World {
    /// Writes the settings of one program; gives the path.
    pub fn write_config(&self, name: &str) -> PathBuf {
        let mut settings = self.settings.clone();
        let node = self.nodes.iter().find(|node| node.name == name);
        let port = |listener| node.map_or(0, |node| node.known_port(listener));
        let (http, https) = (port("http"), port("https"));
        // A test may have its own address for operators.
        let ip = settings["apisix"]["status"]["ip"].as_str().unwrap_or("127.0.0.1").to_owned();
        let control = self.controls.iter().find(|control| control.name == name).unwrap_or(&self.controls[0]);
        merge(
            &mut settings,
            json!({
                "apisix": {
                    "node_listen": [{"ip": "127.0.0.1", "port": http}],
                    "ssl": {"listen": [{"ip": "127.0.0.1", "port": https}]},
                    "status": {"ip": ip, "port": port("status")},
                    "control": {"ip": ip, "port": port("control")},
                },
                "plugin_attr": {"prometheus": {
                    "export_addr": {"ip": ip, "port": port("prometheus")},
                }},
                "deployment": {"admin": {
                    "admin_listen": {"ip": "127.0.0.1", "port": control.known_port("admin")},
                }},
                "countersign": {
                    "control_plane": {"status": format!("{ip}:{}", control.known_port("status"))},
                    "push": {"listen": format!("127.0.0.1:{}", control.known_port("push"))},
                    "node": {
                        "name": name,
                        "control_planes": self.dialled(),
                        "cert": format!("{name}.crt"),
                        "key": format!("{name}.key"),
                        "last_good": format!("{name}.snapshot"),
                    },
                },
            }),
        );
        if self.controls.len() > 1 {
            // A control plane puts its control socket beside its store.
            let store = json!({"path": format!("{}/store.redb", control.name)});
            merge(&mut settings, json!({"countersign": {"store": store}}));
        }
        let path = self.folder().join(format!("{name}.yaml"));
        // JSON is YAML.
        fs::write(&path, format!("{settings:#}\n")).expect("the settings can be written");
        // The settings hold an admin key.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("a mode can be set");
        path
    }

    /// The control planes' push addresses. A control plane reads them, too, before it knows its own
    /// port: then they hold one that is never served.
    fn dialled(&self) -> Vec<String> {
        let dialled = self.controls.iter().map(|control| match control.known_port("push") {
            0 => "127.0.0.1:1".to_owned(),
            port => format!("127.0.0.1:{port}"),
        });
        dialled.collect()
    }

    pub(super) fn write_credentials(&self) {
        let credentials = &self.credentials;
        self.write_credential("admin", &credentials.admin_server);
        self.write_credential("push-server", &credentials.push_server);
        self.write_credential("client", &credentials.client);
        self.write_credential("administrator", &credentials.admin_client);
        self.write("server-ca.crt", credentials.servers.certificate_pem());
        self.write("client-ca.crt", credentials.clients.certificate_pem());
        self.write("push-ca.crt", credentials.push.certificate_pem());
        self.write("upstream-ca.crt", credentials.upstreams.certificate_pem());
    }

    /// Writes the files that the settings of an etcd name.
    pub(super) fn write_access(&self, access: &Access) {
        if let Some(authority) = &access.authority_pem {
            self.write("etcd-ca.crt", authority);
        }
        if let Some(client) = &access.client {
            self.write_credential("etcd-client", client);
        }
    }

    pub fn write_credential(&self, name: &str, credential: &Credential) {
        self.write(&format!("{name}.crt"), &credential.certificate_pem);
        let key = self.write(&format!("{name}.key"), &credential.key_pem);
        fs::set_permissions(key, fs::Permissions::from_mode(0o600)).expect("a mode can be set");
    }

    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder().join(name);
        fs::write(&path, text).expect("a file can be written");
        path
    }
}

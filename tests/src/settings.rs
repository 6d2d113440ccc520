//! The settings of a test world: one set for both planes, with all files in the world's folder.
//!
//! They are JSON, which is YAML; every port is 0 until a program's ready line names it.

use serde_json::{Value, json};

use crate::admin::{ADMIN_KEY, VIEWER_KEY};

pub fn default_settings() -> Value {
    json!({
        "apisix": {
            "enable_ipv6": false,
            "data_encryption": {"keyring": ["qeddd145sfvddff3"]},
        },
        "deployment": {
            "admin": {
                "admin_key": [
                    {"name": "admin", "key": ADMIN_KEY, "role": "admin"},
                    {"name": "viewer", "key": VIEWER_KEY, "role": "viewer"},
                ],
                "https_admin": true,
                "admin_api_mtls": {
                    "admin_ssl_cert": "admin.crt",
                    "admin_ssl_cert_key": "admin.key",
                    "admin_ssl_ca_cert": "client-ca.crt",
                },
            },
        },
        "countersign": {
            "push": {"cert": "push-server.crt", "key": "push-server.key", "ca": "push-ca.crt"},
            "store": {"path": "store.redb"},
            "node": {"server_name": "controlplane", "ca": "push-ca.crt"},
            "workers": 2,
        },
    })
}

/// Merges objects; every other value replaces.
pub fn merge(base: &mut Value, more: Value) {
    match (base, more) {
        (Value::Object(base), Value::Object(more)) => {
            for (key, value) in more {
                merge(base.entry(key).or_insert(Value::Null), value);
            }
        }
        (base, more) => *base = more,
    }
}

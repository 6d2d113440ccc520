//! APISIX's own `conf/config.yaml.example`: every key with APISIX's default is accepted; and the
//! file itself, where a copy is available.

use super::*;

/// The keys that the file of 3.18 sets, with their defaults.
const KEYS: &str = include_str!("apisix_example.yaml");

/// The path of a copy of APISIX's file; without it the test of the copy is skipped.
const COPY: &str = "COUNTERSIGN_APISIX_EXAMPLE";

/// Checks that apply to both.
fn check(text: &str) {
    let settings = load_with(text, &[]).unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!(settings.deployment.provider, ConfigProvider::Etcd);
    assert!(settings.deployment.admin.enabled && settings.deployment.admin.tls_settings().is_empty());
    assert_eq!(settings.countersign.limits.connections_per_worker, 10620);
    assert_eq!(settings.apisix.ssl.ciphers.as_ref().unwrap().names().split(':').count(), 6);
    let ignored = |key: &str| settings.warnings.iter().any(|text| text.contains(&format!(" {key}: ")));
    for key in ["plugins", "stream_plugins", "apisix.ssl.ssl_ciphers"] {
        assert!(ignored(key), "{key}: {:#?}", settings.warnings);
    }
    for key in ["apisix.extra_lua_path", "apisix.max_post_args_readable_size", "plugin_attr"] {
        assert!(!ignored(key), "{key}: {:#?}", settings.warnings);
    }
}

#[test]
fn every_key_of_the_apisix_example_is_known() {
    check(KEYS);
}

#[test]
fn the_apisix_example_file_is_accepted() {
    match std::env::var_os(COPY) {
        Some(path) => check(&std::fs::read_to_string(path).unwrap()),
        None => eprintln!("skipped: {COPY} names no copy of APISIX's conf/config.yaml.example"),
    }
}

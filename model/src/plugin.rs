//! The plugins of APISIX that a document may have, and what they do here.
//!
//! Every other plugin is unknown and refused by name: without it, requests could pass that it would
//! deny or change. A plugin that only observes requests is stored and has no effect, so that a
//! document that was read from an APISIX can be written back. Invariant: a plugin of the table that
//! only observes denies no request, and changes none in a way that protects.

use std::sync::LazyLock;

use serde_json::Value;

use crate::problem::{Problem, ProblemKind};
use crate::schema::SchemaFile;

/// The plugin that is honoured.
pub(crate) const PROXY_REWRITE: &str = "proxy-rewrite";

/// What a plugin does here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PluginEffect {
    /// Data planes run it.
    Honoured,
    /// It is stored and has no effect: in APISIX it logs, counts or traces requests.
    ObservesOnly,
}

/// A plugin of APISIX.
#[derive(Debug)]
pub struct Plugin {
    /// The name in documents.
    pub name: &'static str,
    /// APISIX's priority: plugins of higher priority run first.
    pub priority: i32,
    /// What it does here.
    pub effect: PluginEffect,
    /// Whether it is also a plugin of stream routes. Every plugin is one of HTTP requests.
    pub stream: bool,
    /// Whether APISIX runs it once for the whole process (its `scope: global`), whatever document
    /// has it.
    pub global: bool,
    file: SchemaFile,
}

/// Loggers, tracers and metrics, by APISIX's priority. They export data about requests; what a
/// tracer adds to a request continues a trace that the gateway does not have.
///
/// Not in the list: `request-id`, which adds a header that upstreams may rely on, compression,
/// which changes responses, and `proxy-mirror`, which sends requests to another server.
const OBSERVERS: [(&str, i32, &str); 26] = [
    ("zipkin", 12011, include_str!("schema/plugins/zipkin.schema.json")),
    ("skywalking", 12010, include_str!("schema/plugins/skywalking.schema.json")),
    ("opentelemetry", 12009, include_str!("schema/plugins/opentelemetry.schema.json")),
    ("error-log-logger", 1091, include_str!("schema/plugins/error-log-logger.schema.json")),
    ("node-status", 1000, include_str!("schema/plugins/node-status.schema.json")),
    ("server-info", 990, include_str!("schema/plugins/server-info.schema.json")),
    ("prometheus", 500, include_str!("schema/plugins/prometheus.schema.json")),
    ("datadog", 495, include_str!("schema/plugins/datadog.schema.json")),
    ("lago", 415, include_str!("schema/plugins/lago.schema.json")),
    ("loki-logger", 414, include_str!("schema/plugins/loki-logger.schema.json")),
    ("elasticsearch-logger", 413, include_str!("schema/plugins/elasticsearch-logger.schema.json")),
    ("loggly", 411, include_str!("schema/plugins/loggly.schema.json")),
    ("http-logger", 410, include_str!("schema/plugins/http-logger.schema.json")),
    ("splunk-hec-logging", 409, include_str!("schema/plugins/splunk-hec-logging.schema.json")),
    ("skywalking-logger", 408, include_str!("schema/plugins/skywalking-logger.schema.json")),
    ("google-cloud-logging", 407, include_str!("schema/plugins/google-cloud-logging.schema.json")),
    ("sls-logger", 406, include_str!("schema/plugins/sls-logger.schema.json")),
    ("tcp-logger", 405, include_str!("schema/plugins/tcp-logger.schema.json")),
    ("kafka-logger", 403, include_str!("schema/plugins/kafka-logger.schema.json")),
    ("rocketmq-logger", 402, include_str!("schema/plugins/rocketmq-logger.schema.json")),
    ("syslog", 401, include_str!("schema/plugins/syslog.schema.json")),
    ("udp-logger", 400, include_str!("schema/plugins/udp-logger.schema.json")),
    ("file-logger", 399, include_str!("schema/plugins/file-logger.schema.json")),
    ("clickhouse-logger", 398, include_str!("schema/plugins/clickhouse-logger.schema.json")),
    ("tencent-cloud-cls", 397, include_str!("schema/plugins/tencent-cloud-cls.schema.json")),
    ("log-rotate", 100, include_str!("schema/plugins/log-rotate.schema.json")),
];

/// Plugins that APISIX also has for stream routes.
const STREAM: [&str; 2] = ["prometheus", "syslog"];

/// Plugins that APISIX runs once for the whole process.
const GLOBAL: [&str; 4] = ["error-log-logger", "log-rotate", "node-status", "server-info"];

static PLUGINS: LazyLock<Vec<Plugin>> = LazyLock::new(|| {
    let rewrite = include_str!("schema/plugins/proxy-rewrite.schema.json");
    let mut plugins = vec![Plugin::new(PROXY_REWRITE, 1008, PluginEffect::Honoured, rewrite)];
    for (name, priority, schema) in OBSERVERS {
        plugins.push(Plugin::new(name, priority, PluginEffect::ObservesOnly, schema));
    }
    plugins.sort_by_key(|plugin| std::cmp::Reverse(plugin.priority));
    plugins
});

/// Every plugin, in the order in which APISIX runs them.
pub fn plugins() -> &'static [Plugin] {
    &PLUGINS
}

/// The plugin of this name.
pub fn plugin(name: &str) -> Option<&'static Plugin> {
    plugins().iter().find(|plugin| plugin.name == name)
}

impl Plugin {
    fn new(name: &'static str, priority: i32, effect: PluginEffect, schema: &str) -> Plugin {
        let (stream, global) = (STREAM.contains(&name), GLOBAL.contains(&name));
        Plugin { name, priority, effect, stream, global, file: SchemaFile::load_plugin(schema) }
    }

    /// The JSON Schema of the configuration with all `$ref`s inlined.
    pub fn schema(&self) -> &Value {
        &self.file.text
    }

    /// Validates a configuration by the schema.
    ///
    /// # Errors
    ///
    /// `failed to check the configuration of plugin NAME err: ...`, with the field in the document.
    pub fn validate(&self, configuration: &Value) -> Result<(), Problem> {
        self.file.schema.validate(configuration).map_err(|problem| invalid_configuration(self.name, problem))
    }
}

/// A problem of a plugin's configuration, in APISIX's words and with the field in the document.
pub(crate) fn invalid_configuration(name: &str, problem: Problem) -> Problem {
    let problem = problem.within(name).within("plugins");
    let message = format!("failed to check the configuration of plugin {name} err: {}", problem.message);
    Problem { message, ..problem }
}

/// The problem of a plugin that is not in the table.
pub(crate) fn unknown_plugin(name: &str) -> Problem {
    Problem::new(format!("plugins.{name}"), format!("unknown plugin [{name}]"))
        .with_hint(
            "remove it: without it, requests could pass that it would deny; this gateway has proxy-rewrite, \
             and stores loggers, tracers and metrics without running them",
        )
        .with_kind(ProblemKind::Unsupported)
}

/// Whether `_meta.disable` switches the plugin off.
pub(crate) fn is_disabled(configuration: &Value) -> bool {
    configuration.pointer("/_meta/disable") == Some(&Value::Bool(true))
}

/// Whether the plugin of this name only observes.
pub(crate) fn is_observer(name: &str) -> bool {
    plugin(name).is_some_and(|plugin| plugin.effect == PluginEffect::ObservesOnly)
}

/// The names of the enabled plugins of a document that only observe.
pub(crate) fn observers(document: &Value) -> impl Iterator<Item = &str> {
    let configured = document.get("plugins").and_then(Value::as_object).into_iter().flatten();
    let enabled = configured.filter(|(_, configuration)| !is_disabled(configuration));
    enabled.map(|(name, _)| name.as_str()).filter(|name| is_observer(name))
}

/// Warnings about the plugins of a document that are stored and have no effect.
pub fn plugin_warnings(document: &Value) -> Vec<String> {
    observers(document).map(|name| format!("plugins.{name}: {NO_EFFECT}")).collect()
}

/// What happens to a plugin that only observes.
pub(crate) const NO_EFFECT: &str = "stored, and has no effect here";

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn plugins_are_in_apisix_order_and_have_schemas() {
        assert!(plugins().is_sorted_by_key(|plugin| std::cmp::Reverse(plugin.priority)));
        for plugin in plugins() {
            assert!(jsonschema::draft7::meta::is_valid(plugin.schema()), "{}", plugin.name);
            assert!(plugin.schema().pointer("/properties/_meta/properties/disable").is_some());
            assert!(!plugin.schema().to_string().contains("$ref"), "{}", plugin.name);
            let problem = plugin.validate(&json!({"_meta": {"disable": 1}})).unwrap_err();
            assert!(problem.field.starts_with(&format!("plugins.{}", plugin.name)), "{problem:?}");
        }
        let honoured = plugins().iter().filter(|plugin| plugin.effect == PluginEffect::Honoured);
        assert!(honoured.map(|plugin| plugin.name).eq([PROXY_REWRITE]));
        assert!(plugin("request-id").is_none() && plugin("").is_none());
    }

    #[test]
    fn a_configuration_is_checked_in_apisix_words() {
        let logger = plugin("http-logger").unwrap();
        logger.validate(&json!({"uri": "http://127.0.0.1/log", "batch_max_size": 1})).unwrap();
        let problem = logger.validate(&json!({"uri": 1})).unwrap_err();
        assert_eq!(problem.field, "plugins.http-logger.uri");
        let text = "failed to check the configuration of plugin http-logger err: property \"uri\" validation failed: ";
        assert!(problem.message.starts_with(text), "{problem}");
    }

    #[test]
    fn observers_that_are_on_are_warned_about() {
        let document = json!({"plugins": {
            "prometheus": {}, "proxy-rewrite": {"uri": "/"}, "zipkin": {"_meta": {"disable": true}}, "cors": {}
        }});
        assert_eq!(plugin_warnings(&document), ["plugins.prometheus: stored, and has no effect here"]);
        assert!(plugin_warnings(&json!({"plugins": 5})).is_empty());
    }
}

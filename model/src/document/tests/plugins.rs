//! Plugins of documents: honoured, without an effect, or refused by name.

use super::*;
use crate::resource::references;

const UNKNOWN: [&str; 4] = ["ip-restriction", "cors", "request-id", "nothing"];

#[test]
fn unknown_plugins_are_refused_in_apisix_words() {
    for name in UNKNOWN {
        for configuration in [json!({}), json!({"_meta": {"disable": true}})] {
            let plugins = json!({"plugins": {"proxy-rewrite": {"uri": "/"}, name: configuration}});
            let problem = problem_of(Kind::Route, &route(plugins.clone()));
            assert_eq!(problem.message, format!("unknown plugin [{name}]"));
            assert_eq!((problem.field, problem.kind), (format!("plugins.{name}"), ProblemKind::Unsupported));
            assert!(problem.hint.is_some());
            let only = json!({"plugins": {name: {}}});
            for kind in [Kind::Service, Kind::PluginConfig, Kind::GlobalRule] {
                assert_eq!(problem_of(kind, &only).message, format!("unknown plugin [{name}]"), "{kind}");
            }
            let stream = problem_of(Kind::StreamRoute, &stream_route(only));
            assert_eq!(stream.message, format!("unknown plugin [{name}]"));
        }
    }
    let http_only = json!({"plugins": {"http-logger": {"uri": "http://127.0.0.1"}}});
    let problem = problem_of(Kind::StreamRoute, &stream_route(http_only));
    assert_eq!(problem.message, "unknown plugin [http-logger]");
}

#[test]
fn plugins_that_only_observe_are_accepted() {
    let plugins = json!({"plugins": {
        "prometheus": {"prefer_name": true},
        "http-logger": {"uri": "http://127.0.0.1/log", "auth_header": "$env://HEADER"},
        "zipkin": {"_meta": {"disable": true}},
        "syslog": {"host": "127.0.0.1", "port": 514}
    }});
    for (kind, document) in [
        (Kind::Route, route(plugins.clone())),
        (Kind::Service, plugins.clone()),
        (Kind::PluginConfig, with(plugins.clone(), json!({"id": "1", "name": "", "labels": {"a": "b"}}))),
        (Kind::GlobalRule, plugins),
        (Kind::StreamRoute, stream_route(json!({"plugins": {"syslog": {"host": "127.0.0.1", "port": 514}}}))),
        (Kind::StreamRoute, stream_route(json!({"plugins": {}}))),
        (Kind::Route, route(json!({"plugins": {}}))),
    ] {
        checked(kind, &document).unwrap();
    }
}

#[test]
fn configurations_are_checked() {
    for (name, configuration, text) in [
        ("http-logger", json!(5), "invalid plugin conf 5 for plugin [http-logger]"),
        (
            "http-logger",
            json!({}),
            "failed to check the configuration of plugin http-logger err: property \"uri\" is required",
        ),
        (
            "proxy-rewrite",
            json!({"_meta": {"priority": "x"}, "uri": "/"}),
            "failed to check the configuration of plugin proxy-rewrite err: property \"_meta\" validation failed: \
             property \"priority\" validation failed: wrong type: expected integer, got string",
        ),
        (
            "proxy-rewrite",
            json!({"_meta": {"filter": []}, "uri": "/"}),
            "failed to check the configuration of plugin proxy-rewrite err: filter is not supported by this gateway",
        ),
    ] {
        let problem = problem_of(Kind::Route, &route(json!({"plugins": {name: configuration}})));
        assert_eq!(problem.message, text);
        assert!(problem.field.starts_with(&format!("plugins.{name}")), "{problem:?}");
    }
}

#[test]
fn a_disabled_rewrite_replaces_the_services() {
    for configuration in [
        json!({"_meta": {"disable": true}}),
        json!({"uri": "no path", "_meta": {"disable": true, "filter": []}}),
    ] {
        let document = route(json!({"plugins": {"proxy-rewrite": configuration}}));
        let Ok(Resource::Route(route)) = checked(Kind::Route, &document) else { panic!("is accepted") };
        let rewrite = route.proxy_rewrite.as_deref().unwrap();
        assert!(rewrite.uri().is_none() && rewrite.set().is_empty() && !rewrite.uses_raw_path());
    }
    let ordered = json!({"uri": "/x", "_meta": {"priority": 1, "error_response": "no", "disable": false}});
    let document = route(json!({"plugins": {"proxy-rewrite": ordered}}));
    let Ok(Resource::Route(route)) = checked(Kind::Route, &document) else { panic!("is accepted") };
    assert_eq!(route.proxy_rewrite.as_deref().unwrap().source(), &json!({"uri": "/x"}));
}

#[test]
fn a_plugin_config_is_referred_to_and_checked() {
    let named = route(json!({"plugin_config_id": 7}));
    let Ok(resource) = checked(Kind::Route, &named) else { panic!("is accepted") };
    let [reference] = &references(&resource)[..] else { panic!("one reference") };
    assert_eq!(reference.key.to_string(), "plugin_configs/7");
    let problem = reference.check(None).unwrap_err();
    assert_eq!(
        (&*problem.field, &*problem.message),
        (
            "plugin_config_id",
            "failed to fetch plugin config info by plugin config id [7], response code: 404"
        )
    );
    for (document, field) in [
        (json!({"id": "1"}), ""),
        (json!({"plugins": {}, "uri": "/"}), "uri"),
        (json!({"plugins": {"proxy-rewrite": {"uri": "x"}}}), "plugins.proxy-rewrite.uri"),
    ] {
        let problem = problem_of(Kind::PluginConfig, &document);
        assert!(problem.field.starts_with(field), "{problem:?}");
    }
}

#[test]
fn a_global_rule_rewrites_no_raw_paths() {
    let rule = |plugin: Value| json!({"plugins": {"proxy-rewrite": plugin}});
    let Ok(Resource::GlobalRule(compiled)) = checked(Kind::GlobalRule, &rule(json!({"uri": "/x"}))) else {
        panic!("is accepted")
    };
    assert!(compiled.proxy_rewrite.is_some());
    let problem = problem_of(Kind::GlobalRule, &rule(json!({"use_real_request_uri_unsafe": true})));
    assert_eq!(problem.field, "plugins.proxy-rewrite.use_real_request_uri_unsafe");
    assert_eq!(problem.kind, ProblemKind::Unsupported);
    checked(Kind::GlobalRule, &rule(json!({"_meta": {"disable": true}}))).unwrap();
}

//! Checks patterns against the path options of the settings file: uris that no path matches, and
//! rules that an encoded slash bypasses.

mod encoded_slash;

use super::{Finding, Findings, Severity};
use crate::proxy_rewrite::{ProxyRewrite, UriRewrite};
use crate::request_target::PathOptions;
use crate::resource::{Resource, Route};
use crate::snapshot::Snapshot;

const SWITCH: &str =
    "set apisix.match_uri_encoded_slash: true in the settings files of both planes, or write a / for it";

/// Findings about uris and patterns of routes and about skip patterns of sites, each in the order
/// of keys.
pub fn lint_paths(snapshot: &Snapshot, options: PathOptions) -> Vec<Finding> {
    let mut found = Vec::new();
    for versioned in snapshot.resources().filter(|versioned| versioned.resource.blocked().is_none()) {
        let mut notes = Findings::for_resource(versioned.resource.key());
        match &versioned.resource {
            Resource::Route(route) => {
                check_route(route, options, &mut notes);
                check_rewrite(route.proxy_rewrite.as_deref(), options, &mut notes);
            }
            Resource::Service(service) => {
                check_rewrite(service.proxy_rewrite.as_deref(), options, &mut notes);
            }
            Resource::PluginConfig(config) => {
                check_rewrite(config.proxy_rewrite.as_deref(), options, &mut notes);
            }
            Resource::Ssl(ssl) => {
                let patterns = ssl.client.as_deref().map(|policy| policy.skip_patterns()).unwrap_or_default();
                check_patterns("client.skip_mtls_uri_regex", patterns.iter(), options, &mut notes);
            }
            _ => {}
        }
        found.extend(notes.findings);
    }
    if options.match_uri_encoded_slash {
        found.extend(encoded_slash::lint_encoded_slash(snapshot));
    }
    found
}

fn check_route(route: &Route, options: PathOptions, notes: &mut Findings) {
    for uri in &route.uris {
        if let Some((what, hint)) = unmatchable(uri.as_str(), uri.is_exact(), options) {
            notes.add(Severity::Warning, "uri", format!("uri \"{uri}\" {what}"), hint);
        }
    }
}

fn check_rewrite(rewrite: Option<&ProxyRewrite>, options: PathOptions, notes: &mut Findings) {
    if let Some(UriRewrite::Patterns(patterns)) = rewrite.and_then(ProxyRewrite::uri) {
        let patterns = patterns.iter().map(|(pattern, _)| pattern.as_str());
        check_patterns("plugins.proxy-rewrite.regex_uri", patterns, options, notes);
    }
}

fn check_patterns(
    field: &str,
    patterns: impl Iterator<Item = impl AsRef<str>>,
    options: PathOptions,
    notes: &mut Findings,
) {
    for pattern in patterns {
        let pattern = pattern.as_ref();
        if has_slash(pattern) && !options.match_uri_encoded_slash {
            let what = format!("\"{pattern}\" looks for an encoded slash, but %2F is read as /");
            notes.add(Severity::Warning, field, what, SWITCH);
        }
    }
}

fn has_slash(text: &str) -> bool {
    text.contains("%2F") || text.contains("%2f")
}

/// Why no path matches the uri, with a hint.
fn unmatchable(uri: &str, exact: bool, options: PathOptions) -> Option<(&'static str, &'static str)> {
    let dots = uri.split('/').any(|segment| matches!(segment, "." | ".."));
    let PathOptions { match_uri_encoded_slash, normalize_uri_like_servlet, delete_uri_tail_slash } = options;
    if has_slash(uri) && !match_uri_encoded_slash {
        Some(("takes no request: %2F is read as /", SWITCH))
    } else if uri.contains("%2f") {
        Some(("takes no request: an encoded slash is matched as %2F", "write %2F"))
    } else if has_escape(&uri.replace("%2F", "")) {
        Some(("has an escape, but paths are matched decoded", "write the character itself"))
    } else if dots || uri.contains("//") {
        Some(("takes no request: paths are matched without dot segments and empty ones", "leave them out"))
    } else if normalize_uri_like_servlet && uri.contains(';') {
        Some(("takes no request: paths are matched without parameters", "leave out what begins with ;"))
    } else if delete_uri_tail_slash && exact && uri.len() > 1 && uri.ends_with('/') {
        Some(("takes no request: a / at the end of a path is cut off", "leave it out"))
    } else {
        None
    }
}

fn has_escape(uri: &str) -> bool {
    uri.as_bytes().windows(3).any(
        |three| matches!(three, [b'%', high, low] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit()),
    )
}

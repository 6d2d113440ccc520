//! The parts of `nginx_config` that are not plain values (snippets, the user, the number of
//! connections), and `plugins`.
//!
//! Invariant: a part that restricts something is either applied or ends the startup.

use super::Reader;
use crate::value;

/// Snippets that apply to upstream connections, the outermost first: the innermost one that sets a
/// value wins.
const PROXY_SNIPPETS: [&str; 3] = [
    "http_configuration_snippet",
    "http_server_configuration_snippet",
    "http_server_location_configuration_snippet",
];
/// Other snippets: no directive in them is supported.
const OTHER_SNIPPETS: [&str; 4] = [
    "main_configuration_snippet",
    "http_admin_configuration_snippet",
    "http_end_configuration_snippet",
    "stream_configuration_snippet",
];
/// The only supported plugin.
const PLUGIN: &str = "proxy-rewrite";

impl Reader<'_> {
    /// Whether upstreams that do not say so are verified, and how deep.
    pub(super) fn snippets(&mut self) -> (bool, Option<u32>) {
        let (mut verify, mut depth) = (None, None);
        for name in PROXY_SNIPPETS {
            let found = self.snippet(
                name,
                "only proxy_ssl_verify on|off and proxy_ssl_verify_depth N are understood here",
            );
            verify = found.verify.or(verify);
            depth = found.depth.or(depth);
        }
        for name in OTHER_SNIPPETS {
            let found = self.snippet(name, "nothing is understood here");
            if found.verify.is_some() || found.depth.is_some() {
                let field = format!("nginx_config.{name}");
                self.problem(&field, "proxy_ssl_verify belongs in http_server_configuration_snippet".into());
            }
        }
        (verify.unwrap_or(false), depth)
    }

    /// An unsupported directive may deny, limit or rewrite requests, so it is an error.
    fn snippet(&mut self, name: &str, understood: &str) -> value::ProxySslVerify {
        let field = format!("nginx_config.{name}");
        let text = self.optional(&field, value::text).unwrap_or_default();
        let (rules, rest) = value::parse_verify_snippet(&text);
        if let Some(directive) = rest.first() {
            let message = format!(
                "nginx's directive {directive:?} cannot be obeyed: {understood}; say it with settings and routes, and remove it"
            );
            self.problem(&field, message);
        }
        rules
    }

    /// nginx's workers switch from root to this user.
    pub(super) fn check_user(&mut self) {
        let field = "nginx_config.user";
        let Some(user) = self.optional(field, value::text) else { return };
        if let Some(problem) = user_problem(&user, crate::files::process_uid()) {
            self.problem(field, problem);
        }
    }

    /// The list names the plugins that APISIX loads.
    pub(super) fn check_plugins(&mut self) {
        let field = "plugins";
        let Some(listed) = self.optional(field, |node| value::list(node, value::text)) else { return };
        if !listed.iter().any(|plugin| plugin == PLUGIN) {
            let message = format!(
                "the list switches {PLUGIN} off, which is not supported; add it to the list, or remove the key"
            );
            self.problem(field, message);
        }
        if listed.iter().any(|plugin| plugin != PLUGIN) {
            self.warn(
                field,
                &format!("only {PLUGIN} runs: a document with another plugin that does more than observe is not accepted"),
            );
        }
    }

    /// nginx's number includes upstream connections; ours does not.
    pub(super) fn connections(&mut self) -> usize {
        let (ours, nginx) =
            ("countersign.limits.connections_per_worker", "nginx_config.event.worker_connections");
        let named = self.user.and_then(|user| user.get_path(ours)).is_some_and(|node| !node.is_null());
        let ours = self.required(ours, value::at_least_one);
        let nginx = self.optional(nginx, value::at_least_one);
        nginx.filter(|_| !named).unwrap_or(ours)
    }
}

/// As in nginx, the key matters only as root.
fn user_problem(user: &str, uid: Option<u32>) -> Option<String> {
    let name = user.split_whitespace().next().unwrap_or_default();
    let fine = name.is_empty() || name == "root" || uid.is_some_and(|uid| uid != 0);
    (!fine).then(|| {
        format!("this program runs as root and stays so; start it as {name} (systemd: User={name}), or remove the key")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_matters_only_as_root() {
        assert!(user_problem("www-data", Some(0)).unwrap().contains("start it as www-data"));
        assert!(user_problem("www-data nogroup", None).unwrap().contains("start it as www-data ("));
        for (user, uid) in [("www-data", Some(1000)), ("root", Some(0)), ("", Some(0))] {
            assert_eq!(user_problem(user, uid), None, "{user}");
        }
    }
}

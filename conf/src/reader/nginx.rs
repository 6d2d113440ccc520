//! The parts of `nginx_config` that are not plain values (snippets, log, user, the number of
//! connections), and `plugins`.
//!
//! Invariant: a part that restricts something is either applied or ends the startup.

use tracing::Level;

use super::Reader;
use crate::settings::{LogSettings, ProcessUser};
use crate::tree::YamlNode;
use crate::value::{self, ValueError};

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

    /// nginx's directive: a user and perhaps a group.
    pub(crate) fn user(&mut self) -> Option<ProcessUser> {
        self.optional("nginx_config.user", |node| {
            let text = value::text(node)?;
            let mut names = text.split_whitespace().map(str::to_owned);
            match (names.next(), names.next(), names.next()) {
                (name, group, None) => Ok(name.map(|name| ProcessUser { name, group })),
                _ => Err(ValueError::expected("a user, or a user and a group", node)),
            }
        })
        .flatten()
    }

    /// `error_log` and `error_log_level`. APISIX's defaults of both are not ours: a file that does
    /// not name them gets standard error.
    pub(crate) fn log(&mut self) -> LogSettings {
        let file = self.optional("nginx_config.error_log", log_file).flatten();
        LogSettings {
            file: file.map(|file| self.working.join(file)),
            level: self.optional("nginx_config.error_log_level", log_level),
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

/// A path; `None`: standard error.
fn log_file(node: &YamlNode) -> Result<Option<String>, ValueError> {
    let text = value::text(node)?;
    let unsupported =
        |instead: &str| Err(ValueError::new(&format!("{} cannot be obeyed: {instead}", node.describe())));
    match text.as_str() {
        "" | "stderr" | "/dev/stderr" => Ok(None),
        "off" => unsupported(
            "it does not switch the log off (nginx writes a file of that name); write stderr, and error_log_level: crit for fewer lines",
        ),
        text if text.starts_with("syslog:") => {
            unsupported("write stderr, and let systemd, the container or logger(1) take the lines")
        }
        text if text.starts_with("memory:") => unsupported("write a path, or stderr"),
        path if path.contains(char::is_whitespace) => unsupported("the level goes to error_log_level"),
        _ => Ok(Some(text)),
    }
}

/// The level that writes what nginx's level writes: those above `error` are all our errors.
fn log_level(node: &YamlNode) -> Result<Level, ValueError> {
    Ok(match value::text(node)?.as_str() {
        "debug" => Level::DEBUG,
        "info" | "notice" => Level::INFO,
        "warn" => Level::WARN,
        "error" | "crit" | "alert" | "emerg" => Level::ERROR,
        _ => {
            return Err(ValueError::expected("debug, info, notice, warn, error, crit, alert or emerg", node));
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_file_is_a_path_or_standard_error() {
        let node = |text: &str| {
            crate::tree::parse(&format!("v: {text}")).unwrap().unwrap().get("v").unwrap().clone()
        };
        for text in ["stderr", "/dev/stderr", "''"] {
            assert_eq!(log_file(&node(text)).unwrap(), None, "{text}");
        }
        assert_eq!(log_file(&node("logs/error.log")).unwrap().as_deref(), Some("logs/error.log"));
        for (text, instead) in [
            ("off", "write stderr"),
            ("syslog:server=unix:/dev/log", "let systemd"),
            ("memory:32m", "write a path"),
            ("logs/error.log warn", "error_log_level"),
            ("5", "a text"),
        ] {
            let error = log_file(&node(text)).unwrap_err().message;
            assert!(error.contains(instead), "{text}: {error}");
        }
    }

    #[test]
    fn levels_are_those_of_nginx() {
        let level = |text: &str| {
            let node = crate::tree::parse(&format!("v: {text}")).unwrap().unwrap().get("v").unwrap().clone();
            log_level(&node).map_err(|error| error.message)
        };
        let levels = ["debug", "info", "notice", "warn", "error", "crit", "alert", "emerg"].map(level);
        let (info, error) = (Ok(Level::INFO), Ok(Level::ERROR));
        let expected = [
            Ok(Level::DEBUG),
            info.clone(),
            info,
            Ok(Level::WARN),
            error.clone(),
            error.clone(),
            error.clone(),
            error,
        ];
        assert_eq!(levels, expected);
        assert!(level("trace").unwrap_err().contains("found the text \"trace\""));
    }

    #[test]
    fn a_user_may_have_a_group() {
        let user = |text: &str| {
            let settings = crate::load_text(
                std::path::Path::new("c.yaml"),
                &format!("nginx_config: {{user: {text}}}"),
                std::path::Path::new("/"),
                &|_| None,
            );
            settings.map(|settings| settings.user.map(|user| (user.name, user.group)))
        };
        let named = |name: &str, group: Option<&str>| Some((name.to_owned(), group.map(str::to_owned)));
        assert_eq!(user("www-data").unwrap(), named("www-data", None));
        assert_eq!(user("www-data  nogroup").unwrap(), named("www-data", Some("nogroup")));
        assert_eq!(user("''").unwrap(), None);
        assert!(user("a b c").unwrap_err().to_string().contains("expected a user, or a user and a group"));
    }
}

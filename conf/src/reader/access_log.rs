//! The access logs of `nginx_config.http` and `nginx_config.stream`.

use std::path::Path;

use telemetry::log::{AccessTarget, TargetError};

use super::Reader;
use crate::log_format::{LogEscape, LogFormat, LogSubsystem};
use crate::settings::AccessLogSettings;
use crate::tree::YamlNode;
use crate::value::{self, ValueError};

impl Reader<'_> {
    /// Everything is checked, also what a log that is off does not use. APISIX's default of
    /// `access_log` is not ours: without the key lines go to standard output, as in its images.
    pub(crate) fn access_log(&mut self, subsystem: LogSubsystem) -> AccessLogSettings {
        let section = match subsystem {
            LogSubsystem::Http => "nginx_config.http",
            LogSubsystem::Stream => "nginx_config.stream",
        };
        let key = |name: &str| format!("{section}.{name}");
        let is_on = self.flag(&key("enable_access_log"));
        let working = self.working;
        let target = self.optional(&key("access_log"), |node| target(node, working));
        let escape = self.required(&key("access_log_format_escape"), escape);
        let format = self.optional(&key("access_log_format"), |node| {
            LogFormat::parse(&value::text(node)?, escape, subsystem).map_err(|error| ValueError::new(&error))
        });
        let target = target.unwrap_or(AccessTarget::Stdout);
        AccessLogSettings { target: if is_on { target } else { AccessTarget::Off }, format }
    }
}

/// A relative path starts at the working directory, like that of `error_log`.
fn target(node: &YamlNode, working: &Path) -> Result<AccessTarget, ValueError> {
    let text = value::text(node)?;
    let target = text.parse().map_err(|error: TargetError| ValueError::new(&error.to_string()))?;
    Ok(match target {
        AccessTarget::File(_) if text.contains(char::is_whitespace) => {
            let message =
                format!("{}: a path has no blanks; the format goes to access_log_format", node.describe());
            return Err(ValueError::new(&message));
        }
        AccessTarget::File(path) => AccessTarget::File(working.join(path)),
        other => other,
    })
}

fn escape(node: &YamlNode) -> Result<LogEscape, ValueError> {
    match value::text(node)?.as_str() {
        "default" => Ok(LogEscape::Default),
        "json" => Ok(LogEscape::Json),
        "none" => Ok(LogEscape::None),
        _ => Err(ValueError::expected("default, json or none", node)),
    }
}

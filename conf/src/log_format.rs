//! The format of an access log: nginx's `log_format`, a text with variables (`$name` or `${name}`).
//!
//! A format is parsed when the file is read. Invariant: every variable of a parsed format has a
//! value for the log that it is the format of; another one is an error with its name.

mod variable;

pub use variable::{LogSubsystem, LogVariable};

/// The longest format, in bytes: nginx's own limit.
const FORMAT_MAX: usize = 4096;

/// A parsed format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogFormat {
    /// Its parts, in order.
    pub parts: Vec<LogPart>,
    /// How values are escaped.
    pub escape: LogEscape,
}

/// A part of a format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogPart {
    /// Text that each line has.
    Literal(Box<str>),
    /// The value of a variable.
    Variable(LogVariable),
}

/// `access_log_format_escape`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogEscape {
    /// `default`: `\xXX` for `"`, `\` and all that is not printable ASCII; `-` for an absent value.
    #[default]
    Default,
    /// `json`: the content of a JSON string; nothing for an absent value.
    Json,
    /// `none`: as it is, but for control characters; nothing for an absent value.
    None,
}

impl LogFormat {
    /// Parses the text of a format. A line break with the blanks around it becomes one blank, so
    /// that a format over several lines of the file gives one line.
    ///
    /// # Errors
    /// The message names the variable, and a similar one.
    pub fn parse(text: &str, escape: LogEscape, subsystem: LogSubsystem) -> Result<Self, String> {
        let lines: Vec<&str> = text.trim_end().split('\n').collect();
        let text = match lines.as_slice() {
            [line] => (*line).to_owned(),
            lines => lines.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" "),
        };
        if text.trim().is_empty() {
            return Err("the format is empty; remove the key for lines of JSON".to_owned());
        }
        if text.len() > FORMAT_MAX {
            return Err(format!(
                "the format has {} bytes; at most {FORMAT_MAX} are possible, as in nginx",
                text.len()
            ));
        }
        if let Some(control) = text.chars().find(|character| character.is_control() && *character != '\t') {
            return Err(format!(
                "the format has the control character {control:?}, which ends or hides a line; remove it"
            ));
        }
        let mut parts = Vec::new();
        let mut rest = text.as_str();
        while let Some((literal, after)) = rest.split_once('$') {
            push_literal(&mut parts, literal);
            let (name, tail) = reference(after)?;
            parts.push(LogPart::Variable(LogVariable::parse(name, subsystem)?));
            rest = tail;
        }
        push_literal(&mut parts, rest);
        Ok(Self { parts, escape })
    }

    /// The variables of the format.
    pub fn variables(&self) -> impl Iterator<Item = &LogVariable> {
        self.parts.iter().filter_map(|part| match part {
            LogPart::Variable(variable) => Some(variable),
            LogPart::Literal(_) => None,
        })
    }
}

fn push_literal(parts: &mut Vec<LogPart>, literal: &str) {
    if !literal.is_empty() {
        parts.push(LogPart::Literal(literal.into()));
    }
}

/// Splits the text after a `$` into a name, in braces or not, and the rest.
fn reference(after: &str) -> Result<(&str, &str), String> {
    let legal = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
    let (inside, is_braced) = match after.strip_prefix('{') {
        Some(inside) => (inside, true),
        None => (after, false),
    };
    let (name, rest) = inside.split_at(inside.bytes().take_while(legal).count());
    let rest = if is_braced { rest.strip_prefix('}') } else { Some(rest) };
    match rest {
        Some(rest) if !name.is_empty() => Ok((name, rest)),
        Some(_) => Err("a `$` without the name of a variable; a format has no `$` of another meaning".into()),
        None => Err(format!("`${{{name}` has no closing brace")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<Vec<String>, String> {
        let format = LogFormat::parse(text, LogEscape::Default, LogSubsystem::Http)?;
        let shown = |part: &LogPart| match part {
            LogPart::Literal(text) => format!("{text:?}"),
            LogPart::Variable(variable) => format!("{variable:?}"),
        };
        Ok(format.parts.iter().map(shown).collect())
    }

    #[test]
    fn names_may_stand_in_braces() {
        assert_eq!(parse("$status").unwrap(), ["Status"]);
        assert_eq!(parse("${status}ms").unwrap(), ["Status", "\"ms\""]);
        assert_eq!(parse("a $status:${pid}").unwrap(), ["\"a \"", "Status", "\":\"", "Pid"]);
        assert_eq!(parse("{\"s\": $status}").unwrap(), ["\"{\\\"s\\\": \"", "Status", "\"}\""]);
    }

    #[test]
    fn a_format_over_several_lines_gives_one_line() {
        assert_eq!(
            parse("{\n  \"s\": $status,\n  \"p\": $pid\n}\n").unwrap().concat().matches('\n').count(),
            0
        );
        assert_eq!(parse("a\n  b\r\n").unwrap(), ["\"a b\""]);
        // A format on one line stays as it is.
        assert_eq!(parse(" a  b").unwrap(), ["\" a  b\""]);
    }

    #[test]
    fn what_is_no_format_is_an_error() {
        for (text, expected) in [
            ("", "is empty"),
            (" \n", "is empty"),
            ("$", "without the name"),
            ("100$%", "without the name"),
            ("${}", "without the name"),
            ("${status", "`${status` has no closing brace"),
            ("${sta tus}", "`${sta` has no closing brace"),
            ("$statsu", "unknown variable $statsu (did you mean $status?)"),
            ("$upstream_respons_time", "did you mean $upstream_response_time?"),
            ("$session_time", "$session_time is a variable of nginx_config.stream"),
            ("a\u{1b}[2J", "control character '\\u{1b}'"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(expected), "{text:?}: {error}");
        }
        assert!(parse(&"x".repeat(FORMAT_MAX + 1)).unwrap_err().contains("4097 bytes"));
    }

    #[test]
    fn the_formats_of_apisix_are_known() {
        let http = "$remote_addr - $remote_user [$time_local] $http_host \"$request\" $status $body_bytes_sent \
                    $request_time \"$http_referer\" \"$http_user_agent\" $upstream_addr $upstream_status \
                    $upstream_response_time \"$upstream_scheme://$upstream_host$upstream_uri\"";
        assert_eq!(parse(http).unwrap().len(), 31);
        let stream = "$remote_addr [$time_local] $protocol $status $bytes_sent $bytes_received $session_time";
        LogFormat::parse(stream, LogEscape::Default, LogSubsystem::Stream).unwrap();
    }

    proptest! {
        /// A format that is accepted has its own text again, variable by variable.
        #[test]
        fn any_text_is_parsed_or_an_error(text in "[ a-z_${}\"\\\\\n\u{e9}]{0,40}") {
            if let Ok(format) = LogFormat::parse(&text, LogEscape::None, LogSubsystem::Http) {
                let literals = format.parts.iter().filter(|part| matches!(part, LogPart::Literal(_)));
                let is_whole = |part: &LogPart| matches!(part, LogPart::Literal(text) if !text.contains(['$', '\n']));
                prop_assert!(literals.into_iter().all(is_whole));
            }
        }
    }
}

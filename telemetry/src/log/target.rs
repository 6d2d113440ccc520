//! Where a log goes, as the settings write it: a path, an output of the process, nginx's `syslog:`
//! or `off`.
//!
//! Invariant: a parsed target is one that can be opened, as far as its text shows; each error names
//! the part that is wrong and what to write instead.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The port of syslog over UDP (RFC 5426).
const SYSLOG_PORT: u16 = 514;
/// Most bytes of a unix socket's path.
const UNIX_PATH_MAX: usize = 107;
/// Most characters of a tag (RFC 3164).
const TAG_MAX: usize = 32;
/// nginx's names of the facilities, in the order of their numbers.
const FACILITIES: [&str; 24] = [
    "kern", "user", "mail", "daemon", "auth", "intern", "lpr", "news", "uucp", "clock", "authpriv", "ftp",
    "ntp", "audit", "alert", "cron", "local0", "local1", "local2", "local3", "local4", "local5", "local6",
    "local7",
];
/// nginx's names of the severities, in the order of their numbers.
const SEVERITIES: [&str; 8] = ["emerg", "alert", "crit", "error", "warn", "notice", "info", "debug"];

/// Where a log goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AccessTarget {
    /// Nowhere: no line is made.
    Off,
    /// The standard output.
    Stdout,
    /// The standard error.
    Stderr,
    /// A file, which is appended to.
    File(PathBuf),
    /// A syslog server.
    Syslog(SyslogTarget),
}

/// A syslog server, and what precedes each line sent to it (RFC 3164).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyslogTarget {
    /// The server.
    pub server: SyslogServer,
    /// Facility and severity.
    pub(super) priority: u8,
    /// The program that logs.
    pub(super) tag: String,
    /// Whether the host's name is sent.
    pub(super) with_hostname: bool,
}

/// The address of a syslog server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SyslogServer {
    /// UDP, to a host's name or address and a port.
    Udp(String, u16),
    /// A unix datagram socket.
    Unix(PathBuf),
}

/// A text names no target.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// There is no text.
    #[error("is empty: write a path, stdout, off or syslog:server=HOST:PORT")]
    Empty,
    /// A path with a control character.
    #[error("{0:?} has a control character: write the path of a file")]
    ControlCharacter(String),
    /// nginx's ring buffer.
    #[error("`memory:` is not supported: write a path, stdout, off or syslog:server=HOST:PORT")]
    Memory,
    /// A syslog target without a server.
    #[error("`syslog:` without a server: write syslog:server=HOST:PORT or syslog:server=unix:/PATH")]
    NoServer,
    /// A parameter of a syslog target.
    #[error("syslog parameter {name:?}: {found:?} {problem}")]
    Parameter {
        /// The parameter.
        name: String,
        /// Its value.
        found: String,
        /// What is wrong with it, and what to write.
        problem: String,
    },
}

impl FromStr for AccessTarget {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        match text {
            "" => Err(TargetError::Empty),
            "off" => Ok(Self::Off),
            "stdout" | "/dev/stdout" => Ok(Self::Stdout),
            "stderr" | "/dev/stderr" => Ok(Self::Stderr),
            _ if text.starts_with("memory:") => Err(TargetError::Memory),
            _ if text.chars().any(char::is_control) => Err(TargetError::ControlCharacter(text.to_owned())),
            _ => match text.strip_prefix("syslog:") {
                Some(parameters) => SyslogTarget::parse(parameters).map(Self::Syslog),
                None => Ok(Self::File(PathBuf::from(text))),
            },
        }
    }
}

impl fmt::Display for AccessTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::Stdout => f.write_str("standard output"),
            Self::Stderr => f.write_str("standard error"),
            Self::File(path) => path.display().fmt(f),
            Self::Syslog(syslog) => syslog.server.fmt(f),
        }
    }
}

impl fmt::Display for SyslogServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Udp(host, port) if host.contains(':') => write!(f, "syslog server [{host}]:{port}"),
            Self::Udp(host, port) => write!(f, "syslog server {host}:{port}"),
            Self::Unix(path) => write!(f, "syslog server unix:{}", path.display()),
        }
    }
}

impl AccessTarget {
    /// The file that it names.
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::File(path) => Some(path),
            _ => None,
        }
    }
}

impl SyslogTarget {
    /// Parses nginx's parameters: `server=ADDRESS,facility=NAME,severity=NAME,tag=TAG,nohostname`.
    fn parse(parameters: &str) -> Result<Self, TargetError> {
        let (mut server, mut facility, mut severity, mut tag) = (None, None, None, None);
        let mut with_hostname = true;
        for parameter in parameters.split(',').filter(|parameter| !parameter.is_empty()) {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            let wrong = |problem: String| TargetError::Parameter {
                name: name.to_owned(),
                found: value.to_owned(),
                problem,
            };
            let is_second = match name {
                "server" => server.replace(parse_server(value).map_err(wrong)?).is_some(),
                "facility" => facility.replace(position(&FACILITIES, value).map_err(wrong)?).is_some(),
                "severity" => severity.replace(position(&SEVERITIES, value).map_err(wrong)?).is_some(),
                "tag" => tag.replace(parse_tag(value).map_err(wrong)?).is_some(),
                "nohostname" => !std::mem::replace(&mut with_hostname, false),
                _ => {
                    let known = "is not known: there are server, facility, severity, tag and nohostname";
                    return Err(wrong(known.to_owned()));
                }
            };
            if is_second {
                return Err(wrong("is given twice: write it once".to_owned()));
            }
        }
        // nginx's defaults: local7 and info.
        let priority = facility.unwrap_or(23) * 8 + severity.unwrap_or(6);
        Ok(Self {
            server: server.ok_or(TargetError::NoServer)?,
            priority,
            tag: tag.unwrap_or_else(|| "countersign".to_owned()),
            with_hostname,
        })
    }
}

fn position(names: &[&str], value: &str) -> Result<u8, String> {
    let position = names.iter().position(|name| *name == value);
    position
        .and_then(|position| u8::try_from(position).ok())
        .ok_or_else(|| format!("is none of {}", names.join(", ")))
}

fn parse_tag(value: &str) -> Result<String, String> {
    let is_valid = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    if value.is_empty() || value.len() > TAG_MAX || !value.bytes().all(is_valid) {
        return Err(format!("must be 1 to {TAG_MAX} letters, digits or underscores"));
    }
    Ok(value.to_owned())
}

fn parse_server(value: &str) -> Result<SyslogServer, String> {
    const SHAPE: &str = "is no server: write HOST, HOST:PORT, [IPv6]:PORT or unix:/PATH";
    if let Some(path) = value.strip_prefix("unix:") {
        if !path.starts_with('/') {
            return Err("must be an absolute path: write unix:/PATH".to_owned());
        }
        if path.len() > UNIX_PATH_MAX {
            return Err(format!("is longer than {UNIX_PATH_MAX} bytes, the most of a unix socket's path"));
        }
        return Ok(SyslogServer::Unix(PathBuf::from(path)));
    }
    let (host, port) = match value.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']').ok_or(SHAPE)?;
            if !host.parse::<IpAddr>().is_ok_and(|address| address.is_ipv6()) {
                return Err("has no IPv6 address in its brackets".to_owned());
            }
            let port = if port.is_empty() { None } else { Some(port.strip_prefix(':').ok_or(SHAPE)?) };
            (host, port)
        }
        None if value.matches(':').count() > 1 => {
            return Err("is an IPv6 address without brackets: write [ADDRESS]:PORT".to_owned());
        }
        None => match value.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (value, None),
        },
    };
    let is_of_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:".contains(&byte);
    if host.is_empty() || !host.bytes().all(is_of_name) {
        return Err(SHAPE.to_owned());
    }
    let port = match port {
        None => SYSLOG_PORT,
        Some(port) => match port.parse() {
            Ok(port) if port > 0 => port,
            _ => return Err("has no port from 1 to 65535 behind its colon".to_owned()),
        },
    };
    Ok(SyslogServer::Udp(host.to_owned(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn syslog(text: &str) -> SyslogTarget {
        match text.parse() {
            Ok(AccessTarget::Syslog(syslog)) => syslog,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn targets_are_read_as_nginx_writes_them() {
        assert_eq!("off".parse(), Ok(AccessTarget::Off));
        assert_eq!("/dev/stdout".parse(), Ok(AccessTarget::Stdout));
        assert_eq!("stdout".parse(), Ok(AccessTarget::Stdout));
        assert_eq!("/dev/stderr".parse(), Ok(AccessTarget::Stderr));
        assert_eq!("logs/access.log".parse(), Ok(AccessTarget::File("logs/access.log".into())));
        let short = syslog("syslog:server=192.0.2.1");
        assert_eq!(short.server, SyslogServer::Udp("192.0.2.1".to_owned(), 514));
        assert_eq!((short.priority, short.tag.as_str(), short.with_hostname), (190, "countersign", true));
        let long = syslog("syslog:server=unix:/dev/log,nohostname,facility=daemon,severity=warn,tag=edge_1");
        assert_eq!(long.server, SyslogServer::Unix("/dev/log".into()));
        assert_eq!((long.priority, long.tag.as_str(), long.with_hostname), (3 * 8 + 4, "edge_1", false));
        let six = syslog("syslog:server=[2001:db8::1]:12345");
        assert_eq!(six.server, SyslogServer::Udp("2001:db8::1".to_owned(), 12345));
        assert_eq!(syslog("syslog:server=[::1]").server, SyslogServer::Udp("::1".to_owned(), 514));
        assert_eq!(syslog("syslog:server=logs.test:1").server.to_string(), "syslog server logs.test:1");
    }

    #[test]
    fn wrong_targets_are_named() {
        for (text, part) in [
            ("", "is empty"),
            ("memory:32m", "memory"),
            ("a\nb", "control character"),
            ("syslog:", "without a server"),
            ("syslog:tag=x", "without a server"),
            ("syslog:server=", "HOST:PORT"),
            ("syslog:server=:514", "HOST:PORT"),
            ("syslog:server=a b", "HOST:PORT"),
            ("syslog:server=host:0", "port"),
            ("syslog:server=host:70000", "port"),
            ("syslog:server=host:", "port"),
            ("syslog:server=::1", "brackets"),
            ("syslog:server=[host]:1", "IPv6 address"),
            ("syslog:server=[::1]1", "HOST:PORT"),
            ("syslog:server=unix:log", "absolute path"),
            ("syslog:server=h,facility=local8", "none of kern, user"),
            ("syslog:server=h,severity=information", "none of emerg, alert"),
            ("syslog:server=h,tag=", "letters, digits"),
            ("syslog:server=h,tag=a-b", "letters, digits"),
            ("syslog:server=h,server=i", "twice"),
            ("syslog:server=h,nohostname,nohostname", "twice"),
            ("syslog:server=h,level=info", "there are server, facility"),
        ] {
            let error = text.parse::<AccessTarget>().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
        let long = format!("syslog:server=unix:/{}", "x".repeat(107));
        assert!(long.parse::<AccessTarget>().unwrap_err().to_string().contains("longer than 107"));
    }
}

//! The values that a line takes from a request's head, which is gone when the line is written.
//!
//! They are escaped into one buffer a request, which the worker uses again. Invariant: they are
//! those of the head as the client sent it, before a header is removed, rewritten or added.

use std::cell::RefCell;
use std::io::Write as _;
use std::net::SocketAddr;
use std::rc::Rc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use conf::{LogEscape, LogVariable};
use http::request::Parts;
use http::{HeaderMap, Version, header};
use model::admission::ClientVerification;
use model::{RequestTarget, Variable};

use super::clock::write_number;
use super::escape::escape;
use super::format::{LineFormat, Template};
use crate::filters::headers::is_same_name;
use crate::filters::variables::{ConnectionContext, head_value, protocol, san_list};
use crate::io::connection_info::ListenerProtocol;

/// Values that would begin behind this many bytes of a line are absent.
pub(super) const LINE_MAX: usize = 32 << 10;

/// The part of a line of JSON that is the same for the requests of a connection: its client, with
/// the address and verification that it was made for, and its TLS.
#[derive(Debug, Default)]
pub(crate) struct CachedPart(pub(super) RefCell<Option<(SocketAddr, ClientVerification, Vec<u8>)>>);

/// What the access log keeps of a request until it ends.
#[derive(Debug, Default)]
pub(crate) struct CapturedHead {
    /// The format that the line gets. `None`: there is no line.
    pub(super) format: Option<Rc<LineFormat>>,
    /// Values, escaped, one behind the other.
    pub(super) bytes: Vec<u8>,
    /// Where each value of a template ends.
    pub(super) ends: Vec<u32>,
}

impl CapturedHead {
    /// Keeps what the line needs of a response's head.
    pub(crate) fn capture_response(&mut self, fields: &HeaderMap) {
        let Some(format) = self.format.clone() else { return };
        let LineFormat::Template(template) = &*format else { return };
        for name in &template.response {
            let values = fields.get_all(name).iter().map(|value| value.as_bytes());
            self.push(template, |bytes| write_values(bytes, values, template.escape));
        }
    }

    /// Keeps what the line needs of a request's head.
    pub(super) fn capture_request(&mut self, template: &Template, context: &HeadContext<'_>) {
        for variable in &template.head {
            self.push(template, |bytes| context.write(bytes, variable, template.escape));
        }
    }

    /// Adds the next value, which may be absent.
    fn push(&mut self, template: &Template, write: impl FnOnce(&mut Vec<u8>) -> bool) {
        if self.bytes.len() > LINE_MAX || !write(&mut self.bytes) {
            template.write_absent(&mut self.bytes);
        }
        self.ends.push(u32::try_from(self.bytes.len()).unwrap_or(u32::MAX));
    }

    /// A value, by its position.
    pub(super) fn value(&self, position: usize) -> Option<&[u8]> {
        let end = *self.ends.get(position)? as usize;
        let start = match position.checked_sub(1) {
            Some(before) => *self.ends.get(before)? as usize,
            None => 0,
        };
        self.bytes.get(start..end)
    }
}

/// A connection and, of a request, its head.
#[derive(Debug, Clone, Copy)]
pub(super) struct HeadContext<'a> {
    pub(super) connection: ConnectionContext<'a>,
    pub(super) parts: Option<&'a Parts>,
    /// `None`: the target is malformed.
    pub(super) target: Option<&'a RequestTarget>,
}

impl HeadContext<'_> {
    /// Appends the value of a variable. `false`: it is absent, and nothing is appended.
    pub(super) fn write(&self, line: &mut Vec<u8>, variable: &LogVariable, mode: LogEscape) -> bool {
        match variable {
            LogVariable::Request(variable) => self.write_variable(line, variable, mode),
            LogVariable::RequestUri => self.write_parts(line, |line, parts| {
                escape(line, raw_target(parts).as_bytes(), mode);
                true
            }),
            LogVariable::RequestLine => {
                self.write_parts(line, |line, parts| write_request_line(line, parts, mode))
            }
            LogVariable::RemoteUser => self.write_parts(line, |line, parts| {
                remote_user(&parts.headers).is_some_and(|user| {
                    escape(line, &user, mode);
                    true
                })
            }),
            _ => false,
        }
    }

    fn write_parts(&self, line: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>, &Parts) -> bool) -> bool {
        self.parts.is_some_and(|parts| write(line, parts))
    }

    fn write_variable(&self, line: &mut Vec<u8>, variable: &Variable, mode: LogEscape) -> bool {
        let info = self.connection.info;
        let text = match variable {
            // Without an allocation: they are in nearly every format.
            Variable::RemoteAddr => {
                let _never_fails = write!(line, "{}", info.peer.ip().to_canonical());
                return true;
            }
            Variable::RemotePort if info.peer.port() != 0 => {
                write_number(line, info.peer.port());
                return true;
            }
            Variable::ServerPort => {
                write_number(line, info.local.port());
                return true;
            }
            Variable::Header(name) => {
                return self
                    .write_parts(line, |line, parts| self.write_header(line, &parts.headers, name, mode));
            }
            Variable::ClientUris | Variable::ClientDns | Variable::ClientEmails => {
                let names = san_list(self.connection.client, variable);
                if !names.is_empty() {
                    escape(line, names.join(",").as_bytes(), mode);
                }
                return !names.is_empty();
            }
            Variable::Scheme => Some(if self.is_https() { "https" } else { "http" }.into()),
            Variable::Https => Some(if self.is_https() { "on" } else { "" }.into()),
            Variable::Uri => self.target.map(|target| target.path.as_str().into()),
            Variable::Host => {
                self.target.and_then(|target| target.host.as_ref()).map(|host| host.as_str().into())
            }
            other => {
                self.parts.and_then(|parts| head_value(parts, other)).or_else(|| self.connection.value(other))
            }
        };
        text.is_some_and(|text| {
            escape(line, text.as_bytes(), mode);
            true
        })
    }

    fn is_https(&self) -> bool {
        self.connection.info.listener.protocol == ListenerProtocol::Https
    }

    /// All fields of a name, separated by commas, as nginx has them.
    fn write_header(&self, line: &mut Vec<u8>, fields: &HeaderMap, name: &str, mode: LogEscape) -> bool {
        // HTTP/2 has its host in the target.
        if name == "host" && !fields.contains_key(header::HOST) {
            let authority = self.parts.and_then(|parts| parts.uri.authority());
            return authority.is_some_and(|authority| {
                escape(line, authority.as_str().as_bytes(), mode);
                true
            });
        }
        let named = fields.iter().filter(|(field, _)| is_same_name(field.as_str(), name));
        write_values(line, named.map(|(_, value)| value.as_bytes()), mode)
    }
}

/// Appends values, separated by commas. `false`: there is none.
fn write_values<'a>(line: &mut Vec<u8>, values: impl Iterator<Item = &'a [u8]>, mode: LogEscape) -> bool {
    let mut any = false;
    for value in values {
        if any {
            line.extend_from_slice(b", ");
        }
        escape(line, value, mode);
        any = true;
    }
    any
}

/// The target as the client sent it, which is a path in HTTP/2.
pub(super) fn raw_target(parts: &Parts) -> &str {
    parts.uri.path_and_query().map_or("", |target| target.as_str())
}

/// nginx's `$request`.
fn write_request_line(line: &mut Vec<u8>, parts: &Parts, mode: LogEscape) -> bool {
    escape(line, parts.method.as_str().as_bytes(), mode);
    line.push(b' ');
    match (parts.version, parts.uri.scheme_str(), parts.uri.authority()) {
        // The absolute form.
        (Version::HTTP_10 | Version::HTTP_11, Some(scheme), Some(authority)) => {
            let absolute = format!("{scheme}://{authority}{}", raw_target(parts));
            escape(line, absolute.as_bytes(), mode);
        }
        _ => escape(line, raw_target(parts).as_bytes(), mode),
    }
    line.push(b' ');
    line.extend_from_slice(protocol(parts.version).as_bytes());
    true
}

/// The user of Basic authentication (RFC 7617). Its password is nowhere.
fn remote_user(fields: &HeaderMap) -> Option<Vec<u8>> {
    let value = fields.get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, encoded) = value.split_at_checked("basic ".len())?;
    if !scheme.eq_ignore_ascii_case(b"basic ") {
        return None;
    }
    let mut credentials = STANDARD.decode(encoded.trim_ascii()).ok()?;
    let colon = credentials.iter().position(|byte| *byte == b':')?;
    credentials.truncate(colon);
    (!credentials.is_empty()).then_some(credentials)
}

//! A format that is ready to write lines: a template of the settings, or lines of JSON.
//!
//! Invariant: each value of a line comes from a request's head, its response's head, or its end.

use conf::{LogEscape, LogFormat, LogPart, LogVariable};
use http::HeaderName;

/// How the lines of a log are written.
#[derive(Debug)]
pub(super) enum LineFormat {
    /// JSON, with every field.
    Json,
    /// `access_log_format`
    Template(Template),
}

/// A format of the settings.
#[derive(Debug)]
pub(super) struct Template {
    pub(super) parts: Vec<FormatPart>,
    /// The variables that are read from a request's head.
    pub(super) head: Vec<LogVariable>,
    /// Those that are read from the head of its response.
    pub(super) response: Vec<HeaderName>,
    pub(super) escape: LogEscape,
}

#[derive(Debug)]
pub(super) enum FormatPart {
    Literal(Box<[u8]>),
    /// A value of the request's head, by its position.
    Head(usize),
    /// A value of the response's head, by its position.
    Response(usize),
    /// A value that is known at the end.
    End(LogVariable),
}

impl LineFormat {
    /// The format of a log; `None`: JSON.
    pub(super) fn new(format: Option<&LogFormat>) -> Self {
        format.map_or(Self::Json, |format| Self::Template(Template::new(format)))
    }

    /// Whether lines have the id of a request.
    pub(super) fn has_request_id(&self) -> bool {
        match self {
            Self::Json => true,
            Self::Template(template) => {
                let is_id = |part: &FormatPart| matches!(part, FormatPart::End(LogVariable::RequestId));
                template.parts.iter().any(is_id)
            }
        }
    }
}

impl Template {
    fn new(format: &LogFormat) -> Self {
        let mut template =
            Self { parts: Vec::new(), head: Vec::new(), response: Vec::new(), escape: format.escape };
        for part in &format.parts {
            let part = match part {
                LogPart::Literal(text) => FormatPart::Literal(text.as_bytes().into()),
                LogPart::Variable(variable) => template.part(variable),
            };
            template.parts.push(part);
        }
        template
    }

    fn part(&mut self, variable: &LogVariable) -> FormatPart {
        match variable {
            LogVariable::Request(_)
            | LogVariable::RequestUri
            | LogVariable::RequestLine
            | LogVariable::RemoteUser => {
                self.head.push(variable.clone());
                FormatPart::Head(self.head.len() - 1)
            }
            LogVariable::SentHeader(name) => match HeaderName::try_from(&**name) {
                Ok(name) => {
                    self.response.push(name);
                    FormatPart::Response(self.response.len() - 1)
                }
                // No response has such a header.
                Err(_) => FormatPart::End(LogVariable::Absent),
            },
            other => FormatPart::End(other.clone()),
        }
    }

    /// Appends what stands for an absent value: nothing, or nginx's `-`.
    pub(super) fn write_absent(&self, line: &mut Vec<u8>) {
        if self.escape == LogEscape::Default {
            line.push(b'-');
        }
    }
}

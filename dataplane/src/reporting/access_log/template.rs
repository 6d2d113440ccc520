//! Lines of a format of the settings.
//!
//! Invariant: a line is one line, and has at most the length of its format, [`LINE_MAX`] and one
//! value.

use super::format::{FormatPart, Template};
use super::head::{CapturedHead, LINE_MAX};
use super::line::LineFacts;

impl Template {
    /// Appends a line. Without a captured head the variables of the connection have values.
    pub(super) fn write_line(
        &self,
        line: &mut Vec<u8>,
        captured: Option<&CapturedHead>,
        facts: &LineFacts<'_>,
    ) {
        let start = line.len();
        for part in &self.parts {
            if let FormatPart::Literal(text) = part {
                line.extend_from_slice(text);
                continue;
            }
            let has_value = line.len() - start <= LINE_MAX
                && match part {
                    FormatPart::Literal(_) => true,
                    FormatPart::Head(position) => self.write_head(line, *position, captured, facts),
                    FormatPart::Response(position) => {
                        let position = self.head.len() + position;
                        copy(line, captured.and_then(|captured| captured.value(position)))
                    }
                    FormatPart::End(variable) => facts.write(line, variable, self.escape),
                };
            if !has_value {
                self.write_absent(line);
            }
        }
    }

    fn write_head(
        &self,
        line: &mut Vec<u8>,
        position: usize,
        captured: Option<&CapturedHead>,
        facts: &LineFacts<'_>,
    ) -> bool {
        match (captured, self.head.get(position)) {
            (Some(captured), _) => copy(line, captured.value(position)),
            (None, Some(variable)) => facts.head().write(line, variable, self.escape),
            (None, None) => false,
        }
    }
}

fn copy(line: &mut Vec<u8>, value: Option<&[u8]>) -> bool {
    value.is_some_and(|value| {
        line.extend_from_slice(value);
        true
    })
}

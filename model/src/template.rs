//! Texts with variables in APISIX's syntax: `$name`, `${name}`, `${name ?? default}`, and `$1` for
//! a capture of `regex_uri`. A `\` before the `$` keeps both as they are.
//!
//! A template is parsed once, when a document is compiled, and an unknown variable is a problem.
//! Invariant: rendering neither fails nor escapes: the caller gets values apart from literal text
//! and escapes them for their place.

use std::borrow::Cow;

use crate::expression::unknown_variable;
use crate::problem::Problem;
use crate::variable::{Variable, Variables};

/// A parsed text with variables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    pieces: Vec<Piece>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Literal(Box<str>),
    Variable { variable: Variable, default: Option<Box<str>> },
    Capture(usize),
}

/// The references that a template may contain.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AllowedRefs {
    /// `$name`.
    pub variables: bool,
    /// Captures up to this number; `None` without a pattern.
    pub captures: Option<usize>,
}

/// A part of a text being rendered.
#[derive(Debug, Clone, Copy)]
pub enum RenderedPart<'a> {
    /// Text as configured.
    Literal(&'a str),
    /// The value of a variable, or its default.
    Value(&'a str, &'a Variable),
    /// The text of a capture group.
    Captured(&'a str),
}

impl Template {
    /// Parses a text.
    ///
    /// # Errors
    ///
    /// An unknown variable, a list, or an impossible capture; the field is empty.
    pub(crate) fn parse(text: &str, allowed: AllowedRefs) -> Result<Template, Problem> {
        let mut pieces = Vec::new();
        let mut literal = String::new();
        let mut rest = text;
        while let Some(at) = rest.find('$') {
            let (before, from) = rest.split_at(at);
            literal.push_str(before);
            let after = from.get(1..).unwrap_or_default();
            let reference = if before.ends_with('\\') { None } else { reference(after) };
            match reference {
                Some((name, tail)) => match piece(name, allowed)? {
                    Some(piece) => {
                        if !literal.is_empty() {
                            pieces.push(Piece::Literal(std::mem::take(&mut literal).into()));
                        }
                        pieces.push(piece);
                        rest = tail;
                    }
                    None => {
                        literal.push('$');
                        rest = after;
                    }
                },
                None => {
                    literal.push('$');
                    rest = after;
                }
            }
        }
        literal.push_str(rest);
        if !literal.is_empty() {
            pieces.push(Piece::Literal(literal.into()));
        }
        Ok(Template { pieces })
    }

    /// The variables of the template.
    pub fn variables(&self) -> impl Iterator<Item = &Variable> {
        self.pieces.iter().filter_map(|piece| match piece {
            Piece::Variable { variable, .. } => Some(variable),
            Piece::Literal(_) | Piece::Capture(_) => None,
        })
    }

    /// The literal parts of the template.
    pub(crate) fn literals(&self) -> impl Iterator<Item = &str> {
        self.pieces.iter().filter_map(|piece| match piece {
            Piece::Literal(text) => Some(&**text),
            Piece::Variable { .. } | Piece::Capture(_) => None,
        })
    }

    /// Splits the template at the first `separator` in literal text; one in a default does not
    /// count.
    pub(crate) fn split_at_literal(self, separator: char) -> (Template, Option<Template>) {
        let mut before = self.pieces;
        let found = before.iter().enumerate().find_map(|(at, piece)| match piece {
            Piece::Literal(text) => {
                text.split_once(separator).map(|(head, tail)| (at, head.into(), tail.into()))
            }
            Piece::Variable { .. } | Piece::Capture(_) => None,
        });
        let Some((at, head, tail)): Option<(usize, Box<str>, Box<str>)> = found else {
            return (Template { pieces: before }, None);
        };
        let literal = |text: Box<str>| (!text.is_empty()).then_some(Piece::Literal(text));
        let after = before.split_off(at).into_iter().skip(1);
        let after = literal(tail).into_iter().chain(after).collect();
        before.extend(literal(head));
        (Template { pieces: before }, Some(Template { pieces: after }))
    }

    /// Whether the template has no variables or captures.
    pub(crate) fn is_constant(&self) -> bool {
        self.pieces.iter().all(|piece| matches!(piece, Piece::Literal(_)))
    }

    /// Passes each part to `write`, in order. An absent variable without default is empty, like a
    /// group that did not match.
    pub fn render(
        &self,
        variables: &dyn Variables,
        captured: &[Option<&str>],
        mut write: impl FnMut(RenderedPart<'_>),
    ) {
        for piece in &self.pieces {
            match piece {
                Piece::Literal(text) => write(RenderedPart::Literal(text)),
                Piece::Variable { variable, default } => {
                    let value = variables.value(variable);
                    let value = value.or_else(|| default.as_deref().map(Cow::Borrowed));
                    write(RenderedPart::Value(value.as_deref().unwrap_or_default(), variable));
                }
                Piece::Capture(group) => {
                    let text = captured.get(*group).copied().flatten();
                    write(RenderedPart::Captured(text.unwrap_or_default()));
                }
            }
        }
    }
}

/// Splits the text after a `$` into the reference, in braces or not, and the rest.
fn reference(after: &str) -> Option<(&str, &str)> {
    if let Some(braced) = after.strip_prefix('{') {
        let (inside, tail) = braced.split_once('}')?;
        return (!inside.trim().is_empty()).then(|| (inside.trim(), tail));
    }
    let digits = after.bytes().take_while(u8::is_ascii_digit).count();
    let word = after.bytes().take_while(|byte| byte.is_ascii_alphanumeric() || b"_.".contains(byte)).count();
    // `$1a` is the first group and an "a".
    let length = if digits > 0 { digits } else { word };
    (length > 0).then(|| after.split_at(length))
}

/// `None` keeps the text, where no variables are allowed.
fn piece(reference: &str, allowed: AllowedRefs) -> Result<Option<Piece>, Problem> {
    if reference.bytes().all(|byte| byte.is_ascii_digit()) {
        let group: usize = reference.parse().unwrap_or(usize::MAX);
        return match allowed.captures {
            Some(groups) if group <= groups => Ok(Some(Piece::Capture(group))),
            Some(groups) => {
                Err(Problem::new("", format!("${reference} is a group, but the pattern has {groups}")))
            }
            None => Err(Problem::new("", format!("${reference} is a group, but there is no regex_uri"))
                .with_hint("put a \\ before the $ to mean the text")),
        };
    }
    if !allowed.variables {
        return Ok(None);
    }
    let (name, default) = match reference.split_once("??") {
        Some((name, default)) => (name.trim(), Some(default.trim().into())),
        None => (reference, None),
    };
    let variable = Variable::parse(name).ok_or_else(|| unknown_variable(name))?;
    if variable.is_list() {
        return Err(Problem::new("", format!("${name} is a list, which has no one text"))
            .with_hint("forward the client's names with client_identity.forward: xfcc"));
    }
    Ok(Some(Piece::Variable { variable, default }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Fixed;

    impl Variables for Fixed {
        fn value(&self, variable: &Variable) -> Option<Cow<'_, str>> {
            match variable {
                Variable::Host => Some("a.example".into()),
                Variable::Arg(name) if &**name == "x" => Some("1".into()),
                _ => None,
            }
        }

        fn values(&self, _: &Variable) -> &[String] {
            &[]
        }
    }

    const ALL: AllowedRefs = AllowedRefs { variables: true, captures: Some(1) };

    fn rendered(text: &str, allowed: AllowedRefs) -> String {
        let mut out = String::new();
        let captured = [Some("whole"), Some("one")];
        Template::parse(text, allowed).unwrap().render(&Fixed, &captured, |part| match part {
            RenderedPart::Literal(text) => out.push_str(text),
            RenderedPart::Value(text, _) | RenderedPart::Captured(text) => {
                out.push('<');
                out.push_str(text);
                out.push('>');
            }
        });
        out
    }

    #[test]
    fn every_reference_form_is_rendered() {
        for (text, expected) in [
            ("plain", "plain"),
            ("$host", "<a.example>"),
            ("a-$host-b", "a-<a.example>-b"),
            ("${host}s", "<a.example>s"),
            ("${ host }$arg_x", "<a.example><1>"),
            ("${arg_y ?? none}", "<none>"),
            ("${arg_y??}", "<>"),
            ("$arg_y", "<>"),
            ("${arg_x ?? none}", "<1>"),
            ("\\$host", "\\$host"),
            ("100 $", "100 $"),
            ("$ 5 ${ } ${", "$ 5 ${ } ${"),
            ("$0$1b", "<whole><one>b"),
        ] {
            assert_eq!(rendered(text, ALL), expected, "{text}");
        }
        let captures_only = AllowedRefs { variables: false, captures: Some(1) };
        assert_eq!(rendered("/$1/$host", captures_only), "/<one>/$host");
    }

    #[test]
    fn a_separator_in_a_default_does_not_count() {
        for (text, path, query) in [
            ("/a?b=$host", "/a", Some("b=<a.example>")),
            ("/${arg_y ?? n}?", "/<n>", Some("")),
            ("/${arg_y ?? n}", "/<n>", None),
            ("?$host?x", "", Some("<a.example>?x")),
        ] {
            let rendered_text = |template: Template| {
                let mut out = String::new();
                template.render(&Fixed, &[], |part| match part {
                    RenderedPart::Literal(text) => out.push_str(text),
                    RenderedPart::Value(text, _) | RenderedPart::Captured(text) => {
                        out.push_str(&format!("<{text}>"))
                    }
                });
                out
            };
            let (before, after) = Template::parse(text, ALL).unwrap().split_at_literal('?');
            assert_eq!(
                (rendered_text(before), after.map(rendered_text).as_deref()),
                (path.to_owned(), query),
                "{text}"
            );
        }
    }

    #[test]
    fn invalid_references_are_problems() {
        for text in ["$nope", "${ssl_client_dn}", "$2", "$ssl_client_san_uri", "$host."] {
            assert!(Template::parse(text, ALL).is_err(), "{text}");
        }
        assert!(Template::parse("$1", AllowedRefs { variables: true, captures: None }).is_err());
    }
}

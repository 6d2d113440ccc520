//! Arguments that take any text and whose usual values are completed by a shell.
//!
//! The server decides what there is: another version of it may have more kinds.

use std::ffi::OsStr;

use clap::builder::{PossibleValue, StringValueParser, TypedValueParser};
use clap::{Arg, Command, Error};
use http::Method;
use model::Kind;

use crate::admin::operation::operations;

const METHODS: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];

/// Takes any text and suggests some.
#[derive(Debug, Clone)]
pub(super) struct Suggestions(Vec<&'static str>);

/// The kinds of resources.
pub(super) fn kinds() -> Suggestions {
    Suggestions(Kind::ALL.map(Kind::plural).to_vec())
}

/// What can be read: the constant beginnings of paths.
pub(super) fn readable() -> Suggestions {
    let rows = operations().iter().filter(|row| row.method == Method::GET && !row.is_rejected());
    let beginnings = rows.filter_map(|row| row.path.split("/{").next());
    let mut names: Vec<_> = beginnings.map(|path| path.trim_start_matches('/')).collect();
    names.sort();
    names.dedup();
    Suggestions(names)
}

/// The methods of requests.
pub(super) fn methods() -> Suggestions {
    Suggestions(METHODS.to_vec())
}

impl TypedValueParser for Suggestions {
    type Value = String;

    fn parse_ref(&self, command: &Command, arg: Option<&Arg>, value: &OsStr) -> Result<String, Error> {
        StringValueParser::new().parse_ref(command, arg, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(self.0.iter().copied().map(PossibleValue::new)))
    }
}

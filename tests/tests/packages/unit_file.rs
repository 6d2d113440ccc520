//! Reads a systemd unit, as systemd.syntax(7) has it.

use std::fs;

use super::packaging;

/// The assignments of a unit, in order: section, key, value.
pub(crate) struct UnitFile(Vec<(String, String, String)>);

impl UnitFile {
    pub(crate) fn read(name: &str) -> Self {
        let path = packaging("systemd").join(name);
        Self::parse(&fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())))
    }

    pub(crate) fn parse(text: &str) -> Self {
        let mut section = String::new();
        let mut lines = Vec::new();
        for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            match line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
                Some(name) => name.clone_into(&mut section),
                None => {
                    let (key, value) =
                        line.split_once('=').unwrap_or_else(|| panic!("no assignment: {line}"));
                    lines.push((section.clone(), key.to_owned(), value.to_owned()));
                }
            }
        }
        Self(lines)
    }

    /// The values of a key, in order.
    pub(crate) fn all(&self, key: &str) -> Vec<&str> {
        self.0.iter().filter(|(_, found, _)| found == key).map(|(.., value)| value.as_str()).collect()
    }

    /// The value of a key that is there once.
    pub(crate) fn one(&self, key: &str) -> &str {
        match self.all(key)[..] {
            [value] => value,
            ref other => panic!("{key} has {} values", other.len()),
        }
    }

    /// The words of a command line, which needs no quotes.
    pub(crate) fn command(&self, key: &str) -> Vec<&str> {
        self.one(key).split(' ').collect()
    }
}

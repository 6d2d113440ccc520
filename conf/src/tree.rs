//! Parses YAML text to a tree with line numbers, and merges two trees.
//!
//! First step of loading. Bounded: the text by its reader, 64 levels, 100,000 nodes for a
//! configuration (an alias is copied and counts in full, so "billion laughs" fails early). Two
//! equal keys in one map are an error: the later one would silently win.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle};

const DEPTH_MAX: usize = 64;
/// Limit for a configuration file.
const NODES_MAX: usize = 100_000;

/// A value and its line.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct YamlNode {
    /// 1-based.
    pub line: usize,
    pub value: YamlValue,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum YamlValue {
    Scalar(YamlScalar),
    List(Vec<YamlNode>),
    Map(Vec<(YamlKey, YamlNode)>),
}

/// A key and its line.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct YamlKey {
    pub text: String,
    pub line: usize,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct YamlScalar {
    pub text: String,
    pub kind: ScalarKind,
    /// The text came from the environment, so a number may also be used as a text.
    pub from_environment: bool,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum ScalarKind {
    Null,
    Bool(bool),
    Number(f64),
    Text,
}

/// A YAML syntax error. Line and column are 1-based.
#[derive(Debug)]
pub(crate) struct SyntaxError {
    pub line: usize,
    pub column: usize,
    pub message: String,
}

/// Parses a configuration. `None`: only blanks and comments.
pub(crate) fn parse(text: &str) -> Result<Option<YamlNode>, SyntaxError> {
    parse_up_to(NODES_MAX, text)
}

/// Parses one document of at most `nodes_max` values.
pub(crate) fn parse_up_to(nodes_max: usize, text: &str) -> Result<Option<YamlNode>, SyntaxError> {
    let mut builder = TreeBuilder { nodes_max, ..TreeBuilder::default() };
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| SyntaxError {
            line: error.marker().line(),
            column: error.marker().col() + 1,
            message: error.info().to_owned(),
        })?;
        let (line, column) = (span.start.line(), span.start.col() + 1);
        builder.handle_event(event, line).map_err(|message| SyntaxError { line, column, message })?;
    }
    Ok(builder.root)
}

/// `user` over `default`: maps merge key by key, everything else replaces, `null` deletes (contract
/// 1.1).
pub(crate) fn merge(default: &YamlNode, user: &YamlNode) -> YamlNode {
    let (YamlValue::Map(defaults), YamlValue::Map(users)) = (&default.value, &user.value) else {
        return user.clone();
    };
    let mut merged: Vec<(YamlKey, YamlNode)> = Vec::with_capacity(defaults.len() + users.len());
    for (key, default) in defaults {
        match users.iter().find(|(name, _)| name.text == key.text) {
            None => merged.push((key.clone(), default.clone())),
            Some((_, user)) if user.is_null() => {}
            Some((name, user)) => merged.push((name.clone(), merge(default, user))),
        }
    }
    let known = |name: &str| defaults.iter().any(|(key, _)| key.text == name);
    merged.extend(users.iter().filter(|(key, node)| !known(&key.text) && !node.is_null()).cloned());
    YamlNode { line: user.line, value: YamlValue::Map(merged) }
}

impl YamlNode {
    pub(crate) fn is_null(&self) -> bool {
        matches!(&self.value, YamlValue::Scalar(YamlScalar { kind: ScalarKind::Null, .. }))
    }

    /// The node at a dotted path of map keys.
    pub(crate) fn get_path(&self, path: &str) -> Option<&YamlNode> {
        path.split('.').try_fold(self, |node, name| node.get(name))
    }

    pub(crate) fn get(&self, name: &str) -> Option<&YamlNode> {
        let YamlValue::Map(entries) = &self.value else { return None };
        entries.iter().find(|(key, _)| key.text == name).map(|(_, node)| node)
    }

    /// Sets the node at a dotted path of map keys, or removes it. What stands in the way and is no
    /// map is replaced.
    pub(crate) fn set_path(&mut self, path: &str, node: Option<YamlNode>) {
        let (name, rest) = path.split_once('.').map_or((path, None), |(name, rest)| (name, Some(rest)));
        if node.is_none() && self.get(name).is_none() {
            return;
        }
        if !matches!(self.value, YamlValue::Map(_)) {
            self.value = YamlValue::Map(Vec::new());
        }
        let YamlValue::Map(entries) = &mut self.value else { return };
        match (rest, node) {
            (None, None) => entries.retain(|(key, _)| key.text != name),
            (rest, node) => {
                let at = entries.iter().position(|(key, _)| key.text == name).unwrap_or(entries.len());
                if at == entries.len() {
                    let value = YamlValue::Map(Vec::new());
                    let key = YamlKey { text: name.to_owned(), line: 0 };
                    entries.push((key, YamlNode { line: 0, value }));
                }
                let Some((_, child)) = entries.get_mut(at) else { return };
                match (rest, node) {
                    (Some(rest), node) => child.set_path(rest, node),
                    (None, Some(node)) => *child = node,
                    (None, None) => {}
                }
            }
        }
    }

    /// A description for messages: `the text "on"`, `the number 5`, `a list`, ... Never used for
    /// secrets.
    pub(crate) fn describe(&self) -> String {
        match &self.value {
            YamlValue::List(_) => "a list".into(),
            YamlValue::Map(_) => "a map of keys".into(),
            YamlValue::Scalar(scalar) => match scalar.kind {
                ScalarKind::Null => "nothing (null)".into(),
                ScalarKind::Bool(value) => value.to_string(),
                ScalarKind::Number(_) => format!("the number {}", scalar.text),
                ScalarKind::Text => format!("the text {:?}", shortened(&scalar.text)),
            },
        }
    }
}

impl YamlScalar {
    /// A plain (unquoted) scalar: YAML 1.2 core rules, so `yes` and `on` are texts.
    pub(crate) fn plain(text: String) -> Self {
        let kind = match text.as_str() {
            "" | "~" | "null" | "Null" | "NULL" => ScalarKind::Null,
            "true" | "True" | "TRUE" => ScalarKind::Bool(true),
            "false" | "False" | "FALSE" => ScalarKind::Bool(false),
            other => number(other).map_or(ScalarKind::Text, ScalarKind::Number),
        };
        Self { text, kind, from_environment: false }
    }

    /// A value with a substituted variable: number, true, false or text; never null, so that an
    /// empty variable does not delete a default.
    pub(crate) fn substituted(text: String) -> Self {
        let kind = match text.as_str() {
            "true" => ScalarKind::Bool(true),
            "false" => ScalarKind::Bool(false),
            other => number(other).map_or(ScalarKind::Text, ScalarKind::Number),
        };
        Self { text, kind, from_environment: true }
    }

    pub(crate) fn quoted(text: String) -> Self {
        Self { text, kind: ScalarKind::Text, from_environment: false }
    }
}

fn number(text: &str) -> Option<f64> {
    // f64's parser also accepts "inf", "nan" and "infinity", which are texts here.
    let starts = text.trim_start_matches(['+', '-']).starts_with(|c: char| c.is_ascii_digit() || c == '.');
    let plain = text.chars().all(|c| c.is_ascii_digit() || matches!(c, '+' | '-' | '.' | 'e' | 'E'));
    if starts && plain { text.parse().ok() } else { None }
}

fn shortened(text: &str) -> String {
    if text.chars().count() <= 60 {
        text.to_owned()
    } else {
        text.chars().take(57).chain("...".chars()).collect()
    }
}

/// Builds the tree from parser events, with an explicit stack, so that no input overflows ours.
#[derive(Default)]
struct TreeBuilder {
    open: Vec<OpenCollection>,
    root: Option<YamlNode>,
    documents: usize,
    nodes: usize,
    nodes_max: usize,
    anchors: HashMap<usize, YamlNode>,
}

struct OpenCollection {
    line: usize,
    anchor: usize,
    content: PartialCollection,
}

enum PartialCollection {
    List(Vec<YamlNode>),
    Map(Vec<(YamlKey, YamlNode)>, Option<YamlKey>),
}

impl TreeBuilder {
    fn handle_event(&mut self, event: Event<'_>, line: usize) -> Result<(), String> {
        match event {
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => Ok(()),
            Event::DocumentStart(_) => {
                self.documents += 1;
                if self.documents > 1 {
                    return Err("a second document (`---`) starts here; the file must hold one".into());
                }
                Ok(())
            }
            Event::Alias(anchor) => {
                let copied = self.anchors.get(&anchor).cloned();
                let copied = copied.ok_or("an alias (*name) must follow the end of what it names")?;
                self.nodes += count(&copied);
                self.add(YamlNode { line, value: copied.value })
            }
            Event::Scalar(text, style, anchor, tag) => {
                let plain = style == ScalarStyle::Plain && tag.is_none();
                let text = text.into_owned();
                let scalar = if plain { YamlScalar::plain(text) } else { YamlScalar::quoted(text) };
                let node = YamlNode { line, value: YamlValue::Scalar(scalar) };
                self.remember(anchor, &node);
                self.add(node)
            }
            Event::SequenceStart(anchor, _) => self.enter(line, anchor, PartialCollection::List(Vec::new())),
            Event::MappingStart(anchor, _) => {
                self.enter(line, anchor, PartialCollection::Map(Vec::new(), None))
            }
            Event::SequenceEnd | Event::MappingEnd => self.leave(),
        }
    }

    fn enter(&mut self, line: usize, anchor: usize, content: PartialCollection) -> Result<(), String> {
        if self.open.len() >= DEPTH_MAX {
            return Err(format!("nested deeper than {DEPTH_MAX} levels"));
        }
        self.open.push(OpenCollection { line, anchor, content });
        Ok(())
    }

    fn leave(&mut self) -> Result<(), String> {
        let Some(OpenCollection { line, anchor, content }) = self.open.pop() else { return Ok(()) };
        let value = match content {
            PartialCollection::List(items) => YamlValue::List(items),
            PartialCollection::Map(entries, _) => YamlValue::Map(entries),
        };
        let node = YamlNode { line, value };
        self.remember(anchor, &node);
        self.add(node)
    }

    fn remember(&mut self, anchor: usize, node: &YamlNode) {
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
    }

    fn add(&mut self, node: YamlNode) -> Result<(), String> {
        self.nodes += 1;
        if self.nodes > self.nodes_max {
            return Err(format!("more than {} values", self.nodes_max));
        }
        let Some(open) = self.open.last_mut() else {
            // An empty document gives one null scalar.
            self.root = if node.is_null() { None } else { Some(node) };
            return Ok(());
        };
        match &mut open.content {
            PartialCollection::List(items) => items.push(node),
            PartialCollection::Map(entries, waiting) => match waiting.take() {
                Some(key) => entries.push((key, node)),
                None => {
                    let line = node.line;
                    let YamlValue::Scalar(YamlScalar { text, .. }) = node.value else {
                        return Err("a key must be a plain text, not a list or a map".into());
                    };
                    if let Some((first, _)) = entries.iter().find(|(key, _)| key.text == text) {
                        return Err(format!("the key {text:?} is already given on line {}", first.line));
                    }
                    *waiting = Some(YamlKey { text, line });
                }
            },
        }
        Ok(())
    }
}

fn count(node: &YamlNode) -> usize {
    match &node.value {
        YamlValue::Scalar(_) => 1,
        YamlValue::List(items) => 1 + items.iter().map(count).sum::<usize>(),
        YamlValue::Map(entries) => 1 + entries.iter().map(|(_, node)| count(node)).sum::<usize>(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(text: &str) -> YamlNode {
        parse(text).unwrap().unwrap()
    }

    #[test]
    fn lines_are_kept() {
        let root = tree("a:\n  b: 1\n  c:\n    - x\n    - y\n");
        assert_eq!(root.get_path("a.b").unwrap().line, 2);
        let YamlValue::List(items) = &root.get_path("a.c").unwrap().value else { panic!("a list") };
        assert_eq!(items[1].line, 5);
    }

    #[test]
    fn blanks_and_comments_are_nothing() {
        assert!(parse("# only a comment\n\n").unwrap().is_none());
        assert!(parse("").unwrap().is_none());
    }

    #[test]
    fn maps_merge_lists_replace_null_deletes() {
        let merged = merge(
            &tree("a: {x: 1, y: 2, z: 3}\nb: [1, 2]\nc: 1"),
            &tree("a: {y: 5, x: null}\nb: [9]\nc: null\nd: 4"),
        );
        assert!(merged.get_path("a.x").is_none());
        assert_eq!(merged.get_path("a.y"), tree("a: {y: 5}").get_path("a.y"));
        assert!(merged.get_path("a.z").is_some());
        assert!(matches!(&merged.get_path("b").unwrap().value, YamlValue::List(items) if items.len() == 1));
        assert!(merged.get_path("c").is_none());
        assert!(merged.get_path("d").is_some());
    }

    #[test]
    fn a_path_is_set_or_removed() {
        let mut root = tree("a: {b: 1, c: [1]}\nd: 2");
        let node = |text: &str| Some(tree(&format!("v: {text}")).get("v").unwrap().clone());
        root.set_path("a.b", node("5"));
        root.set_path("a.x.y", node("6"));
        root.set_path("d.e", node("7"));
        root.set_path("a.c", None);
        root.set_path("missing.key", None);
        assert_eq!(root.get_path("a.b").unwrap().describe(), "the number 5");
        assert_eq!(root.get_path("a.x.y").unwrap().describe(), "the number 6");
        assert_eq!(root.get_path("d.e").unwrap().describe(), "the number 7");
        assert!(root.get_path("a.c").is_none() && root.get("missing").is_none());
    }

    #[test]
    fn duplicate_keys_and_second_documents_are_errors() {
        assert!(parse("a: 1\nb: 2\na: 3\n").unwrap_err().message.contains("already given on line 1"));
        assert!(parse("a: 1\n---\nb: 2\n").is_err());
    }

    #[test]
    fn copies_of_aliases_are_counted() {
        assert_eq!(tree("a: &k {x: 1}\nb: *k").get_path("b.x").unwrap().describe(), "the number 1");
        let mut laughs = String::from("l0: &l0 [x,x,x,x,x,x,x,x,x,x]\n");
        for level in 1..10 {
            let before = level - 1;
            let names = vec![format!("*l{before}"); 10].join(",");
            laughs.push_str(&format!("l{level}: &l{level} [{names}]\n"));
        }
        assert!(parse(&laughs).is_err());
    }

    #[test]
    fn words_are_not_numbers() {
        for word in ["inf", "nan", "1s", "0x10", "-", "e5", "1.2.3"] {
            assert_eq!(YamlScalar::plain(word.into()).kind, ScalarKind::Text, "{word}");
        }
        assert_eq!(YamlScalar::plain("-1.5".into()).kind, ScalarKind::Number(-1.5));
    }
}

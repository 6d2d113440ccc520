//! One path of a file that may be broken: a command must reach a program that runs, although its
//! file has an error.
//!
//! Invariant: with a file that [`crate::load`] accepts, the path is the one of its settings.

use std::path::{Path, PathBuf};

use crate::reader::without_parent_dirs;
use crate::tree::{self, YamlNode, YamlValue};
use crate::{BYTES_MAX, DEFAULTS, environment, read_text};

/// The path that `key` has in a file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct PathKey {
    /// The path of the file, or the default.
    pub path: PathBuf,
    /// Whether the file was read as far as needed: else the path is a guess.
    pub is_certain: bool,
}

/// Reads only `key` of the file at `config`, whatever else is wrong with the file. The default
/// where the file has no such key or cannot be read.
pub(crate) fn path_key(config: &Path, key: &str) -> PathKey {
    let working = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
    let folder = working.join(config.parent().unwrap_or(Path::new("")));
    let folder = folder.canonicalize().unwrap_or(folder);
    let text = read_text(config, BYTES_MAX).ok();
    let found = text.as_ref().map(|text| of_text(text, key));
    let is_certain = matches!(found, Some(Found::Path(_) | Found::Default));
    let path = match found {
        Some(Found::Path(path)) => path,
        _ => tree::parse(DEFAULTS).ok().flatten().and_then(|tree| text_at(&tree, key)).unwrap_or_default(),
    };
    PathKey { path: without_parent_dirs(&folder.join(path)), is_certain }
}

enum Found {
    Path(String),
    /// The file is YAML without this key.
    Default,
    Unknown,
}

fn of_text(text: &str, key: &str) -> Found {
    let (text, key) = match (tree::parse(text), key.rsplit('.').next(), line_of(text, key)) {
        // Only this line has to be YAML.
        (Err(_), Some(name), Some(line)) => (line, name),
        _ => (text, key),
    };
    match tree::parse(text) {
        Ok(Some(mut tree)) => {
            environment::substitute(&mut tree, &|name| std::env::var(name).ok(), &mut Vec::new());
            match (text_at(&tree, key), tree.get_path(key)) {
                (Some(path), _) => Found::Path(path),
                (None, None) => Found::Default,
                (None, Some(_)) => Found::Unknown,
            }
        }
        Ok(None) => Found::Default,
        Err(_) => Found::Unknown,
    }
}

/// The line that gives the key its value, in a text that is not YAML as a whole. `None` where the
/// lines do not show it.
fn line_of<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    let mut names = key.split('.');
    let (mut name, mut outer) = (names.next()?, None);
    for line in text.lines() {
        let content = line.trim_start();
        if content.is_empty() || content.starts_with('#') {
            continue;
        }
        let indent = line.len() - content.len();
        if outer.is_some_and(|outer| indent <= outer) {
            return None;
        }
        let is_top = outer.is_some() || indent == 0;
        let Some(value) = content.strip_prefix(name).and_then(|rest| rest.strip_prefix(':')) else {
            continue;
        };
        if !is_top {
            continue;
        }
        match names.next() {
            None => return Some(content),
            Some(_) if !value.trim().is_empty() && !value.trim_start().starts_with('#') => return None,
            Some(next) => (name, outer) = (next, Some(indent)),
        }
    }
    None
}

fn text_at(tree: &YamlNode, key: &str) -> Option<String> {
    match &tree.get_path(key)?.value {
        YamlValue::Scalar(scalar) if !scalar.text.is_empty() => Some(scalar.text.clone()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "countersign.node.last_good";

    fn read(text: &str) -> PathKey {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config.yaml");
        std::fs::write(&file, text).unwrap();
        let folder = folder.path().canonicalize().unwrap();
        let PathKey { path, is_certain } = path_key(&file, KEY);
        PathKey { path: path.strip_prefix(folder).map(Path::to_owned).unwrap_or(path), is_certain }
    }

    fn certain(path: &str) -> PathKey {
        PathKey { path: path.into(), is_certain: true }
    }

    #[test]
    fn a_valid_file_gives_the_path_of_its_settings() {
        for text in ["", "countersign: {node: {last_good: /a/b}}", "countersign: {node: {last_good: x/y}}"] {
            let folder = tempfile::tempdir().unwrap();
            let file = folder.path().join("conf/config.yaml");
            std::fs::create_dir(folder.path().join("conf")).unwrap();
            std::fs::write(&file, text).unwrap();
            let settings = crate::load(&file).unwrap();
            let expected = PathKey { path: settings.countersign.node.last_good, is_certain: true };
            assert_eq!(path_key(&file, KEY), expected, "{text}");
            let store = PathKey { path: settings.countersign.store.path, is_certain: true };
            assert_eq!(path_key(&file, "countersign.store.path"), store, "{text}");
        }
    }

    #[test]
    fn other_faults_of_the_file_do_not_hide_the_path() {
        let node =
            "countersign:\n  store: {path: z}\n  # why\n  node:\n    name: a\n    last_good: /x/y # here\n";
        for fault in ["", "no_such_key: 1\n", "apisix: [\n", "a: b: c\n", "\tapisix: 1\n", "apisix: \"\n"] {
            assert_eq!(read(&format!("{node}{fault}")), certain("/x/y"), "after: {fault:?}");
            if fault != "apisix: \"\n" {
                assert_eq!(read(&format!("{fault}{node}")), certain("/x/y"), "before: {fault:?}");
            }
        }
        assert_eq!(
            read("countersign:\n  node:\n    last_good: ${{NOT_SET_AT_ALL:=/x/z}}\n"),
            certain("/x/z")
        );
    }

    #[test]
    fn a_guess_is_marked() {
        for text in [
            "countersign: [\n",
            "countersign: {node: {last_good: /x}}\napisix: [\n",
            "countersign:\n  node: [\n",
        ] {
            assert!(!read(text).is_certain, "{text}");
        }
        let missing = path_key(Path::new("/nowhere/conf/config.yaml"), KEY);
        assert_eq!(missing, PathKey { path: "/nowhere/data/last_good.snapshot".into(), is_certain: false });
    }
}

//! What `-f FILE`, `-f -` and `--json TEXT` give: JSON or YAML as one value.
//!
//! JSON is read by the parser of the Admin API (raw line breaks in strings, no duplicate members),
//! YAML by that of `apisix.yaml` (with `${{NAME}}`, and without the need for `#END`).

use std::path::{Path, PathBuf};

use clap::Args;
use conf::ConfError;
use process::bounded_read;
use serde_json::{Map, Value};
use zeroize::Zeroizing;

/// Bytes of a file: ten thousand sites are about 40 MB.
const BYTES_MAX: u64 = 512 << 20;

/// A document of a write.
#[derive(Debug, Args)]
pub(crate) struct InputArgs {
    /// JSON or YAML file; - for standard input
    #[arg(short, long, value_name = "FILE", conflicts_with = "json")]
    file: Option<PathBuf>,
    /// JSON text. Not for private keys: other users see it in the list of processes
    #[arg(long, value_name = "TEXT")]
    json: Option<String>,
}

/// Why there is no document.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InputError {
    #[error("{path}: {error}", path = .path.display())]
    Unreadable { path: PathBuf, error: std::io::Error },
    #[error("{path}: not valid JSON: {error}", path = .path.display())]
    Json { path: PathBuf, error: model::json::JsonError },
    #[error("--json: {0}")]
    JsonText(model::json::JsonError),
    #[error("{0}")]
    Yaml(#[from] ConfError),
    #[error("{path}: there is nothing in it; a document without members is {{}}, and that there are no routes is routes: []", path = .0.display())]
    Empty(PathBuf),
    #[error("no document: give one with -f FILE, -f - or --json TEXT")]
    Missing,
}

impl InputArgs {
    /// The document.
    ///
    /// # Errors
    /// When there is none or it cannot be read.
    pub(super) fn read(&self) -> Result<Value, InputError> {
        self.read_optional()?.ok_or(InputError::Missing)
    }

    /// The document; `None` when no flag gives one.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(super) fn read_optional(&self) -> Result<Option<Value>, InputError> {
        match (&self.file, &self.json) {
            (Some(path), _) => read(path).map(Some),
            (None, Some(text)) => model::json::parse(text.as_bytes()).map(Some).map_err(InputError::JsonText),
            (None, None) => Ok(None),
        }
    }
}

/// Reads a file, or standard input for `-`.
///
/// # Errors
/// When it cannot be read or parsed.
pub(super) fn read(path: &Path) -> Result<Value, InputError> {
    let (file, shown) = match path.to_str() {
        Some("-") => (Path::new("/dev/stdin"), Path::new("standard input")),
        _ => (path, path),
    };
    let unreadable = |error: bounded_read::ReadError| InputError::Unreadable {
        path: shown.to_owned(),
        error: error.into(),
    };
    let text = bounded_read::read_any(file, BYTES_MAX).map_err(unreadable)?;
    parse(shown, &text)
}

fn parse(path: &Path, text: &Zeroizing<String>) -> Result<Value, InputError> {
    let extension = path.extension().and_then(|extension| extension.to_str());
    let is_json = match extension {
        Some("json") => true,
        Some("yaml" | "yml") => false,
        _ => text.trim_start().starts_with(['{', '[']),
    };
    if is_json {
        let json = model::json::parse(text.trim_start_matches('\u{feff}').as_bytes());
        return json.map_err(|error| InputError::Json { path: path.to_owned(), error });
    }
    let value = conf::parse_apisix_yaml(path, text, &|name| std::env::var(name).ok())?;
    if value.as_object().is_some_and(Map::is_empty) && !states_empty_object(text) {
        return Err(InputError::Empty(path.to_owned()));
    }
    Ok(value)
}

/// Whether YAML that is read as an empty object says so. Blanks and comments are read as one, too,
/// and may be what a program left that failed.
fn states_empty_object(text: &str) -> bool {
    text.lines().any(|line| !line.trim_start().starts_with('#') && line.contains('{'))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parsed(name: &str, text: &str) -> Result<Value, String> {
        parse(Path::new(name), &Zeroizing::new(text.to_owned())).map_err(|error| error.to_string())
    }

    #[test]
    fn json_and_yaml_are_distinguished() {
        let expected = json!({"uri": "/a", "hosts": ["x"]});
        for (name, text) in [
            ("standard input", r#"{"uri": "/a", "hosts": ["x"]}"#),
            ("standard input", "uri: /a\nhosts: [x]\n"),
            ("a.json", "\n {\"uri\": \"/a\", \"hosts\": [\"x\"]}\n"),
            ("a.yaml", r#"{"uri": "/a", "hosts": ["x"]}"#),
            ("a.yml", "uri: /a\nhosts:\n  - x\n#END\n"),
        ] {
            assert_eq!(parsed(name, text), Ok(expected.clone()), "{name}: {text}");
        }
        assert_eq!(parsed("a.json", "{\"cert\": \"a\nb\"}"), Ok(json!({"cert": "a\nb"})), "a pasted PEM");
    }

    #[test]
    fn an_empty_file_is_no_document() {
        for text in ["", "\n\n", "# {}\n#END\n", "---\n", "null", "~\n"] {
            for name in ["a.yaml", "standard input"] {
                let error = parsed(name, text).unwrap_err();
                assert!(error.contains(": there is nothing in it; a document"), "{text:?}: {error}");
            }
        }
        assert!(parsed("a.json", "").is_err());
        for text in ["{}", "--- {}\n#END\n", "# none\n{ }\n"] {
            assert_eq!(parsed("a.yaml", text), Ok(json!({})), "{text:?}");
        }
    }

    #[test]
    fn errors_name_file_and_line() {
        for (name, text, expected) in [
            ("a.json", "{", "a.json: not valid JSON"),
            ("a.json", "{\"a\": 1, \"a\": 2}", "at line 1"),
            ("a.yaml", "a: [\n", "a.yaml:"),
            ("a.yaml", "a: ${{A_NAME_THAT_IS_NOT_SET}}\n", "can't find environment variable"),
        ] {
            let error = parsed(name, text).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
        assert!(matches!(read(Path::new("/nowhere.json")), Err(InputError::Unreadable { .. })));
    }
}

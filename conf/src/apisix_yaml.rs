//! APISIX's resources in one file (`conf/apisix.yaml`): YAML text -> JSON values, by the same
//! parser as the configuration file. The caller interprets the JSON.

use std::path::Path;

use serde_json::{Map, Number, Value as Json};

use crate::error::ConfError;
use crate::tree::{self, ScalarKind, YamlNode, YamlValue};
use crate::{environment, read_text};

/// Ten thousand sites are about 40 MB.
const BYTES_MAX: u64 = 512 << 20;
const NODES_MAX: usize = 20_000_000;
/// Aliases can make many nodes of few bytes.
const REQUEST_NODES_MAX: usize = 200_000;

/// APISIX requires this marker at the end, so that it never reads half a file.
const END_MARKER: &str = "#END";

/// Reads the file. Blanks and comments alone give an empty object. Variables (`${{NAME}}`) are
/// substituted before parsing.
///
/// # Errors
/// [`ConfError`]: the file cannot be read, is incomplete, or is not YAML.
pub fn read_apisix_yaml(
    path: &Path,
    environment: &dyn Fn(&str) -> Option<String>,
) -> Result<Json, ConfError> {
    let text = read_text(path, BYTES_MAX)?;
    if !text.trim_end().ends_with(END_MARKER) {
        return Err(syntax(
            path,
            text.lines().count().max(1),
            1,
            format!("the last line must be {END_MARKER}: was it written to its end?"),
        ));
    }
    parse_apisix_yaml(path, &text, environment)
}

/// Parses a text of such a file, without the rule about `#END`. `path` stands in errors.
///
/// # Errors
/// [`ConfError`]: a variable is not set, or the text is not YAML.
pub fn parse_apisix_yaml(
    path: &Path,
    text: &str,
    environment: &dyn Fn(&str) -> Option<String>,
) -> Result<Json, ConfError> {
    let mut problems = Vec::new();
    let text = environment::substitute_text(text, environment, &mut problems);
    if !problems.is_empty() {
        return Err(ConfError::Invalid { path: path.to_owned(), problems });
    }
    let tree = tree::parse_up_to(NODES_MAX, &text)
        .map_err(|error| syntax(path, error.line, error.column, error.message))?;
    Ok(tree.map_or_else(|| Json::Object(Map::new()), json))
}

/// Parses a text as JSON values, without substituting variables. Blanks and comments alone give an
/// empty object.
///
/// # Errors
/// The first line (from 1) that is not YAML, or has more than the limit of nodes.
pub fn parse_yaml(text: &str) -> Result<Json, usize> {
    let tree = tree::parse_up_to(REQUEST_NODES_MAX, text).map_err(|error| error.line)?;
    Ok(tree.map_or_else(|| Json::Object(Map::new()), json))
}

fn syntax(path: &Path, line: usize, column: usize, message: String) -> ConfError {
    ConfError::Syntax { path: path.to_owned(), line, column, message }
}

fn json(node: YamlNode) -> Json {
    match node.value {
        YamlValue::List(items) => Json::Array(items.into_iter().map(json).collect()),
        YamlValue::Map(entries) => entries.into_iter().map(|(key, node)| (key.text, json(node))).collect(),
        YamlValue::Scalar(scalar) => match scalar.kind {
            ScalarKind::Null => Json::Null,
            ScalarKind::Bool(value) => Json::Bool(value),
            // A number beyond JSON's range stays text.
            ScalarKind::Number(value) => {
                number(&scalar.text, value).map_or(Json::String(scalar.text), Json::Number)
            }
            ScalarKind::Text => Json::String(scalar.text),
        },
    }
}

fn number(text: &str, value: f64) -> Option<Number> {
    let negative = text.parse::<i64>().map(Number::from);
    negative.or_else(|_| text.parse::<u64>().map(Number::from)).ok().or_else(|| Number::from_f64(value))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_text_is_parsed_as_it_is() {
        let text = "routes:\n- {id: 1, uri: '${{HOME}}'}\n";
        assert_eq!(parse_yaml(text), Ok(json!({"routes": [{"id": 1, "uri": "${{HOME}}"}]})));
        assert_eq!(parse_yaml("# nothing"), Ok(json!({})));
        assert_eq!(parse_yaml("a: 1\nb: ["), Err(3));
        assert!(parse_yaml("a: 1\na: 2").is_err());
    }

    #[test]
    fn aliases_do_not_multiply() {
        let mut text = "a: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..10 {
            let list = vec![format!("*a{}", level - 1); 10].join(", ");
            text.push_str(&format!("b{level}: &a{level} [{list}]\n"));
        }
        assert!(parse_yaml(&text).is_err());
    }

    fn read(text: &str) -> Result<Json, ConfError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("apisix.yaml");
        std::fs::write(&path, text).unwrap();
        read_apisix_yaml(&path, &|name| (name == "PORT").then(|| "80".to_owned()))
    }

    #[test]
    fn yaml_converts_to_json() {
        let text = "routes:\n  - id: 1\n    uri: \"/*\"\n    priority: -3\n    weight: 1.5\n    vars: []\n    plugins: {}\n    big: 18446744073709551615\n\
                    \x20   key: |\n      ---\n      x\n    nothing: ~\n    on: true\n    words: [yes, \"7\"]\n#END\n";
        let expected = json!({"routes": [{
            "id": 1, "uri": "/*", "priority": -3, "weight": 1.5, "vars": [], "plugins": {}, "big": 18446744073709551615u64,
            "key": "---\nx\n", "nothing": null, "on": true, "words": ["yes", "7"],
        }]});
        assert_eq!(read(text).unwrap(), expected);
        assert_eq!(read("# nothing\n#END").unwrap(), json!({}));
    }

    #[test]
    fn variables_are_substituted_before_parsing() {
        let text = "a: ${{PORT}}\nb: \"${{PORT}}\"\nc: ${{NONE:=x}}\n#END\n";
        assert_eq!(read(text).unwrap(), json!({"a": 80, "b": "80", "c": "x"}));
        let message = read("a: 1\nb: ${{NONE}}\n#END\n").unwrap_err().to_string();
        assert!(message.contains(":2: can't find environment variable NONE"), "{message}");
    }

    #[test]
    fn an_incomplete_file_is_an_error() {
        let message = read("routes:\n  - id: 1\n").unwrap_err().to_string();
        assert!(message.contains("the last line must be #END"), "{message}");
        let message = read("routes: [\n#END\n").unwrap_err().to_string();
        assert!(message.contains("not valid YAML"), "{message}");
    }
}

//! Parses the JSON of documents: request bodies of the Admin API, values in the store, and
//! variables of `$env://NAME/member`.
//!
//! APISIX's parser (lua-cjson) accepts raw control characters inside strings, and the commands of
//! its manuals depend on that to paste a PEM file between two quotes. [`parse`] therefore accepts
//! U+0001 to U+001F inside strings as if they were escaped. Otherwise the parser is strict (RFC
//! 8259), and duplicate members are an error, where lua-cjson takes the last one ([decision
//! 27](../../docs/decisions/0027-json-as-people-paste-it.md)). Invariant: no error quotes a value,
//! and temporary copies of the text are wiped.

use std::fmt;

use serde::de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use zeroize::Zeroizing;

use crate::redact::redact;

/// A syntax error with its position in the original text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message} at line {line} column {column}")]
pub struct JsonError {
    message: String,
    /// 1-based.
    line: usize,
    /// In bytes, 1-based.
    column: usize,
}

/// Parses a text as one JSON value of at most 128 levels.
///
/// # Errors
///
/// Violations of RFC 8259 other than U+0001 to U+001F inside strings, duplicate members, and
/// invalid UTF-8.
pub fn parse(text: &[u8]) -> Result<Value, JsonError> {
    match count_raw_controls(text) {
        0 => parse_strictly(text).map_err(|error| with_position(&error, text, text)),
        count => {
            let escaped = escape(text, count);
            parse_strictly(&escaped).map_err(|error| with_position(&error, text, &escaped))
        }
    }
}

fn parse_strictly(text: &[u8]) -> Result<Value, serde_json::Error> {
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    let value = UniqueMembers.deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(value)
}

/// Yields each byte of a text with whether it is a raw control character inside a string. One after
/// a backslash would be an invalid escape and does not count; nor does NUL, which lua-cjson
/// rejects, too.
fn scan(text: &[u8]) -> impl Iterator<Item = (u8, bool)> {
    let (mut in_string, mut after_backslash) = (false, false);
    text.iter().map(move |&byte| {
        let raw = in_string && !after_backslash && matches!(byte, 0x01..=0x1f);
        in_string ^= byte == b'"' && !after_backslash;
        after_backslash = in_string && !after_backslash && byte == b'\\';
        (byte, raw)
    })
}

fn count_raw_controls(text: &[u8]) -> usize {
    scan(text).filter(|(_, raw)| *raw).count()
}

/// The length of an escape.
const ESCAPE: usize = r"\u0000".len();

/// Escapes the `count` raw control characters of a text. The single allocation leaves no copy of a
/// key behind.
fn escape(text: &[u8], count: usize) -> Zeroizing<Vec<u8>> {
    let mut out = Zeroizing::new(Vec::with_capacity(text.len() + count * (ESCAPE - 1)));
    for (byte, raw) in scan(text) {
        if raw {
            let digit = match byte & 0xf {
                low @ 0..=9 => b'0' + low,
                low => b'a' + low - 10,
            };
            out.extend_from_slice(&[b'\\', b'u', b'0', b'0', b'0' + (byte >> 4), digit]);
        } else {
            out.push(byte);
        }
    }
    out
}

/// Converts the error's position in `parsed` to the position in `text`.
fn with_position(error: &serde_json::Error, text: &[u8], parsed: &[u8]) -> JsonError {
    let suffix = format!(" at line {} column {}", error.line(), error.column());
    let whole = error.to_string();
    let message = whole.strip_suffix(&suffix).unwrap_or(&whole).to_owned();
    // Counts the parsed bytes before the error, then the bytes of the text that they come from.
    let lines = parsed.split_inclusive(|byte| *byte == b'\n').take(error.line().saturating_sub(1));
    let before = lines.map(<[u8]>::len).sum::<usize>() + error.column();
    let mut read = 0;
    let (mut line, mut column) = (1, 0);
    for (byte, raw) in scan(text) {
        if read >= before {
            break;
        }
        read += if raw { ESCAPE } else { 1 };
        (line, column) = if byte == b'\n' { (line + 1, 0) } else { (line, column + 1) };
    }
    JsonError { message, line, column: column.max(1) }
}

/// Builds a value and rejects duplicate members. `Value`'s own implementation takes the last
/// duplicate and treats a member name that is private to serde_json specially.
struct UniqueMembers;

impl<'de> DeserializeSeed<'de> for UniqueMembers {
    type Value = Value;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for UniqueMembers {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(UniqueMembers)? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(name) = members.next_key::<String>()? {
            if object.contains_key(&name) {
                let message = format!("the member \"{name}\" occurs twice in one object");
                return Err(A::Error::custom(redact(&message)));
            }
            object.insert(name, members.next_value_seed(UniqueMembers)?);
        }
        Ok(Value::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn message_of(text: &str) -> String {
        parse(text.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn a_pasted_pem_keeps_its_lines() {
        let text = "{\"cert\": \"-----BEGIN X-----\r\n\tAA==\n-----END X-----\n\",\n \"snis\": [\"a\"]}";
        let expected = json!({"cert": "-----BEGIN X-----\r\n\tAA==\n-----END X-----\n", "snis": ["a"]});
        assert_eq!(parse(text.as_bytes()).unwrap(), expected);
        // Member names are strings, too.
        assert_eq!(parse(b"{\"a\nb\": 1}").unwrap(), json!({"a\nb": 1}));
    }

    #[test]
    fn raw_control_characters_but_nul_are_accepted() {
        for byte in 0x01..=0x1f_u8 {
            let raw = [b"[\"a", [byte].as_slice(), b"b\"]"].concat();
            assert_eq!(parse(&raw).unwrap(), json!([format!("a{}b", char::from(byte))]), "{byte:#x}");
        }
        assert!(
            message_of("[\"a\u{0}b\"]").starts_with("control character"),
            "{}",
            message_of("[\"a\u{0}b\"]")
        );
        assert_eq!(parse(b"[\"\\u0000\\u007f\x7f\"]").unwrap(), json!(["\u{0}\u{7f}\u{7f}"]));
    }

    #[test]
    fn backslashes_and_quotes_delimit_strings() {
        assert_eq!(
            parse(b"[\"\\\\\n\", \"\\\"\n\\\\\\\"\", \"\n\"]").unwrap(),
            json!(["\\\n", "\"\n\\\"", "\n"])
        );
        assert_eq!(message_of("[\"a\\\nb\"]"), "invalid escape at line 2 column 1");
        for outside in ["[1,\u{1}2]", "[\"a\"\u{b},1]", "\u{c}[]", "[]\u{1f}"] {
            assert!(parse(outside.as_bytes()).is_err(), "{outside:?}");
        }
    }

    #[test]
    fn a_duplicate_member_is_an_error_at_its_position() {
        assert_eq!(
            message_of("{\"a\": 1,\n \"b\": {\"c\": \"x\ny\", \"c\": 2}}"),
            "the member \"c\" occurs twice in one object at line 3 column 7"
        );
        assert!(message_of(r#"{"key": 1, "\u006bey": 2}"#).contains("the member \"key\" occurs twice"));
        assert!(parse(br#"[{"a": 1}, {"a": {"a": 2}}]"#).is_ok());
    }

    #[test]
    fn positions_refer_to_the_original_text() {
        assert_eq!(message_of("{\"a\": \"\n\n\n\", \"b\": nope}"), "expected ident at line 4 column 10");
        assert_eq!(message_of("{\"a\": nope}"), "expected ident at line 1 column 8");
        assert_eq!(message_of("{\"a\": \"\n"), "EOF while parsing a string at line 2 column 1");
        assert_eq!(message_of(""), "EOF while parsing a value at line 1 column 1");
    }

    #[test]
    fn no_error_quotes_a_value() {
        let key = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIJ1hsZ3v\n-----END PRIVATE KEY-----\n";
        for text in [
            format!("{{\"key\": \"{key}\", }}"),
            format!("{{\"key\": \"{key}"),
            format!("{{\"key\": {key}}}"),
            format!("{{\"{key}\": 1, \"{key}\": 2}}"),
            format!("{{\"{0}\": 1, \"{0}\": 2}}", key.replace('\n', "\\n")),
            format!("{{\"key\": \"{key}\0\"}}"),
            key.to_owned(),
        ] {
            let error = message_of(&text);
            assert!(!error.contains("MC4C") && !error.contains("ZGVm"), "{error}");
        }
    }

    #[test]
    fn deep_nesting_is_an_error_and_private_names_are_plain() {
        assert!(message_of(&"[".repeat(100_000)).contains("recursion limit"));
        let text = r#"{"$serde_json::private::RawValue": "{\"a\": 1}"}"#;
        assert_eq!(parse(text.as_bytes()).unwrap()["$serde_json::private::RawValue"], "{\"a\": 1}");
        assert_eq!(parse(b"[1e400]").unwrap_err().to_string(), "number out of range at line 1 column 6");
    }

    fn json_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            "[\u{1}-\u{1f}\\\\\"a-c{}\\[\\],:é]{0,12}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::hash_map("[\u{1}-\u{1f}\\\\\"a-c]{0,6}", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    /// Writes JSON like a shell command that pastes texts, with raw control characters.
    fn pasted(value: &Value) -> String {
        let quoted = |text: &str| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
        match value {
            Value::String(text) => quoted(text),
            Value::Array(items) => format!("[{}]", items.iter().map(pasted).collect::<Vec<_>>().join(",\n ")),
            Value::Object(members) => {
                let member =
                    |(name, value): (&String, &Value)| format!("{}:\t{}", quoted(name), pasted(value));
                format!("{{{}}}", members.iter().map(member).collect::<Vec<_>>().join(",\r\n"))
            }
            plain => plain.to_string(),
        }
    }

    proptest! {
        /// JSON without raw control characters is parsed unchanged, as serde_json does.
        #[test]
        fn valid_json_is_not_escaped(value in json_value()) {
            for text in [value.to_string(), format!("{value:#}")] {
                prop_assert_eq!(count_raw_controls(text.as_bytes()), 0);
                prop_assert_eq!(&parse(text.as_bytes()).unwrap(), &value);
            }
        }

        #[test]
        fn raw_control_characters_parse_like_escapes(value in json_value()) {
            prop_assert_eq!(parse(pasted(&value).as_bytes()).unwrap(), value);
        }

        /// For any bytes: one allocation, no raw control character left, and accepted only if the
        /// escaped text is JSON.
        #[test]
        fn any_bytes_are_escaped_or_rejected(text in "[\u{0}-\u{1f}\\\\\"a{}\\[\\],: 1]{0,40}") {
            let count = count_raw_controls(text.as_bytes());
            let escaped = escape(text.as_bytes(), count);
            prop_assert_eq!(escaped.len(), text.len() + count * (ESCAPE - 1));
            prop_assert_eq!(count_raw_controls(&escaped), 0);
            let strict = serde_json::from_slice::<Value>(&escaped);
            match parse(text.as_bytes()) {
                Ok(value) => prop_assert_eq!(value, strict.unwrap()),
                Err(error) => prop_assert!(strict.is_err() || error.message.contains("occurs twice")),
            }
        }
    }
}
